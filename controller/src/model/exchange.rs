//! The exchange of one body for the other, as a record with a phase.
//!
//! preparing → switching → done; preparing → failed (nothing changed); switching → rolling back → failed. Each phase
//! is left in one commit together with the instance's new epoch, so that a controller's death between two phases
//! changes nothing: whoever looks next finds the same step.
//!
//! Preparing is for a body that runs, to keep the outage short. One that is stopped, or in trouble that the other kind
//! of body may not share (its image is broken, its engine refuses it), is switched without it: the exchange may be the
//! cure. Trouble that any body would share (its volume, the network, a silent engine) ends the exchange with that reason.

use super::Record;
use super::instance::{BodyRecord, InstanceObserved, InstanceRecord};
use super::journey::{JourneyRecord, JourneySight, move_step};
use super::passes::CopyRecord;
use amphi_api::instance::{BodyKind, Exchange, ExchangePhase, Fault, Journey, Power, VolumesMoved};
use amphi_api::wire::BodyState;
use amphi_api::{ExchangeId, HostId, InstanceId, ProjectId};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// How long a new body may take to be made ready: an image of some GiB over a slow link.
pub const PREPARE_DEADLINE: SignedDuration = SignedDuration::from_secs(600);
/// How long a new body may take to run, without a word of a fault.
pub const SWITCH_DEADLINE: SignedDuration = SignedDuration::from_secs(180);
/// How long a fault may last before it counts: an engine that restarts is back within this.
pub const FAULT_PATIENCE: SignedDuration = SignedDuration::from_secs(20);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExchangeRecord {
    pub id: ExchangeId,
    pub project: ProjectId,
    pub instance: InstanceId,
    pub from: BodyKind,
    pub to: BodyKind,
    /// The body to take.
    pub body: BodyRecord,
    /// The instance did not list it before: it does from the switch on, unless that is rolled back.
    pub added: bool,
    /// From host to host; none: where the instance is.
    #[serde(default)]
    pub journey: Option<JourneyRecord>,
    /// Called off: it ends with the old body where it was.
    #[serde(default)]
    pub cancelled: bool,
    pub phase: ExchangePhase,
    pub phase_since: Timestamp,
    #[serde(default)]
    pub outage_ms: Option<u64>,
    #[serde(default)]
    pub fault: Option<Fault>,
    pub started_at: Timestamp,
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
}

impl ExchangeRecord {
    pub fn ended(&self) -> bool {
        matches!(self.phase, ExchangePhase::Done | ExchangePhase::Failed)
    }

    /// The record in its next phase.
    pub fn entering(&self, phase: ExchangePhase, now: Timestamp) -> Self {
        let ended = matches!(phase, ExchangePhase::Done | ExchangePhase::Failed);
        Self { phase, phase_since: now, ended_at: ended.then_some(now), ..self.clone() }
    }

    /// As clients see it, with the hosts' names.
    pub fn view(&self, name: impl Fn(HostId) -> String) -> Exchange {
        Exchange {
            journey: self.journey.as_ref().map(|j| Journey {
                from: j.from,
                from_name: name(j.from),
                to: j.to,
                to_name: name(j.to),
                reason: j.reason.clone(),
                cause: j.cause,
                live: j.live,
                copy: j.copy.as_ref().map(CopyRecord::view),
                deadline_s: j.deadline_s,
                volumes: (!j.volumes.is_empty() && j.copy.is_none()).then(|| VolumesMoved {
                    all: j.volumes.len() as u32,
                    read: j.read,
                    arrived: j.volumes.iter().filter(|v| v.arrived).count() as u32,
                }),
            }),
            cancelled: self.cancelled,
            id: self.id,
            instance: self.instance,
            from: self.from,
            to: self.to,
            phase: self.phase,
            outage_ms: self.outage_ms,
            fault: self.fault.clone(),
            started_at: self.started_at,
            ended_at: self.ended_at,
        }
    }
}

impl Record for ExchangeRecord {
    const PREFIX: &'static str = "/exchange/";
    const NOUN: &'static str = "exchange";
    type Id = ExchangeId;
    fn id(&self) -> ExchangeId {
        self.id
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((self.project, ""))
    }
}

