//! The state of an instance as the native face tells it: pure.

use super::{InstanceRecord, Intent};
use crate::model::HostRecord;
use amphi_api::instance::{Fault, InstanceState, Power};
use amphi_api::wire::BodyState;

/// What clients see of an instance whose host is up or not.
pub fn state_of(record: &InstanceRecord, host_up: bool) -> InstanceState {
    if record.intent == Intent::Deleting {
        return InstanceState::Deleting;
    }
    if record.host.is_none() {
        return InstanceState::Error;
    }
    if !host_up {
        return if record.lost.is_empty() { InstanceState::Unknown } else { InstanceState::Stranded };
    }
    if record.exchange.is_some() {
        return InstanceState::Exchanging;
    }
    let current = record.current();
    if current.is_some_and(|o| o.fault.is_some()) {
        return InstanceState::Error;
    }
    let body = current.map_or(BodyState::Absent, |o| o.state);
    match record.power {
        Power::On if body == BodyState::Running && current.is_some_and(|o| o.restarts >= record.restarts) => {
            InstanceState::Running
        }
        Power::On if !record.built => InstanceState::Building,
        Power::On => InstanceState::Starting,
        Power::Off if body.is_still() => InstanceState::Stopped,
        Power::Off => InstanceState::Stopping,
        Power::Paused if record.settled() => InstanceState::Paused,
        Power::Suspended if record.settled() => InstanceState::Suspended,
        Power::Paused | Power::Suspended => InstanceState::Stopping,
    }
}

/// What clients are told is wrong: what its host says of the body, or that there is no host to carry out a deletion.
pub fn fault_of(record: &InstanceRecord, host: Option<&HostRecord>) -> Option<Fault> {
    match host.filter(|host| record.intent == Intent::Deleting && !host.is_up()) {
        Some(host) => Some(Fault {
            code: "host_down".into(),
            message: format!(
                "host '{}' does not answer: the deletion is carried out when it returns, or at once when it is evacuated",
                host.name
            ),
            since: host.state_since,
        }),
        None => record.current().and_then(|o| o.fault.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::InstanceObserved;
    use super::super::tests::{fault, observed, sample};
    use super::*;
    use InstanceState as S;
    use amphi_api::instance::Lost;
    use amphi_api::{ExchangeId, HostId, VolumeId};
    use jiff::Timestamp;

    #[test]
    fn states() {
        let lost = Lost {
            volume: VolumeId::new(),
            host: HostId::new(),
            host_name: "h1".into(),
            since: Timestamp::UNIX_EPOCH,
        };
        type Change = Box<dyn Fn(&mut InstanceRecord)>;
        let table: Vec<(&str, Change, bool, S)> = vec![
            ("runs", Box::new(|_| ()), true, S::Running),
            ("host gone", Box::new(|_| ()), false, S::Unknown),
            ("volume lost", Box::new(move |r| r.lost = vec![lost.clone()]), false, S::Stranded),
            (
                "older epoch",
                Box::new(|r| r.observed = Some(observed(1, BodyState::Running))),
                true,
                S::Starting,
            ),
            ("new", Box::new(|r| (r.built, r.observed) = (false, None)), true, S::Building),
            ("restart ordered", Box::new(|r| r.restarts = 1), true, S::Starting),
            ("stop ordered", Box::new(|r| r.power = Power::Off), true, S::Stopping),
            (
                "stopped",
                Box::new(|r| {
                    r.power = Power::Off;
                    r.observed = Some(observed(2, BodyState::Stopped));
                }),
                true,
                S::Stopped,
            ),
            ("exchange", Box::new(|r| r.exchange = Some(ExchangeId::new())), true, S::Exchanging),
            ("deleting", Box::new(|r| r.intent = Intent::Deleting), false, S::Deleting),
            (
                "fault",
                Box::new(|r| {
                    r.observed =
                        Some(InstanceObserved { fault: Some(fault()), ..observed(2, BodyState::Absent) });
                }),
                true,
                S::Error,
            ),
            (
                "fault of an older epoch",
                Box::new(|r| {
                    r.observed =
                        Some(InstanceObserved { fault: Some(fault()), ..observed(1, BodyState::Absent) });
                }),
                true,
                S::Starting,
            ),
        ];
        for (what, change, up, want) in table {
            let mut record = sample();
            change(&mut record);
            assert_eq!(state_of(&record, up), want, "{what}");
        }
    }
}
