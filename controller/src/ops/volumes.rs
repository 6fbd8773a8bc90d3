//! Volumes and the recycle bin: create, extend, trash, restore, purge.

use super::list::find;
use super::orders::entomb;
use super::{Draft, ListQuery, Ops, OpsError, View, resolve, sights};
use crate::model::*;
use crate::scheduler::{Request, place};
use amphi_api::host::Claims;
use amphi_api::volume::{Volume, VolumeCreate, VolumeExtend};
use amphi_api::wire::Tombstone;
use amphi_api::{ProjectId, VolumeId, validate};
use jiff::Timestamp;

impl Ops {
    pub async fn create_volume(&self, scope: ProjectId, request: &VolumeCreate) -> Result<Volume, OpsError> {
        request.check()?;
        let id = self
            .transact_room(|view| {
                let mut draft = Draft::default();
                let source = match request.snapshot {
                    None => None,
                    Some(id) => {
                        let row = find(&view.snapshots, scope, id)
                            .map_err(|_| OpsError::field("snapshot", format!("no snapshot {id}")))?;
                        if row.intent == Intent::Deleting || !row.made {
                            return Err(OpsError::taken(
                                "snapshot",
                                format!("snapshot {id} is not available"),
                            ));
                        }
                        draft.touch(row);
                        Some(row)
                    }
                };
                let size_gib = request.size_gib.or(source.map(|s| s.size_gib)).unwrap_or(0);
                if let Some(source) = source.filter(|s| size_gib < s.size_gib) {
                    let least = source.size_gib;
                    return Err(OpsError::field("size_gib", format!("the snapshot has {least} GiB")));
                }
                let pinned = match &request.host {
                    Some(text) => Some(resolve::host(view, "host", text)?.id),
                    None => None,
                };
                let asked = Request {
                    volume_gib: size_gib,
                    volume: true,
                    pinned,
                    volume_host: source.map(|s| s.host),
                    ..Request::default()
                };
                let host = place(&sights(view), &asked, self.policy())?.host;
                let record = VolumeRecord {
                    id: VolumeId::new(),
                    project: scope,
                    name: request.name.clone(),
                    size_gib,
                    host,
                    source: request.snapshot,
                    source_image: None,
                    source_volume: None,
                    untouched: false,
                    instance: None,
                    made: false,
                    trashed_at: None,
                    intent: Intent::Live,
                    snapshots: 0,
                    observed: None,
                    created_at: Timestamp::now(),
                };
                draft.create(&record);
                draft.claim(host, room(size_gib));
                Ok((draft, record.id))
            })
            .await?;
        self.volume(scope, id)
    }

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
            if request.size_gib <= row.size_gib {
                let now = row.size_gib;
                return Err(OpsError::field("size_gib", format!("must be more than the present {now} GiB")));
            }
            let more = request.size_gib - row.size_gib;
            let asked =
                Request { volume_gib: more, volume: true, volume_host: Some(row.host), ..Request::default() };
            place(&sights(view), &asked, self.policy())?;
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
        self.transact(|view| {
            let row = find(&view.volumes, scope, id)?;
            trash_allowed(row).map_err(|why| OpsError::conflict(format!("volume {id}: {why}")))?;
            let mut draft = Draft::default();
            draft.update(row, &VolumeRecord { trashed_at: Some(Timestamp::now()), ..(*row.record).clone() });
            Ok((draft, ()))
        })
        .await
    }

    pub async fn restore_volume(&self, scope: ProjectId, id: VolumeId) -> Result<Volume, OpsError> {
        self.transact(|view| {
            let row = find(&view.volumes, scope, id)?;
            in_bin(row)?;
            let mut draft = Draft::default();
            draft.update(row, &VolumeRecord { trashed_at: None, ..(*row.record).clone() });
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
    Volume {
        id: record.id,
        project: record.project,
        name: record.name.clone(),
        size_gib: record.size_gib,
        size_bytes: observed.filter(|o| o.present).map(|o| o.size_bytes),
        state: volume_state_of(record, view.host_up(record.host)),
        host: record.host,
        host_name: view.host_name(record.host).unwrap_or_default(),
        instance: record.instance,
        fault: observed.and_then(|o| o.fault.as_ref()).map(|f| f.message.clone()),
        trashed_at: record.trashed_at,
        created_at: record.created_at,
    }
}
