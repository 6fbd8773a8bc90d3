//! A network's addresses: who has which, and which of the others nobody has had for the longest time. Pure, kept by the
//! view as ports come and go; no store knows of it. After a start it knows the ports that are there, in the order of their
//! making, and goes on after the youngest: what was released before lies behind that, as a rule.
//!
//! Why it matters: who has asked for an address remembers its MAC for up to a minute. Given again soon, with the MAC of
//! another port, the address is answered by nobody meanwhile.

use crate::model::network::{Pool, SubnetRecord};
use amphi_api::{PortId, SubnetId};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// Addresses looked at for one that nobody has had, before one that was released long ago is taken instead.
const NEAR: usize = 1024;
/// Released addresses that are remembered of a network. A subnet of IPv6 has no end of them.
const RELEASED_MAX: usize = 1 << 16;

#[derive(Clone, Debug, Default)]
pub struct AddressBook {
    taken: BTreeMap<IpAddr, PortId>,
    /// By subnet: what was given last.
    last: HashMap<SubnetId, IpAddr>,
    /// Counts releases.
    clock: u64,
    released: BTreeMap<IpAddr, u64>,
    by_age: BTreeMap<u64, IpAddr>,
}

impl AddressBook {
    /// Taken addresses with their ports; a gateway without a port is not among them.
    pub fn taken(&self) -> &BTreeMap<IpAddr, PortId> {
        &self.taken
    }

    pub fn port_at(&self, address: IpAddr) -> Option<PortId> {
        self.taken.get(&address).copied()
    }

    /// The port has it from now on.
    pub fn give(&mut self, address: IpAddr, port: PortId, subnet: Option<SubnetId>) {
        let before = self.taken.insert(address, port);
        if let Some(at) = self.released.remove(&address) {
            self.by_age.remove(&at);
        }
        if let Some(subnet) = subnet.filter(|_| before.is_none()) {
            self.last.insert(subnet, address);
        }
    }

    /// The port has it no more, if it had.
    pub fn release(&mut self, address: IpAddr, port: PortId) {
        if self.taken.get(&address) != Some(&port) {
            return;
        }
        self.taken.remove(&address);
        self.clock += 1;
        self.released.insert(address, self.clock);
        self.by_age.insert(self.clock, address);
        if self.released.len() > RELEASED_MAX
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.released.remove(&oldest);
        }
    }

    /// The subnet goes.
    pub fn forget_subnet(&mut self, subnet: &SubnetRecord) {
        self.last.remove(&subnet.id);
        let gone: Vec<IpAddr> = self.released.keys().filter(|a| subnet.cidr.contains(*a)).copied().collect();
        for address in gone {
            if let Some(at) = self.released.remove(&address) {
                self.by_age.remove(&at);
            }
        }
    }

    /// A free address of the subnet's pools: one that nobody has had, going on after the one given last; else the one
    /// that was released first. `usable`: whether it may be given at all.
    pub fn free(&self, subnet: &SubnetRecord, usable: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let pools = || subnet.pools.iter().filter(|pool| !pool.is_empty());
        let free = |address: &IpAddr| !self.taken.contains_key(address) && usable(*address);
        let last = self.last.get(&subnet.id).copied();
        let later = pools().filter_map(|pool| Some((pool, from(pool, last)?)));
        let onward = || later.clone().flat_map(|(pool, after)| pool.addresses(after));
        let around = || onward().chain(pools().flat_map(|pool| pool.addresses(None)));
        let fresh = |address: &IpAddr| free(address) && !self.released.contains_key(address);
        let rested = || self.by_age.values().copied().find(|a| pools().any(|p| p.contains(*a)) && free(a));
        around().take(NEAR).find(fresh).or_else(rested).or_else(|| around().find(free))
    }
}

/// Where to go on in a pool after the address given last; none: all of it lies before that.
fn from(pool: &Pool, last: Option<IpAddr>) -> Option<Option<IpAddr>> {
    match last {
        Some(last) if pool.contains(last) => Some(Some(last)),
        Some(last) if pool.end < last => None,
        _ => Some(None),
    }
}
