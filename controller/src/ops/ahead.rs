//! What has been decided and is on its way to the store: claims, addresses, and whatever counts against a quota. The
//! next decision sees it, so that many of them share one durable commit and no two take the same room.
//!
//! It is only ever a guess at what the store will say: a commit still compares versions, and one whose predecessor
//! failed fails with it and is decided anew. Refuses to be shown: clients and hosts see what is durable.

use super::view::{Row, Sums, View};
use crate::model::*;
use crate::store::{Op, Txn};
use amphi_api::host::Claims;
use amphi_api::{HostId, NetworkId, PortId, ProjectId};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

pub type Ticket = u64;

#[derive(Debug, Default)]
pub struct Ahead {
    last: Ticket,
    claims: HashMap<HostId, (Ticket, Row<ClaimRecord>)>,
    /// New things that quotas count, by key.
    things: BTreeMap<String, (Ticket, ProjectId, Sums)>,
    addresses: HashMap<Ticket, Vec<(NetworkId, IpAddr, PortId)>>,
}

impl Ahead {
    /// A record of this key is in the tables now.
    pub(super) fn arrived(&mut self, key: &str) {
        self.things.remove(key);
    }

    fn of(&self, prefix: &str, project: ProjectId) -> impl Iterator<Item = Sums> {
        let kind = self.things.range(prefix.to_owned()..).take_while(move |(key, _)| key.starts_with(prefix));
        kind.filter(move |(_, (_, owner, _))| *owner == project).map(|(_, (_, _, sums))| *sums)
    }
}

impl View {
    /// A host's claims with what is on its way, as of the version that they will have.
    pub(super) fn claim_row(&self, host: HostId) -> Option<Row<ClaimRecord>> {
        let durable = self.claims.get(host);
        let ahead = self.ahead.claims.get(&host).map(|(_, row)| row);
        match (durable, ahead) {
            (Some(durable), Some(ahead)) if durable.version >= ahead.version => Some(durable.clone()),
            (_, Some(ahead)) => Some(ahead.clone()),
            (durable, None) => durable.cloned(),
        }
    }

    /// Whether claims are on their way, which may yet come to nothing.
    pub(super) fn awaits_promises(&self) -> bool {
        !self.ahead.claims.is_empty()
    }

    pub fn claims_of(&self, host: HostId) -> Claims {
        self.claim_row(host).map(|row| row.claims).unwrap_or_default()
    }

    /// How many things of a kind a project has or is about to have.
    pub fn count_with_ahead<R: Record>(&self, table: &super::Table<R>, project: ProjectId) -> usize {
        table.count_of(project) + self.ahead.of(R::PREFIX, project).count()
    }

    /// What a project's things that are on their way add up to.
    pub(super) fn sums_ahead(&self, project: ProjectId) -> impl Iterator<Item = Sums> {
        let kinds = [InstanceRecord::PREFIX, VolumeRecord::PREFIX, SnapshotRecord::PREFIX];
        kinds.into_iter().flat_map(move |kind| self.ahead.of(kind, project))
    }

    /// Takes a transaction in before it is durable. `Self::unstage` follows, whatever comes of it.
    pub(super) fn stage(&mut self, txn: &Txn) -> Ticket {
        self.ahead.last += 1;
        let ticket = self.ahead.last;
        for op in &txn.ops {
            if let Op::Put { key, value, .. } = op {
                self.stage_put(ticket, key, value);
            }
        }
        ticket
    }

    fn stage_put(&mut self, ticket: Ticket, key: &str, value: &Value) {
        if key.starts_with(ClaimRecord::PREFIX) {
            let Ok(record) = serde_json::from_value::<ClaimRecord>(value.clone()) else { return };
            let host = record.host;
            let version = self.claim_row(host).map_or(0, |row| row.version) + 1;
            self.ahead.claims.insert(host, (ticket, Row { record: Arc::new(record), version }));
            self.reclaim(host);
        } else if let Some(rest) = key.strip_prefix("/address/") {
            let read = || {
                let (network, address) = rest.split_once('/')?;
                let port: PortId = serde_json::from_value(value.clone()).ok()?;
                Some((network.parse().ok()?, address.parse().ok()?, port))
            };
            let Some((network, address, port)) = read() else { return };
            if self.hold_address(network, address, port) {
                self.ahead.addresses.entry(ticket).or_default().push((network, address, port));
            }
        } else if let Some(sums) = sums_of(key, value) {
            let known = match value["project"].as_str().and_then(|text| text.parse().ok()) {
                Some(project) if !self.has(key) => project,
                _ => return,
            };
            self.ahead.things.insert(key.to_owned(), (ticket, known, sums));
        }
    }

    /// The transaction is in the tables, or has come to nothing.
    pub(super) fn unstage(&mut self, ticket: Ticket) {
        let gone: Vec<HostId> =
            self.ahead.claims.iter().filter(|(_, (of, _))| *of == ticket).map(|(host, _)| *host).collect();
        for host in gone {
            self.ahead.claims.remove(&host);
            self.reclaim(host);
        }
        self.ahead.things.retain(|_, (of, ..)| *of != ticket);
        for (network, address, port) in self.ahead.addresses.remove(&ticket).unwrap_or_default() {
            if self.ports.get(port).is_none() {
                self.let_go_of_address(network, address, port);
            }
        }
    }
}

/// What a thing counts, if quotas count it.
fn sums_of(key: &str, value: &Value) -> Option<Sums> {
    let number = |field: &str| value[field].as_u64().unwrap_or(0);
    let none = Sums::default();
    if key.starts_with(InstanceRecord::PREFIX) {
        Some(Sums { vcpus: number("vcpus"), ram_mib: number("memory_mib"), ..none })
    } else if key.starts_with(VolumeRecord::PREFIX) {
        Some(Sums { volume_gib: number("size_gib"), ..none })
    } else if key.starts_with(SnapshotRecord::PREFIX) {
        Some(Sums { snapshot_gib: number("size_gib"), ..none })
    } else {
        key.starts_with(ServerGroupRecord::PREFIX).then_some(none)
    }
}
