//! Actions and tasks: what is told of an order, from its commit to its end.

use super::conclude::conclude;
use super::{Origin, state};
use crate::model::*;
use crate::ops::status::CHUNK;
use crate::ops::{Draft, Ops, OpsError, View};
use jiff::Timestamp;
use uuid::Uuid;

impl Ops {
    /// Forgets actions and migrations of instances that have been gone for [`ACTIONS_KEPT`]. For the task.
    pub async fn forget_actions(&self, now: Timestamp) -> Result<(), OpsError> {
        let old = |at: Timestamp| now.duration_since(at) >= ACTIONS_KEPT;
        loop {
            let forgotten = self.transact(|view| {
                let gone = |id| view.instances.get(id).is_none();
                let mut draft = Draft::default();
                let actions = view.actions.iter().filter(|a| old(a.updated_at) && gone(a.instance));
                let actions = actions.take(CHUNK).map(|a| draft.delete(a)).count();
                let moves = view.migrations.iter().filter(|m| old(m.updated_at) && gone(m.instance));
                let moves = moves.take(CHUNK).map(|m| draft.delete(m)).count();
                Ok((draft, actions + moves))
            });
            if forgotten.await? == 0 {
                return Ok(());
            }
        }
    }
}

/// An action that goes on, in the draft; returns its id.
pub(in crate::ops) fn begin(
    draft: &mut Draft,
    origin: &Origin,
    record: &InstanceRecord,
    action: &str,
    event: &str,
    now: Timestamp,
) -> Uuid {
    let opened = open(origin, record, action, event, now);
    draft.create(&opened);
    opened.id
}

/// An action that is over as soon as it is ordered.
pub(in crate::ops) fn note(
    draft: &mut Draft,
    origin: &Origin,
    record: &InstanceRecord,
    action: &str,
    event: &str,
    now: Timestamp,
) {
    draft.create(&open(origin, record, action, event, now).ended(None, now));
}

/// An action that was over as soon as it was ordered, and came to nothing later.
pub(in crate::ops) fn note_failed(
    draft: &mut Draft,
    origin: &Origin,
    record: &InstanceRecord,
    action: &str,
    event: &str,
    why: &str,
    now: Timestamp,
) {
    draft.create(&open(origin, record, action, event, now).ended(Some(why), now));
}

fn open(origin: &Origin, record: &InstanceRecord, action: &str, event: &str, now: Timestamp) -> ActionRecord {
    ActionRecord {
        instance: record.id,
        id: Uuid::now_v7(),
        project: record.project,
        user: origin.user,
        action: action.to_owned(),
        request: origin.request.clone(),
        message: None,
        started_at: now,
        updated_at: now,
        events: vec![ActionEvent {
            event: event.to_owned(),
            started_at: now,
            finished_at: None,
            success: None,
            host: record.host,
            details: None,
        }],
    }
}

/// The task of an order, on a record that has what was ordered. Where the body is there already, it is over at once.
pub(in crate::ops) struct Started<'a> {
    pub view: &'a View,
    pub origin: &'a Origin,
    /// The record before the order.
    pub before: &'a InstanceRecord,
    pub now: Timestamp,
}

impl Started<'_> {
    /// An order that came to nothing.
    pub fn failed(&self, draft: &mut Draft, record: &InstanceRecord, action: &str, why: &str) {
        let event = "conductor_schedule_and_build_instances";
        draft.create(&open(self.origin, record, action, event, self.now).ended(Some(why), self.now));
    }

    pub fn task(&self, draft: &mut Draft, record: &mut InstanceRecord, task: Task, action: &str) {
        let event = format!("compute_{}_instance", event_of(task));
        end_task(self.view, draft, self.before, Some("another order came in between"), self.now);
        let mut opened = open(self.origin, record, action, &event, self.now);
        let from = match state(self.view, self.before, self.now).vm {
            // The order is the way out of a fault: what the task comes from is what the records say.
            VmState::Error => vm_state(self.before),
            vm => vm,
        };
        record.server.failure = None;
        record.updated_at = self.now;
        record.task = Some(Pending { task, action: opened.id, since: self.now, from });
        if record.task_done() {
            conclude(self.view, draft, record, self.now);
            opened = opened.ended(None, self.now);
        }
        draft.create(&opened);
    }
}

/// The middle of nova's names of events: `compute_stop_instance`.
fn event_of(task: Task) -> &'static str {
    match task {
        Task::Build => "build_and_run",
        Task::Start => "start",
        Task::Stop => "stop",
        Task::RebootSoft | Task::RebootHard => "reboot",
        Task::Pause => "pause",
        Task::Unpause => "unpause",
        Task::Suspend => "suspend",
        Task::Resume => "resume",
        Task::Rescue => "rescue",
        Task::Unrescue => "unrescue",
        Task::Rebuild => "rebuild",
        Task::Resize => "finish_resize",
        Task::RevertResize => "finish_revert_resize",
        Task::Shelve => "shelve",
        Task::Unshelve => "unshelve",
        Task::Snapshot(_) => "snapshot",
    }
}

/// Closes the action of the task that the record has, if it has one.
pub(in crate::ops) fn end_task(
    view: &View,
    draft: &mut Draft,
    record: &InstanceRecord,
    error: Option<&str>,
    now: Timestamp,
) {
    let Some(pending) = &record.task else { return };
    let key = ActionKey { instance: record.id, id: pending.action };
    if let Some(row) = view.actions.get(key).filter(|row| row.is_open()) {
        draft.update(row, &row.ended(error, now));
    }
}
