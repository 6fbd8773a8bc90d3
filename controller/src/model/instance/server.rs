//! The state of an instance as OpenStack tells it: (vm_state, task_state, power_state, status). Pure.
//!
//! An order leaves a task on the record; the task goes when the host's word shows that the order is carried out, in the
//! commit that takes that word in. While a task is there, the vm_state is the one of before.

use super::{InstanceRecord, Intent};
use amphi_api::ImageId;
use amphi_api::instance::{Fault, Power};
use amphi_api::wire::BodyState;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How long a host's fault may last before a server is in ERROR: clients give up at once when they see that, while an
/// engine that restarts is back within this.
pub const ERROR_PATIENCE: SignedDuration = SignedDuration::from_secs(8);

/// nova/compute/vm_states.py.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    #[default]
    Building,
    Active,
    Paused,
    Suspended,
    Stopped,
    Rescued,
    Resized,
    Shelved,
    ShelvedOffloaded,
    Error,
}

impl VmState {
    pub fn word(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::Stopped => "stopped",
            Self::Rescued => "rescued",
            Self::Resized => "resized",
            Self::Shelved => "shelved",
            Self::ShelvedOffloaded => "shelved_offloaded",
            Self::Error => "error",
        }
    }

    fn status(self) -> &'static str {
        match self {
            Self::Building => "BUILD",
            Self::Active => "ACTIVE",
            Self::Paused => "PAUSED",
            Self::Suspended => "SUSPENDED",
            Self::Stopped => "SHUTOFF",
            Self::Rescued => "RESCUE",
            Self::Resized => "VERIFY_RESIZE",
            Self::Shelved => "SHELVED",
            Self::ShelvedOffloaded => "SHELVED_OFFLOADED",
            Self::Error => "ERROR",
        }
    }
}

/// What was ordered and is not yet there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    Build,
    Start,
    Stop,
    RebootSoft,
    RebootHard,
    Pause,
    Unpause,
    Suspend,
    Resume,
    Rescue,
    Unrescue,
    Rebuild,
    Resize,
    RevertResize,
    Shelve,
    Unshelve,
    /// Its bytes become this image.
    Snapshot(ImageId),
}

impl Task {
    /// nova/compute/task_states.py.
    pub fn word(self) -> &'static str {
        match self {
            Self::Build => "spawning",
            Self::Start => "powering-on",
            Self::Stop => "powering-off",
            Self::RebootSoft => "rebooting",
            Self::RebootHard => "rebooting_hard",
            Self::Pause => "pausing",
            Self::Unpause => "unpausing",
            Self::Suspend => "suspending",
            Self::Resume => "resuming",
            Self::Rescue => "rescuing",
            Self::Unrescue => "unrescuing",
            Self::Rebuild => "rebuilding",
            Self::Resize => "resize_finish",
            Self::RevertResize => "resize_reverting",
            Self::Shelve => "shelving",
            Self::Unshelve => "unshelving",
            Self::Snapshot(_) => "image_uploading",
        }
    }

    /// A status of its own (nova/api/openstack/common.py, `_STATE_MAP`).
    fn status(self) -> Option<&'static str> {
        Some(match self {
            Self::RebootSoft => "REBOOT",
            Self::RebootHard => "HARD_REBOOT",
            Self::Rebuild => "REBUILD",
            Self::Resize => "RESIZE",
            Self::RevertResize => "REVERT_RESIZE",
            _ => return None,
        })
    }
}

/// A task on its way, with the action that tells of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    pub task: Task,
    /// The action's record, without its instance.
    pub action: Uuid,
    pub since: Timestamp,
    /// What the vm_state was, and is until the task is done.
    pub from: VmState,
}

/// All four, as nova shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerState {
    pub vm: VmState,
    pub task: Option<&'static str>,
    /// nova/compute/power_state.py: 0 none, 1 running, 3 paused, 4 shut down.
    pub power: u8,
    pub status: &'static str,
}

