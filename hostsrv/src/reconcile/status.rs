//! What the controller is told: (desired, seen, remembered) → HostStatus. Pure.

use super::ledger::Begun;
use super::memory::Memory;
use super::observe::World;
use super::plan::{self, Item};
use crate::instance::{ObservedBody, ObservedState};
use crate::storage::VolumeKind;
use amphi_api::image::Blob;
use amphi_api::instance::{BodyKind, Fault, Power};
use amphi_api::wire::{
    BodyState, ExpectedStatus, ExportStatus, HostDesired, HostStatus, InstanceDesired, InstanceStatus,
    LeavingStatus, SnapshotStatus, Tombstone, VolumeStatus,
};
use amphi_api::{ImageId, InstanceId, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

pub fn render(
    desired: Option<&HostDesired>,
    world: &World,
    memory: &BTreeMap<Item, Memory>,
    under_way: &BTreeSet<Item>,
    begun: impl Fn(InstanceId) -> Begun,
    exported: impl Fn(ImageId) -> Option<Blob>,
) -> HostStatus {
    let Some(desired) = desired else {
        return HostStatus { strangers: strangers(None, world), ..HostStatus::default() };
    };
    HostStatus {
        exports: desired.exports.iter().map(|e| export(e.image, memory, exported(e.image))).collect(),
        generation: desired.generation,
        instances: desired
            .instances
            .iter()
            .map(|i| instance(i, world, memory, begun(i.id).restarts, under_way))
            .collect(),
        expected: desired.expected.iter().map(|i| expected(i, world, memory)).collect(),
        volumes: desired.volumes.iter().map(|v| volume(desired, v.id, world, memory)).collect(),
        snapshots: desired.snapshots.iter().map(|s| snapshot(s.id, world, memory)).collect(),
        buried: plan::buried(desired, &world.observed(), under_way, begun),
        active: world
            .volumes
            .iter()
            .flat_map(|all| all.values())
            .filter(|v| v.shared.is_some() && plan::is_attached(v))
            .map(|v| VolumeId(v.id))
            .collect(),
        strangers: strangers(Some(desired), world),
    }
}

fn instance(
    desired: &InstanceDesired,
    world: &World,
    memory: &BTreeMap<Item, Memory>,
    restarts: u64,
    under_way: &BTreeSet<Item>,
) -> InstanceStatus {
    let kind = desired.body.kind();
    let nothing = Memory::default();
    let memory = memory.get(&Item::Instance(desired.id)).unwrap_or(&nothing);
    let mine: Vec<&ObservedBody> = world.bodies.iter().filter(|b| b.instance == desired.id).collect();
    let current = mine.iter().find(|b| b.epoch == desired.epoch && b.kind == kind);
    let silent = world.troubles().bodies.remove(&kind).map(|why| engine_fault(why, memory));
    let trouble = current.and_then(|b| b.trouble.clone()).map(|why| {
        Memory::fault_since(memory.fault.clone().filter(|f| f.code == "guest_trouble"), "guest_trouble", why)
    });
    let newer = mine.iter().find(|b| b.epoch > desired.epoch).map(|b| Fault {
        code: "newer_body".into(),
        message: format!(
            "the host holds a body of epoch {}, newer than the ordered {}; nothing is touched until the order catches up",
            b.epoch, desired.epoch
        ),
        since: jiff::Timestamp::UNIX_EPOCH,
    });
    let further = |volume: &VolumeId| ![desired.volume, desired.root_volume].contains(&Some(*volume));
    InstanceStatus {
        id: desired.id,
        epoch: desired.epoch,
        kind,
        state: match body_state(desired, current.copied(), mine.len(), memory.busy) {
            // An engine shows the new body before its start has returned; the change of body is not over, nor timed.
            BodyState::Running if memory.busy && memory.switching_since.is_some() => BodyState::Starting,
            state => state,
        },
        members: current.map(|b| b.members.clone()).unwrap_or_default(),
        agent: current.and_then(|b| b.agent.clone()),
        ready: None,
        reason: None,
        // What was seen may be from before the restart as long as it is under way.
        restarts: match memory.restarts_before {
            Some(before) if under_way.contains(&Item::Instance(desired.id)) => before,
            _ => restarts,
        },
        plugged_ports: current.map(|b| b.ports.clone()).unwrap_or_default(),
        plugged_volumes: current
            .map(|b| b.volumes.iter().copied().filter(further).collect())
            .unwrap_or_default(),
        rescued: current.is_some_and(|b| b.rescued),
        next_ready: desired
            .next_body
            .as_ref()
            .is_some_and(|n| memory.prepared == Some((n.kind(), desired.epoch))),
        next_fault: memory.next_fault.clone(),
        fault: newer.or(silent).or_else(|| memory.fault.clone()).or(trouble),
        size: super::resizing::told(desired, current.copied(), memory),
        switch_ms: memory.switched.filter(|(epoch, _)| *epoch == desired.epoch).map(|(_, ms)| ms),
        copying: None,
        leaving: desired.leaving.as_ref().map(|order| {
            let under_way = under_way.contains(&Item::Instance(desired.id));
            LeavingStatus {
                exchange: order.exchange,
                under_way,
                recalled: order.recalled && !under_way,
                away: current.is_some_and(|b| b.away),
            }
        }),
    }
}

fn expected(coming: &InstanceDesired, world: &World, memory: &BTreeMap<Item, Memory>) -> ExpectedStatus {
    let memory = memory.get(&Item::Instance(coming.id));
    let here =
        |b: &ObservedBody| (b.instance, b.kind, b.epoch) == (coming.id, coming.body.kind(), coming.epoch);
    let made = !coming.twin || world.bodies.iter().any(here);
    ExpectedStatus {
        id: coming.id,
        epoch: coming.epoch,
        ready: made && memory.is_some_and(|m| m.prepared == Some((coming.body.kind(), coming.epoch))),
        fault: memory.and_then(|m| m.fault.clone()),
        landed: coming.arriving_from.is_some()
            && world.bodies.iter().any(|b| {
                let whole = matches!(b.state, ObservedState::Paused | ObservedState::Running);
                b.instance == coming.id && b.epoch == coming.epoch && whole
            }),
    }
}

fn body_state(
    desired: &InstanceDesired,
    current: Option<&ObservedBody>,
    bodies: usize,
    busy: bool,
) -> BodyState {
    let halted_set = || desired.power == Power::Suspended && desired.body.kind() == BodyKind::Set;
    match (current.map(|b| b.state), desired.power.wants_body()) {
        (Some(ObservedState::Paused | ObservedState::Suspended), false) => BodyState::Stopping,
        // The nearest to it that a set can do.
        (Some(ObservedState::Paused), true) if halted_set() => BodyState::Suspended,
        (Some(ObservedState::Paused), true) => BodyState::Paused,
        (Some(ObservedState::Suspended), true) => BodyState::Suspended,
        // Another body still stands where the ordered one will be.
        (None, _) if bodies > 0 => BodyState::Stopping,
        (None, true) if busy => BodyState::Starting,
        (None, _) => BodyState::Absent,
        (Some(ObservedState::Running), false) => BodyState::Stopping,
        (Some(ObservedState::Running), true) => BodyState::Running,
        (Some(ObservedState::Degraded), true) => BodyState::Starting,
        (Some(ObservedState::Degraded), false) => BodyState::Stopping,
        (Some(ObservedState::Stopped), true) if busy => BodyState::Starting,
        (Some(ObservedState::Stopped), _) => BodyState::Stopped,
    }
}

fn engine_fault(why: String, memory: &Memory) -> Fault {
    Fault {
        code: "engine_down".into(),
        message: format!("nothing is known of the body: {why}"),
        // Rendered at every look: a time of its own would make every status a new one.
        since: memory.fault.as_ref().map_or(jiff::Timestamp::UNIX_EPOCH, |f| f.since),
    }
}

fn volume(
    desired: &HostDesired,
    id: VolumeId,
    world: &World,
    memory: &BTreeMap<Item, Memory>,
) -> VolumeStatus {
    let seen = world.volumes.as_ref().and_then(|all| all.get(&id.0));
    // While an instance uses it, its trouble is that instance's item's.
    let user = desired.instances.iter().find(|i| plan::volumes_of(i).contains(&id));
    let user = user.map(|i| Item::Instance(i.id));
    let fault = memory.get(&user.unwrap_or(Item::Volume(id))).and_then(|m| m.fault.clone());
    VolumeStatus {
        id,
        size_bytes: seen.map_or(0, |v| v.size_bytes),
        present: seen.is_some_and(|v| v.complete),
        trashed: seen.is_some_and(|v| v.trashed_at.is_some()),
        fault: fault.filter(|f| user.is_none() || f.code.starts_with("volume")),
    }
}

fn snapshot(id: amphi_api::SnapshotId, world: &World, memory: &BTreeMap<Item, Memory>) -> SnapshotStatus {
    let seen = world.volumes.as_ref().and_then(|all| all.get(&id.0));
    SnapshotStatus {
        id,
        present: seen.is_some_and(|v| v.complete),
        fault: memory.get(&Item::Snapshot(id)).and_then(|m| m.fault.clone()),
    }
}

fn export(image: ImageId, memory: &BTreeMap<Item, Memory>, blob: Option<Blob>) -> ExportStatus {
    let fault = memory.get(&Item::Export(image)).and_then(|m| m.fault.clone());
    ExportStatus { image, fault: fault.filter(|_| blob.is_none()), blob, conversion: None }
}

/// What is here and known to nobody: shown, never touched.
fn strangers(desired: Option<&HostDesired>, world: &World) -> Vec<String> {
    let known_body = |body: &ObservedBody| {
        desired.is_some_and(|d| {
            d.instances.iter().chain(&d.expected).any(|i| i.id == body.instance)
                || d.tombstones
                    .iter()
                    .any(|t| matches!(t, Tombstone::Instance { id, epoch } if *id == body.instance && *epoch >= body.epoch))
        })
    };
    let known_volume = |id: uuid::Uuid| {
        desired.is_some_and(|d| {
            d.volumes.iter().any(|v| v.id.0 == id)
                || d.snapshots.iter().any(|s| s.id.0 == id)
                || d.tombstones.iter().any(|t| match t {
                    Tombstone::Volume { id: x } => x.0 == id,
                    Tombstone::Snapshot { id: x } => x.0 == id,
                    Tombstone::Instance { .. } => false,
                })
        })
    };
    let bodies = world
        .bodies
        .iter()
        .filter(|b| !known_body(b))
        .map(|b| format!("{} {} of epoch {}, {:?}", b.kind, b.instance, b.epoch, b.state).to_lowercase());
    let volumes =
        world.volumes.iter().flatten().filter(|(id, v)| v.shared.is_none() && !known_volume(**id)).map(
            |(id, v)| match v.kind {
                VolumeKind::Volume => format!("volume {id}"),
                VolumeKind::Snapshot { of } => format!("snapshot {id} of volume {of}"),
            },
        );
    bodies.chain(volumes).collect()
}
