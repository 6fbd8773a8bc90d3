//! The steps that read and write volumes' and disks' bytes: volumes with what they begin with, snapshots, exports. Says who
//! is held still meanwhile; the drivers do the holding.

use super::Reconciler;
use super::execute::{WorkError, user_of};
use super::exports::Workplace;
use crate::images::bases;
use crate::instance::vm::image_check;
use crate::instance::{Adjustment, BodyDriver, ExportPart, ExportPlan};
use crate::qemu_img::DiskFormat;
use crate::storage::{Filesystem, Pause, Quiesce, Source, VolumeSpec};
use amphi_api::image::{BlobRole, Image, ImageFormat};
use amphi_api::instance::BodyKind;
use amphi_api::wire::{ExportSource, HostDesired, VolumeSource};
use amphi_api::{ImageId, InstanceId, VolumeId};
use async_trait::async_trait;
use std::sync::Arc;

impl Reconciler {
    pub(super) async fn ensure_volume(&self, desired: &HostDesired, id: VolumeId) -> Result<(), WorkError> {
        let Some(order) = desired.volumes.iter().find(|v| v.id == id) else { return Ok(()) };
        let seen = match order.made || order.source.is_some() {
            true => self.drivers.volumes.observe().await?,
            false => Vec::new(),
        };
        let here = seen.iter().find(|v| v.id == id.0);
        if order.made && here.is_none() {
            return Err(WorkError::Missing(format!("volume {id}")));
        }
        let source = match &order.source {
            None | Some(VolumeSource::Crossing) => None,
            // Its bytes are its own by now; where they came from may be gone.
            Some(_) if here.is_some_and(|v| v.complete) => Some(Source::copy(id.0)),
            Some(VolumeSource::Snapshot(of)) => Some(Source::copy(of.0)),
            Some(VolumeSource::Volume(of)) => {
                Some(Source::Copy { of: of.0, quiesce: self.quiesce(desired, *of)? })
            }
            Some(VolumeSource::Image(image)) => Some(self.disk_of(image).await?),
            Some(VolumeSource::Moved { image, blank }) => match self.disk_of(image).await? {
                Source::Disk { file, format } => Some(Source::Moved { file, format, blank: *blank }),
                other => Some(other),
            },
        };
        let fs = Some(Filesystem::Xfs).filter(|_| order.source != Some(VolumeSource::Crossing));
        let in_it = |g: &&amphi_api::wire::GroupDesired| g.kept.contains(&id) || g.held.contains_key(&id);
        let group = desired.groups.iter().find(in_it).map(|g| g.id);
        let spec = VolumeSpec { id: id.0, size_bytes: order.size_bytes, fs, source, group };
        Ok(self.drivers.volumes.ensure(&spec).await?)
    }

    /// An image's disk out of the cache, its header looked at: it must point at no file of this host.
    async fn disk_of(&self, image: &Image) -> Result<Source, WorkError> {
        let no_disk = |message: String| WorkError::NoDisk { image: image.id, message };
        let format = bases::lies(image.format).ok_or_else(|| no_disk("it is no disk".to_owned()))?;
        let cached = self.drivers.images.ensure(image).await?;
        let file = cached.blobs.get(&BlobRole::Disk).cloned();
        let file = file.ok_or_else(|| no_disk("its disk has not been uploaded".to_owned()))?;
        let (path, of) = (file.clone(), image.format);
        let look = tokio::task::spawn_blocking(move || image_check::check(of, BlobRole::Disk, &path));
        let looked = look.await.map_err(std::io::Error::other).and_then(|looked| looked);
        looked.map_err(|e| no_disk(e.to_string()))?.map_err(no_disk)?;
        Ok(Source::Disk { file, format })
    }

