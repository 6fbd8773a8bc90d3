//! Snapshots: they live on their volume's host and take its full size there.

use super::list::find;
use super::orders::entomb;
use super::volumes::{room, usable};
use super::{Draft, ListQuery, Ops, OpsError, Row, View, quotas, sights};
use crate::model::*;
use crate::scheduler::{Request, place};
use amphi_api::volume::{Snapshot, SnapshotCreate};
use amphi_api::wire::Tombstone;
use amphi_api::{ProjectId, SnapshotId, UserId, VolumeId, validate};
use jiff::Timestamp;
use std::collections::BTreeMap;

/// What is asked of a new snapshot.
#[derive(Clone, Debug, Default)]
pub struct SnapshotWish {
    pub name: String,
    pub description: Option<String>,
    pub metadata: BTreeMap<String, String>,
    /// While an instance has the volume, too.
    pub force: bool,
    pub user: Option<UserId>,
}

impl Ops {
    pub async fn create_snapshot(
        &self,
        scope: ProjectId,
        volume: VolumeId,
        request: &SnapshotCreate,
    ) -> Result<Snapshot, OpsError> {
        validate::name("name", &request.name)?;
        let wish = SnapshotWish { name: request.name.clone(), force: true, ..SnapshotWish::default() };
        let id = self.make_snapshot(scope, volume, &wish).await?;
        self.snapshot(scope, id)
    }

    pub async fn make_snapshot(
        &self,
        scope: ProjectId,
        volume: VolumeId,
        wish: &SnapshotWish,
    ) -> Result<SnapshotId, OpsError> {
        check_items(&wish.metadata)?;
        self.transact_room(|view| {
            let row = find(&view.volumes, scope, volume)?;
            usable(row)?;
            super::move_volumes::refuse_moving(view, row)?;
            super::volume_groups::refuse_copies(view, row)?;
            if !row.made {
                return Err(OpsError::conflict("the volume is not made yet"));
            }
            let word = row.word(super::volume_edit::doings(view, row));
            if word != "available" && !wish.force {
                return Err(OpsError::conflict(format!(
                    "Invalid volume: Volume {volume} status must be available, but current status is: {word}."
                )));
            }
            quotas::check(view, scope, &[(Resource::Snapshots, 1), (Resource::Gigabytes, row.size_gib)])?;
            let asked = Request {
                volume_gib: row.size_gib,
                volume: true,
                volume_host: Some(row.host),
                ..Request::default()
            };
            place(&sights(view), &asked, self.policy())?;
            let mut draft = Draft::default();
            let record = SnapshotRecord {
                id: SnapshotId::new(),
                project: scope,
                name: wish.name.clone(),
                volume,
                size_gib: row.size_gib,
                host: row.host,
                made: false,
                intent: Intent::Live,
                fault: None,
                traits: SnapshotTraits {
                    description: wish.description.clone(),
                    metadata: wish.metadata.clone(),
                    user: wish.user,
                    ..SnapshotTraits::default()
                },
                created_at: Timestamp::now(),
            };
            draft.create(&record);
            draft.update(row, &VolumeRecord { snapshots: row.snapshots + 1, ..(*row.record).clone() });
            draft.claim(row.host, room(row.size_gib));
            Ok((draft, record.id))
        })
        .await
    }

    pub fn snapshot(&self, scope: ProjectId, id: SnapshotId) -> Result<Snapshot, OpsError> {
        Ok(snapshot_view(find(&self.world().read().snapshots, scope, id)?))
    }

    /// All of the project, or those of one volume.
    pub fn snapshots(
        &self,
        scope: ProjectId,
        volume: Option<VolumeId>,
        query: &ListQuery,
    ) -> Result<Vec<Snapshot>, OpsError> {
        let view = self.world().read();
        if let Some(id) = volume {
            find(&view.volumes, scope, id)?;
        }
        let rows = query.rows(&view.snapshots, scope, |s| volume.is_none_or(|id| s.volume == id))?;
        Ok(rows.into_iter().map(|row| snapshot_view(row)).collect())
    }

    /// Refused while a volume is still being made from it.
    pub async fn delete_snapshot(&self, scope: ProjectId, id: SnapshotId) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = find(&view.snapshots, scope, id)?;
            let mut draft = Draft::default();
            if row.intent == Intent::Deleting {
                return Ok((draft, ()));
            }
            remove(view, &mut draft, row, Timestamp::now())?;
            Ok((draft, ()))
        })
        .await
    }
}

/// Orders a snapshot gone.
pub(super) fn remove(
    view: &View,
    draft: &mut Draft,
    row: &Row<SnapshotRecord>,
    now: Timestamp,
) -> Result<(), OpsError> {
    let id = row.id;
    if let Some(user) = super::move_volumes::being_made(view, row.host, |v| v.source == Some(id)) {
        return Err(OpsError::conflict(format!("volume {user} is being made from it")));
    }
    draft.update(row, &SnapshotRecord { intent: Intent::Deleting, ..(*row.record).clone() });
    entomb(view, draft, row.host, Tombstone::Snapshot { id }, now);
    Ok(())
}

fn snapshot_view(record: &SnapshotRecord) -> Snapshot {
    Snapshot {
        id: record.id,
        project: record.project,
        name: record.name.clone(),
        volume: record.volume,
        size_gib: record.size_gib,
        state: snapshot_state_of(record),
        host: record.host,
        fault: record.fault.as_ref().map(|f| f.message.clone()),
        created_at: record.created_at,
    }
}