/// What to do with an exchange next.
#[derive(Clone, Debug, PartialEq)]
pub enum ExchangeStep {
    Wait,
    /// Give the instance its new body: next epoch, phase switching.
    Switch,
    Done {
        outage_ms: Option<u64>,
    },
    /// Give the instance its old body back: next epoch, phase rolling back.
    RollBack(Fault),
    /// End it; the instance keeps the body that it has.
    Fail(Fault),
    /// Of a live move: memory and disks go over while the body runs.
    Cross,
    /// Of a live move: the old host lets nothing of it go over any more, for this reason.
    Recall(Fault),
    /// Of a live move: the body is whole on the new host and gone from the old one; the instance is the new host's.
    Land,
    /// Of a move in passes: bytes are copied while the old body runs.
    CopyAhead,
    /// Of a move with volumes: the old body stops.
    Stop,
    /// It has stopped: its volumes are read.
    Copy,
    /// So many have been read: the new host may have them.
    Ship {
        read: u32,
    },
    /// Of a move: give the instance to the other host, which waits until this one is clear: phase leaving.
    Leave,
    /// Of a move: give the instance back, once the other host is clear: phase returning.
    Return(Fault),
    /// Of a move: the other host is clear, the old body may start again: phase rolling back.
    Resume,
}

/// All that the decision looks at.
#[derive(Clone, Copy, Debug)]
pub struct ExchangeSight<'a> {
    pub exchange: &'a ExchangeRecord,
    pub instance: &'a InstanceRecord,
    /// Since when the host's link stands; none while it is down: then no deadline runs.
    pub host_up_since: Option<Timestamp>,
    /// The hosts of a move.
    pub journey: Option<JourneySight<'a>>,
    pub now: Timestamp,
}

/// The next step of an exchange: pure.
pub fn exchange_step(sight: ExchangeSight) -> ExchangeStep {
    if let Some(hosts) = &sight.journey {
        return move_step(&sight, hosts);
    }
    let Some(up_since) = sight.host_up_since else { return ExchangeStep::Wait };
    let began = sight.exchange.phase_since.max(up_since);
    let waited = sight.now.duration_since(began);
    let current = sight.instance.current();
    let lasting = |fault: Option<&Fault>| lasting(&sight, fault, began);
    let late = |what: &str, limit: SignedDuration| late(&sight, what, limit);
    let cancelled = || Fault {
        code: "cancelled".into(),
        message: "the exchange was called off".into(),
        since: sight.now,
    };
    match sight.exchange.phase {
        ExchangePhase::Preparing if sight.exchange.cancelled => ExchangeStep::Fail(cancelled()),
        ExchangePhase::Switching if sight.exchange.cancelled => ExchangeStep::RollBack(cancelled()),
        ExchangePhase::Preparing => {
            // A stopped instance has no outage to keep short: its new body is made at its next start.
            if current.is_some_and(|o| o.next_ready) || sight.instance.power == Power::Off {
                return ExchangeStep::Switch;
            }
            let running = current.is_some_and(|o| o.state == BodyState::Running);
            // The host makes nothing ready beside a body that does not run: it mends that one first.
            let trouble = lasting(current.and_then(|o| o.fault.as_ref())).filter(|_| !running);
            match lasting(current.and_then(|o| o.next_fault.as_ref())).or(trouble) {
                Some(fault) if !running && of_the_body(&fault) => ExchangeStep::Switch,
                Some(fault) => ExchangeStep::Fail(fault),
                None if waited >= PREPARE_DEADLINE => {
                    ExchangeStep::Fail(late("the new body was not made ready", PREPARE_DEADLINE))
                }
                None => ExchangeStep::Wait,
            }
        }
        ExchangePhase::Switching => {
            if settled(sight.instance, current) {
                return ExchangeStep::Done { outage_ms: current.and_then(|o| o.switch_ms) };
            }
            match lasting(current.and_then(|o| o.fault.as_ref())) {
                Some(fault) => ExchangeStep::RollBack(fault),
                None if waited >= SWITCH_DEADLINE => {
                    ExchangeStep::RollBack(late("the new body did not run", SWITCH_DEADLINE))
                }
                None => ExchangeStep::Wait,
            }
        }
        // The old body is back, or the instance's own fault says why not: the exchange itself is over either way.
        ExchangePhase::RollingBack => {
            let reason = sight.exchange.fault.clone().unwrap_or_else(|| late("it failed", SWITCH_DEADLINE));
            let trouble = lasting(current.and_then(|o| o.fault.as_ref()));
            if settled(sight.instance, current) || trouble.is_some() || waited >= SWITCH_DEADLINE {
                ExchangeStep::Fail(reason)
            } else {
                ExchangeStep::Wait
            }
        }
        // Phases of moves alone.
        ExchangePhase::Crossing
        | ExchangePhase::CopyingAhead
        | ExchangePhase::Stopping
        | ExchangePhase::Copying
        | ExchangePhase::Leaving
        | ExchangePhase::Returning => ExchangeStep::Wait,
        ExchangePhase::Done | ExchangePhase::Failed => ExchangeStep::Wait,
    }
}

