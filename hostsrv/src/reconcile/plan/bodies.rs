//! The steps for an instance that is desired here: its body, and the volumes in its hands.

use super::burials::bodiless;
use super::volumes::{is_attached, lacks};
use super::{GRACE, Observed, Remembered, Step};
use crate::instance::{ObservedBody, ObservedState, Remains, limits};
use amphi_api::VolumeId;
use amphi_api::instance::{BodyKind, MemberStatus, Power};
use amphi_api::wire::{BodyDesired, InstanceDesired, VolumeDesired};
use std::collections::BTreeSet;

/// Every volume that the instance should have in its hands.
pub fn volumes_of(desired: &InstanceDesired) -> Vec<VolumeId> {
    let further = desired.attachments.iter().map(|attachment| attachment.volume);
    desired.root_volume.into_iter().chain(desired.volume).chain(further).collect()
}

/// The steps for one instance that is desired, `volumes` being the orders for its volumes. Empty: all is as it should be,
/// or nothing can be said.
pub fn instance(
    desired: &InstanceDesired,
    volumes: &[&VolumeDesired],
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
    if !confirmed || mine.iter().any(|b| b.epoch > desired.epoch) {
        // Only a database that was set back can order a newer body away; it stays until somebody decides.
        return Vec::new();
    }
    if let Some(leaving) = &desired.leaving {
        // Whatever has become of it, nothing is started or let go on here before the order is over.
        let runs = |b: &&ObservedBody| b.epoch == desired.epoch && b.state == ObservedState::Running;
        let sent = mine.iter().copied().find(runs).filter(|b| b.kind == BodyKind::Vm && !leaving.recalled);
        return sent.map(|_| Step::Depart).into_iter().collect();
    }
    let still = |b: &&ObservedBody| b.state == ObservedState::Stopped && b.volumes.is_empty();
    if desired.copying.as_ref().is_some_and(|c| c.last) && mine.iter().all(still) {
        // Its volumes are in the hands of who sends them.
        return Vec::new();
    }
    let detach = || volumes.iter().map(|v| Step::DetachVolume { volume: v.id });
    let mut steps = Vec::new();
    let stale: Vec<&&ObservedBody> =
        mine.iter().filter(|b| b.epoch < desired.epoch || b.kind != kind).collect();
    if !stale.is_empty() {
        if desired.power.wants_body() {
            steps.push(Step::PrepareDesired);
        }
        for body in &stale {
            if body.state != ObservedState::Stopped {
                steps.push(Step::Stop { kind: body.kind, grace: GRACE });
            }
        }
        for body in &stale {
            // The next body, of this kind or after it was of the other, finds its root disk again.
            steps.push(Step::Remove { kind: body.kind, epoch: body.epoch, remains: Remains::Roots });
        }
        steps.extend(detach());
    }
    for volume in volumes {
        // Restored and given to an instance in one breath: the host still has it in the bin.
        if held(seen, volume).is_some_and(|held| held.trashed_at.is_some()) {
            steps.push(Step::Restore { volume: volume.id });
        }
    }
    let beside = made_beside(desired, volumes, seen);
    let ensure_volumes = || {
        let first = volumes.iter().map(|v| v.id).filter(move |id| Some(*id) != beside);
        first.map(|volume| Step::EnsureVolume { volume })
    };
    let lacking = || volumes.iter().filter(|v| lacks(v, seen)).map(|v| v.id);
    let current = mine.iter().find(|b| b.epoch == desired.epoch && b.kind == kind);
    let restart = memory.begun.restarts < desired.restarts;
    // When nothing runs and before the start, as for members: a start that fails must not end what of it runs at each further
    // try. Until the start is done the status tells the former count.
    let restarted = || restart.then_some(Step::NoteRestarts { restarts: desired.restarts });
    let resize = || {
        let differs = current.is_some_and(|body| limits::differ(desired, body));
        (differs && !memory.keeps_size).then_some(Step::Resize)
    };
    let (again, note) = restarts_of_members(desired, current.copied(), memory);
    let rescue = desired.rescue.is_some();
    match (desired.power.wants_body(), current) {
        // Another instance here has not let go of one of the volumes yet.
        (true, _)
            if mine.iter().all(|b| b.state == ObservedState::Stopped) && held_elsewhere(desired, seen) => {}
        (true, Some(body)) if body.state != ObservedState::Stopped && (restart || body.rescued != rescue) => {
            steps.push(Step::Stop { kind, grace: GRACE });
            steps.extend(note);
            steps.extend(restarted());
            steps.push(Step::Ensure);
        }
        (true, Some(body)) if body.state != ObservedState::Stopped && !again.is_empty() => {
            steps.extend(again);
            // Before the start: one that fails must not end them again at each further try.
            steps.extend(note);
            steps.push(Step::Ensure);
        }
        (true, Some(body)) if !matches!(body.state, ObservedState::Stopped | ObservedState::Degraded) => {
            for volume in lacking() {
                steps.push(Step::EnsureVolume { volume });
                if desired.volume == Some(volume) || body.volumes.contains(&volume) {
                    steps.push(Step::TellGrown { kind, volume });
                }
            }
            let current = has_ordered_members(desired, body);
            steps.extend(note);
            steps.extend(resize());
            if (!current || !is_settled(desired, body)) && !takes_what_is_held(desired, body, seen) {
                steps.extend((!current).then_some(Step::PrepareUpdate));
                steps.push(Step::Ensure);
            }
            if let Some(next) = &desired.next_body
                && memory.prepared != Some((next.kind(), desired.epoch))
            {
                steps.push(Step::PrepareNext);
            }
        }
        (true, _) => {
            steps.extend(ensure_volumes());
            steps.extend(resize());
            steps.extend(note);
            steps.extend(restarted());
            steps.push(beside.map_or(Step::Ensure, |volume| Step::EnsureWith { volume }));
        }
        (false, Some(body)) if body.state != ObservedState::Stopped || !body.volumes.is_empty() => {
            steps.push(Step::Stop { kind, grace: GRACE });
            steps.extend(detach());
        }
        (false, _) => {
            steps.extend(lacking().map(|volume| Step::EnsureVolume { volume }));
            let attached = volumes.iter().filter(|v| held(seen, v).is_some_and(is_attached));
            steps.extend(attached.map(|v| Step::DetachVolume { volume: v.id }));
        }
    }
    if steps.is_empty() {
        // What the other kind left when it failed before it had a body.
        let others = bodiless(desired.id, seen, &memory.begun).filter(|other| *other != kind);
        let epoch = desired.epoch;
        steps.extend(others.map(|kind| Step::Remove { kind, epoch, remains: Remains::Roots }));
    }
    steps
}

