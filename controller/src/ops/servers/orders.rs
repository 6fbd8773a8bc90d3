//! Orders that need no more than a word: power, locks, shelving, rescue, and the words to a resize.

use super::conclude::migration_is;
use super::journal::{Started, note};
use super::{Origin, allowed, state, unlocked};
use crate::model::*;
use crate::ops::asked::request_of;
use crate::ops::orders::{instance_claims, resize_claims};
use crate::ops::{Draft, Ops, OpsError, Row, View, resolve, sights};
use crate::scheduler::{Policy, Request, place};
use amphi_api::instance::{BodyKind, BodySpec, Fault, Power, VmSpec};
use amphi_api::set::{MemberSpec, SetSpec};
use amphi_api::wire::Tombstone;
use amphi_api::{HostId, ImageId, InstanceId};
use jiff::Timestamp;

#[derive(Clone, Debug, PartialEq)]
pub enum ServerOrder {
    Start,
    Stop,
    Reboot {
        hard: bool,
    },
    Pause,
    Unpause,
    Suspend,
    Resume,
    Lock {
        reason: Option<String>,
    },
    Unlock,
    Shelve,
    ShelveOffload,
    Unshelve,
    /// Start from another image, or from its own anew.
    Rescue {
        image: Option<ImageId>,
    },
    Unrescue,
    ConfirmResize,
    RevertResize,
    /// For operators: forget the task, and be in ERROR or not.
    ResetState {
        error: bool,
    },
}

impl ServerOrder {
    /// nova's word for it, in conflicts.
    fn verb(&self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Reboot { .. } => "reboot",
            Self::Pause => "pause",
            Self::Unpause => "unpause",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::Lock { .. } => "lock",
            Self::Unlock => "unlock",
            Self::Shelve => "shelve",
            Self::ShelveOffload => "shelveOffload",
            Self::Unshelve => "unshelve",
            Self::Rescue { .. } => "rescue",
            Self::Unrescue => "unrescue",
            Self::ConfirmResize => "confirmResize",
            Self::RevertResize => "revertResize",
            Self::ResetState { .. } => "resetState",
        }
    }

    /// The states that allow it (nova/compute/api.py, `check_instance_state`); none: any.
    fn states(&self) -> Option<&'static [VmState]> {
        use VmState::*;
        Some(match self {
            Self::Start => &[Stopped],
            Self::Stop => &[Active, Error],
            Self::Reboot { hard: false } => &[Active],
            Self::Reboot { hard: true } => &[Active, Stopped, Paused, Suspended, Error],
            Self::Pause | Self::Suspend => &[Active],
            Self::Unpause => &[Paused],
            Self::Resume => &[Suspended],
            Self::Shelve => &[Active, Stopped, Paused, Suspended],
            Self::ShelveOffload => &[Shelved],
            Self::Unshelve => &[Shelved, ShelvedOffloaded],
            Self::Rescue { .. } => &[Active, Stopped, Error],
            Self::Unrescue => &[Rescued],
            Self::ConfirmResize | Self::RevertResize => &[Resized],
            Self::Lock { .. } | Self::Unlock | Self::ResetState { .. } => return None,
        })
    }
}

impl Ops {
    pub async fn order_server(
        &self,
        origin: &Origin,
        id: InstanceId,
        order: ServerOrder,
    ) -> Result<(), OpsError> {
        self.transact_room(|view| {
            Ok((decide(view, origin, id, &order, self.policy(), Timestamp::now())?, ()))
        })
        .await
    }
}

