//! The start of what was made ready here, at the moment at which it is ordered: the plan is made from the last look, since a
//! look at all engines may take as long as the start. It holds because nothing but this agent touches what is only made
//! ready, and every step asks for what it needs itself. Refuses whatever the last look has not seen as it was left; the
//! loop, which looks anew meanwhile, sees to that, and leaves alone until its next look what was begun here since.

use super::memory::Memory;
use super::observe::World;
use super::plan::{self, Item, Remembered};
use super::{PERIOD, Reconciler};
use crate::instance::ObservedState;
use amphi_api::wire::{HostDesired, InstanceDesired};
use std::sync::{Arc, PoisonError};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Ends a task with its owner.
pub(super) struct AbortOnDrop(pub AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Reconciler {
    pub(super) fn saw(&self, began: Instant, world: &Arc<World>) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some((began, world.clone()));
    }

    /// The last look, and when it began.
    pub(super) fn last_look(&self) -> Option<(Instant, Arc<World>)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Until it is aborted.
    pub(super) async fn flips(self: Arc<Self>) {
        let mut orders = self.orders();
        // The sender lives as long as the reconciler.
        while orders.changed().await.is_ok() {
            let desired = orders.borrow_and_update().clone();
            if let Some(desired) = desired {
                self.flip(&desired);
            }
        }
    }

    fn flip(self: &Arc<Self>, desired: &Arc<HostDesired>) {
        let Some((_, world)) = self.last_look().filter(|(began, _)| began.elapsed() < 2 * PERIOD) else {
            return;
        };
        let may = {
            let ledger = self.ledger();
            ledger.confirmed() && ledger.may_start().is_ok()
        };
        for instance in desired.instances.iter().filter(|_| may) {
            let item = Item::Instance(instance.id);
            // Until it is noted: the loop acts on no look in between.
            let mut flipped = self.flipped();
            let ready = self.memory().get(&item).is_some_and(|memory| is_ready(memory, instance));
            if !ready || !is_untouched(instance, &world) {
                continue;
            }
            let hands = plan::volumes_of(instance);
            let volumes: Vec<_> = desired.volumes.iter().filter(|v| hands.contains(&v.id)).collect();
            let begun = self.ledger().begun(instance.id);
            let memory = Remembered { begun, prepared: None, keeps_size: false };
            let steps = plan::instance(instance, &volumes, &world.observed(), &memory, true);
            if !steps.is_empty() && self.begin(item, steps, desired) {
                flipped.insert(item);
                flipped.extend(hands.into_iter().map(Item::Volume));
                tracing::info!(instance = %instance.id, epoch = instance.epoch, "what was made ready is started");
            }
        }
    }
}

/// It was made ready for just this epoch, by this process, and nothing has been done with it since.
fn is_ready(memory: &Memory, instance: &InstanceDesired) -> bool {
    let made = memory.prepared == Some((instance.body.kind(), instance.epoch));
    made && memory.prepared_for.is_some() && !memory.busy && memory.fault.is_none()
}

/// What is here of it, if anything, is what was made ready.
fn is_untouched(instance: &InstanceDesired, world: &World) -> bool {
    world.observed().bodies.iter().filter(|body| body.instance == instance.id).all(|body| {
        body.epoch == instance.epoch
            && body.kind == instance.body.kind()
            && body.state == ObservedState::Stopped
    })
}
