//! A move between hosts: an exchange whose next body is made on another host. Which step comes next: pure.
//!
//! preparing → leaving → switching → done, and with volumes preparing → stopping → copying → leaving …; preparing,
//! stopping, copying → failed (the old body starts again where it is); leaving or switching → returning →
//! rolling back → failed. Leaving begins with one commit: the instance belongs to the new host, at the next epoch, and
//! a tombstone is left on the old one. The new host is told to start it only when the old one has said that nothing is
//! left; returning is the same the other way round. So two bodies never live, however slow a host is.
//!
//! Where both hosts can, bytes are copied in passes (`passes.rs`): preparing → copying ahead, while the body runs →
//! stopping → copying, which is then the last pass → leaving …; until it leaves, the old host has all that counts.
//!
//! A live move goes preparing → crossing → switching → done (`crossing.rs`).

use super::crossing::crossing_step;
use super::exchange::{
    ExchangeSight, ExchangeStep, FAULT_PATIENCE, PREPARE_DEADLINE, SWITCH_DEADLINE, lasting, late, settled,
};
use super::passes::CopyRecord;
use amphi_api::instance::{ExchangePhase, Fault, MoveCause, Power};
use amphi_api::wire::BodyState;
use amphi_api::{HostId, ImageId, VolumeId};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// What the old host tells when the new one has found other bytes on its disks than were sent.
pub const BYTES_DIFFER: &str = "bytes_differ";

/// From host to host, and how far the new host has got.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JourneyRecord {
    pub from: HostId,
    pub to: HostId,
    pub reason: String,
    #[serde(default)]
    pub cause: MoveCause,
    /// The body goes over while it runs.
    #[serde(default)]
    pub live: bool,
    /// Of a live one: its body is on the new host, whole and halted.
    #[serde(default)]
    pub landed: bool,
    /// Of a live one: why nothing of it may go over any more.
    #[serde(default)]
    pub recalled: Option<Fault>,
    /// The new host has all in place for a start.
    #[serde(default)]
    pub ready: bool,
    /// Why it has not.
    #[serde(default)]
    pub fault: Option<Fault>,
    /// The volumes that go with it.
    #[serde(default)]
    pub volumes: Vec<VolumeMove>,
    /// How many of them have been read.
    #[serde(default)]
    pub read: u32,
    /// When the old body was ordered to end.
    #[serde(default)]
    pub left_at: Option<Timestamp>,
    /// The old host has said that nothing runs, and has heard by then that nothing shall: it starts nothing of it any more,
    /// whatever becomes of it.
    #[serde(default)]
    pub stopped: bool,
    /// Its bytes go from host to host in passes; none: through the controller, or with a body that runs.
    #[serde(default)]
    pub copy: Option<CopyRecord>,
    /// The most seconds for bytes to go over while it runs.
    #[serde(default)]
    pub deadline_s: Option<u32>,
}

/// A volume on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeMove {
    pub volume: VolumeId,
    /// Claimed on the new host.
    pub size_gib: u64,
    /// What carries its bytes, from copying on.
    #[serde(default)]
    pub image: Option<ImageId>,
    /// The new host has them.
    #[serde(default)]
    pub arrived: bool,
}

impl JourneyRecord {
    /// Whether it does not go back once it may run on the new host: what it writes there is nowhere else.
    pub fn stays(&self) -> bool {
        self.live || !self.volumes.is_empty()
    }

    pub fn gib(&self) -> u64 {
        self.volumes.iter().map(|v| v.size_gib).sum()
    }
}

/// What else the decision looks at.
#[derive(Clone, Copy, Debug)]
pub struct JourneySight<'a> {
    pub journey: &'a JourneyRecord,
    pub from_up_since: Option<Timestamp>,
    pub to_up_since: Option<Timestamp>,
    /// Since when the new host's link is as it is.
    pub to_since: Timestamp,
    /// Nothing of the instance is left on the old host, or on the new one: no tombstone waits there.
    pub from_clear: bool,
    pub to_clear: bool,
    /// Volumes of which all bytes have been read.
    pub read: u32,
    /// Why one cannot be read.
    pub read_fault: Option<&'a Fault>,
}