/// What OpenStack's clients see. A host that is down is the business of `host_status`: the state stays what it was.
pub fn server_state(record: &InstanceRecord, host_up: bool, now: Timestamp) -> ServerState {
    let pending = record.task.as_ref();
    let vm = if server_fault(record, now).is_some() {
        VmState::Error
    } else {
        pending.map_or_else(|| vm_state(record), |p| p.from)
    };
    let task = if record.intent == Intent::Deleting {
        Some("deleting")
    } else if vm == VmState::Error {
        None
    } else {
        let moving = record.exchange.map(|_| "migrating");
        // nova has no word for it; clients show any.
        let updating = record.rolling.as_ref().map(|_| "updating");
        pending.map(|p| p.task.word()).or(moving).or(updating)
    };
    let power = match record.current().map(|o| o.state) {
        _ if !host_up => 0,
        Some(BodyState::Running) => 1,
        Some(BodyState::Paused) => 3,
        Some(BodyState::Suspended | BodyState::Stopped | BodyState::Stopping) => 4,
        Some(BodyState::Absent) if record.power == Power::Off => 4,
        Some(BodyState::Absent | BodyState::Starting) | None => 0,
    };
    let status = match vm {
        VmState::Error => "ERROR",
        _ => match pending.and_then(|p| p.task.status()) {
            Some(status) => status,
            None if record.exchange.is_some() && vm == VmState::Active => "MIGRATING",
            None => vm.status(),
        },
    };
    ServerState { vm, task, power, status }
}

/// Why it is in ERROR; none: it is not.
pub fn server_fault(record: &InstanceRecord, now: Timestamp) -> Option<&Fault> {
    let lasting = |fault: &&Fault| now.duration_since(fault.since) >= ERROR_PATIENCE;
    let seen = record.current().and_then(|o| o.fault.as_ref()).filter(lasting);
    record.server.failure.as_ref().or(seen)
}

/// The vm_state of a record that has no task.
pub fn vm_state(record: &InstanceRecord) -> VmState {
    if let Some(shelved) = &record.shelved {
        return if shelved.offloaded { VmState::ShelvedOffloaded } else { VmState::Shelved };
    }
    if record.resize.as_ref().is_some_and(|r| r.verified) {
        return VmState::Resized;
    }
    if record.rescue.is_some() {
        return VmState::Rescued;
    }
    match record.power {
        Power::On if record.built => VmState::Active,
        Power::On => VmState::Building,
        Power::Off => VmState::Stopped,
        Power::Paused => VmState::Paused,
        Power::Suspended => VmState::Suspended,
    }
}

impl InstanceRecord {
    /// The body of the present epoch is what and where it should be.
    pub fn settled(&self) -> bool {
        self.current().is_some_and(|o| {
            o.fault.is_none()
                && o.kind == self.body
                && o.restarts >= self.restarts
                && match self.power {
                    Power::On => o.state == BodyState::Running && o.rescued == self.rescue.is_some(),
                    Power::Off => o.state.is_still(),
                    Power::Paused => o.state == BodyState::Paused,
                    // A set's memory stays where it is: it is paused.
                    Power::Suspended => matches!(o.state, BodyState::Suspended | BodyState::Paused),
                }
        })
    }

    /// Whether the task has come to its end by what the body is now.
    pub fn task_done(&self) -> bool {
        self.task.as_ref().is_some_and(|p| !matches!(p.task, Task::Snapshot(_))) && self.settled()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fault, observed, sample};
    use super::super::{InstanceObserved, Resize, Shelved};
    use super::*;
    use amphi_api::HostId;

    fn pending(task: Task, from: VmState) -> Option<Pending> {
        Some(Pending { task, action: Uuid::nil(), since: Timestamp::UNIX_EPOCH, from })
    }

