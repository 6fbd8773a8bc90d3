//! Where services answer: of a group, of one instance, of all that carry a label. Followed by version: a digest of the answer,
//! so that any controller can be asked, and one that was started anew.

use super::health;
use crate::model::*;
use crate::ops::list::find;
use crate::ops::{Ops, OpsError, View, networks};
use amphi_api::group::{Endpoint, Endpoints};
use amphi_api::{InstanceId, NetworkId, ProjectId, ScalingGroupId};
use sha2::{Digest, Sha256};
use std::time::Duration;
use tokio::time::Instant;

/// Whoever follows looks again no sooner than this after a change: changes come in swarms.
const REST: Duration = Duration::from_millis(50);

/// Whose endpoints.
#[derive(Clone, Debug, PartialEq)]
pub enum EndpointQuery {
    Group(ScalingGroupId),
    Instance(InstanceId),
    /// All of a project whose metadata has this value under this key.
    Label(String, String),
}

impl Ops {
    /// `ports`: in the place of the group's own. `network`: a name or an id; none: the instance's first.
    pub fn endpoints(
        &self,
        scope: ProjectId,
        of: &EndpointQuery,
        ports: &[u16],
        network: Option<&str>,
    ) -> Result<Endpoints, OpsError> {
        let view = self.world().read();
        let network = match network {
            Some(text) => Some(networks::named(&view, scope, "network", text)?.id),
            None => None,
        };
        let instances: Vec<InstanceId> = match of {
            EndpointQuery::Group(id) => {
                find(&view.scaling_groups, scope, *id)?.slots.values().map(|slot| slot.instance).collect()
            }
            EndpointQuery::Instance(id) => vec![find(&view.instances, scope, *id)?.id],
            EndpointQuery::Label(key, value) => view
                .instances
                .of_project(scope)
                .filter(|row| row.intent == Intent::Live && row.metadata.get(key) == Some(value))
                .map(|row| row.id)
                .collect(),
        };
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for row in instances.into_iter().filter_map(|id| view.instances.get(id)) {
            endpoints.extend(of_instance(&view, row, ports, network));
        }
        let text = serde_json::to_vec(&endpoints).map_err(|e| OpsError::Internal(e.to_string()))?;
        let version = hex::encode(&Sha256::digest(&text)[..12]);
        Ok(Endpoints { version, endpoints })
    }

    /// The endpoints as soon as they are others than `version` says, or after so long.
    pub async fn follow_endpoints(
        &self,
        scope: ProjectId,
        of: &EndpointQuery,
        (ports, network): (&[u16], Option<&str>),
        version: &str,
        patience: Duration,
    ) -> Result<Endpoints, OpsError> {
        let deadline = Instant::now() + patience;
        let mut changes = self.world().changes();
        loop {
            changes.borrow_and_update();
            let seen = self.endpoints(scope, of, ports, network)?;
            if seen.version != version {
                return Ok(seen);
            }
            match tokio::time::timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => tokio::time::sleep(REST).await,
                Ok(Err(_)) | Err(_) => return Ok(seen),
            }
        }
    }
}

fn of_instance(
    view: &View,
    row: &InstanceRecord,
    ports: &[u16],
    network: Option<NetworkId>,
) -> Vec<Endpoint> {
    let place = row.server.scaling;
    let group = place.and_then(|place| view.scaling_groups.get(place.group));
    let slot = group.and_then(|g| g.slots.get(&place?.index)).filter(|slot| slot.instance == row.id);
    let reason = match slot.and_then(Slot::withdrawn) {
        Some(why) => Some(why.to_owned()),
        None => health::look(view, row).reason,
    };
    let ports = match (ports.is_empty(), group) {
        (true, Some(group)) => group.ports.clone(),
        _ => ports.to_vec(),
    };
    let endpoint = |address| Endpoint {
        instance: row.id,
        name: row.name.clone(),
        address,
        ports: ports.clone(),
        ready: reason.is_none(),
        reason: reason.clone(),
        group: group.map(|g| g.name.clone()),
        index: place.map(|p| p.index),
        revision: slot.map(|s| s.revision).or(place.map(|p| p.revision)),
        metadata: row.metadata.clone(),
    };
    health::addresses(view, row, network).into_iter().map(endpoint).collect()
}
