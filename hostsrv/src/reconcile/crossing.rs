//! Instances that go to another host, or come from one, while they run: who may come, what is made ready for it, and the
//! sending, which ends when the order is called off. Refuses to let anything run that came.

use super::Reconciler;
use super::execute::WorkError;
use crate::instance::moves::Departure;
use crate::instance::{BodyDriver, BodyPlan, Remains};
use amphi_api::instance::BodyKind;
use amphi_api::wire::{HostDesired, InstanceDesired, LeavingDesired};
use amphi_api::{HostId, InstanceId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// While an order is called off, the engine is asked so often to end what is under way: it may just be beginning.
const RECALL: Duration = Duration::from_millis(300);

impl Reconciler {
    /// Whether a running body of the instance may come here from that host now, or why not.
    pub fn expects(&self, instance: InstanceId, epoch: u64, from: HostId) -> Result<(), String> {
        self.may_start().map_err(|why| format!("no body may come here: {why}"))?;
        let desired = self.orders().borrow().clone().filter(|_| self.ledger().confirmed());
        let found = desired.and_then(|desired| coming(&desired, instance).cloned());
        match found {
            Some(found) if found.epoch == epoch && found.arriving_from == Some(from) => Ok(()),
            _ => Err(format!("instance {instance} is not expected from there at epoch {epoch}")),
        }
    }

    /// Instances that are on their way from here or to here.
    pub fn crossing(&self) -> BTreeSet<InstanceId> {
        let desired = self.orders().borrow().clone();
        let all = desired.iter().flat_map(|d| d.instances.iter().chain(&d.expected));
        all.filter(|i| i.leaving.is_some() || i.arriving_from.is_some()).map(|i| i.id).collect()
    }

    /// Makes everything ready for the body; its definition. What came of an earlier try goes.
    pub async fn receive(&self, instance: InstanceId, epoch: u64) -> Result<String, String> {
        let made = async {
            let desired = self.orders().borrow().clone();
            let found = desired.and_then(|desired| coming(&desired, instance).cloned());
            let found = found.filter(|i| i.epoch == epoch).ok_or(WorkError::NoInstance(instance))?;
            let kind = found.body.kind();
            let driver = self.body_driver(kind)?.clone();
            self.note_begun(&found)?;
            driver.remove(instance, epoch, Remains::Roots).await?;
            let (plan, hands) =
                tokio::try_join!(self.resolve(&found, &found.body, epoch), self.attach(&found, kind, None))?;
            let plan = BodyPlan {
                volume: hands.volume,
                root_volume: hands.root_volume,
                attachments: hands.attachments,
                ..plan
            };
            Ok::<_, WorkError>(driver.receive(&plan).await?)
        };
        made.await.map_err(|error| error.to_string())
    }

    /// Sends the body.
    pub(super) async fn depart(&self, instance: &InstanceDesired) -> Result<(), WorkError> {
        let Some(leaving) = instance.leaving.as_ref().filter(|l| !l.recalled) else { return Ok(()) };
        let driver: Arc<dyn BodyDriver> = self.body_driver(BodyKind::Vm)?.clone();
        let departure = Departure {
            instance: instance.id,
            epoch: leaving.epoch,
            to: leaving.to,
            address: leaving.address,
        };
        let mut orders = self.orders();
        let departed = driver.depart(&departure);
        tokio::pin!(departed);
        tokio::select! {
            done = &mut departed => return Ok(done?),
            // The sender lives as long as the reconciler.
            _ = orders.wait_for(|desired| !stands(desired.as_deref(), instance.id, leaving)) => {}
        }
        loop {
            if let Err(error) = driver.recall(instance.id).await {
                tracing::debug!(instance = %instance.id, %error, "cannot be called back");
            }
            if let Ok(done) = tokio::time::timeout(RECALL, &mut departed).await {
                return Ok(done?);
            }
        }
    }
}

fn coming(desired: &HostDesired, instance: InstanceId) -> Option<&InstanceDesired> {
    desired.expected.iter().find(|i| i.id == instance)
}

/// Whether the order to send it is in force.
fn stands(desired: Option<&HostDesired>, instance: InstanceId, order: &LeavingDesired) -> bool {
    let now = desired.and_then(|d| d.instances.iter().find(|i| i.id == instance)?.leaving.as_ref());
    now.is_some_and(|now| now.exchange == order.exchange && !now.recalled)
}
