//! Placement: (hosts as they are, what is asked) → host and body, or for every host every reason why not. Pure.
//!
//! Filters and weights are plain functions in a list. A host is taken only when no filter objects; among those the
//! earliest acceptable body wins, then the greatest weight, then the lowest id. Claims, not load, say what is free: the
//! caller commits the claim with the record it places, compared by version.

mod affinity;
mod filters;
mod match_specs;
#[cfg(test)]
mod tests;

use amphi_api::HostId;
use amphi_api::host::{Claims, HostSpec, HostState};
use amphi_api::instance::BodyKind;
use std::collections::{BTreeMap, BTreeSet};

pub use affinity::GroupAsk;
pub use filters::{CPU_OVERCOMMIT, FILTERS, MEMORY_OVERCOMMIT_PERCENT, WEIGHTS};

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
    /// Its availability zone; empty where nobody asks for zones.
    pub zone: &'a str,
    /// Metadata of all its aggregates: one key may be there with several values.
    pub metadata: Vec<(&'a str, &'a str)>,
}

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// 0 with no bodies: only a volume is placed.
    pub vcpus: u32,
    pub memory_mib: u64,
    /// Room for volumes yet to be made, in GiB.
    pub volume_gib: u64,
    /// Acceptable bodies, the preferred first; none: only a volume is placed.
    pub bodies: Vec<BodyKind>,
    /// It needs ports.
    pub network: bool,
    /// It has a volume, new or old.
    pub volume: bool,
    /// The one host it may go to.
    pub pinned: Option<HostId>,
    /// Where its volume is.
    pub volume_host: Option<HostId>,
    pub excluded: Vec<HostId>,
    /// The availability zone that it must be in.
    pub zone: Option<String>,
    /// The hosts that it may go to: those of the instances it shall be beside. None: any.
    pub among: Option<BTreeSet<HostId>>,
    /// Its server group: where the others are.
    pub group: Option<GroupAsk>,
    /// The flavor's extra specs; those with the scope `aggregate_instance_extra_specs:` are asked of aggregates.
    pub extra_specs: BTreeMap<String, String>,
}

/// How far CPUs are promised beyond what is there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// vCPUs per CPU that is not reserved.
    pub cpu_overcommit: u32,
    /// Memory promised, in percent of what is not reserved.
    pub memory_overcommit_percent: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self { cpu_overcommit: CPU_OVERCOMMIT, memory_overcommit_percent: MEMORY_OVERCOMMIT_PERCENT }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    pub host: HostId,
    /// Index into `Request::bodies`; 0 when only a volume is placed.
    pub body: usize,
}

/// Why no host takes it: every host with every reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", told(.hosts))]
pub struct NoRoom {
    pub hosts: Vec<(String, Vec<String>)>,
}

fn told(hosts: &[(String, Vec<String>)]) -> String {
    if hosts.is_empty() {
        return "no host has joined yet".to_owned();
    }
    let hosts: Vec<_> = hosts.iter().map(|(name, why)| format!("{name}: {}", why.join(", "))).collect();
    format!("no host is fit: {}", hosts.join("; "))
}

/// Chooses a host and a body.
pub fn place(hosts: &[HostSight], request: &Request, policy: &Policy) -> Result<Placement, NoRoom> {
    let mut best: Option<(usize, f64, HostId)> = None;
    let mut refusals = Vec::new();
    for host in hosts {
        match body_for(host, request, policy) {
            Ok(body) => {
                let weight: f64 = WEIGHTS.iter().map(|(_, weigh)| weigh(host, request, policy)).sum();
                let better = best.is_none_or(|(b, w, id)| {
                    body < b || (body == b && (weight > w || (weight == w && host.id < id)))
                });
                if better {
                    best = Some((body, weight, host.id));
                }
            }
            Err(reasons) if best.is_none() => refusals.push((host.name.to_owned(), reasons)),
            Err(_) => {}
        }
    }
    best.map(|(body, _, host)| Placement { host, body }).ok_or(NoRoom { hosts: refusals })
}

/// The first acceptable body that this host can run, or all that stands against it.
fn body_for(host: &HostSight, request: &Request, policy: &Policy) -> Result<usize, Vec<String>> {
    let mut reasons: Vec<String> =
        FILTERS.iter().filter_map(|(_, filter)| filter(host, request, policy).err()).collect();
    let mut bodies = request.bodies.iter().map(|kind| filters::body_engine(host, *kind));
    let body = match bodies.clone().position(|found| found.is_ok()) {
        Some(body) => body,
        None if request.bodies.is_empty() => 0,
        // Before its first hello there are no engines to speak of.
        None if host.spec.is_none() => 0,
        None => {
            reasons.extend(bodies.by_ref().filter_map(Result::err));
            0
        }
    };
    if reasons.is_empty() { Ok(body) } else { Err(reasons) }
}
