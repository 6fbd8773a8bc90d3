//! Keeps OVN's northbound database what the records say: all networks, ports and security groups, as a whole.
//!
//! A port may be bound by the chassis of its instance's host and by no other. A port of an instance that is being
//! deleted stays where it is until the host has let it go.

use super::Task;
use super::topology::topology;
use crate::network::{Northbound, Topology};
use crate::ops::Ops;
use crate::store::Revision;
use anyhow::Context;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// How often the database is compared although neither side has changed.
const COMPARE: Duration = Duration::from_secs(10);

/// What the database was last made to say.
struct Projected {
    revision: Revision,
    topology: Topology,
    at: Instant,
}

pub struct Ovn {
    pub ops: Arc<Ops>,
    northbound: Northbound,
    last: Mutex<Option<Projected>>,
}

impl Ovn {
    pub fn new(ops: Arc<Ops>, endpoint: &str) -> anyhow::Result<Self> {
        let northbound = Northbound::open(endpoint).with_context(|| format!("ovn_nb = {endpoint:?}"))?;
        Ok(Self { ops, northbound, last: Mutex::new(None) })
    }
}

#[async_trait]
impl Task for Ovn {
    fn name(&self) -> &'static str {
        "ovn"
    }
    fn period(&self) -> Duration {
        Duration::from_secs(1)
    }
    async fn look(&self) -> anyhow::Result<()> {
        let mut last = self.last.lock().await;
        let recent = last.as_mut().filter(|last| last.at.elapsed() < COMPARE);
        let (revision, topology) = {
            let view = self.ops.world().read();
            if recent.as_ref().is_some_and(|last| last.revision == view.network_changed()) {
                return Ok(());
            }
            (view.network_changed(), topology(&view))
        };
        // Most changes of the records are no news to the network.
        if let Some(recent) = recent.filter(|last| last.topology == topology) {
            recent.revision = revision;
            return Ok(());
        }
        *last = None;
        let operations = self.northbound.project(&topology).await?;
        if operations > 0 {
            tracing::debug!(operations, "northbound database brought in line");
        }
        *last = Some(Projected { revision, topology, at: Instant::now() });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::VolumeFate;
    use crate::ops::tests::{Cloud, P};
    use serde_json::json;

    #[tokio::test]
    async fn a_port_is_where_its_instance_is_until_it_is_let_go() {
        let (cloud, h1, h2) = Cloud::furnished().await;
        let chassis = |cloud: &Cloud| {
            let topology = topology(&cloud.ops.world().read());
            topology.ports.into_iter().map(|p| p.chassis.unwrap()).collect::<Vec<_>>()
        };
        let made = cloud.create(json!({"host": "h1", "security_groups": ["web"]})).await.unwrap();
        let told = topology(&cloud.ops.world().read());
        assert_eq!((told.networks.len(), told.groups.len()), (1, 1));
        assert_eq!(told.ports[0].groups, [told.groups[0].id]);
        assert_eq!(told.ports[0].addresses[0].1, made.addresses[0].address);
        assert_eq!(chassis(&cloud), ["h1"]);
        cloud.down(h1).await;
        assert_eq!(chassis(&cloud), ["h1"], "a silent host may still be forwarding");
        cloud.ops.evacuate(h1).await.unwrap();
        assert_eq!(chassis(&cloud), ["h2"]);
        cloud.ops.delete_instance(P, made.id, VolumeFate::Keep).await.unwrap();
        assert_eq!(chassis(&cloud), ["h2"]);
        cloud.obey(h2).await;
        assert!(chassis(&cloud).is_empty());
    }
}
