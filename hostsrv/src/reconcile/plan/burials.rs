//! What tombstones order among bodies, and which tombstones are carried out.

use super::{GRACE_DELETE, Item, Observed, Step, strays};
use crate::instance::{ObservedState, Remains};
use crate::reconcile::ledger::Begun;
use amphi_api::InstanceId;
use amphi_api::instance::BodyKind;
use amphi_api::wire::{HostDesired, Tombstone};
use std::collections::BTreeSet;

/// The steps for what a tombstone names among bodies. A kind that was begun and left no body may have left files all the
/// same: an image that could not be loaded is found out after them.
pub fn burial(id: InstanceId, epoch: u64, seen: &Observed<'_>, begun: &Begun) -> Vec<Step> {
    let mut steps = Vec::new();
    for body in seen.bodies.iter().filter(|b| b.instance == id && b.epoch <= epoch) {
        if body.state != ObservedState::Stopped {
            steps.push(Step::Stop { kind: body.kind, grace: GRACE_DELETE });
        }
        steps.push(Step::Remove { kind: body.kind, epoch: body.epoch, remains: Remains::Nothing });
    }
    let bodiless = bodiless(id, seen, begun);
    steps.extend(bodiless.map(|kind| Step::Remove { kind, epoch, remains: Remains::Nothing }));
    steps
}

/// Kinds that were begun for the instance and of which its engine holds no body.
pub(super) fn bodiless(id: InstanceId, seen: &Observed<'_>, begun: &Begun) -> impl Iterator<Item = BodyKind> {
    let lacks = move |kind: &BodyKind| !seen.bodies.iter().any(|b| b.instance == id && b.kind == *kind);
    begun.kinds.iter().copied().filter(|kind| seen.answered.contains(kind)).filter(lacks)
}

/// Which tombstones are carried out: nothing of what they name is left, as far as every engine has answered, and nothing is
/// under way that was ordered before and may yet bring it about.
pub fn buried(
    desired: &HostDesired,
    seen: &Observed<'_>,
    under_way: &BTreeSet<Item>,
    begun: impl Fn(InstanceId) -> Begun,
) -> Vec<Tombstone> {
    let gone = |id: &uuid::Uuid| seen.volumes.is_some_and(|v| !v.contains_key(id));
    // Whoever hears that a body is gone may start it where its volumes are in reach: here they are let go of by then.
    let let_go = (desired.groups.is_empty() && seen.volumes.is_none())
        || seen.volumes.is_some_and(|all| strays(desired, all).next().is_none());
    desired
        .tombstones
        .iter()
        .filter(|tombstone| match tombstone {
            Tombstone::Instance { .. } if !let_go => false,
            Tombstone::Instance { id, .. } if under_way.contains(&Item::Instance(*id)) => false,
            Tombstone::Volume { id } if under_way.contains(&Item::Volume(*id)) => false,
            Tombstone::Snapshot { id } if under_way.contains(&Item::Snapshot(*id)) => false,
            Tombstone::Instance { id, epoch } => {
                // A kind that was begun here must have answered; a kind never begun here cannot hold anything.
                let begun = begun(*id);
                begun.kinds.iter().all(|k| seen.answered.contains(k))
                    && !seen.bodies.iter().any(|b| b.instance == *id && b.epoch <= *epoch)
                    // What is desired here anew looks after itself.
                    && (desired.instances.iter().any(|i| i.id == *id)
                        || bodiless(*id, seen, &begun).next().is_none())
            }
            Tombstone::Volume { id } => gone(&id.0),
            Tombstone::Snapshot { id } => gone(&id.0),
        })
        .copied()
        .collect()
}
