//! The Docker networks that stand for Amphi networks: made when a set first needs one, removed when no container
//! names one any more. Refuses to change one that exists.

use super::ENGINE;
use super::engine::Engine;
use super::labels;
use super::render::render_network;
use crate::instance::{DriverError, PortAttachment};
use bollard::models::{NetworkCreateRequest, NetworkDisconnectRequest};
use bollard::query_parameters::{
    InspectNetworkOptions, ListContainersOptionsBuilder, ListNetworksOptionsBuilder,
};
use ipnet::IpNet;
use std::collections::{HashMap, HashSet};
use tokio::sync::{RwLock, RwLockReadGuard};

#[derive(Default)]
pub struct Networks {
    /// Held for reading from the look for a network until a container names it, for writing while unused ones go.
    sweeping: RwLock<()>,
    /// Docker keeps two networks of one name apart by id alone: never make one twice.
    making: tokio::sync::Mutex<()>,
}

impl Networks {
    /// Makes what is missing of the ports' networks. They stay while the answer is held.
    pub async fn ensure(
        &self,
        engine: &Engine,
        ports: &[PortAttachment],
    ) -> Result<RwLockReadGuard<'_, ()>, DriverError> {
        check(ports)?;
        let guard = self.sweeping.read().await;
        for port in ports {
            let request = render_network(port);
            if exists(engine, &request.name).await? {
                continue;
            }
            let _one = self.making.lock().await;
            if !exists(engine, &request.name).await? {
                create(engine, request).await?;
            }
        }
        Ok(guard)
    }

    /// Removes our networks that no container names, running or not, ours or not. True: Docker takes one of them for used,
    /// as it does for a moment after many containers went at once.
    pub async fn sweep(&self, engine: &Engine) -> Result<bool, DriverError> {
        let _alone = self.sweeping.write().await;
        let ours = list(engine, HashMap::from([("label", vec![labels::NETWORK])])).await?;
        if ours.is_empty() {
            return Ok(false);
        }
        let options = ListContainersOptionsBuilder::default().all(true).build();
        let containers = engine
            .call("list containers", engine.limits.call, |docker| async move {
                docker.list_containers(Some(options)).await
            })
            .await?;
        let known: HashSet<String> = containers.iter().filter_map(|container| container.id.clone()).collect();
        let used: HashSet<String> = containers
            .into_iter()
            .filter_map(|container| container.network_settings?.networks)
            .flat_map(HashMap::into_keys)
            .collect();
        let mut left = false;
        for name in ours.iter().filter(|name| !used.contains(*name)) {
            let doing = format!("remove network {name}");
            let removed = engine
                .find(&doing, engine.limits.call, |docker| async move { docker.remove_network(name).await })
                .await;
            match removed {
                // Or somebody took it up meanwhile.
                Err(DriverError::EngineRefused { message, .. }) if message.contains("active endpoints") => {
                    left = true;
                    let_go(engine, name, &known).await?;
                }
                other => drop(other?),
            }
        }
        Ok(left)
    }
}

/// Takes the ends of containers that are gone out of a network: of many that go at once, libnetwork now and then forgets one.
async fn let_go(engine: &Engine, network: &str, known: &HashSet<String>) -> Result<(), DriverError> {
    let doing = format!("look into network {network}");
    let found = engine
        .find(&doing, engine.limits.call, |docker| async move {
            docker.inspect_network(network, None::<InspectNetworkOptions>).await
        })
        .await?;
    let ends = found.and_then(|found| found.containers).unwrap_or_default();
    tracing::debug!(network, ?ends, "Docker takes a network for used that no container names");
    for (id, end) in ends {
        let Some(name) = end.name.filter(|_| !known.contains(&id)) else { continue };
        tracing::info!(network, name, "an end of a container that is gone is taken out of its network");
        let doing = format!("disconnect {name} from network {network}");
        let request = NetworkDisconnectRequest { container: name, force: Some(true) };
        let gone = engine
            .find(&doing, engine.limits.call, |docker| async move {
                docker.disconnect_network(network, request).await
            })
            .await;
        // It may have gone by itself; what has not is seen by the next sweep.
        if let Err(error) = gone {
            tracing::debug!(%error, "an end stays");
        }
    }
    Ok(())
}

/// What libnetwork cannot do is told before anything is made: one container twice in a network, or in two networks
/// whose subnets overlap.
fn check(ports: &[PortAttachment]) -> Result<(), DriverError> {
    for (at, port) in ports.iter().enumerate() {
        let (own, overlaps) = (port.subnet.trunc(), |other: &IpNet| {
            port.subnet.contains(&other.trunc()) || other.contains(&port.subnet.trunc())
        });
        if let Some(other) = ports[..at].iter().find(|other| overlaps(&other.subnet)) {
            return Err(DriverError::EngineRefused {
                engine: ENGINE,
                doing: format!("plug port {}", port.id),
                message: format!(
                    "its subnet {own} overlaps with {} of port {}, and a container takes only one port of a subnet",
                    other.subnet.trunc(),
                    other.id
                ),
            });
        }
    }
    Ok(())
}

async fn exists(engine: &Engine, name: &str) -> Result<bool, DriverError> {
    let found = list(engine, HashMap::from([("name", vec![name])])).await?;
    // Docker's filter takes parts of names too.
    Ok(found.iter().any(|found| found == name))
}

async fn list(engine: &Engine, filters: HashMap<&str, Vec<&str>>) -> Result<Vec<String>, DriverError> {
    let options = ListNetworksOptionsBuilder::default().filters(&filters).build();
    let networks = engine
        .call("list networks", engine.limits.call, |docker| async move {
            docker.list_networks(Some(options)).await
        })
        .await?;
    Ok(networks.into_iter().filter_map(|network| network.name).collect())
}

async fn create(engine: &Engine, request: NetworkCreateRequest) -> Result<(), DriverError> {
    let doing = format!("create network {}", request.name);
    engine
        .call(&doing, engine.limits.call, |docker| async move { docker.create_network(request).await })
        .await?;
    Ok(())
}
