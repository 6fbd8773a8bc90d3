//! All hosts, kept in the order in which each scheduler would look at them, so that a decision among ten thousand
//! looks at a few. Owns the order, and follows every change of a host or its claims in logarithmic time; decides as
//! [`place`](super::place) does, which a test compares.
//!
//! The order is by the part of the score that does not depend on the request. The rest of the score has a bound: images
//! in the cache bring at most so much, and only to hosts that have them, which stand in orders of their own; a server
//! group brings something only to hosts that run members. So each walk ends as soon as no host further down can win.

use super::{Best, HostSight, NoRoom, Placement, Policy, Request, SCHEDULERS, body_for, filters};
use crate::model::HostRecord;
use amphi_api::host::{Claims, HostState};
use amphi_api::instance::BodyKind;
use amphi_api::placement::Qos;
use amphi_api::{HostId, ImageId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Hosts that a refusal tells of.
const TOLD: usize = 16;

/// A host's place in each order.
type Keys = [i64; SCHEDULERS.len()];
type Orders = [BTreeSet<(i64, HostId)>; SCHEDULERS.len()];

/// Moves a host from one place to another; none: it is in no order.
fn place_in(orders: &mut Orders, host: HostId, before: Option<Keys>, now: Option<Keys>) {
    for (at, order) in orders.iter_mut().enumerate() {
        let (before, now) = (before.map(|keys| keys[at]), now.map(|keys| keys[at]));
        if before != now {
            before.map(|key| order.remove(&(key, host)));
            now.map(|key| order.insert((key, host)));
        }
    }
}

#[derive(Debug, Default)]
pub struct Fleet {
    policy: Policy,
    hosts: HashMap<HostId, Entry>,
    /// By scheduler: the greatest standing score first (negated), then the lowest id.
    orders: Orders,
    images: HashMap<HostId, BTreeMap<ImageId, u32>>,
    starting: HashMap<HostId, u32>,
    /// The same orders of the hosts that have an image.
    holders: HashMap<ImageId, Orders>,
    /// Hosts that run sets, and those that run VMs.
    runs: [usize; 2],
}

#[derive(Debug)]
struct Entry {
    host: Arc<HostRecord>,
    claims: Claims,
    zone: String,
    metadata: Vec<(String, String)>,
    /// None: in no order yet.
    keys: Option<Keys>,
    runs: [bool; 2],
}

impl Fleet {
    pub fn new(policy: Policy) -> Self {
        Self { policy, ..Self::default() }
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Another policy: every host is weighed anew.
    pub fn set_policy(&mut self, policy: Policy) {
        if self.policy != policy {
            self.policy = policy;
            let all: Vec<HostId> = self.hosts.keys().copied().collect();
            all.into_iter().for_each(|id| self.weigh(id));
        }
    }

    /// A host as it is now, with its zone, the metadata of its aggregates, and what is claimed of it.
    pub fn set_host(
        &mut self,
        host: Arc<HostRecord>,
        claims: Claims,
        zone: String,
        metadata: Vec<(String, String)>,
    ) {
        let id = host.id;
        let (keys, runs) = self.hosts.get(&id).map(|e| (e.keys, e.runs)).unwrap_or_default();
        self.hosts.insert(id, Entry { host, claims, zone, metadata, keys, runs });
        self.weigh(id);
    }

    pub fn set_claims(&mut self, host: HostId, claims: Claims) {
        if let Some(entry) = self.hosts.get_mut(&host)
            && entry.claims != claims
        {
            entry.claims = claims;
            self.weigh(host);
        }
    }

    pub fn remove(&mut self, host: HostId) {
        if let Some(entry) = self.hosts.remove(&host) {
            self.relist(host, entry.keys, None);
            for (count, runs) in self.runs.iter_mut().zip(entry.runs) {
                *count -= usize::from(runs);
            }
        }
    }

    /// A body made of these images comes to the host, or goes.
    pub fn count_images(&mut self, host: HostId, images: &[ImageId], comes: bool) {
        let keys = self.hosts.get(&host).and_then(|entry| entry.keys);
        let here = self.images.entry(host).or_default();
        for image in images {
            let count = here.entry(*image).or_default();
            *count = if comes { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                here.remove(image);
                if let Some(holders) = self.holders.get_mut(image) {
                    place_in(holders, host, keys, None);
                    if holders[0].is_empty() {
                        self.holders.remove(image);
                    }
                }
            } else if *count == 1 && comes {
                place_in(self.holders.entry(*image).or_default(), host, None, keys);
            }
        }
        if here.is_empty() {
            self.images.remove(&host);
        }
    }

    /// A body is ordered on the host, or is no longer waited for.
    pub fn count_starting(&mut self, host: HostId, comes: bool) {
        let count = self.starting.entry(host).or_default();
        *count = if comes { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            self.starting.remove(&host);
        }
        self.weigh(host);
    }

    pub fn sights(&self) -> impl Iterator<Item = HostSight<'_>> {
        self.hosts.values().map(|entry| self.sight(entry))
    }

    fn sight<'a>(&'a self, entry: &'a Entry) -> HostSight<'a> {
        let host = &entry.host;
        HostSight {
            id: host.id,
            name: &host.name,
            state: if host.forced_down || host.barred_since.is_some() { HostState::Down } else { host.state },
            spec: host.spec.as_ref(),
            claims: entry.claims,
            disabled: host.closed_because(),
            best_effort: host.best_effort,
            zone: &entry.zone,
            metadata: &entry.metadata,
            images: self.images.get(&host.id),
            starting: self.starting.get(&host.id).copied().unwrap_or(0),
        }
    }

    /// Moves a host in every order that it is in.
    fn relist(&mut self, host: HostId, before: Option<Keys>, now: Option<Keys>) {
        if before == now {
            return;
        }
        place_in(&mut self.orders, host, before, now);
        for image in self.images.get(&host).into_iter().flat_map(BTreeMap::keys) {
            place_in(self.holders.entry(*image).or_default(), host, before, now);
        }
    }

    /// Puts a host where it belongs in every order.
    fn weigh(&mut self, id: HostId) {
        let Some(entry) = self.hosts.get(&id) else { return };
        let sight = self.sight(entry);
        let mut keys = [0; SCHEDULERS.len()];
        for (key, scheduler) in keys.iter_mut().zip(SCHEDULERS) {
            // What takes nothing more comes last, so that nobody walks past it.
            *key = if filters::exhausted(&sight, &self.policy) {
                i64::MAX
            } else {
                -scheduler.standing(&sight, &self.policy)
            };
        }
        let up = sight.state == HostState::Up;
        let runs = [BodyKind::Set, BodyKind::Vm].map(|kind| up && filters::body_engine(&sight, kind).is_ok());
        let Some(entry) = self.hosts.get_mut(&id) else { return };
        for ((count, before), now) in self.runs.iter_mut().zip(entry.runs).zip(runs) {
            *count = *count + usize::from(now) - usize::from(before);
        }
        entry.runs = runs;
        let before = entry.keys.replace(keys);
        self.relist(id, before, Some(keys));
    }

    /// The earliest body that any host at all may run.
    fn least_body(&self, request: &Request) -> usize {
        let runs = |kind: &BodyKind| match kind {
            BodyKind::Set => self.runs[0] > 0,
            BodyKind::Vm => self.runs[1] > 0,
        };
        request.bodies.iter().position(runs).unwrap_or(0)
    }

    /// Chooses a host and a body.
    pub fn place(&self, request: &Request) -> Result<Placement, NoRoom> {
        let scheduler = self.policy.scheduler_of(request);
        let index = request.scheduler.unwrap_or(self.policy.scheduler).index();
        let mut best: Option<Best> = None;
        let look = |id: &HostId, best: &mut Option<Best>| {
            let Some(entry) = self.hosts.get(id) else { return };
            let sight = self.sight(entry);
            if let Ok(body) = body_for(&sight, request, &self.policy) {
                let score = scheduler.standing(&sight, &self.policy) + scheduler.asked(&sight, request);
                Best::take(best, body, score, *id);
            }
        };
        if let Some(id) = request.pinned.or(request.volume_host) {
            look(&id, &mut best);
            return best.map(Best::placement).ok_or_else(|| self.refused([id], request));
        }
        if let Some(among) = &request.among {
            among.iter().for_each(|id| look(id, &mut best));
            return best.map(Best::placement).ok_or_else(|| self.refused(among.iter().copied(), request));
        }
        // What an exhausted host may still take is not in the order of its score.
        let small =
            request.bodies.is_empty() || request.vcpus == 0 || request.memory_mib < filters::LEAST_MEMORY;
        if small || request.qos == Qos::BestEffort {
            self.hosts.keys().for_each(|id| look(id, &mut best));
            return best.map(Best::placement).ok_or_else(|| self.refused(self.ids(), request));
        }
        let members = request.group.iter().flat_map(|group| group.members.keys());
        members.for_each(|id| look(id, &mut best));
        let least = self.least_body(request);
        // Down an order, until nobody further down can win. `most`: what the request adds to a host's place at most.
        let walk = |order: &BTreeSet<(i64, HostId)>, most: i64, best: &mut Option<Best>| {
            for (key, id) in order {
                if let Some(best) = best
                    && best.body <= least
                    && (key.saturating_neg().saturating_add(most), Reverse(*id))
                        < (best.score, Reverse(best.host))
                {
                    break;
                }
                look(id, best);
            }
        };
        // Those that have an image are looked at in orders of their own; in the order of all, nobody else gains from one.
        for orders in request.images.iter().filter_map(|image| self.holders.get(image)) {
            walk(&orders[index], scheduler.images_most(), &mut best);
        }
        walk(&self.orders[index], 0, &mut best);
        best.map(Best::placement).ok_or_else(|| self.refused(self.ids(), request))
    }

    fn ids(&self) -> BTreeSet<HostId> {
        self.hosts.keys().copied().collect()
    }

    /// Why these hosts are not fit.
    fn refused(&self, ids: impl IntoIterator<Item = HostId>, request: &Request) -> NoRoom {
        let entries: Vec<&Entry> = ids.into_iter().filter_map(|id| self.hosts.get(&id)).collect();
        let reasons = |entry: &&Entry| {
            let why = body_for(&self.sight(entry), request, &self.policy).err()?;
            Some((entry.host.name.clone(), why.into_iter().map(|(_, why)| why).collect()))
        };
        let hosts: Vec<_> = entries.iter().take(TOLD).filter_map(reasons).collect();
        NoRoom { more: entries.len().saturating_sub(TOLD), hosts }
    }
}
