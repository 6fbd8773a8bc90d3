//! Placement: (hosts as they are, what is asked) → host and body, or for every host every reason why not. Pure.
//!
//! Filters and weights are plain functions in lists. A host is taken only when no filter objects; among those the
//! earliest acceptable body wins, then the greatest score, then the lowest id. Claims, not load, say what is free: the
//! caller commits the claim with the record it places, compared by version.
//!
//! All schedulers have the same filters; each has weights of its own (see [`SCHEDULERS`]). [`Fleet`] keeps hosts in the
//! order of what does not depend on the request, so that a decision looks at a few hosts, not at all.

mod affinity;
mod explain;
mod filters;
mod fleet;
mod match_specs;
mod rebalance;
mod schedulers;
#[cfg(test)]
mod tests;
mod weights;

use amphi_api::host::{Claims, HostSpec, HostState};
use amphi_api::instance::BodyKind;
use amphi_api::placement::Qos;
use amphi_api::{HostId, ImageId};
use std::collections::{BTreeMap, BTreeSet};

pub use affinity::GroupAsk;
pub use explain::{Verdict, explain};
pub use filters::{BEST_EFFORT_KEY, CPU_OVERCOMMIT, FILTERS, MEMORY_OVERCOMMIT_PERCENT};
pub use fleet::Fleet;
pub use rebalance::{Levelled, Movable, level};
pub use schedulers::{SCHEDULERS, Scheduler, SchedulerId};

/// One host as placement sees it.
#[derive(Clone, Debug)]
pub struct HostSight<'a> {
    pub id: HostId,
    pub name: &'a str,
    pub state: HostState,
    /// Absent until its agent has connected once.
    pub spec: Option<&'a HostSpec>,
    pub claims: Claims,
    /// No new instance comes here, in the words of whoever said so (perhaps none).
    pub disabled: Option<&'a str>,
    /// Instances of the class `best_effort` may come here.
    pub best_effort: bool,
    /// Its availability zone; empty where nobody asks for zones.
    pub zone: &'a str,
    /// Metadata of all its aggregates: one key may be there with several values.
    pub metadata: &'a [(String, String)],
    /// How many bodies here are made of each image: what they are made of is in the host's cache.
    pub images: Option<&'a BTreeMap<ImageId, u32>>,
    /// Bodies that are ordered here and do not run yet.
    pub starting: u32,
}

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// 0 with no bodies: only a volume is placed.
    pub vcpus: u32,
    pub memory_mib: u64,
    pub qos: Qos,
    /// Room for volumes yet to be made, in GiB.
    pub volume_gib: u64,
    /// Acceptable bodies, the preferred first; none: only a volume is placed.
    pub bodies: Vec<BodyKind>,
    /// Its VM body runs a set: the host needs a guest kit for it.
    pub guest_kit: bool,
    /// It needs ports.
    pub network: bool,
    /// Physical networks that its ports are on.
    pub physical: Vec<String>,
    /// It has a volume, new or old.
    pub volume: bool,
    /// What its preferred body is made of.
    pub images: Vec<ImageId>,
    /// The one host it may go to.
    pub pinned: Option<HostId>,
    /// Where its volume is.
    pub volume_host: Option<HostId>,
    /// Shared volume groups that its volumes are in.
    pub reach: Vec<HostId>,
    pub excluded: Vec<HostId>,
    /// The availability zone that it must be in.
    pub zone: Option<String>,
    /// The hosts that it may go to: those of the instances it shall be beside. None: any.
    pub among: Option<BTreeSet<HostId>>,
    /// Its server group: where the others are.
    pub group: Option<GroupAsk>,
    /// The flavor's extra specs; those with the scope `aggregate_instance_extra_specs:` are asked of aggregates.
    pub extra_specs: BTreeMap<String, String>,
    /// None: the cloud's.
    pub scheduler: Option<SchedulerId>,
}

