//! What follows when a task has come to its end: the second half of orders that take time.

use crate::model::*;
use crate::ops::Draft;
use crate::ops::View;
use crate::ops::orders::{instance_claims, resize_claims};
use amphi_api::instance::Power;
use jiff::Timestamp;

/// Takes the task off the record and does what its end brings.
pub(in crate::ops) fn conclude(view: &View, draft: &mut Draft, record: &mut InstanceRecord, now: Timestamp) {
    let Some(pending) = record.task.take() else { return };
    record.updated_at = now;
    if record.power == Power::On {
        record.server.launched_at.get_or_insert(now);
    }
    match pending.task {
        Task::Resize => {
            if let Some(resize) = &mut record.resize {
                resize.verified = true;
                migration_is(view, draft, resize, "finished", now);
            }
        }
        Task::RevertResize => {
            if let Some(resize) = record.resize.take() {
                // Since the order, the record's own size is the old one; what is freed is the one that was tried.
                draft.unclaim(resize.old_host, resize_claims(&resize));
                migration_is(view, draft, &resize, "reverted", now);
            }
        }
        Task::Shelve => {
            if let (Some(shelved), Some(host)) = (&record.shelved, record.host)
                && !shelved.offloaded
            {
                draft.unclaim(host, instance_claims(record));
                record.shelved = Some(Shelved { offloaded: true, ..shelved.clone() });
            }
        }
        Task::Rebuild => record.server.launched_at = Some(now),
        _ => {}
    }
}

pub(super) fn migration_is(view: &View, draft: &mut Draft, resize: &Resize, status: &str, now: Timestamp) {
    if let Some(row) = view.migrations.get(resize.migration) {
        draft.update(row, &row.now_is(status, now));
    }
}

/// What was detached and is out of the body now: it leaves the record, and goes free. True when something went.
pub(in crate::ops) fn freed(view: &View, draft: &mut Draft, record: &mut InstanceRecord) -> bool {
    let Some(seen) = record.current() else { return false };
    let bare = seen.state.is_still();
    let plugged = |leaving: &Leaving| match leaving {
        Leaving::Volume(id) => seen.plugged_volumes.contains(id),
        Leaving::Port(id) => seen.plugged_ports.contains(id),
    };
    let (stay, go): (Vec<Leaving>, Vec<Leaving>) =
        record.leaving.iter().copied().partition(|l| !bare && plugged(l));
    if go.is_empty() {
        return false;
    }
    for leaving in &go {
        let_go(view, draft, record, *leaving);
    }
    record.leaving = stay;
    true
}

/// Frees what nobody holds any more.
pub(super) fn let_go(view: &View, draft: &mut Draft, record: &InstanceRecord, leaving: Leaving) {
    match leaving {
        Leaving::Volume(id) => {
            let row = view.volumes.get(id).filter(|v| v.instance == Some(record.id));
            if let Some(row) = row {
                draft.update(row, &VolumeRecord { instance: None, ..(*row.record).clone() });
            }
        }
        Leaving::Port(id) => {
            if let Some(row) = view.ports.get(id) {
                crate::ops::ports::release(view, draft, row);
            }
        }
    }
}