fn decide(
    view: &View,
    origin: &Origin,
    id: InstanceId,
    order: &ServerOrder,
    policy: &Policy,
    now: Timestamp,
) -> Result<Draft, OpsError> {
    let row = match order.states() {
        Some(states) => match allowed(view, origin, id, order.verb(), states, now) {
            // A hard reboot is the way out of an order that hangs.
            Err(_) if *order == (ServerOrder::Reboot { hard: true }) && hangs(view, origin, id, now) => {
                unlocked(view, origin, id)?
            }
            other => other?,
        },
        // A lock may be laid again by its owner, and taken off by him; one of an operator only by operators.
        None => unlockable(view, origin, id)?,
    };
    if row.intent == Intent::Deleting {
        return Err(deleting(order.verb(), row));
    }
    let mut draft = Draft::default();
    let mut record = (*row.record).clone();
    let started = Started { view, origin, before: &row.record, now };
    use ServerOrder as O;
    let (task, action) = match order {
        O::Start => {
            record.power = Power::On;
            (Task::Start, "start")
        }
        O::Stop => {
            record.power = Power::Off;
            (Task::Stop, "stop")
        }
        O::Reboot { hard } => {
            record.restarts += 1;
            record.power = Power::On;
            (if *hard { Task::RebootHard } else { Task::RebootSoft }, "reboot")
        }
        O::Pause => {
            record.power = Power::Paused;
            (Task::Pause, "pause")
        }
        O::Unpause => {
            record.power = Power::On;
            (Task::Unpause, "unpause")
        }
        O::Suspend => {
            record.power = Power::Suspended;
            (Task::Suspend, "suspend")
        }
        O::Resume => {
            record.power = Power::On;
            (Task::Resume, "resume")
        }
        O::Shelve => {
            record.power = Power::Off;
            record.shelved = Some(Shelved { since: now, offloaded: false });
            (Task::Shelve, "shelve")
        }
        O::ShelveOffload => (Task::Shelve, "shelveOffload"),
        O::Unshelve => {
            unshelve(view, &mut draft, &mut record, policy)?;
            (Task::Unshelve, "unshelve")
        }
        O::Rescue { image } => {
            record.rescue = Some(rescue_body(view, &mut draft, row, *image)?);
            record.power = Power::On;
            // A body that runs starts again, from the other root.
            record.restarts += 1;
            (Task::Rescue, "rescue")
        }
        O::Unrescue => {
            record.rescue = None;
            record.power = Power::On;
            record.restarts += 1;
            (Task::Unrescue, "unrescue")
        }
        O::RevertResize => {
            revert(view, &mut draft, &mut record, now)?;
            (Task::RevertResize, "revertResize")
        }
        O::ConfirmResize => {
            confirm(view, &mut draft, &mut record, now);
            note(&mut draft, origin, &record, "confirmResize", "compute_confirm_resize", now);
            draft.update(row, &record);
            return Ok(draft);
        }
        O::Lock { reason } => {
            record.server.locked =
                Some(Lock { by_admin: origin.admin, user: origin.user, reason: reason.clone() });
            note(&mut draft, origin, &record, "lock", "api_lock", now);
            draft.update(row, &record);
            return Ok(draft);
        }
        O::Unlock => {
            record.server.locked = None;
            note(&mut draft, origin, &record, "unlock", "api_unlock", now);
            draft.update(row, &record);
            return Ok(draft);
        }
        O::ResetState { error } => {
            super::end_task(view, &mut draft, row, Some("the state was reset"), now);
            record.task = None;
            let fault = || Fault {
                code: "state_reset".into(),
                message: "an operator has set the state to error".into(),
                since: now,
            };
            record.server.failure = error.then(fault);
            record.updated_at = now;
            draft.update(row, &record);
            return Ok(draft);
        }
    };
    started.task(&mut draft, &mut record, task, action);
    draft.update(row, &record);
    Ok(draft)
}

fn deleting(verb: &str, row: &InstanceRecord) -> OpsError {
    OpsError::conflict(format!("Cannot '{verb}' instance {} while it is in task_state deleting", row.id))
}

/// It is in a task that a hard reboot may end.
fn hangs(view: &View, origin: &Origin, id: InstanceId, now: Timestamp) -> bool {
    let Ok(row) = unlocked(view, origin, id) else { return false };
    let task = row.task.as_ref().map(|p| p.task);
    use Task::*;
    matches!(task, Some(RebootSoft | RebootHard | Pause | Suspend | Stop | Start | Resume | Unpause))
        && state(view, row, now).vm != VmState::Building
}

