//! Instances as clouds' users order them: nova's verbs over the same records as the native orders. Each order is one
//! commit: the record in its new desired state, the task that waits for the host's word, and the action that tells of
//! it. Decisions are pure functions of (view, row, wish).
//!
//! Refuses HTTP and OpenStack's wire forms; messages of conflicts are nova's, since clients match on them.

mod attach;
mod conclude;
pub mod create;
mod debug;
mod edit;
mod interfaces;
mod journal;
mod orders;
mod rebuild;
mod resize;
mod snapshot;

pub use attach::AttachWish;
pub use create::{COUNT_MAX, Created, DeviceSource, DeviceWish, NicWish, NicsWish, ServerWish};
pub use edit::{MetadataEdit, ServerUpdate, TAGS_MAX, TagEdit};
pub use orders::ServerOrder;
pub use rebuild::RebuildWish;
pub use resize::ResizeWish;

pub(super) use conclude::{conclude, freed};
pub(super) use journal::{Started, begin, end_task, note, note_failed};
pub(super) use resize::has_root_disk;

use super::list::find;
use super::{OpsError, Row, View, updates};
use crate::model::*;
use amphi_api::{InstanceId, ProjectId, UserId};
use jiff::Timestamp;
use uuid::Uuid;

/// Who orders.
#[derive(Clone, Debug, PartialEq)]
pub struct Origin {
    /// The project of what is ordered about.
    pub project: ProjectId,
    pub user: Option<UserId>,
    /// May pass locks, choose hosts, and set what only operators set.
    pub admin: bool,
    /// `req-UUID`.
    pub request: String,
}

impl Origin {
    /// By the native face's token.
    pub fn native(project: ProjectId) -> Self {
        Self { project, user: None, admin: true, request: format!("req-{}", Uuid::new_v4()) }
    }
}

/// The instance that an order is about, in a state that allows it, and not locked against whoever orders.
fn allowed<'a>(
    view: &'a View,
    origin: &Origin,
    id: InstanceId,
    verb: &str,
    states: &[VmState],
    now: Timestamp,
) -> Result<&'a Row<InstanceRecord>, OpsError> {
    let row = unlocked(view, origin, id)?;
    let state = state(view, row, now);
    if !states.contains(&state.vm) {
        return Err(OpsError::conflict(format!(
            "Cannot '{verb}' instance {id} while it is in vm_state {}",
            state.vm.word()
        )));
    }
    idle(row, verb, &state)?;
    Ok(row)
}

fn unlocked<'a>(
    view: &'a View,
    origin: &Origin,
    id: InstanceId,
) -> Result<&'a Row<InstanceRecord>, OpsError> {
    let row = find(&view.instances, origin.project, id)?;
    if row.server.locked.is_some() && !origin.admin {
        return Err(OpsError::conflict(format!("Instance {id} is locked")));
    }
    Ok(row)
}

/// Nothing else is under way. An update is, although one in ERROR tells of no task: its way back would overwrite the order.
fn idle(row: &InstanceRecord, verb: &str, state: &ServerState) -> Result<(), OpsError> {
    if let Some(rolling) = row.rolling.as_ref().filter(|_| row.intent != Intent::Deleting) {
        return Err(updates::under_way(rolling));
    }
    match state.task {
        None => Ok(()),
        Some(task) => Err(OpsError::conflict(format!(
            "Cannot '{verb}' instance {} while it is in task_state {task}",
            row.id
        ))),
    }
}

/// The state as OpenStack tells it. A snapshot whose image is gone, or there, is no task any more.
pub fn state(view: &View, row: &InstanceRecord, now: Timestamp) -> ServerState {
    let up = row.host.is_none_or(|host| view.host_up(host));
    match &row.task {
        Some(Pending { task: Task::Snapshot(image), .. })
            if view.images.get(*image).is_none_or(|i| i.exporting_host().is_none()) =>
        {
            server_state(&InstanceRecord { task: None, ..row.clone() }, up, now)
        }
        _ => server_state(row, up, now),
    }
}
