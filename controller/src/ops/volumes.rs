//! Volumes and the recycle bin: extend, trash, restore, purge.

use super::list::find;
use super::orders::entomb;
use super::{Draft, ListQuery, Ops, OpsError, Row, View, quotas, sights};
use crate::model::*;
use crate::scheduler::{Request, place};
use amphi_api::host::Claims;
use amphi_api::volume::{Volume, VolumeExtend};
use amphi_api::wire::Tombstone;
use amphi_api::{ProjectId, VolumeId, validate};
use jiff::Timestamp;

impl Ops {
    pub fn volume(&self, scope: ProjectId, id: VolumeId) -> Result<Volume, OpsError> {
        let view = self.world().read();
        Ok(volume_view(&view, find(&view.volumes, scope, id)?))
    }

    /// Those that are not in the recycle bin.
    pub fn volumes(&self, scope: ProjectId, query: &ListQuery) -> Result<Vec<Volume>, OpsError> {
        self.volumes_where(scope, query, |v| v.trashed_at.is_none())
    }

    pub fn recycle_bin(&self, scope: ProjectId, query: &ListQuery) -> Result<Vec<Volume>, OpsError> {
        self.volumes_where(scope, query, |v| v.trashed_at.is_some())
    }

    fn volumes_where(
        &self,
        scope: ProjectId,
        query: &ListQuery,
        keep: impl Fn(&VolumeRecord) -> bool,
    ) -> Result<Vec<Volume>, OpsError> {
        let view = self.world().read();
        let rows = query.rows(&view.volumes, scope, keep)?;
        Ok(rows.into_iter().map(|row| volume_view(&view, row)).collect())
    }

    /// Grows only. The room is claimed at once; the host extends what is in use too.
    pub async fn extend_volume(
        &self,
        scope: ProjectId,
        id: VolumeId,
        request: &VolumeExtend,
    ) -> Result<Volume, OpsError> {
        validate::within("size_gib", request.size_gib, 1, validate::VOLUME_GIB_MAX, "GiB")?;
        self.transact_room(|view| {
            let row = find(&view.volumes, scope, id)?;
            usable(row)?;
            super::move_volumes::refuse_moving(view, row)?;
            if request.size_gib <= row.size_gib {
                let now = row.size_gib;
                return Err(OpsError::field("size_gib", format!("must be more than the present {now} GiB")));
            }
            let more = request.size_gib - row.size_gib;
            quotas::check_within(view, scope, Resource::PerVolumeGigabytes, 0, request.size_gib)?;
            quotas::check(view, scope, &[(Resource::Gigabytes, more)])?;
            let asked =
                Request { volume_gib: more, volume: true, volume_host: Some(row.host), ..Request::default() };
            match view.group_at(row.host) {
                Some(group) => super::volume_groups::room_in(view, group, more)?,
                None => drop(place(&sights(view), &asked, self.policy())?),
            }
            let mut draft = Draft::default();
            draft.update(row, &VolumeRecord { size_gib: request.size_gib, ..(*row.record).clone() });
            draft.claim(row.host, room(more));
            Ok((draft, ()))
        })
        .await?;
        self.volume(scope, id)
    }

    /// To the recycle bin, where its bytes stay.
    pub async fn trash_volume(&self, scope: ProjectId, id: VolumeId) -> Result<(), OpsError> {
        self.transact(|view| Ok((trash(view, scope, id, Timestamp::now())?, ()))).await
    }

    /// To the recycle bin without its snapshots, which go for good. Refused while they exist, unless they are to go.
    pub async fn delete_volume(&self, scope: ProjectId, id: VolumeId, cascade: bool) -> Result<(), OpsError> {
        self.transact(|view| {
            let now = Timestamp::now();
            let row = find(&view.volumes, scope, id)?;
            let word = row.word(super::volume_edit::doings(view, row));
            if !DELETABLE.contains(&word) {
                return Err(OpsError::conflict(format!(
                    "Invalid volume: Volume status must be {}, but current status is: {word}.",
                    DELETABLE.join(" or ")
                )));
            }
            let live = |s: &&Row<SnapshotRecord>| s.volume == id && s.intent == Intent::Live;
            let snapshots: Vec<_> = view.snapshots.iter().filter(live).collect();
            if !snapshots.is_empty() && !cascade {
                let count = snapshots.len();
                return Err(OpsError::conflict(format!(
                    "Invalid volume: Volume has {count} dependent snapshots; delete them first."
                )));
            }
            let mut draft = trash(view, scope, id, now)?;
            for snapshot in snapshots {
                super::snapshots::remove(view, &mut draft, snapshot, now)?;
            }
            Ok((draft, ()))
        })
        .await
    }

