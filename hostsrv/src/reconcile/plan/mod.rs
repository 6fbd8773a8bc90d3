//! What to do next, decided without I/O: (desired, observed, remembered) → steps, item by item. Refuses to act, to wait
//! and to guess: where an engine is silent, nothing is planned that its silence could make wrong.
//!
//! An item is an instance, a volume without an instance, a snapshot, or an export. The steps of one item run in order; items run
//! side by side. Every step is idempotent, so a plan that was cut short is simply made again from a new observation.

mod bodies;
mod burials;
mod volumes;

use super::ledger::Begun;
use crate::instance::{ObservedBody, Remains};
use crate::storage::ObservedVolume;
use amphi_api::instance::BodyKind;
use amphi_api::{ImageId, InstanceId, SnapshotId, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use bodies::{bytes, expected, instance, volumes_of};
pub use burials::{burial, buried};
pub use volumes::{is_attached, purge, snapshot, strays, volume};

/// How long a guest may take to end in an orderly way before it is ended by force: at a stop, restart or exchange.
pub const GRACE: Duration = Duration::from_secs(20);
/// The same at a deletion: nobody waits for the bytes of what is being destroyed.
pub const GRACE_DELETE: Duration = Duration::from_secs(2);

/// What is worked on as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Item {
    Instance(InstanceId),
    Volume(VolumeId),
    Snapshot(SnapshotId),
    Export(ImageId),
    /// The bytes of an instance that moves.
    Bytes(InstanceId),
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Make the instance's next body ready beside the present one.
    PrepareNext,
    /// Send the running body to another host.
    Depart,
    /// Make the body of an instance that comes here ready, without starting anything.
    PrepareExpected,
    /// Hold the body to its present size, as it is.
    Resize,
    /// Get everything of the desired body ready that needs no stop of the old one.
    PrepareDesired,
    Stop {
        kind: BodyKind,
        grace: Duration,
    },
    Remove {
        kind: BodyKind,
        epoch: u64,
        remains: Remains,
    },
    /// Make the volume if the controller has never seen it, grow it if it is too small.
    EnsureVolume {
        volume: VolumeId,
    },
    /// Tell the running body that its volume has grown.
    TellGrown {
        kind: BodyKind,
        volume: VolumeId,
    },
    DetachVolume {
        volume: VolumeId,
    },
    /// Attach the volumes as the kind of body needs them, then make the body as it should be: there, plugged, halted or
    /// not.
    Ensure,
    /// The same for a set, whose volume is made meanwhile: it begins blank, and the engine needs it only when a container
    /// starts.
    EnsureWith {
        volume: VolumeId,
    },
    /// The ordered restarts up to this count are begun: nothing of the body runs that was started before.
    NoteRestarts {
        restarts: u64,
    },
    /// Get all of a set's new members ready that can be while the present ones run.
    PrepareUpdate,
    /// End a set's member by order; what follows starts it again.
    RestartMember {
        member: String,
    },
    /// The ordered restarts of members are begun: what fails from here on repeats none of them.
    NoteMemberRestarts {
        members: BTreeMap<String, u64>,
    },
    Trash {
        volume: VolumeId,
    },
    Restore {
        volume: VolumeId,
    },
    Purge {
        id: uuid::Uuid,
    },
    TakeSnapshot,
    /// Read the bytes and hand them to the controller.
    Export,
    /// Send what differs to the other host, once.
    SendBytes,
}

impl Step {
    /// Whether volumes are after it as they were before; of [`Step::Ensure`], after its attaching.
    pub fn leaves_volumes(&self) -> bool {
        matches!(
            self,
            Step::Ensure
                | Step::Resize
                | Step::NoteRestarts { .. }
                | Step::PrepareNext
                | Step::PrepareUpdate
                | Step::RestartMember { .. }
                | Step::NoteMemberRestarts { .. }
                | Step::PrepareDesired
                | Step::Depart
                | Step::PrepareExpected
        )
    }
}

/// What is known of the world, for the planner.
pub struct Observed<'a> {
    pub bodies: &'a [ObservedBody],
    /// Kinds whose engine answered; the bodies of others are unknown.
    pub answered: &'a BTreeSet<BodyKind>,
    /// None: LVM did not answer.
    pub volumes: Option<&'a BTreeMap<uuid::Uuid, ObservedVolume>>,
}

/// What the planner may remember of an instance.
#[derive(Clone, Debug, Default)]
pub struct Remembered {
    pub begun: Begun,
    /// The next body that has been made ready, by kind and epoch it will follow.
    pub prepared: Option<(BodyKind, u64)>,
    /// Its present size was refused by what runs, and it is not time to try again.
    pub keeps_size: bool,
}

#[cfg(test)]
mod tests;
