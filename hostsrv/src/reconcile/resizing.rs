//! Another size for what runs: carried out, remembered where it was refused, and told. A refusal is no fault of the body,
//! which runs on under its former limits; it is tried again now and then, and at once when the order changes.

use super::Reconciler;
use super::execute::{WorkError, order_of};
use super::memory::{Memory, Refused};
use super::plan::Item;
use crate::instance::{BodyPlan, ObservedBody, limits};
use amphi_api::InstanceId;
use amphi_api::resize::{Condition, MemberUsage, REFUSED, SizeStatus};
use amphi_api::wire::{HostDesired, InstanceDesired};
use std::time::Duration;
use tokio::time::Instant;

/// How long a size that was refused is not tried again: what is used changes by itself.
const AGAIN: Duration = Duration::from_secs(15);

impl Reconciler {
    /// Whether the present size was refused a short while ago. A refusal of another order is forgotten.
    pub(super) fn keeps_size(&self, item: Item, desired: &HostDesired) -> bool {
        let mut memory = self.memory();
        let Some(held) = memory.get_mut(&item) else { return false };
        let Some(refused) = &held.refused else { return false };
        if refused.order != order_of(item, desired) {
            held.refused = None;
            return false;
        }
        refused.until > Instant::now()
    }

    /// Never fails: what refuses stays as it is, and that is told.
    pub(super) async fn resize(
        &self,
        item: Item,
        instance: &InstanceDesired,
        desired: &HostDesired,
    ) -> Result<(), WorkError> {
        let done = self.take_on(instance).await;
        let mut memory = self.memory();
        let held = memory.entry(item).or_default();
        held.refused = match done {
            Ok(()) => None,
            Err(error) => {
                tracing::warn!(target: "reconcile", ?item, %error, "its size stays");
                let (order, until) = (order_of(item, desired), Instant::now() + AGAIN);
                Some(Refused { order, code: error.code().to_owned(), message: error.to_string(), until })
            }
        };
        Ok(())
    }

    async fn take_on(&self, instance: &InstanceDesired) -> Result<(), WorkError> {
        let plan: BodyPlan = self.resolve(instance, &instance.body, instance.epoch).await?;
        Ok(self.body_driver(instance.body.kind())?.resize(&plan).await?)
    }

    /// What the instance's members use now.
    pub async fn usage(&self, instance: InstanceId) -> Result<Vec<MemberUsage>, WorkError> {
        let kind = self
            .ledger()
            .desired()
            .and_then(|desired| desired.instances.iter().find(|i| i.id == instance).map(|i| i.body.kind()));
        let kind = kind.ok_or(WorkError::NoInstance(instance))?;
        Ok(self.body_driver(kind)?.usage(instance).await?)
    }
}

/// How far the body has taken on its size.
pub(super) fn told(desired: &InstanceDesired, body: Option<&ObservedBody>, memory: &Memory) -> SizeStatus {
    let Some(body) = body else {
        // What is made next is made as large as ordered.
        return SizeStatus { resizes: desired.resizes, ..SizeStatus::default() };
    };
    let mut conditions = limits::conditions(desired, body);
    let differs = limits::differ(desired, body);
    if let Some(refused) = memory.refused.as_ref().filter(|_| differs) {
        conditions.insert(0, Condition::new(REFUSED, refused.message.clone()));
    }
    // What is off takes it on when it starts.
    let due = differs && desired.power.wants_body();
    let resizes = if due { desired.resizes.saturating_sub(1) } else { desired.resizes };
    SizeStatus { resizes, conditions, memory: limits::memory_range(body) }
}
