//! What to do next, decided without I/O: (desired, observed, remembered) → steps, item by item. Refuses to act, to wait
//! and to guess: where an engine is silent, nothing is planned that its silence could make wrong.
//!
//! An item is an instance, a volume without an instance, or a snapshot. The steps of one item run in order; items run
//! side by side. Every step is idempotent, so a plan that was cut short is simply made again from a new observation.

use super::ledger::Begun;
use crate::instance::{ObservedBody, ObservedState};
use crate::storage::{ObservedVolume, VolumeKind};
use amphi_api::instance::BodyKind;
use amphi_api::wire::{HostDesired, InstanceDesired, SnapshotDesired, Tombstone, VolumeDesired};
use amphi_api::{InstanceId, SnapshotId, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

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
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Make the instance's next body ready beside the present one.
    PrepareNext,
    /// Get everything of the desired body ready that needs no stop of the old one.
    PrepareDesired,
    Stop {
        kind: BodyKind,
        grace: Duration,
    },
    Remove {
        kind: BodyKind,
        epoch: u64,
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
    /// Attach the volume as the kind of body needs it, then make and start the body.
    Ensure,
    /// The ordered restarts up to this count are carried out.
    NoteRestarts {
        restarts: u64,
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
}

/// The steps for one instance that is desired, `volume` being the order for its volume. Empty: all is as it should be,
/// or nothing can be said.
pub fn instance(
    desired: &InstanceDesired,
    volume: Option<&VolumeDesired>,
    seen: &Observed<'_>,
    memory: &Remembered,
    confirmed: bool,
) -> Vec<Step> {
    let kind = desired.body.kind();
    // Where an engine that may hold a body of this instance is silent, even starting the other kind could make two.
    let silent = |k: &BodyKind| !seen.answered.contains(k);
    if silent(&kind) || memory.begun.kinds.iter().any(silent) {
        return Vec::new();
    }
    let mine: Vec<&ObservedBody> = seen.bodies.iter().filter(|b| b.instance == desired.id).collect();
    if mine.iter().any(|b| b.epoch > desired.epoch) {
        // Only a database that was set back can order this; the newer body stays until somebody decides.
        return Vec::new();
    }
    let mut steps = Vec::new();
    let stale: Vec<&&ObservedBody> =
        mine.iter().filter(|b| b.epoch < desired.epoch || b.kind != kind).collect();
    if !stale.is_empty() {
        if !confirmed {
            return Vec::new();
        }
        if desired.power.wants_body() {
            steps.push(Step::PrepareDesired);
        }
        for body in &stale {
            if body.state != ObservedState::Stopped {
                steps.push(Step::Stop { kind: body.kind, grace: GRACE });
            }
        }
        for body in &stale {
            steps.push(Step::Remove { kind: body.kind, epoch: body.epoch });
        }
        steps.extend(volume.map(|v| Step::DetachVolume { volume: v.id }));
    }
    let current = mine.iter().find(|b| b.epoch == desired.epoch && b.kind == kind);
    let state = current.map(|b| b.state);
    let in_bin = |v: &&VolumeDesired| {
        seen.volumes.and_then(|all| all.get(&v.id.0)).is_some_and(|held| held.trashed_at.is_some())
    };
    if confirmed && let Some(volume) = volume.filter(in_bin) {
        // Restored and given to an instance in one breath: the host still has it in the bin.
        steps.push(Step::Restore { volume: volume.id });
    }
    let ensure_volume = volume.map(|v| Step::EnsureVolume { volume: v.id });
    let lacking = volume.filter(|v| volume_lacks(v, seen)).map(|v| v.id);
    match (desired.power.wants_body(), state) {
        _ if !confirmed => {}
        (true, None | Some(ObservedState::Stopped | ObservedState::Degraded)) => {
            steps.extend(ensure_volume);
            steps.push(Step::Ensure);
            if memory.begun.restarts < desired.restarts {
                steps.push(Step::NoteRestarts { restarts: desired.restarts });
            }
        }
        (true, Some(ObservedState::Running)) if memory.begun.restarts < desired.restarts => {
            steps.push(Step::Stop { kind, grace: GRACE });
            steps.push(Step::Ensure);
            steps.push(Step::NoteRestarts { restarts: desired.restarts });
        }
        (true, Some(ObservedState::Running)) => {
            if let Some(volume) = lacking {
                steps.push(Step::EnsureVolume { volume });
                steps.push(Step::TellGrown { kind, volume });
            }
            if let Some(next) = &desired.next_body
                && memory.prepared != Some((next.kind(), desired.epoch))
            {
                steps.push(Step::PrepareNext);
            }
        }
        (false, Some(ObservedState::Running | ObservedState::Degraded)) => {
            steps.push(Step::Stop { kind, grace: GRACE });
            steps.extend(volume.map(|v| Step::DetachVolume { volume: v.id }));
        }
        (false, None | Some(ObservedState::Stopped)) => {
            steps.extend(lacking.and(ensure_volume));
            if let Some(volume) = volume
                && seen.volumes.and_then(|all| all.get(&volume.id.0)).is_some_and(is_attached)
            {
                steps.push(Step::DetachVolume { volume: volume.id });
            }
        }
    }
    steps
}

/// Whether the volume is missing, unfinished, or smaller than ordered.
fn volume_lacks(ordered: &VolumeDesired, seen: &Observed<'_>) -> bool {
    let Some(volumes) = seen.volumes else { return false };
    volumes.get(&ordered.id.0).is_none_or(|v| v.size_bytes < ordered.size_bytes || !v.complete)
}

fn is_attached(volume: &ObservedVolume) -> bool {
    volume.mounted.is_some() || volume.device.is_some()
}

/// The steps for what a tombstone names among bodies.
pub fn burial(id: InstanceId, epoch: u64, seen: &Observed<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    for body in seen.bodies.iter().filter(|b| b.instance == id && b.epoch <= epoch) {
        if body.state != ObservedState::Stopped {
            steps.push(Step::Stop { kind: body.kind, grace: GRACE_DELETE });
        }
        steps.push(Step::Remove { kind: body.kind, epoch: body.epoch });
    }
    steps
}

/// The steps for a volume that no instance here uses.
pub fn volume(desired: &VolumeDesired, seen: Option<&ObservedVolume>, used_by_body: bool) -> Vec<Step> {
    let volume = desired.id;
    match (seen, desired.trashed_at) {
        (Some(seen), Some(_)) if seen.trashed_at.is_none() && !used_by_body => vec![Step::Trash { volume }],
        (Some(seen), None) => {
            let mut steps = Vec::new();
            if seen.trashed_at.is_some() {
                steps.push(Step::Restore { volume });
            }
            if seen.size_bytes < desired.size_bytes || !seen.complete {
                steps.push(Step::EnsureVolume { volume });
            }
            if is_attached(seen) && !used_by_body {
                steps.push(Step::DetachVolume { volume });
            }
            steps
        }
        (None, None) => vec![Step::EnsureVolume { volume }],
        _ => Vec::new(),
    }
}

/// The steps for the bytes of a volume or snapshot that a tombstone names.
pub fn purge(id: uuid::Uuid, seen: &Observed<'_>) -> Vec<Step> {
    let here = seen.volumes.is_some_and(|all| all.contains_key(&id));
    if here { vec![Step::Purge { id }] } else { Vec::new() }
}

/// The steps for a snapshot.
pub fn snapshot(desired: &SnapshotDesired, seen: Option<&ObservedVolume>) -> Vec<Step> {
    match seen {
        Some(seen) if seen.complete && matches!(seen.kind, VolumeKind::Snapshot { .. }) => Vec::new(),
        _ if desired.made => Vec::new(),
        _ => vec![Step::TakeSnapshot],
    }
}

/// Which tombstones are carried out: nothing of what they name is left, as far as every engine has answered.
pub fn buried(
    desired: &HostDesired,
    seen: &Observed<'_>,
    begun: impl Fn(InstanceId) -> Begun,
) -> Vec<Tombstone> {
    let gone = |id: &uuid::Uuid| seen.volumes.is_some_and(|v| !v.contains_key(id));
    desired
        .tombstones
        .iter()
        .filter(|tombstone| match tombstone {
            Tombstone::Instance { id, epoch } => {
                // A kind that was begun here must have answered; a kind never begun here cannot hold anything.
                begun(*id).kinds.iter().all(|k| seen.answered.contains(k))
                    && !seen.bodies.iter().any(|b| b.instance == *id && b.epoch <= *epoch)
            }
            Tombstone::Volume { id } => gone(&id.0),
            Tombstone::Snapshot { id } => gone(&id.0),
        })
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::image::{Image, ImageFormat, ImageState};
    use amphi_api::instance::Power;
    use amphi_api::wire::BodyDesired;
    use amphi_api::{HostId, ImageId, ProjectId};
    use std::path::PathBuf;

    fn body_of(kind: BodyKind) -> BodyDesired {
        let image = Image {
            id: ImageId(uuid::Uuid::nil()),
            project: ProjectId::DEFAULT,
            name: "i".into(),
            format: ImageFormat::KernelInitramfs,
            cmdline: String::new(),
            state: ImageState::Active,
            blobs: Default::default(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
        };
        match kind {
            BodyKind::Set => BodyDesired::Set { set: Default::default(), images: vec![image] },
            BodyKind::Vm => BodyDesired::Vm { image, root_gib: None },
        }
    }

    /// A world with one instance at epoch 5 that should be a set with a volume of 10 bytes.
    struct World {
        desired: InstanceDesired,
        volume: VolumeDesired,
        bodies: Vec<ObservedBody>,
        answered: BTreeSet<BodyKind>,
        volumes: BTreeMap<uuid::Uuid, ObservedVolume>,
        memory: Remembered,
        confirmed: bool,
    }

    fn world() -> World {
        let volume =
            VolumeDesired { id: VolumeId::new(), size_bytes: 10, made: true, source: None, trashed_at: None };
        World {
            desired: InstanceDesired {
                id: InstanceId::new(),
                project: ProjectId::DEFAULT,
                name: "web".into(),
                epoch: 5,
                power: Power::On,
                restarts: 0,
                vcpus: 1,
                memory_mib: 64,
                body: body_of(BodyKind::Set),
                next_body: None,
                ports: vec![],
                volume: Some(volume.id),
                root_volume: None,
                attachments: Vec::new(),
                root: 0,
                rescue: None,
                user_data: None,
                ssh_keys: vec![],
                metadata: BTreeMap::new(),
            },
            volumes: BTreeMap::from([(volume.id.0, observed_volume(&volume))]),
            volume,
            bodies: vec![],
            answered: [BodyKind::Set, BodyKind::Vm].into(),
            memory: Remembered::default(),
            confirmed: true,
        }
    }

    fn observed_volume(volume: &VolumeDesired) -> ObservedVolume {
        ObservedVolume {
            id: volume.id.0,
            kind: VolumeKind::Volume,
            size_bytes: volume.size_bytes,
            fs: None,
            complete: true,
            trashed_at: None,
            device: Some(PathBuf::from("/dev/x")),
            mounted: None,
            tags: vec![],
        }
    }

    impl World {
        fn with(mut self, kind: BodyKind, epoch: u64, state: ObservedState) -> Self {
            let instance = self.desired.id;
            self.bodies.push(ObservedBody { instance, kind, epoch, state, members: vec![], trouble: None });
            self
        }

        fn and(mut self, change: impl FnOnce(&mut Self)) -> Self {
            change(&mut self);
            self
        }

        /// The plan's steps by name, which is what the tables speak of.
        fn plan(&self) -> Vec<String> {
            let seen =
                Observed { bodies: &self.bodies, answered: &self.answered, volumes: Some(&self.volumes) };
            instance(&self.desired, Some(&self.volume), &seen, &self.memory, self.confirmed)
                .iter()
                .map(name)
                .collect()
        }
    }

    fn name(step: &Step) -> String {
        let text = match step {
            Step::Stop { kind, .. } => return format!("stop {kind}"),
            Step::Remove { kind, epoch } => return format!("remove {kind} {epoch}"),
            Step::TellGrown { kind, .. } => return format!("tell {kind}"),
            Step::PrepareNext => "prepare next",
            Step::PrepareDesired => "prepare",
            Step::EnsureVolume { .. } => "volume",
            Step::DetachVolume { .. } => "detach",
            Step::Ensure => "ensure",
            Step::NoteRestarts { .. } => "note",
            Step::Trash { .. } => "trash",
            Step::Restore { .. } => "restore",
            Step::Purge { .. } => "purge",
            Step::TakeSnapshot => "snapshot",
        };
        text.to_owned()
    }

    use BodyKind::{Set, Vm};
    use ObservedState::{Degraded, Running, Stopped};

    #[test]
    fn instances() {
        let off = |w: &mut World| w.desired.power = Power::Off;
        let table: Vec<(&str, World, &[&str])> = vec![
            ("absent", world(), &["volume", "ensure"]),
            ("running", world().with(Set, 5, Running), &[]),
            ("a member is down", world().with(Set, 5, Degraded), &["volume", "ensure"]),
            ("stopped", world().with(Set, 5, Stopped), &["volume", "ensure"]),
            ("should be off", world().with(Set, 5, Running).and(off), &["stop set", "detach"]),
            ("is off, volume still attached", world().with(Set, 5, Stopped).and(off), &["detach"]),
            (
                "exchange",
                world().with(Vm, 4, Running),
                &["prepare", "stop vm", "remove vm 4", "detach", "volume", "ensure"],
            ),
            (
                "exchange cut short after the stop",
                world().with(Vm, 4, Stopped),
                &["prepare", "remove vm 4", "detach", "volume", "ensure"],
            ),
            (
                "exchange of one that is off",
                world().with(Vm, 4, Stopped).and(off),
                &["remove vm 4", "detach", "detach"],
            ),
            ("a newer body than ordered stays", world().with(Set, 6, Running), &[]),
            ("after a reboot nothing is started", world().and(|w| w.confirmed = false), &[]),
            (
                "after a reboot a zombie is not replaced before the controller spoke",
                world().with(Set, 4, Stopped).and(|w| w.confirmed = false),
                &[],
            ),
            (
                "restart ordered",
                world().with(Set, 5, Running).and(|w| w.desired.restarts = 1),
                &["stop set", "ensure", "note"],
            ),
            (
                "restart done",
                world().with(Set, 5, Running).and(|w| {
                    w.desired.restarts = 1;
                    w.memory.begun.restarts = 1;
                }),
                &[],
            ),
            (
                "volume grows",
                world().with(Set, 5, Running).and(|w| w.volume.size_bytes = 11),
                &["volume", "tell set"],
            ),
            (
                "next body",
                world().with(Set, 5, Running).and(|w| w.desired.next_body = Some(body_of(Vm))),
                &["prepare next"],
            ),
            (
                "next body is ready",
                world().with(Set, 5, Running).and(|w| {
                    w.desired.next_body = Some(body_of(Vm));
                    w.memory.prepared = Some((Vm, 5));
                }),
                &[],
            ),
            (
                "the volume comes straight from the bin",
                world().and(|w| w.volumes.values_mut().for_each(|v| v.trashed_at = Some(1))),
                &["restore", "volume", "ensure"],
            ),
            ("engine silent", world().and(|w| w.answered.retain(|k| *k != Set)), &[]),
            (
                "the other engine silent, nothing begun there",
                world().and(|w| w.answered.retain(|k| *k != Vm)),
                &["volume", "ensure"],
            ),
            (
                "the other engine silent, something begun there",
                world().and(|w| {
                    w.answered.remove(&Vm);
                    w.memory.begun.kinds = vec![Vm];
                }),
                &[],
            ),
        ];
        for (what, world, steps) in table {
            assert_eq!(world.plan(), steps, "{what}");
        }
    }

    #[test]
    fn volumes_and_snapshots() {
        let mut ordered = VolumeDesired {
            id: VolumeId::new(),
            size_bytes: 10,
            made: false,
            source: None,
            trashed_at: None,
        };
        let plan = |ordered: &VolumeDesired, seen: Option<&ObservedVolume>, used| -> Vec<String> {
            volume(ordered, seen, used).iter().map(name).collect()
        };
        let mut seen = observed_volume(&ordered);
        seen.device = None;
        assert_eq!(plan(&ordered, None, false), ["volume"]);
        assert!(plan(&ordered, Some(&seen), false).is_empty());
        seen.device = Some("/dev/x".into());
        assert_eq!(plan(&ordered, Some(&seen), false), ["detach"]);
        assert!(plan(&ordered, Some(&seen), true).is_empty(), "a body that is on its way out still holds it");
        ordered.trashed_at = Some(jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(plan(&ordered, Some(&seen), false), ["trash"]);
        assert!(plan(&ordered, None, false).is_empty());
        seen.trashed_at = Some(0);
        assert!(plan(&ordered, Some(&seen), false).is_empty());
        ordered.trashed_at = None;
        seen.device = None;
        assert_eq!(plan(&ordered, Some(&seen), false), ["restore"]);

        let mut order = SnapshotDesired { id: SnapshotId::new(), volume: ordered.id, made: false };
        assert_eq!(snapshot(&order, None), [Step::TakeSnapshot]);
        order.made = true;
        assert!(snapshot(&order, None).is_empty(), "a lost snapshot is not taken anew of later bytes");
    }

    #[test]
    fn only_tombstones_bury_and_only_when_every_engine_has_answered() {
        let w = world().with(Set, 4, Running);
        let id = w.desired.id;
        let mut seen = Observed { bodies: &w.bodies, answered: &w.answered, volumes: None };
        let steps: Vec<_> = burial(id, 4, &seen).iter().map(name).collect();
        assert_eq!(steps, ["stop set", "remove set 4"]);
        assert!(burial(id, 3, &seen).is_empty(), "a tombstone for an older epoch spares the newer body");

        let volume = Tombstone::Volume { id: w.volume.id };
        let desired = HostDesired {
            exports: Vec::new(),
            host: HostId::new(),
            generation: 1,
            instances: vec![],
            volumes: vec![],
            snapshots: vec![],
            tombstones: vec![
                Tombstone::Instance { id, epoch: 4 },
                Tombstone::Instance { id, epoch: 3 },
                volume,
            ],
        };
        let begun = |_| Begun { kinds: vec![Set], restarts: 0 };
        assert_eq!(buried(&desired, &seen, begun), [Tombstone::Instance { id, epoch: 3 }]);
        let silent = BTreeSet::from([Vm]);
        seen.answered = &silent;
        assert!(buried(&desired, &seen, begun).is_empty(), "a silent engine may still hold it");
        let nothing = BTreeMap::new();
        seen.volumes = Some(&nothing);
        assert_eq!(buried(&desired, &seen, begun), [volume]);
    }
}
