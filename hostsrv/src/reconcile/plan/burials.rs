//! What tombstones order among bodies, and which tombstones are carried out.

use super::{GRACE_DELETE, Observed, Step};
use crate::instance::{ObservedState, Remains};
use crate::reconcile::ledger::Begun;
use amphi_api::InstanceId;
use amphi_api::wire::{HostDesired, Tombstone};

/// The steps for what a tombstone names among bodies.
pub fn burial(id: InstanceId, epoch: u64, seen: &Observed<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    for body in seen.bodies.iter().filter(|b| b.instance == id && b.epoch <= epoch) {
        if body.state != ObservedState::Stopped {
            steps.push(Step::Stop { kind: body.kind, grace: GRACE_DELETE });
        }
        steps.push(Step::Remove { kind: body.kind, epoch: body.epoch, remains: Remains::Nothing });
    }
    steps
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