fn unlockable<'a>(
    view: &'a View,
    origin: &Origin,
    id: InstanceId,
) -> Result<&'a Row<InstanceRecord>, OpsError> {
    let row = crate::ops::list::find(&view.instances, origin.project, id)?;
    match &row.server.locked {
        Some(lock) if lock.by_admin && !origin.admin => {
            Err(OpsError::conflict(format!("Instance {id} is locked")))
        }
        _ => Ok(row),
    }
}

/// Room on the host that holds its bytes, again.
fn unshelve(
    view: &View,
    draft: &mut Draft,
    record: &mut InstanceRecord,
    policy: &Policy,
) -> Result<(), OpsError> {
    let offloaded = record.shelved.take().is_some_and(|s| s.offloaded);
    record.power = Power::On;
    let Some(host) = record.host.filter(|_| offloaded) else { return Ok(()) };
    let request = Request { pinned: Some(host), ..request_of(view, record) };
    place(&sights(view), &request, policy)?;
    draft.claim(host, instance_claims(record));
    Ok(())
}

/// The body that a rescued instance runs from: the image that was named, else the one that it was made of.
fn rescue_body(
    view: &View,
    draft: &mut Draft,
    row: &InstanceRecord,
    image: Option<ImageId>,
) -> Result<BodyRecord, OpsError> {
    let own = row.body_of(row.body).and_then(|body| body.images.first().copied());
    let id = image
        .or(row.server.image)
        .or(own)
        .ok_or_else(|| OpsError::conflict("it boots from a volume: name an image to rescue it with"))?;
    let found = resolve::image(view, row.project, "rescue_image_ref", &id.to_string(), row.body)?;
    draft.guard(found);
    let image = found.id.to_string();
    let spec = match row.body {
        BodyKind::Vm => BodySpec::Vm(VmSpec { image, root_gib: None, set: None }),
        BodyKind::Set => {
            let member = MemberSpec {
                name: "rescue".into(),
                index: 0,
                image,
                // Whatever the image would run is not what is wanted now: it has to stay, so that one can look inside.
                command: ["sh", "-c", "while :; do sleep 3600; done"].map(String::from).to_vec(),
                ..MemberSpec::default()
            };
            let volume_mount = match row.body_of(BodyKind::Set).map(|b| &b.spec) {
                Some(BodySpec::Set(set)) => set.volume_mount.clone(),
                _ => "/data".into(),
            };
            let set = SetSpec { members: vec![member], volume_mount, ..SetSpec::default() };
            BodySpec::Set(set.normalized())
        }
    };
    Ok(BodyRecord { spec, images: vec![found.id] })
}

fn confirm(view: &View, draft: &mut Draft, record: &mut InstanceRecord, now: Timestamp) {
    if let Some(resize) = record.resize.take() {
        draft.unclaim(resize.old_host, resize_claims(&resize));
        migration_is(view, draft, &resize, "confirmed", now);
        record.updated_at = now;
    }
}

/// Back to the old size and host, as a body of the next epoch; what was tried stays claimed until it is gone.
fn revert(
    view: &View,
    draft: &mut Draft,
    record: &mut InstanceRecord,
    now: Timestamp,
) -> Result<(), OpsError> {
    let Some(mut resize) = record.resize.take() else {
        return Err(OpsError::conflict("there is no resize to revert"));
    };
    let tried: Option<HostId> = record.host;
    std::mem::swap(&mut record.vcpus, &mut resize.old_vcpus);
    std::mem::swap(&mut record.memory_mib, &mut resize.old_memory_mib);
    std::mem::swap(&mut record.server.flavor, &mut resize.old_flavor);
    std::mem::swap(&mut record.server.qos, &mut resize.old_qos);
    // A root disk never becomes smaller: what has grown stays.
    record.host = Some(resize.old_host);
    if let Some(tried) = tried {
        resize.old_host = tried;
    }
    if tried != record.host
        && let Some(tried) = tried
    {
        let stone = Tombstone::Instance { id: record.id, epoch: record.epoch };
        crate::ops::orders::entomb(view, draft, tried, stone, now);
    }
    record.epoch += 1;
    record.observed = None;
    (resize.verified, resize.reverting) = (false, true);
    migration_is(view, draft, &resize, "reverting", now);
    record.resize = Some(resize);
    Ok(())
}