    /// Out of the recycle bin: `restoring` until the host says that it is.
    pub async fn restore_volume(&self, scope: ProjectId, id: VolumeId) -> Result<Volume, OpsError> {
        self.transact(|view| {
            let row = find(&view.volumes, scope, id)?;
            in_bin(row)?;
            quotas::check(view, scope, &[(Resource::Volumes, 1), (Resource::Gigabytes, row.size_gib)])?;
            let mut draft = Draft::default();
            draft.update(row, &row.restored());
            Ok((draft, ()))
        })
        .await?;
        self.volume(scope, id)
    }

    /// Out of the recycle bin for good. Refused while snapshots of it exist.
    pub async fn purge_volume(&self, scope: ProjectId, id: VolumeId) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = find(&view.volumes, scope, id)?;
            let mut draft = Draft::default();
            if row.intent == Intent::Deleting {
                return Ok((draft, ()));
            }
            in_bin(row)?;
            if row.snapshots > 0 {
                let count = row.snapshots;
                return Err(OpsError::conflict(format!("{count} snapshots of it exist; delete them first")));
            }
            draft.update(row, &VolumeRecord { intent: Intent::Deleting, ..(*row.record).clone() });
            entomb(view, &mut draft, row.host, Tombstone::Volume { id }, Timestamp::now());
            Ok((draft, ()))
        })
        .await
    }
}

/// What may be deleted (cinder/volume/api.py, `delete`).
const DELETABLE: [&str; 6] =
    ["available", "error", "error_restoring", "error_extending", "error_managing", "error_deleting"];

fn trash(view: &View, scope: ProjectId, id: VolumeId, now: Timestamp) -> Result<Draft, OpsError> {
    let row = find(&view.volumes, scope, id)?;
    trash_allowed(row).map_err(|why| OpsError::conflict(format!("volume {id}: {why}")))?;
    if let Some(user) = super::move_volumes::being_made(view, row.host, |v| v.source_volume == Some(id)) {
        return Err(OpsError::conflict(format!("volume {user} is being made from it")));
    }
    let mut draft = Draft::default();
    draft.update(row, &VolumeRecord { trashed_at: Some(now), ..(*row.record).clone() });
    Ok(draft)
}

fn in_bin(row: &VolumeRecord) -> Result<(), OpsError> {
    if row.intent == Intent::Deleting {
        return Err(OpsError::conflict("the volume is being purged"));
    }
    if row.trashed_at.is_none() {
        return Err(OpsError::conflict("the volume is not in the recycle bin"));
    }
    Ok(())
}

/// Neither in the recycle bin nor on its way out.
pub(super) fn usable(row: &VolumeRecord) -> Result<(), OpsError> {
    if row.intent == Intent::Deleting || row.trashed_at.is_some() {
        return Err(OpsError::conflict("the volume is in the recycle bin; restore it"));
    }
    Ok(())
}

pub(super) fn room(volume_gib: u64) -> Claims {
    Claims { volume_gib, ..Claims::default() }
}

pub(super) fn volume_view(view: &View, record: &VolumeRecord) -> Volume {
    let observed = record.observed.as_ref();
    let silent = record.intent == Intent::Deleting && !view.host_up(record.host);
    let fault = match silent {
        true => Some("its host does not answer: it is purged when the host returns".to_owned()),
        false => observed.and_then(|o| o.fault.as_ref()).map(|f| f.message.clone()),
    };
    let group = view.group_at(record.host);
    let holder = || view.instances.get(record.instance?)?.host;
    let host = group.map_or(record.host, |group| holder().or(group.keeper).unwrap_or(record.host));
    Volume {
        id: record.id,
        project: record.project,
        name: record.name.clone(),
        size_gib: record.size_gib,
        size_bytes: observed.filter(|o| o.present).map(|o| o.size_bytes),
        state: volume_state_of(record, view.host_up(record.host)),
        host,
        host_name: view.host_name(host).unwrap_or_default(),
        group: group.map(|group| group.id),
        group_name: group.map(|group| group.name.clone()),
        instance: record.instance,
        fault,
        trashed_at: record.trashed_at,
        created_at: record.created_at,
    }
}
