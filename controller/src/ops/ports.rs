//! Ports: shown and listed. They come and go with their instances.

use super::list::find;
use super::{ListQuery, Ops, OpsError};
use crate::model::PortRecord;
use amphi_api::network::Port;
use amphi_api::{InstanceId, PortId, ProjectId};

impl Ops {
    pub fn port(&self, scope: ProjectId, id: PortId) -> Result<Port, OpsError> {
        Ok(port_view(find(&self.world().read().ports, scope, id)?))
    }

    /// All of the project, or those of one instance.
    pub fn ports(
        &self,
        scope: ProjectId,
        instance: Option<InstanceId>,
        query: &ListQuery,
    ) -> Result<Vec<Port>, OpsError> {
        let view = self.world().read();
        let rows = query.rows(&view.ports, scope, |p| instance.is_none_or(|id| p.instance == id))?;
        Ok(rows.into_iter().map(|row| port_view(row)).collect())
    }
}

fn port_view(record: &PortRecord) -> Port {
    Port {
        id: record.id,
        network: record.network,
        instance: record.instance,
        mac: record.mac.clone(),
        address: record.address,
        security_groups: record.security_groups.clone(),
    }
}