/// The step for the bytes of an instance that moves: none once the pass is done, or while one that must find nothing
/// running still finds something.
pub fn bytes(desired: &InstanceDesired, seen: &Observed<'_>, done: bool) -> Vec<Step> {
    let Some(order) = desired.copying.as_ref().filter(|order| !done && !order.over) else {
        return Vec::new();
    };
    let mut mine = seen.bodies.iter().filter(|b| b.instance == desired.id);
    let silent = !seen.answered.contains(&desired.body.kind());
    if order.last && (silent || mine.any(|b| b.state != ObservedState::Stopped)) {
        return Vec::new();
    }
    vec![Step::SendBytes]
}

/// The steps for an instance that is on its way here: made ready once. A body of it that is here already, of whatever
/// epoch, is somebody else's business: the tombstone's or the epoch's to come.
///
/// A twin is made whole, and made again when it is not there any more. What never ran of it goes when its epoch grows, or
/// when what comes in its place, by a move, is of the other kind: nothing has run here at an epoch that is only expected.
pub fn expected(
    desired: &InstanceDesired,
    seen: &Observed<'_>,
    memory: &Remembered,
    confirmed: bool,
) -> Vec<Step> {
    let kind = desired.body.kind();
    let mine: Vec<&ObservedBody> = seen.bodies.iter().filter(|b| b.instance == desired.id).collect();
    let ready = memory.prepared == Some((kind, desired.epoch));
    let silent = |k: &BodyKind| !seen.answered.contains(k);
    if !confirmed || silent(&kind) {
        return Vec::new();
    }
    let as_ordered = |b: &&&ObservedBody| b.epoch == desired.epoch && b.kind == kind;
    let made = mine.iter().any(|b| as_ordered(&b));
    if ready && (made || !desired.twin) {
        return Vec::new();
    }
    let waits = |b: &&ObservedBody| {
        let older = desired.twin && b.epoch < desired.epoch;
        b.state == ObservedState::Stopped && (older || b.epoch == desired.epoch)
    };
    if !mine.iter().all(waits) || memory.begun.kinds.iter().any(silent) {
        return Vec::new();
    }
    let others = mine.iter().filter(|b| !as_ordered(b));
    let mut steps: Vec<Step> =
        others.map(|b| Step::Remove { kind: b.kind, epoch: b.epoch, remains: Remains::Roots }).collect();
    steps.push(Step::PrepareExpected);
    steps
}

fn held<'a>(seen: &Observed<'a>, volume: &VolumeDesired) -> Option<&'a crate::storage::ObservedVolume> {
    seen.volumes.and_then(|all| all.get(&volume.id.0))
}