    #[test]
    fn states() {
        let now = Timestamp::from_second(1000).unwrap();
        let resize = move |verified| {
            Some(Resize {
                old_flavor: None,
                old_vcpus: 1,
                old_memory_mib: 1,
                old_root_gib: None,
                old_qos: Default::default(),
                old_host: HostId::new(),
                migration: Uuid::nil(),
                verified,
                reverting: false,
                since: now,
            })
        };
        type Change = Box<dyn Fn(&mut InstanceRecord)>;
        type Row = (&'static str, Change, (VmState, Option<&'static str>, u8, &'static str));
        let shelved = move |offloaded| Some(Shelved { since: now, offloaded });
        let seen = |state| Some(observed(2, state));
        let table: Vec<Row> = vec![
            ("runs", Box::new(|_| ()), (VmState::Active, None, 1, "ACTIVE")),
            (
                "is built",
                Box::new(|r| {
                    (r.built, r.observed) = (false, None);
                    r.task = pending(Task::Build, VmState::Building);
                }),
                (VmState::Building, Some("spawning"), 0, "BUILD"),
            ),
            (
                "stops",
                Box::new(|r| {
                    r.power = Power::Off;
                    r.task = pending(Task::Stop, VmState::Active);
                }),
                (VmState::Active, Some("powering-off"), 1, "ACTIVE"),
            ),
            (
                "is stopped",
                Box::new(move |r| (r.power, r.observed) = (Power::Off, seen(BodyState::Stopped))),
                (VmState::Stopped, None, 4, "SHUTOFF"),
            ),
            (
                "is paused",
                Box::new(move |r| (r.power, r.observed) = (Power::Paused, seen(BodyState::Paused))),
                (VmState::Paused, None, 3, "PAUSED"),
            ),
            (
                "is suspended",
                Box::new(move |r| (r.power, r.observed) = (Power::Suspended, seen(BodyState::Suspended))),
                (VmState::Suspended, None, 4, "SUSPENDED"),
            ),
            (
                "reboots",
                Box::new(|r| r.task = pending(Task::RebootHard, VmState::Stopped)),
                (VmState::Stopped, Some("rebooting_hard"), 1, "HARD_REBOOT"),
            ),
            (
                "is rebuilt while stopped",
                Box::new(|r| r.task = pending(Task::Rebuild, VmState::Stopped)),
                (VmState::Stopped, Some("rebuilding"), 1, "REBUILD"),
            ),
            (
                "is resized",
                Box::new(move |r| {
                    r.resize = resize(false);
                    r.task = pending(Task::Resize, VmState::Active);
                }),
                (VmState::Active, Some("resize_finish"), 1, "RESIZE"),
            ),
            (
                "waits for a word",
                Box::new(move |r| r.resize = resize(true)),
                (VmState::Resized, None, 1, "VERIFY_RESIZE"),
            ),
            (
                "is shelved",
                Box::new(move |r| r.shelved = shelved(false)),
                (VmState::Shelved, None, 1, "SHELVED"),
            ),
            (
                "is offloaded",
                Box::new(move |r| {
                    (r.power, r.observed) = (Power::Off, None);
                    r.shelved = shelved(true);
                }),
                (VmState::ShelvedOffloaded, None, 0, "SHELVED_OFFLOADED"),
            ),
            (
                "is deleted",
                Box::new(|r| r.intent = Intent::Deleting),
                (VmState::Active, Some("deleting"), 1, "ACTIVE"),
            ),
            (
                "has no room",
                Box::new(|r| {
                    (r.host, r.observed, r.server.failure) = (None, None, Some(fault()));
                    r.task = pending(Task::Build, VmState::Building);
                }),
                (VmState::Error, None, 0, "ERROR"),
            ),
            (
                "has a lasting fault",
                Box::new(|r| {
                    r.observed =
                        Some(InstanceObserved { fault: Some(fault()), ..observed(2, BodyState::Absent) });
                    r.task = pending(Task::Start, VmState::Stopped);
                }),
                (VmState::Error, None, 0, "ERROR"),
            ),
            (
                "has a young fault",
                Box::new(move |r| {
                    let young = Fault { since: now, ..fault() };
                    r.observed =
                        Some(InstanceObserved { fault: Some(young), ..observed(2, BodyState::Absent) });
                    r.task = pending(Task::Start, VmState::Stopped);
                }),
                (VmState::Stopped, Some("powering-on"), 0, "SHUTOFF"),
            ),
        ];
        for (what, change, (vm, task, power, status)) in table {
            let mut record = sample();
            change(&mut record);
            let want = ServerState { vm, task, power, status };
            assert_eq!(server_state(&record, true, now), want, "{what}");
        }
    }

    #[test]
    fn a_task_ends_when_the_body_is_where_it_should_be() {
        let mut record = sample();
        record.task = pending(Task::RebootSoft, VmState::Active);
        record.restarts = 1;
        assert!(!record.task_done(), "the body has not seen the restart");
        record.observed = Some(InstanceObserved { restarts: 1, ..observed(2, BodyState::Running) });
        assert!(record.task_done());
        record.task = pending(Task::Snapshot(ImageId::new()), VmState::Active);
        assert!(!record.task_done(), "an image's bytes are another matter");
    }
}