/// A fault that has lasted long enough to count.
pub(super) fn lasting(sight: &ExchangeSight, fault: Option<&Fault>, began: Timestamp) -> Option<Fault> {
    // The host's clock may be ahead: then what counts is when its word was recorded here.
    let since = |f: &Fault| f.since.min(sight.instance.updated_at).max(began);
    fault.filter(|f| sight.now.duration_since(since(f)) >= FAULT_PATIENCE).cloned()
}

pub(super) fn late(sight: &ExchangeSight, what: &str, limit: SignedDuration) -> Fault {
    Fault {
        code: "engine_timeout".into(),
        message: format!("{what} within {} s", limit.as_secs()),
        since: sight.now,
    }
}

/// Whether the trouble is the present body's own, so that one of the other kind may not have it.
fn of_the_body(fault: &Fault) -> bool {
    matches!(fault.code.as_str(), "image_broken" | "engine_refused" | "engine_timeout" | "guest_trouble")
}

/// The body of the present epoch is where its power should be.
pub(super) fn settled(instance: &InstanceRecord, current: Option<&InstanceObserved>) -> bool {
    current.is_some_and(|o| {
        o.fault.is_none()
            && o.kind == instance.body
            && match instance.power {
                Power::On => o.state == BodyState::Running,
                Power::Off => o.state.is_still(),
                Power::Paused => o.state == BodyState::Paused,
                Power::Suspended => o.state == BodyState::Suspended,
            }
    })
}

#[cfg(test)]
mod tests {
    use super::super::instance::tests::{fault, observed, sample};
    use super::*;
    use ExchangePhase as P;
    use amphi_api::instance::{BodySpec, VmSpec};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn exchange(phase: P) -> ExchangeRecord {
        ExchangeRecord {
            id: ExchangeId::new(),
            project: ProjectId::DEFAULT,
            instance: InstanceId::new(),
            from: BodyKind::Set,
            to: BodyKind::Vm,
            body: BodyRecord {
                spec: BodySpec::Vm(VmSpec { image: "vm".into(), root_gib: None, set: None }),
                images: Vec::new(),
            },
            added: false,
            journey: None,
            cancelled: false,
            phase,
            phase_since: at(0),
            outage_ms: None,
            fault: None,
            started_at: at(0),
            ended_at: None,
        }
    }

