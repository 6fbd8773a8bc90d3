//! Changes of a volume's record that no host hears of, except that a read-only volume is plugged read only; and the
//! same of snapshots.

use super::list::find;
use super::{Draft, Ops, OpsError, Row, View, quotas, volume_types};
use crate::model::*;
use amphi_api::wire::ExportSource;
use amphi_api::{ProjectId, SnapshotId, VolumeId};
use jiff::Timestamp;
use std::collections::BTreeMap;

/// States that an administrator may set of a volume (cinder/api/contrib/admin_actions.py).
const VOLUME_STATES: [&str; 11] = [
    "creating",
    "available",
    "deleting",
    "error",
    "error_deleting",
    "attaching",
    "detaching",
    "in-use",
    "maintenance",
    "error_managing",
    "managing",
];
const SNAPSHOT_STATES: [&str; 5] = ["creating", "available", "deleting", "error", "error_deleting"];

#[derive(Clone, Debug, PartialEq)]
pub enum SnapshotChange {
    Name(String),
    Description(Option<String>),
    /// Adds to what is there.
    Metadata(BTreeMap<String, String>),
    /// In place of what is there.
    AllMetadata(BTreeMap<String, String>),
    RemoveMetadata(String),
    Reset(String),
}

/// What goes on with a volume beside its own record.
pub fn doings(view: &View, row: &VolumeRecord) -> VolumeDoings {
    let of_it = |image: &Row<ImageRecord>| {
        image.project != super::move_volumes::NOBODY
            && image.export.as_ref().is_some_and(|e| {
                e.source == ExportSource::Volume(row.id) && e.instance.is_none() && e.fault.is_none()
            })
    };
    let leaving = |i: &Row<InstanceRecord>| i.leaving.contains(&Leaving::Volume(row.id));
    VolumeDoings {
        uploading: view.exports_on(row.host).any(of_it),
        offered: view.volume_transfers.of_project(row.project).any(|t| t.volume == row.id),
        leaving: row.instance.and_then(|id| view.instances.get(id)).is_some_and(leaving),
    }
}

impl Ops {
    /// All changes or none.
    pub async fn change_volume(
        &self,
        scope: ProjectId,
        id: VolumeId,
        changes: &[VolumeChange],
    ) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = find(&view.volumes, scope, id)?;
            super::volumes::usable(row)?;
            let mut record = (*row.record).clone();
            for change in changes {
                check(view, scope, row, change)?;
                change_volume(&mut record, doings(view, row), change, Timestamp::now())?;
            }
            let mut draft = Draft::default();
            draft.update(row, &record);
            Ok((draft, ()))
        })
        .await
    }

    /// All changes or none.
    pub async fn change_snapshot(
        &self,
        scope: ProjectId,
        id: SnapshotId,
        changes: &[SnapshotChange],
    ) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = find(&view.snapshots, scope, id)?;
            let mut record = (*row.record).clone();
            for change in changes {
                change_snapshot(&mut record, change)?;
            }
            check_items(&record.traits.metadata)?;
            record.traits.updated_at = Some(Timestamp::now());
            let mut draft = Draft::default();
            draft.update(row, &record);
            Ok((draft, ()))
        })
        .await
    }
}

/// What takes more than the volume's record to know.
fn check(view: &View, scope: ProjectId, row: &VolumeRecord, change: &VolumeChange) -> Result<(), OpsError> {
    match change {
        VolumeChange::Type(id) => {
            let kind = volume_types::usable(view, scope, *id)?;
            let (count, gib) = volume_types::used(view, scope, kind.id);
            quotas::check_named(view, scope, &format!("volumes_{}", kind.name), count, 1)?;
            quotas::check_named(view, scope, &format!("gigabytes_{}", kind.name), gib, row.size_gib)
        }
        VolumeChange::Reset { state: Some(state), .. } if !VOLUME_STATES.contains(&state.as_str()) => {
            Err(OpsError::field("status", format!("'{state}' is not one of {}", VOLUME_STATES.join(", "))))
        }
        _ => Ok(()),
    }
}

fn change_snapshot(record: &mut SnapshotRecord, change: &SnapshotChange) -> Result<(), OpsError> {
    let traits = &mut record.traits;
    match change {
        SnapshotChange::Name(name) => record.name.clone_from(name),
        SnapshotChange::Description(text) => traits.description.clone_from(text),
        SnapshotChange::Metadata(items) => traits.metadata.extend(items.clone()),
        SnapshotChange::AllMetadata(items) => traits.metadata.clone_from(items),
        SnapshotChange::RemoveMetadata(key) => {
            let gone = traits.metadata.remove(key);
            gone.ok_or_else(|| OpsError::NotFound { noun: "metadata", id: key.clone() })?;
        }
        SnapshotChange::Reset(state) if !SNAPSHOT_STATES.contains(&state.as_str()) => {
            let known = SNAPSHOT_STATES.join(", ");
            return Err(OpsError::field("status", format!("'{state}' is not one of {known}")));
        }
        SnapshotChange::Reset(state) => {
            traits.mark = None;
            let natural = snapshot_word(record).to_owned();
            record.traits.mark = Some(state.clone()).filter(|state| *state != natural);
        }
    }
    Ok(())
}
