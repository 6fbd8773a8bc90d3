//! Whether an instance can take work, and where its neighbours in the group are.

use crate::model::*;
use crate::ops::View;
use crate::scheduler::GroupAsk;
use amphi_api::group::Affinity;
use amphi_api::instance::{FailoverPolicy, Power};
use amphi_api::wire::BodyState;
use amphi_api::{HostId, InstanceId, NetworkId};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What is seen of an instance.
pub struct Looks {
    /// Why it cannot take work; none: it can.
    pub reason: Option<String>,
    /// Somebody has stopped it, or it is on its way.
    pub held: bool,
    /// Its host does not answer, and it may not leave it.
    pub lost: bool,
}

pub fn look(view: &View, record: &InstanceRecord) -> Looks {
    let up = record.host.is_none_or(|host| view.host_up(host));
    Looks {
        reason: unready(record, up),
        held: record.power != Power::On || record.exchange.is_some() || record.shelved.is_some(),
        lost: !up && record.failover == FailoverPolicy::Never,
    }
}

fn unready(record: &InstanceRecord, host_up: bool) -> Option<String> {
    if record.intent == Intent::Deleting {
        return Some("it is being deleted".into());
    }
    if !host_up {
        return Some("its host does not answer".into());
    }
    if record.power != Power::On {
        return Some("it was stopped".into());
    }
    let Some(seen) = record.current() else { return Some("its body is being made".into()) };
    if seen.state != BodyState::Running {
        return Some(match &seen.fault {
            Some(fault) => fault.message.clone(),
            None => "it does not run yet".into(),
        });
    }
    seen.members.iter().find_map(|m| match (m.ready, m.running, m.finished) {
        (Some(false), _, _) => Some(
            m.reason.clone().unwrap_or_else(|| format!("member '{}' has not passed its probes yet", m.name)),
        ),
        (_, false, false) => Some(format!("member '{}' does not run", m.name)),
        _ => None,
    })
}

/// The addresses on its first network, or on the one that is named.
pub fn addresses(view: &View, record: &InstanceRecord, network: Option<NetworkId>) -> Vec<IpAddr> {
    let ports = record.ports.iter().filter_map(|id| view.ports.get(*id));
    let wanted = network.or_else(|| view.ports.get(*record.ports.first()?).map(|port| port.network));
    ports.filter(|port| Some(port.network) == wanted).flat_map(|port| port.addresses()).collect()
}

/// The instance's group as placement sees it, but for the instance itself.
pub fn ask_of(view: &View, record: &InstanceRecord) -> Option<GroupAsk> {
    let group = view.scaling_groups.get(record.server.scaling?.group)?;
    ask(view, group, Some(record.id))
}

pub fn ask(view: &View, group: &ScalingGroupRecord, placed: Option<InstanceId>) -> Option<GroupAsk> {
    let policy = match group.affinity {
        Affinity::None => return None,
        Affinity::Affinity => GroupPolicy::Affinity,
        Affinity::AntiAffinity => GroupPolicy::AntiAffinity,
        Affinity::SoftAffinity => GroupPolicy::SoftAffinity,
        Affinity::SoftAntiAffinity => GroupPolicy::SoftAntiAffinity,
    };
    let mut members: BTreeMap<HostId, u32> = BTreeMap::new();
    let others = group.slots.values().map(|slot| slot.instance).filter(|id| Some(*id) != placed);
    for row in others.filter_map(|id| view.instances.get(id)).filter(|row| row.intent == Intent::Live) {
        if let Some(host) = row.host {
            *members.entry(host).or_default() += 1;
        }
    }
    Some(GroupAsk { policy, members, max_per_host: 1 })
}
