//! The failover of a host, as a record with a phase. It is kept as it is told: every time and every fate in it is what
//! clients read.
//!
//! barring → moving → starting → done. Barring ends when the network has shut the host out; moving when each of its
//! instances has been decided on, and the commit that gives an instance its next epoch elsewhere is the one that writes
//! its fate here; starting when what moved runs. The host may be let in again at any time after moving.

use super::Record;
use super::exchange::settled;
use super::instance::InstanceRecord;
use amphi_api::failover::{Failover, FailoverFate, FailoverInstance, FailoverPhase};
use amphi_api::instance::FailoverPolicy;
use amphi_api::{FailoverId, InstanceId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::ops::Deref;

/// How many failovers that are over are kept.
pub const FAILOVERS_KEPT: usize = 200;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FailoverRecord(pub Failover);

impl Deref for FailoverRecord {
    type Target = Failover;
    fn deref(&self) -> &Failover {
        &self.0
    }
}

impl Record for FailoverRecord {
    const PREFIX: &'static str = "/failover/";
    const NOUN: &'static str = "failover";
    type Id = FailoverId;
    fn id(&self) -> FailoverId {
        self.0.id
    }
}

impl FailoverRecord {
    /// Nothing is left to do for it but the host's return.
    pub fn is_done(&self) -> bool {
        self.phase == FailoverPhase::Done
    }

    /// Over in every respect.
    pub fn is_closed(&self) -> bool {
        self.is_done() && self.returned_at.is_some()
    }

    pub fn of(&self, instance: InstanceId) -> Option<&FailoverInstance> {
        self.instances.iter().find(|i| i.instance == instance)
    }

    /// Sets what became of an instance, in place of what was said before.
    pub fn set(&mut self, told: FailoverInstance) {
        match self.0.instances.iter_mut().find(|i| i.instance == told.instance) {
            Some(before) => *before = told,
            None => self.0.instances.push(told),
        }
    }

    /// The record with what is seen to run now; the same if nothing is new. An instance that has left the epoch of the
    /// failover, or is gone, is no longer waited for.
    pub fn seen<'a>(&self, find: impl Fn(InstanceId) -> Option<&'a InstanceRecord>, now: Timestamp) -> Self {
        let mut record = self.clone();
        let mut open = false;
        for item in &mut record.0.instances {
            let id = item.instance;
            match &mut item.fate {
                FailoverFate::Moved { running_at: running @ None, epoch, .. } => match find(id) {
                    Some(row) if row.epoch == *epoch && settled(row, row.current()) => *running = Some(now),
                    Some(row) if row.epoch == *epoch => open = true,
                    _ => {}
                },
                FailoverFate::Refused { .. } => {
                    let waits = |row: &InstanceRecord| {
                        row.host == Some(self.host) && row.failover != FailoverPolicy::Never
                    };
                    open |= find(id).is_some_and(waits);
                }
                _ => {}
            }
        }
        if record.phase == FailoverPhase::Starting && (!open || record.returned_at.is_some()) {
            record.0.phase = FailoverPhase::Done;
            record.0.ended_at = Some(now);
        }
        record
    }
}

#[cfg(test)]
mod tests {
    use super::super::instance::tests::{observed, sample};
    use super::*;
    use amphi_api::HostId;
    use amphi_api::failover::FailoverCause;
    use amphi_api::instance::BodyKind;
    use amphi_api::wire::BodyState;

    fn record(instance: &InstanceRecord, fate: FailoverFate) -> FailoverRecord {
        FailoverRecord(Failover {
            id: FailoverId::new(),
            host: HostId::new(),
            host_name: "h1".into(),
            cause: FailoverCause::LeaseEnded,
            phase: FailoverPhase::Starting,
            heard_at: None,
            decided_at: Timestamp::UNIX_EPOCH,
            fence: None,
            barred_at: None,
            moved_at: None,
            ended_at: None,
            returned_at: None,
            instances: vec![FailoverInstance {
                instance: instance.id,
                name: "web".into(),
                priority: 1,
                from: BodyKind::Set,
                fate,
            }],
        })
    }

    fn moved(epoch: u64) -> FailoverFate {
        FailoverFate::Moved {
            to: HostId::new(),
            to_name: "h2".into(),
            body: BodyKind::Set,
            epoch,
            fresh_volume: None,
            taken_over: Vec::new(),
            twin: false,
            at: Timestamp::UNIX_EPOCH,
            running_at: None,
        }
    }

    #[test]
    fn over_when_all_that_moved_runs() {
        let at = Timestamp::from_second(9).unwrap();
        let runs = sample();
        let starts = InstanceRecord { observed: Some(observed(2, BodyState::Absent)), ..runs.clone() };
        let table = [
            ("runs", Some(&runs), moved(2), true),
            ("not yet", Some(&starts), moved(2), false),
            ("has moved on", Some(&starts), moved(1), true),
            ("deleted", None, moved(2), true),
            ("waits for its host", Some(&starts), FailoverFate::Waiting { volumes: vec![] }, true),
        ];
        for (what, found, fate, over) in table {
            let before = record(&runs, fate);
            let after = before.seen(|_| found, at);
            assert_eq!(after.is_done(), over, "{what}");
            assert_eq!(after == before, !over, "{what}: nothing is written for nothing");
        }
        let refused = record(&runs, FailoverFate::Refused { reason: "no room".into() });
        let there = InstanceRecord { host: Some(refused.host), ..runs.clone() };
        assert!(!refused.seen(|_| Some(&there), at).is_done(), "room may come");
        assert!(refused.seen(|_| Some(&runs), at).is_done(), "somebody else moved it");
        let mut back = refused.clone();
        back.0.returned_at = Some(at);
        assert!(back.seen(|_| Some(&there), at).is_done(), "the host is back");
    }
}
