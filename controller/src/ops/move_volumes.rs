//! The volumes of a move: whether they can leave, who else needs their bytes, and what carries those through the controller
//! where they do not go from host to host.

use super::{Draft, Ops, OpsError, Row, View};
use crate::model::*;
use amphi_api::image::ImageFormat;
use amphi_api::instance::ExchangePhase;
use amphi_api::wire::{ExportSource, Tombstone};
use amphi_api::{HostId, ImageId, ProjectId, VolumeId};
use jiff::Timestamp;

/// Its volumes, if all of them can leave the host.
pub(super) fn volumes_of(
    view: &View,
    row: &InstanceRecord,
    from: HostId,
) -> Result<Vec<VolumeMove>, OpsError> {
    let mut volumes = Vec::new();
    for id in row.volumes() {
        let held = |why: &str| {
            OpsError::conflict(format!("the instance cannot leave its host: volume {id} is there, and {why}"))
        };
        let volume = view.volumes.get(id).ok_or_else(|| held("no record knows it"))?;
        if view.group_at(volume.host).is_some() {
            // The other host sees it too: nothing of it travels.
            continue;
        }
        if volume.snapshots > 0 {
            return Err(held("its snapshots do not move: delete them first"));
        }
        if volume.journey.is_some() {
            return Err(OpsError::conflict(format!("volume {id} is on its way to the instance's host")));
        }
        if !volume.made || volume.host != from || volume.intent != Intent::Live || volume.trashed_at.is_some()
        {
            return Err(held("it is not whole"));
        }
        if row.leaving.contains(&Leaving::Volume(id)) {
            return Err(held("it is being detached"));
        }
        if is_read(view, volume, None) {
            return Err(held("its bytes are being read"));
        }
        volumes.push(VolumeMove { volume: id, size_gib: volume.size_gib, image: None, arrived: false });
    }
    Ok(volumes)
}

/// Whether a volume's bytes are needed where they are: a snapshot, another volume or an image is being made of them.
/// `but`: the image that carries them elsewhere.
pub(super) fn is_read(view: &View, volume: &VolumeRecord, but: Option<ImageId>) -> bool {
    let exported = |image: &Row<ImageRecord>| {
        Some(image.id) != but
            && image
                .export
                .as_ref()
                .is_some_and(|e| e.source == ExportSource::Volume(volume.id) && e.fault.is_none())
    };
    let snapped = |s: &Row<SnapshotRecord>| {
        s.volume == volume.id && !s.made && s.intent == Intent::Live && s.fault.is_none()
    };
    being_made(view, volume.host, |v| v.source_volume == Some(volume.id)).is_some()
        || view.exports_on(volume.host).any(exported)
        || view.snapshots_on(volume.host).any(snapped)
}

/// A volume that is being made of what is on this host.
pub(super) fn being_made(
    view: &View,
    host: HostId,
    of_it: impl Fn(&VolumeRecord) -> bool,
) -> Option<VolumeId> {
    let mut all = view.volumes_on(host).chain(view.volumes_travelling());
    all.find(|v| !v.made && of_it(v)).map(|v| v.id)
}

/// Refuses what would change a volume that is on its way, or would need its bytes where they are.
pub(super) fn refuse_moving(view: &View, volume: &VolumeRecord) -> Result<(), OpsError> {
    if volume.journey.is_some() {
        return Err(OpsError::conflict("the volume is on its way to its instance's host; wait for its end"));
    }
    let exchange = volume.instance.and_then(|id| view.instances.get(id)?.exchange);
    match exchange.and_then(|id| view.exchanges.get(id)).filter(|e| e.journey.is_some()) {
        Some(exchange) => Err(OpsError::conflict(format!(
            "the volume moves to another host (exchange {}); wait for its end",
            exchange.id
        ))),
        None => Ok(()),
    }
}

/// Whether the host is still destroying bytes of the volume.
pub(super) fn littered(view: &View, host: HostId, id: VolumeId) -> bool {
    view.tombstones.get(TombstoneKey::of(host, Tombstone::Volume { id })).is_some()
}

/// An image to carry a volume's bytes, which this host is to read. It belongs to nobody's project.
pub(super) fn carrying(volume: VolumeId, host: HostId, source: ExportSource, now: Timestamp) -> ImageRecord {
    ImageRecord {
        id: ImageId::new(),
        project: NOBODY,
        name: format!("volume {volume} on its way"),
        format: ImageFormat::Qcow2,
        cmdline: String::new(),
        blobs: Default::default(),
        layers: Vec::new(),
        export: Some(ImageExport { host, source, instance: None, fault: None }),
        closing: false,
        traits: ImageTraits::default(),
        created_at: now,
    }
}

/// Orders every volume read, each into an image of its own.
pub(super) fn read_volumes(
    view: &View,
    draft: &mut Draft,
    journey: &JourneyRecord,
    now: Timestamp,
) -> JourneyRecord {
    let mut journey = journey.clone();
    for one in &mut journey.volumes {
        let Some(volume) = view.volumes.get(one.volume) else { continue };
        let image = carrying(volume.id, volume.host, ExportSource::Volume(volume.id), now);
        draft.create(&image);
        one.image = Some(image.id);
    }
    journey
}

/// The volumes belong to this host from now on: it has their bytes.
pub(super) fn take_volumes(view: &View, draft: &mut Draft, journey: &JourneyRecord, host: HostId) {
    for row in journey.volumes.iter().filter_map(|v| view.volumes.get(v.volume)) {
        if row.host != host {
            let record = VolumeRecord { host, made: true, observed: None, ..(*row.record).clone() };
            draft.update(row, &record);
        }
    }
}

/// What carries a volume's bytes, once all of them are there.
pub(super) fn carrier(view: &View, image: Option<ImageId>) -> Option<&Row<ImageRecord>> {
    let image = view.images.get(image?)?;
    (image.export.is_none() && !image.blobs.is_empty()).then_some(image)
}

/// Owns what is on its way between hosts: no client sees it.
pub(super) const NOBODY: ProjectId = ProjectId(uuid::Uuid::nil());

impl Ops {
    /// Images that carried volumes go when nobody waits for them.
    pub(super) async fn forget_moved_bytes(&self) -> Result<(), OpsError> {
        let idle: Vec<ImageId> = {
            let view = self.world().read();
            let waits = |id: ImageId| {
                let copying = view.exchanges.iter().filter(|e| e.phase == ExchangePhase::Copying);
                let mut volumes = copying.filter_map(|e| e.journey.as_ref()).flat_map(|j| &j.volumes);
                let mut alone = view.volumes_travelling().filter_map(|v| v.journey.as_ref()?.image);
                volumes.any(|v| v.image == Some(id)) || alone.any(|image| image == id)
            };
            view.images.of_project(NOBODY).map(|image| image.id).filter(|id| !waits(*id)).collect()
        };
        for id in idle {
            self.transact(|view| {
                let mut draft = Draft::default();
                view.images.get(id).into_iter().for_each(|row| draft.delete(row));
                Ok((draft, ()))
            })
            .await?;
        }
        Ok(())
    }
}