/// What the cloud's operator has laid down for all placements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// vCPUs per CPU that is not reserved, for what has no class of service.
    pub cpu_overcommit: u32,
    /// Memory promised, in percent of what is not reserved, for what has no class of service.
    pub memory_overcommit_percent: u32,
    /// For whoever names none.
    pub scheduler: SchedulerId,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            cpu_overcommit: CPU_OVERCOMMIT,
            memory_overcommit_percent: MEMORY_OVERCOMMIT_PERCENT,
            scheduler: SchedulerId::default(),
        }
    }
}

impl Policy {
    /// Who decides on this request.
    pub fn scheduler_of(&self, request: &Request) -> &'static Scheduler {
        request.scheduler.unwrap_or(self.scheduler).get()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    pub host: HostId,
    /// Index into `Request::bodies`; 0 when only a volume is placed.
    pub body: usize,
}

/// Why no host takes it: hosts with every reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", told(.hosts, *.more))]
pub struct NoRoom {
    pub hosts: Vec<(String, Vec<String>)>,
    /// So many hosts more, of which nothing is told here: `amphi place --explain` tells of all.
    pub more: usize,
}

fn told(hosts: &[(String, Vec<String>)], more: usize) -> String {
    if hosts.is_empty() {
        return "no host has joined yet".to_owned();
    }
    let hosts: Vec<_> = hosts.iter().map(|(name, why)| format!("{name}: {}", why.join(", "))).collect();
    let more = if more == 0 { String::new() } else { format!("; and {more} hosts more") };
    format!("no host is fit: {}{more}", hosts.join("; "))
}

/// The best host so far.
#[derive(Clone, Copy, Debug)]
struct Best {
    body: usize,
    score: i64,
    host: HostId,
}

impl Best {
    /// Keeps the better of the two.
    fn take(best: &mut Option<Best>, body: usize, score: i64, host: HostId) {
        let better = best.is_none_or(|b| {
            body < b.body || (body == b.body && (score > b.score || (score == b.score && host < b.host)))
        });
        if better {
            *best = Some(Best { body, score, host });
        }
    }

    fn placement(self) -> Placement {
        Placement { host: self.host, body: self.body }
    }
}

/// Chooses a host and a body, looking at every host.
pub fn place(hosts: &[HostSight], request: &Request, policy: &Policy) -> Result<Placement, NoRoom> {
    let scheduler = policy.scheduler_of(request);
    let mut best = None;
    let mut refusals = Vec::new();
    for host in hosts {
        match body_for(host, request, policy) {
            Ok(body) => {
                let score = scheduler.standing(host, policy) + scheduler.asked(host, request);
                Best::take(&mut best, body, score, host.id);
            }
            Err(reasons) if best.is_none() => {
                refusals.push((host.name.to_owned(), reasons.into_iter().map(|(_, why)| why).collect()));
            }
            Err(_) => {}
        }
    }
    best.map(Best::placement).ok_or(NoRoom { hosts: refusals, more: 0 })
}

type Reasons = Vec<(&'static str, String)>;

/// The first acceptable body that this host can run, or all that stands against it: filter and words.
fn body_for(host: &HostSight, request: &Request, policy: &Policy) -> Result<usize, Reasons> {
    let objects = |(name, filter): &(&'static str, filters::Filter)| {
        Some((*name, filter(host, request, policy).err()?))
    };
    let mut reasons: Reasons = FILTERS.iter().filter_map(objects).collect();
    let mut bodies = request
        .bodies
        .iter()
        .map(|kind| filters::body_engine(host, *kind).and_then(|()| filters::kit(host, *kind, request)));
    let body = match bodies.clone().position(|found| found.is_ok()) {
        Some(body) => body,
        None if request.bodies.is_empty() => 0,
        // Before its first hello there are no engines to speak of.
        None if host.spec.is_none() => 0,
        None => {
            reasons.extend(bodies.by_ref().filter_map(Result::err).map(|why| ("engine", why)));
            0
        }
    };
    if reasons.is_empty() { Ok(body) } else { Err(reasons) }
}
