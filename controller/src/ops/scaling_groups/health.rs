//! Whether an instance can take work, and where its neighbours in the group are.

use crate::model::*;
use crate::ops::{View, servers};
use crate::scheduler::GroupAsk;
use amphi_api::group::Affinity;
use amphi_api::instance::{FailoverPolicy, Power};
use amphi_api::wire::BodyState;
use amphi_api::{HostId, InstanceId, NetworkId};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What is seen of an instance.
pub struct Looks {
    /// Why it cannot take work; none: it can.
    pub reason: Option<String>,
    /// Its host does not answer, and it may not leave it.
    pub lost: bool,
}

pub fn look(view: &View, record: &InstanceRecord) -> Looks {
    let up = record.host.is_none_or(|host| view.host_up(host));
    Looks { reason: unready(record, up), lost: !up && record.failover == FailoverPolicy::Never }
}

/// Somebody has stopped it, put it aside or locked it, or it is worked on: on its way to another host, body or size, updated,
/// rescued, or with an order that is yet to be carried out. Its own making holds nothing up, nor an order that has ended in
/// ERROR: who never gets there is to be replaced.
pub fn held(view: &View, record: &InstanceRecord, now: Timestamp) -> bool {
    let ordered = record.task.as_ref().is_some_and(|pending| pending.task != Task::Build)
        && servers::state(view, record, now).task.is_some();
    ordered
        || record.power != Power::On
        || record.exchange.is_some()
        || record.shelved.is_some()
        || record.resize.is_some()
        || record.rolling.is_some()
        || record.rescue.is_some()
        || record.server.locked.is_some()
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
    // Until its own body is back: what answers now is the one that it is rescued from.
    if record.rescue.is_some() || record.current().is_some_and(|seen| seen.rescued) {
        return Some("it is being rescued".into());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::instance::tests::{fault, observed, sample};
    use amphi_api::ExchangeId;
    use amphi_api::instance::{BodySpec, VmSpec};

    fn pending(task: Task) -> Option<Pending> {
        let (action, since) = (uuid::Uuid::nil(), Timestamp::UNIX_EPOCH);
        Some(Pending { task, action, since, from: VmState::Active })
    }

    fn rescue() -> Option<BodyRecord> {
        let spec = BodySpec::Vm(VmSpec { image: "vm".into(), root_gib: None, set: None });
        Some(BodyRecord { spec, images: Vec::new() })
    }

    fn resize() -> Option<Resize> {
        Some(Resize {
            old_flavor: None,
            old_vcpus: 1,
            old_memory_mib: 1,
            old_root_gib: None,
            old_qos: Default::default(),
            old_host: HostId::new(),
            migration: uuid::Uuid::nil(),
            verified: true,
            reverting: false,
            since: Timestamp::UNIX_EPOCH,
        })
    }

    /// Rows: what it is, what is so, whether it is in somebody's hands.
    #[test]
    fn who_is_worked_on_is_held() {
        type Change = fn(&mut InstanceRecord);
        let table: &[(&str, Change, bool)] = &[
            ("runs", |_| (), false),
            ("stopped", |r| r.power = Power::Off, true),
            ("exchanged", |r| r.exchange = Some(ExchangeId::new()), true),
            (
                "shelved",
                |r| r.shelved = Some(Shelved { since: Timestamp::UNIX_EPOCH, offloaded: false }),
                true,
            ),
            ("resized, not confirmed", |r| r.resize = resize(), true),
            ("updated", |r| r.rolling = Some(Rolling::default()), true),
            ("rescued", |r| r.rescue = rescue(), true),
            ("locked", |r| r.server.locked = Some(Lock { by_admin: false, user: None, reason: None }), true),
            ("rebuilt", |r| r.task = pending(Task::Rebuild), true),
            ("restarts", |r| r.task = pending(Task::RebootHard), true),
            ("made", |r| r.task = pending(Task::Build), false),
            (
                "restarts, and cannot",
                |r| {
                    r.task = pending(Task::RebootHard);
                    r.observed =
                        Some(InstanceObserved { fault: Some(fault()), ..observed(2, BodyState::Absent) });
                },
                false,
            ),
        ];
        let now = Timestamp::from_second(1000).unwrap();
        for (what, change, want) in table {
            let mut record = sample();
            change(&mut record);
            assert_eq!(held(&View::default(), &record, now), *want, "{what}");
        }
    }

    #[test]
    fn a_rescue_body_takes_no_work() {
        let mut record = sample();
        assert_eq!(unready(&record, true), None);
        record.rescue = rescue();
        assert_eq!(unready(&record, true).as_deref(), Some("it is being rescued"));
        record.rescue = None;
        record.observed = Some(InstanceObserved { rescued: true, ..observed(2, BodyState::Running) });
        assert_eq!(unready(&record, true).as_deref(), Some("it is being rescued"), "not back yet");
    }
}