    #[test]
    fn steps() {
        type Change = Box<dyn Fn(&mut InstanceObserved)>;
        let nothing = || -> Change { Box::new(|_| ()) };
        let faulty = |since: i64| -> Change {
            Box::new(move |o| {
                o.state = BodyState::Absent;
                o.fault = Some(Fault { since: at(since), ..fault() });
            })
        };
        let next_faulty = |since: i64| -> Change {
            Box::new(move |o| o.next_fault = Some(Fault { since: at(since), ..fault() }))
        };
        let absent = || -> Change { Box::new(|o| o.state = BodyState::Absent) };
        type Row = (&'static str, P, Change, i64, fn(&ExchangeStep) -> bool);
        let table: Vec<Row> = vec![
            ("not ready", P::Preparing, nothing(), 1, |s| *s == ExchangeStep::Wait),
            ("ready", P::Preparing, Box::new(|o| o.next_ready = true), 1, |s| *s == ExchangeStep::Switch),
            ("a young fault", P::Preparing, next_faulty(0), 5, |s| *s == ExchangeStep::Wait),
            (
                "a lasting fault",
                P::Preparing,
                next_faulty(0),
                30,
                |s| matches!(s, ExchangeStep::Fail(f) if f.code == "image_broken"),
            ),
            ("the present body is broken, just now", P::Preparing, faulty(0), 5, |s| {
                *s == ExchangeStep::Wait
            }),
            ("the present body is broken: the other may not be", P::Preparing, faulty(-500), 20, |s| {
                *s == ExchangeStep::Switch
            }),
            (
                "the volume is broken: any body's trouble",
                P::Preparing,
                Box::new(move |o| {
                    faulty(0)(o);
                    o.fault.as_mut().unwrap().code = "volume_missing".into();
                }),
                20,
                |s| matches!(s, ExchangeStep::Fail(f) if f.code == "volume_missing"),
            ),
            (
                "the present body runs and complains: the next is still made ready",
                P::Preparing,
                Box::new(move |o| {
                    faulty(0)(o);
                    o.state = BodyState::Running;
                }),
                30,
                |s| *s == ExchangeStep::Wait,
            ),
            ("a fault of a host whose clock is ahead", P::Preparing, next_faulty(5000), 30, |s| {
                matches!(s, ExchangeStep::Fail(_))
            }),
            ("an old fault of before", P::Preparing, next_faulty(-500), 5, |s| *s == ExchangeStep::Wait),
            (
                "too late",
                P::Preparing,
                nothing(),
                600,
                |s| matches!(s, ExchangeStep::Fail(f) if f.code == "engine_timeout"),
            ),
            ("runs", P::Switching, Box::new(|o| o.switch_ms = Some(7)), 1, |s| {
                *s == ExchangeStep::Done { outage_ms: Some(7) }
            }),
            ("wrong kind runs", P::Switching, Box::new(|o| o.kind = BodyKind::Vm), 1, |s| {
                *s == ExchangeStep::Wait
            }),
            ("not yet", P::Switching, absent(), 1, |s| *s == ExchangeStep::Wait),
            ("fault lasts", P::Switching, faulty(0), 25, |s| matches!(s, ExchangeStep::RollBack(_))),
            ("never runs", P::Switching, absent(), 180, |s| matches!(s, ExchangeStep::RollBack(_))),
            ("old body back", P::RollingBack, nothing(), 1, |s| matches!(s, ExchangeStep::Fail(_))),
            ("old body not back", P::RollingBack, absent(), 1, |s| *s == ExchangeStep::Wait),
            ("old body not back either", P::RollingBack, faulty(0), 5, |s| *s == ExchangeStep::Wait),
            ("old body cannot come back", P::RollingBack, faulty(0), 20, |s| {
                matches!(s, ExchangeStep::Fail(_))
            }),
            ("over", P::Done, nothing(), 1, |s| *s == ExchangeStep::Wait),
        ];
        for (what, phase, change, second, want) in table {
            let mut instance = InstanceRecord { updated_at: at(0), ..sample() };
            let mut seen = observed(2, BodyState::Running);
            change(&mut seen);
            instance.observed = Some(seen);
            let exchange = exchange(phase);
            let sight = ExchangeSight {
                exchange: &exchange,
                instance: &instance,
                host_up_since: Some(at(-1000)),
                journey: None,
                now: at(second),
            };
            let step = exchange_step(sight);
            assert!(want(&step), "{what}: {step:?}");
            let blind = exchange_step(ExchangeSight { host_up_since: None, ..sight });
            assert_eq!(blind, ExchangeStep::Wait, "{what}: no deadline runs while the host is down");
        }
    }

    #[test]
    fn a_stopped_instance_switches_at_once() {
        let mut instance = sample();
        instance.power = Power::Off;
        let preparing = exchange(P::Preparing);
        let sight = ExchangeSight {
            exchange: &preparing,
            instance: &instance,
            host_up_since: Some(at(0)),
            journey: None,
            now: at(1),
        };
        assert_eq!(exchange_step(sight), ExchangeStep::Switch);
        let absent = InstanceRecord { observed: Some(observed(2, BodyState::Absent)), ..instance.clone() };
        let switching = exchange(P::Switching);
        let sight = ExchangeSight { exchange: &switching, instance: &absent, ..sight };
        assert_eq!(exchange_step(sight), ExchangeStep::Done { outage_ms: None });
    }

    #[test]
    fn a_status_of_the_old_epoch_does_not_end_the_switch() {
        let mut instance = sample();
        instance.observed = Some(observed(1, BodyState::Running));
        let exchange = exchange(P::Switching);
        let sight = ExchangeSight {
            exchange: &exchange,
            instance: &instance,
            host_up_since: Some(at(0)),
            journey: None,
            now: at(1),
        };
        assert_eq!(exchange_step(sight), ExchangeStep::Wait);
    }
}
