//! Networks. Two networks may have overlapping subnets; an address is unique within one.
//!
//! Deletion is two commits: first the network takes no more ports, then, when none is left in a view that knows of
//! every port made before, it goes. A creation that raced with the first commit is seen by the second look.

use super::list::find;
use super::{Draft, ListQuery, Ops, OpsError, View};
use crate::model::NetworkRecord;
use amphi_api::network::{DEFAULT_MTU, Network, NetworkCreate};
use amphi_api::{NetworkId, ProjectId};
use jiff::Timestamp;

impl Ops {
    pub async fn create_network(
        &self,
        scope: ProjectId,
        request: &NetworkCreate,
    ) -> Result<Network, OpsError> {
        request.check()?;
        let record = NetworkRecord {
            id: NetworkId::new(),
            project: scope,
            name: request.name.clone(),
            subnet: request.subnet.clone(),
            mtu: request.mtu.unwrap_or(DEFAULT_MTU),
            closing: false,
            created_at: Timestamp::now(),
        };
        self.transact(|_| {
            let mut draft = Draft::default();
            draft.create(&record);
            Ok((draft, ()))
        })
        .await?;
        self.network(scope, record.id)
    }

    pub fn network(&self, scope: ProjectId, id: NetworkId) -> Result<Network, OpsError> {
        let view = self.world().read();
        Ok(network_view(&view, find(&view.networks, scope, id)?))
    }

    pub fn networks(&self, scope: ProjectId, query: &ListQuery) -> Result<Vec<Network>, OpsError> {
        let view = self.world().read();
        let rows = query.rows(&view.networks, scope, |_| true)?;
        Ok(rows.into_iter().map(|row| network_view(&view, row)).collect())
    }

    pub async fn delete_network(&self, scope: ProjectId, id: NetworkId) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = find(&view.networks, scope, id)?;
            refuse_used(view, id)?;
            let mut draft = Draft::default();
            if !row.closing {
                draft.update(row, &NetworkRecord { closing: true, ..(*row.record).clone() });
            }
            Ok((draft, ()))
        })
        .await?;
        self.transact(|view| {
            let row = find(&view.networks, scope, id)?;
            let mut draft = Draft::default();
            let used = refuse_used(view, id);
            match &used {
                Ok(()) => draft.delete(row),
                Err(_) => draft.update(row, &NetworkRecord { closing: false, ..(*row.record).clone() }),
            }
            Ok((draft, used))
        })
        .await?
    }
}

fn refuse_used(view: &View, id: NetworkId) -> Result<(), OpsError> {
    match view.addresses(id).map(|ports| ports.len()) {
        Some(count) if count > 0 => Err(OpsError::conflict(format!("{count} ports are on the network"))),
        _ => Ok(()),
    }
}

fn network_view(view: &View, record: &NetworkRecord) -> Network {
    Network {
        id: record.id,
        project: record.project,
        name: record.name.clone(),
        subnet: record.subnet.clone(),
        mtu: record.mtu,
        addresses_used: 1 + view.addresses(record.id).map_or(0, |ports| ports.len()) as u64,
        created_at: record.created_at,
    }
}