    /// How whoever writes to the volume is held. A set's volume is mounted here and frozen by the driver; a VM writes
    /// through the device and is paused.
    fn quiesce(&self, desired: &HostDesired, id: VolumeId) -> Result<Quiesce, WorkError> {
        match user_of(desired, id) {
            Some(user) if user.body.kind() == BodyKind::Vm => Ok(Quiesce::Guest(Arc::new(PauseGuest {
                driver: self.body_driver(BodyKind::Vm)?.clone(),
                instance: user.id,
            }))),
            _ => Ok(Quiesce::Filesystem),
        }
    }

    pub(super) async fn take_snapshot(
        &self,
        desired: &HostDesired,
        id: amphi_api::SnapshotId,
    ) -> Result<(), WorkError> {
        let Some(order) = desired.snapshots.iter().find(|s| s.id == id) else { return Ok(()) };
        let quiesce = self.quiesce(desired, order.volume)?;
        Ok(self.drivers.volumes.snapshot(order.volume.0, id.0, &quiesce).await?)
    }

    /// Reads, hands over, notes: whatever is cut short before the note is done again.
    pub(super) async fn export(&self, desired: &HostDesired, image: ImageId) -> Result<(), WorkError> {
        let Some(order) = desired.exports.iter().find(|e| e.image == image) else { return Ok(()) };
        let place = self.drivers.exports.begin(image)?;
        match &order.source {
            ExportSource::Conversion { of, to } => return self.convert(image, of, *to, &place).await,
            ExportSource::Volume(id) => self.export_volume(desired, *id, order.format, image, &place).await?,
            ExportSource::Snapshot(id) => {
                let format = disk_format(image, order.format)?;
                // Nobody writes to it.
                let quiesce = Quiesce::Filesystem;
                self.drivers.volumes.export(id.0, &place.file(), format, &quiesce).await?;
            }
            ExportSource::Root(id) | ExportSource::Member { instance: id, .. } => {
                let of = desired.instances.iter().find(|i| i.id == *id).ok_or(WorkError::NoInstance(*id))?;
                let part = match &order.source {
                    ExportSource::Member { member, .. } => ExportPart::Member(member.clone()),
                    _ => ExportPart::Root { root: of.root },
                };
                match (of.root_volume, &part) {
                    (Some(volume), ExportPart::Root { .. }) => {
                        self.export_volume(desired, volume, order.format, image, &place).await?;
                    }
                    _ => {
                        let plan =
                            ExportPlan { instance: *id, image, part, format: order.format, to: place.file() };
                        self.body_driver(of.body.kind())?.export(&plan).await?;
                    }
                }
            }
        }
        let blob = self.drivers.exports.finish(image, &place).await?;
        Ok(self.ledger().note_export(image, blob)?)
    }

    async fn export_volume(
        &self,
        desired: &HostDesired,
        id: VolumeId,
        format: ImageFormat,
        image: ImageId,
        place: &Workplace,
    ) -> Result<(), WorkError> {
        let format = disk_format(image, format)?;
        let quiesce = self.quiesce(desired, id)?;
        Ok(self.drivers.volumes.export(id.0, &place.file(), format, &quiesce).await?)
    }
}

fn disk_format(image: ImageId, format: ImageFormat) -> Result<DiskFormat, WorkError> {
    let no_disk = || WorkError::NoDisk { image, message: "a volume becomes a raw or qcow2 image".to_owned() };
    DiskFormat::of(format).filter(|f| matches!(f, DiskFormat::Raw | DiskFormat::Qcow2)).ok_or_else(no_disk)
}

struct PauseGuest {
    driver: Arc<dyn BodyDriver>,
    instance: InstanceId,
}

#[async_trait]
impl Pause for PauseGuest {
    async fn pause(&self) -> Result<(), String> {
        self.driver.adjust(self.instance, Adjustment::Pause).await.map_err(|e| e.to_string())
    }

    async fn resume(&self) -> Result<(), String> {
        self.driver.adjust(self.instance, Adjustment::Resume).await.map_err(|e| e.to_string())
    }
}