/// The next step of a move.
pub(super) fn move_step(sight: &ExchangeSight, hosts: &JourneySight) -> ExchangeStep {
    let exchange = sight.exchange;
    let cancelled = || exchange.cancelled.then(|| fault("cancelled", "the move was called off", sight.now));
    let current = sight.instance.current();
    let waited = |since: Option<Timestamp>| {
        since.map(|since| sight.now.duration_since(exchange.phase_since.max(since)))
    };
    match exchange.phase {
        ExchangePhase::Preparing => {
            if let Some(fault) = cancelled() {
                return ExchangeStep::Fail(fault);
            }
            let Some(waited) = waited(hosts.to_up_since) else {
                let gone = sight.now.duration_since(exchange.phase_since.max(hosts.to_since));
                let down = || fault("host_down", "the host that it should go to does not answer", sight.now);
                return if gone >= FAULT_PATIENCE { ExchangeStep::Fail(down()) } else { ExchangeStep::Wait };
            };
            // What happens to a body on a host that does not answer is not decided here.
            if hosts.from_up_since.is_none() {
                return ExchangeStep::Wait;
            }
            if hosts.journey.live && hosts.journey.ready && hosts.journey.volumes.iter().all(|v| v.arrived) {
                let runs = current.is_some_and(|o| o.state == BodyState::Running);
                let over = || fault("not_running", "it does not run any more", sight.now);
                return if runs { ExchangeStep::Cross } else { ExchangeStep::Fail(over()) };
            }
            if let Some(copy) = &hosts.journey.copy {
                let there = hosts.journey.volumes.iter().all(|v| v.arrived);
                let off = sight.instance.power == Power::Off;
                if there && (hosts.journey.ready || (off && !copy.root)) {
                    return if off { ExchangeStep::Stop } else { ExchangeStep::CopyAhead };
                }
            } else if !hosts.journey.live && (hosts.journey.ready || sight.instance.power == Power::Off) {
                // A stopped instance has no outage to keep short.
                return if hosts.journey.volumes.is_empty() {
                    ExchangeStep::Leave
                } else {
                    ExchangeStep::Stop
                };
            }
            match lasting(sight, hosts.journey.fault.as_ref(), exchange.phase_since) {
                Some(fault) => ExchangeStep::Fail(fault),
                None if waited >= PREPARE_DEADLINE => {
                    ExchangeStep::Fail(late(sight, "the new host was not ready", PREPARE_DEADLINE))
                }
                None => ExchangeStep::Wait,
            }
        }
        ExchangePhase::Crossing => crossing_step(sight, hosts),
        ExchangePhase::CopyingAhead => {
            let Some(copy) = &hosts.journey.copy else { return ExchangeStep::Stop };
            if let Some(fault) = cancelled().or_else(|| unreachable(sight, hosts)) {
                return ExchangeStep::Fail(fault);
            }
            if sight.instance.power == Power::Off || copy.is_enough() {
                return ExchangeStep::Stop;
            }
            let allowed = hosts.journey.deadline_s.map(|s| SignedDuration::from_secs(i64::from(s)));
            let trouble = copy.fault.as_ref().or(hosts.journey.fault.as_ref());
            match lasting(sight, trouble, both_up(exchange.phase_since, hosts)) {
                Some(fault) => ExchangeStep::Fail(fault),
                None => match allowed.filter(|d| sight.now.duration_since(exchange.phase_since) >= *d) {
                    Some(limit) => ExchangeStep::Fail(late(sight, "its bytes were not copied", limit)),
                    None => ExchangeStep::Wait,
                },
            }
        }
        ExchangePhase::Stopping => {
            if let Some(fault) = cancelled() {
                return ExchangeStep::Fail(fault);
            }
            let Some(waited) = waited(hosts.from_up_since) else { return ExchangeStep::Wait };
            let fault = current.and_then(|o| o.fault.as_ref());
            if hosts.journey.stopped && current.is_some_and(|o| o.state.is_still()) && fault.is_none() {
                return ExchangeStep::Copy;
            }
            match lasting(sight, fault, exchange.phase_since) {
                Some(fault) => ExchangeStep::Fail(fault),
                None if waited >= SWITCH_DEADLINE => {
                    ExchangeStep::Fail(late(sight, "the old body did not stop", SWITCH_DEADLINE))
                }
                None => ExchangeStep::Wait,
            }
        }
        // No deadline: volumes are as large as they are. Trouble ends it.
        ExchangePhase::Copying => {
            if let Some(fault) = cancelled() {
                return ExchangeStep::Fail(fault);
            }
            if let Some(fault) = unreachable(sight, hosts) {
                return ExchangeStep::Fail(fault);
            }
            if hosts.to_up_since.is_none() {
                return ExchangeStep::Wait;
            }
            if let Some(copy) = &hosts.journey.copy {
                if copy.is_whole() {
                    return if hosts.from_up_since.is_some() {
                        ExchangeStep::Leave
                    } else {
                        ExchangeStep::Wait
                    };
                }
                let differ = copy.fault.as_ref().filter(|f| f.code == BYTES_DIFFER).cloned();
                let trouble = copy.fault.as_ref().or(hosts.journey.fault.as_ref());
                let fault = differ.or_else(|| lasting(sight, trouble, both_up(exchange.phase_since, hosts)));
                return fault.map_or(ExchangeStep::Wait, ExchangeStep::Fail);
            }
            let trouble = hosts.read_fault.or(hosts.journey.fault.as_ref());
            if let Some(fault) = lasting(sight, trouble, exchange.phase_since) {
                return ExchangeStep::Fail(fault);
            }
            if hosts.read > hosts.journey.read {
                return ExchangeStep::Ship { read: hosts.read };
            }
            let here = hosts.journey.volumes.iter().all(|v| v.arrived);
            if here && hosts.from_up_since.is_some() { ExchangeStep::Leave } else { ExchangeStep::Wait }
        }
        ExchangePhase::Leaving if !hosts.from_clear => ExchangeStep::Wait,
        ExchangePhase::Leaving => match cancelled() {
            Some(fault) => ExchangeStep::Return(fault),
            None => ExchangeStep::Switch,
        },
        // Its bytes on the old host are old by now, since it may have run here unseen: it stays, whatever troubles it.
        ExchangePhase::Switching if hosts.journey.stays() => {
            let trouble = current.and_then(|o| o.fault.as_ref());
            let trouble =
                hosts.to_up_since.and_then(|up| lasting(sight, trouble, exchange.phase_since.max(up)));
            if settled(sight.instance, current) {
                let outage = hosts.journey.left_at.filter(|_| sight.instance.power == Power::On);
                let outage = outage.map(|at| sight.now.duration_since(at).as_millis());
                ExchangeStep::Done { outage_ms: outage.and_then(|ms| u64::try_from(ms).ok()) }
            } else if trouble.is_some() || sight.now.duration_since(exchange.phase_since) >= SWITCH_DEADLINE {
                ExchangeStep::Done { outage_ms: None }
            } else {
                ExchangeStep::Wait
            }
        }
        ExchangePhase::Switching => {
            if let Some(fault) = cancelled() {
                return ExchangeStep::Return(fault);
            }
            // A host that went away with the body on it is a failover's business.
            let (Some(waited), Some(up)) = (waited(hosts.to_up_since), hosts.to_up_since) else {
                return ExchangeStep::Wait;
            };
            if settled(sight.instance, current) {
                let outage = hosts.journey.left_at.filter(|_| sight.instance.power == Power::On);
                let outage = outage.map(|at| sight.now.duration_since(at).as_millis());
                return ExchangeStep::Done { outage_ms: outage.and_then(|ms| u64::try_from(ms).ok()) };
            }
            match lasting(sight, current.and_then(|o| o.fault.as_ref()), exchange.phase_since.max(up)) {
                Some(fault) => ExchangeStep::Return(fault),
                None if waited >= SWITCH_DEADLINE => {
                    ExchangeStep::Return(late(sight, "the new body did not run", SWITCH_DEADLINE))
                }
                None => ExchangeStep::Wait,
            }
        }
        ExchangePhase::Returning if hosts.to_clear => ExchangeStep::Resume,
        ExchangePhase::Returning => ExchangeStep::Wait,
        // The old body is back, or the instance's own fault says why not: the move itself is over either way.
        ExchangePhase::RollingBack => {
            let Some(waited) = waited(hosts.from_up_since) else { return ExchangeStep::Wait };
            let reason = exchange.fault.clone().unwrap_or_else(|| late(sight, "it failed", SWITCH_DEADLINE));
            let trouble = lasting(sight, current.and_then(|o| o.fault.as_ref()), exchange.phase_since);
            if settled(sight.instance, current) || trouble.is_some() || waited >= SWITCH_DEADLINE {
                ExchangeStep::Fail(reason)
            } else {
                ExchangeStep::Wait
            }
        }
        ExchangePhase::Done | ExchangePhase::Failed => ExchangeStep::Wait,
    }
}

/// Since when both hosts answer: what could not be sent before says nothing.
fn both_up(since: Timestamp, hosts: &JourneySight) -> Timestamp {
    [hosts.from_up_since, hosts.to_up_since].into_iter().flatten().fold(since, Timestamp::max)
}

/// The new host has been away for too long.
fn unreachable(sight: &ExchangeSight, hosts: &JourneySight) -> Option<Fault> {
    let gone = sight.now.duration_since(sight.exchange.phase_since.max(hosts.to_since));
    let down = || fault("host_down", "the host that it should go to does not answer", sight.now);
    (hosts.to_up_since.is_none() && gone >= FAULT_PATIENCE).then(down)
}

pub(super) fn fault(code: &str, message: &str, since: Timestamp) -> Fault {
    Fault { code: code.into(), message: message.into(), since }
}