/// Whether a body that is there is halted as ordered and has what it should have plugged in.
fn is_settled(desired: &InstanceDesired, body: &ObservedBody) -> bool {
    let state = match (desired.power, body.state) {
        (Power::On, state) => state == ObservedState::Running,
        (Power::Paused, state) => state == ObservedState::Paused,
        // A set's memory cannot go to disk.
        (Power::Suspended, ObservedState::Paused) => body.kind == BodyKind::Set,
        (Power::Suspended, state) => state == ObservedState::Suspended,
        (Power::Off, _) => true,
    };
    // What is on disk takes part in no exchange of devices.
    state && (body.state == ObservedState::Suspended || is_plugged(desired, body))
}

/// Whether every member of a set is made for the description that is ordered, with nothing beside it that is to go.
fn has_ordered_members(desired: &InstanceDesired, body: &ObservedBody) -> bool {
    let as_ordered = |m: &MemberStatus| {
        let former = desired.members.get(&m.name).and_then(|o| o.former);
        m.generation == desired.generation_of(&m.name)
            && m.coming.is_none()
            && m.former.is_none_or(|kept| former == Some(kept))
    };
    body.kind != BodyKind::Set || body.rescued || body.members.iter().all(as_ordered)
}

/// The members to restart by order, each written down before the next one ends, and what is to be written down then. One that
/// has not run in this body yet is only now being made: its start is what was ordered.
fn restarts_of_members(
    desired: &InstanceDesired,
    current: Option<&ObservedBody>,
    memory: &Remembered,
) -> (Vec<Step>, Option<Step>) {
    let mut noted = memory.begun.members.clone();
    let done = |name: &str| memory.begun.members.get(name).copied().unwrap_or(0);
    let due: Vec<(&String, u64)> = desired
        .members
        .iter()
        .filter(|(name, o)| done(name) < o.restarts)
        .map(|(name, o)| (name, o.restarts))
        .collect();
    if due.is_empty() || matches!(desired.body, BodyDesired::Vm { .. }) {
        return (Vec::new(), None);
    }
    let has_run = |name: &str| {
        current.is_some_and(|body| body.members.iter().any(|m| m.name == name && m.started_at_us.is_some()))
    };
    let mut again = Vec::new();
    for (name, restarts) in due.into_iter().filter(|(name, _)| has_run(name)) {
        if !again.is_empty() {
            again.push(Step::NoteMemberRestarts { members: noted.clone() });
        }
        again.push(Step::RestartMember { member: name.clone() });
        noted.insert(name.clone(), restarts);
    }
    let members = desired.members.iter().map(|(name, o)| (name.clone(), o.restarts)).collect();
    (again, Some(Step::NoteMemberRestarts { members }))
}

fn is_plugged(desired: &InstanceDesired, body: &ObservedBody) -> bool {
    let ports: BTreeSet<_> = desired.ports.iter().map(|port| port.id).collect();
    let further = |volume: &&VolumeId| ![desired.volume, desired.root_volume].contains(&Some(**volume));
    let volumes: BTreeSet<_> = desired.attachments.iter().map(|attachment| &attachment.volume).collect();
    body.ports.iter().copied().collect::<BTreeSet<_>>() == ports
        && body.volumes.iter().filter(further).collect::<BTreeSet<_>>() == volumes
}

/// Whether a body of another instance still has one of the volumes plugged in.
fn held_elsewhere(desired: &InstanceDesired, seen: &Observed<'_>) -> bool {
    let others = || seen.bodies.iter().filter(|body| body.instance != desired.id);
    volumes_of(desired).iter().any(|volume| others().any(|body| body.volumes.contains(volume)))
}

/// As above, for a body that is there: only what it would gain counts, so that it can still lose others.
fn takes_what_is_held(desired: &InstanceDesired, body: &ObservedBody, seen: &Observed<'_>) -> bool {
    let gains = desired.attachments.iter().any(|a| !body.volumes.contains(&a.volume));
    gains && held_elsewhere(desired, seen)
}

/// The volume of a set that may be made while its containers are: it begins blank, so that takes no longer than they do, and
/// no container can start without it. Bytes that come from elsewhere are there first, and what is missing is no blank one.
fn made_beside(
    desired: &InstanceDesired,
    volumes: &[&VolumeDesired],
    seen: &Observed<'_>,
) -> Option<VolumeId> {
    let own =
        desired.volume.filter(|_| desired.body.kind() == BodyKind::Set && desired.root_volume.is_none())?;
    let order = volumes.iter().find(|v| v.id == own)?;
    let absent = seen.volumes.is_some_and(|all| !all.contains_key(&own.0));
    (absent && !order.made && order.source.is_none()).then_some(own)
}
