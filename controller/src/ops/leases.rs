//! What the records and the leases have to tell each other: who the hosts are, and which of them fence themselves.

use super::{Ops, OpsError};
use crate::leases::{Known, KnownHost};
use crate::model::HostRecord;
use crate::ops::Draft;
use amphi_api::HostId;
use amphi_api::lease::{LEASE_PORT, VOTERS_MAX};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

impl Ops {
    /// Tells the leases who the hosts are. The oldest hosts vote: the list of voters changes as little as can be.
    pub fn tell_leases(&self) {
        let view = self.world().read();
        let mut ids: Vec<HostId> = view.hosts.iter().map(|host| host.id).collect();
        ids.sort_unstable();
        let voters: BTreeSet<HostId> = ids.into_iter().take(VOTERS_MAX).collect();
        let known = |host: &HostRecord| {
            let address = host.spec.as_ref().and_then(|spec| spec.address.parse::<IpAddr>().ok());
            let (voter, barred) = (voters.contains(&host.id), host.barred_since.is_some());
            let known = Known { voter, enforces: host.leased, barred };
            KnownHost {
                name: host.name.clone(),
                address: address.map(|ip| SocketAddr::new(ip, LEASE_PORT)),
                known,
            }
        };
        let hosts: BTreeMap<HostId, KnownHost> =
            view.hosts.iter().map(|host| (host.id, known(host))).collect();
        drop(view);
        self.leases().know(hosts, Instant::now());
    }

    /// Records which hosts fence themselves: before anything rests on it, and no longer than it does.
    pub async fn record_leases(&self) -> Result<(), OpsError> {
        let (enforcing, on) = self.leases().enforcing();
        let changed: Vec<(HostId, bool)> = {
            let view = self.world().read();
            let now = |host: &HostRecord| on && (host.leased || enforcing.contains(&host.id));
            view.hosts.iter().filter(|h| h.leased != now(h)).map(|h| (h.id, now(h))).collect()
        };
        for (host, leased) in changed {
            self.transact(|view| {
                let mut draft = Draft::default();
                if let Some(row) = view.hosts.get(host).filter(|row| row.leased != leased) {
                    draft.update(row, &HostRecord { leased, ..(*row.record).clone() });
                }
                Ok((draft, ()))
            })
            .await?;
        }
        if !on {
            enforcing.into_iter().for_each(|host| self.leases().free(host));
        }
        Ok(())
    }
}
