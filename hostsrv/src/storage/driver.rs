//! `VolumeDriver` on LVM: the order of steps, each of which may be the last before a crash.
//!
//! State is LVM's metadata (names and tags), the kernel's tables of windows and mounts, and the open files
//! that keep the windows of raw devices alive. Nothing is remembered elsewhere, so a fresh driver finds all.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::activation::dm;
use super::activation::loop_device;
use super::filesystem;
use super::lock::{VolumeLock, VolumeLocks};
use super::lvm::{Lvm, LvmCommand};
use super::report::{LvReport, MAKING_TAG, TAG, XFS_TAG};
use super::shared::Part;
use super::{
    Activation, Attach, Attached, BinOrder, ObservedVolume, Quiesce, Source, StorageError, StorageFacts,
    VolumeDriver, VolumeKind, VolumeSpec, recycle,
};
use crate::qemu_img::DiskFormat;

#[derive(Debug, Clone)]
pub struct LvmConfig {
    pub volume_group: String,
    /// Volumes are mounted below `state_dir/volumes`.
    pub state_dir: PathBuf,
    /// Lock file and adapted LVM configuration; best on a tmpfs.
    pub run_dir: PathBuf,
    /// LVM's own configuration directory.
    pub lvm_dir: PathBuf,
    /// Other hosts see the group too.
    pub shared: bool,
    /// `None`: whatever the kernel can do. A loop window works on every kernel, device-mapper does not.
    pub activation: Option<Activation>,
    /// Whether this process keeps the windows of raw devices open (loop activation). The agent does;
    /// a Docker plug-in beside it must not, or nothing could be detached.
    pub keeps_devices: bool,
    /// How long a file system may stay frozen, or a guest paused, for a copy (loop activation only).
    pub freeze_limit: Duration,
    /// The bound for copying or wiping one volume.
    pub copy_limit: Duration,
}

impl LvmConfig {
    pub fn new(volume_group: &str, state_dir: &Path, run_dir: &Path) -> Self {
        let lvm_dir = std::env::var_os("LVM_SYSTEM_DIR").map_or_else(|| "/etc/lvm".into(), PathBuf::from);
        LvmConfig {
            volume_group: volume_group.to_owned(),
            state_dir: state_dir.to_owned(),
            run_dir: run_dir.to_owned(),
            lvm_dir,
            shared: false,
            activation: None,
            keeps_devices: true,
            freeze_limit: Duration::from_secs(30),
            copy_limit: Duration::from_secs(900),
        }
    }
}

pub struct LvmDriver {
    pub(super) config: LvmConfig,
    pub(super) lvm: Lvm,
    pub(super) locks: VolumeLocks,
    /// Volumes on their way.
    coming: VolumeLocks,
    /// Windows of raw devices, by volume (loop activation).
    held: Mutex<HashMap<Uuid, File>>,
    version: OnceCell<String>,
}

/// An LV made active; `file` keeps a loop window alive.
pub(super) struct Active {
    pub path: PathBuf,
    pub file: Option<File>,
    /// It was active before, so somebody may be using it.
    pub found: bool,
}

pub(super) fn lv_name(id: Uuid, kind: VolumeKind) -> String {
    match kind {
        VolumeKind::Volume => format!("vol-{id}"),
        VolumeKind::Snapshot { .. } => format!("snap-{id}"),
    }
}

impl LvmDriver {
    /// Detects the activation, prepares the directories and thaws what a crashed predecessor left frozen.
    /// The volume group itself may still be missing; `probe` says so.
    pub async fn open(config: LvmConfig) -> Result<LvmDriver, StorageError> {
        let activation = match config.activation {
            Some(activation) => activation,
            None => dm::detect().await?,
        };
        let (volumes, run) = (config.state_dir.join("volumes"), config.run_dir.clone());
        let object = volumes.display().to_string();
        blocking("preparing", &object, move || {
            std::fs::create_dir_all(&run)?;
            std::fs::create_dir_all(&volumes)?;
            std::fs::set_permissions(&volumes, std::fs::Permissions::from_mode(0o700))?;
            filesystem::share(&volumes)?;
            for mount in filesystem::mounts()? {
                if mount.point.parent() == Some(&volumes) {
                    filesystem::thaw_leftover(&mount.point);
                }
            }
            Ok(())
        })
        .await?;
        let mut lvm =
            Lvm::new(&config.volume_group, activation, &config.lvm_dir, &config.run_dir.join("lvm"))?;
        if config.shared {
            lvm = lvm.shared(Part::new(&config.run_dir, &config.state_dir));
        }
        let locks = VolumeLocks::new(config.run_dir.join("volumes.lock"));
        let coming = VolumeLocks::new(config.run_dir.join("volumes.coming"));
        Ok(LvmDriver { config, lvm, locks, coming, held: Mutex::default(), version: OnceCell::new() })
    }

    /// Of a shared group that has answered once.
    pub fn group_id(&self) -> Option<amphi_api::VolumeGroupId> {
        self.lvm.part().and_then(Part::id)
    }

    pub fn mount_point(&self, id: Uuid) -> PathBuf {
        self.config.state_dir.join("volumes").join(id.to_string())
    }

    pub(super) fn held(&self) -> MutexGuard<'_, HashMap<Uuid, File>> {
        self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) async fn is_mounted(&self, id: Uuid) -> Result<bool, StorageError> {
        let point = self.mount_point(id);
        blocking("reading mounts for", &id.to_string(), move || filesystem::is_mounted(&point)).await
    }

    pub(super) async fn retag(
        &self,
        name: &str,
        add: &[String],
        remove: &[String],
    ) -> Result<(), StorageError> {
        let _changes = self.lvm.changes.lock().await;
        self.lvm.run(LvmCommand::Tag { name, add, remove }).await.map(drop)
    }
}

/// Runs blocking work off the async threads and names it in the error.
pub(super) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    object: &str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, StorageError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(std::io::Error::other(error)))
        .map_err(StorageError::io(operation, object))
}

#[async_trait]
impl VolumeDriver for LvmDriver {
    async fn probe(&self) -> Result<StorageFacts, StorageError> {
        let report = self.lvm.report().await?;
        let version = self.version.get_or_try_init(|| self.lvm.version()).await?;
        Ok(StorageFacts {
            volume_group: self.lvm.group().to_owned(),
            size_bytes: report.size_bytes,
            free_bytes: report.free_bytes,
            extent_bytes: report.extent_bytes,
            activation: self.lvm.activation(),
            lvm_version: version.clone(),
            shared: Vec::new(),
        })
    }

    async fn observe(&self) -> Result<Vec<ObservedVolume>, StorageError> {
        let report = self.lvm.report().await?;
        let (windows, mounts) = blocking("reading windows and mounts of", self.lvm.group(), || {
            Ok((loop_device::windows()?, filesystem::mounts()?))
        })
        .await?;
        let mut seen: Vec<ObservedVolume> = Vec::new();
        for lv in &report.lvs {
            let Some((id, kind)) = lv.identity() else { continue };
            let observed = self.observed(id, kind, &report, lv, &windows, &mounts);
            self.keep_device(&observed, &report, lv).await?;
            seen.push(observed);
        }
        seen.sort_by_key(|volume| volume.id);
        Ok(seen)
    }

    async fn ensure(&self, spec: &VolumeSpec) -> Result<(), StorageError> {
        let id = spec.id;
        if spec.fs.is_some() && spec.source.is_none() && spec.size_bytes < filesystem::SMALLEST {
            let least = filesystem::SMALLEST;
            return Err(StorageError::TooSmall { id: spec.id, size: spec.size_bytes, least });
        }
        if spec.size_bytes == 0 {
            return Err(StorageError::Invalid { id, reason: "its size is zero".to_owned() });
        }
        if self.lvm.part().is_some_and(|part| part.may_write().is_err()) {
            return self.follow(spec).await;
        }
        let copied = spec.source.as_ref().and_then(Source::copied);
        let ids: Vec<Uuid> = copied.into_iter().chain([id]).collect();
        let _lock = self.locks.lock(&ids).await?;
        let changes = self.lvm.changes.lock().await;
        let mut report = self.lvm.report().await?;
        let extents = spec.size_bytes.div_ceil(report.extent_bytes);
        let existing = report.of(id).map(|(lv, kind)| (lv.clone(), kind));
        let (lv, kind) = match existing {
            Some(existing) => existing,
            None => {
                if let Some(source) = copied {
                    let (from, _) = report.of(source).ok_or(StorageError::Unknown { id: source })?;
                    if from.is_making() {
                        return Err(StorageError::NotReady { id: source });
                    }
                    if from.size_bytes > extents * report.extent_bytes {
                        let (has, wanted) = (from.size_bytes, spec.size_bytes);
                        let reason = format!("its source has {has} bytes, more than its {wanted}");
                        return Err(StorageError::Invalid { id, reason });
                    }
                }
                let mut tags = vec![TAG.to_owned(), format!("amphi.volume={id}")];
                if spec.fs.is_some() || spec.source.is_some() {
                    tags.push(MAKING_TAG.to_owned());
                }
                let name = lv_name(id, VolumeKind::Volume);
                let lv = self.create_lv(&mut report, &name, extents, tags, true).await?;
                (lv, VolumeKind::Volume)
            }
        };
        drop(changes);
        if kind != VolumeKind::Volume {
            return Err(StorageError::Invalid { id, reason: "it is a snapshot".to_owned() });
        }
        if let Some(since) = lv.trashed_at() {
            return Err(StorageError::Trashed { id, since });
        }
        if lv.is_making() {
            let mut lv = lv.clone();
            if extents > lv.size_bytes / report.extent_bytes {
                // The order has become larger since it was begun: perhaps because what it begins with did not fit.
                report = self.grow_lv(spec, extents).await?;
                lv = report.of(id).ok_or(StorageError::Unknown { id })?.0.clone();
            }
            self.fill(spec, &report, &lv).await?;
        } else if spec.source.is_none() && lv.fs() != spec.fs {
            let reason = format!("its file system is {:?}, not {:?}", lv.fs(), spec.fs);
            return Err(StorageError::Invalid { id, reason });
        }
        let has = report.of(id).map_or(lv.size_bytes, |(lv, _)| lv.size_bytes) / report.extent_bytes;
        if extents < has {
            return Err(StorageError::Shrink { id, has: lv.size_bytes, wanted: spec.size_bytes });
        }
        if extents > has {
            report = self.grow_lv(spec, extents).await?;
        }
        let (lv, _) = report.of(id).ok_or(StorageError::Unknown { id })?;
        if self.lvm.part().is_some_and(|part| part.may_hold(id).is_err()) {
            // Made here, for another host.
            let active = LvReport { active: true, ..lv.clone() };
            return self.detach_locked(id, &report, &active).await;
        }
        self.settle_size(id, &report, lv).await
    }

    async fn attach(&self, id: Uuid, how: Attach) -> Result<Attached, StorageError> {
        let _lock = self.locks.lock(&[id]).await?;
        let report = self.lvm.report().await?;
        let (lv, kind) = report.of(id).ok_or(StorageError::Unknown { id })?;
        if kind != VolumeKind::Volume {
            let reason = "it is a snapshot; make a volume from it".to_owned();
            return Err(StorageError::Invalid { id, reason });
        }
        if let Some(since) = lv.trashed_at() {
            return Err(StorageError::Trashed { id, since });
        }
        if lv.is_making() {
            return Err(StorageError::NotReady { id });
        }
        if let Some(part) = self.lvm.part() {
            part.may_hold(id).map_err(|why| StorageError::NotHolder { id, why })?;
        }
        let point = self.mount_point(id);
        let mut mounted = self.is_mounted(id).await?;
        if mounted && self.is_cut_off(id).await? {
            // Left by a fence of this host.
            self.detach_locked(id, &report, lv).await?;
            mounted = false;
        }
        if how == Attach::Device && mounted {
            return Err(StorageError::Busy { id, holders: format!("mounted at {}", point.display()) });
        }
        if how == Attach::Mounted && lv.fs().is_none() {
            return Err(StorageError::NoFilesystem { id });
        }
        let active = self.activate(&report, lv).await?;
        match how {
            Attach::Device => {
                if let Some(file) = active.file.filter(|_| self.config.keeps_devices) {
                    self.held().insert(id, file);
                }
                Ok(Attached { device: active.path, mount: None })
            }
            Attach::Mounted => {
                // One that is mounted already was brought to its size by `ensure`.
                if !mounted {
                    self.mount(id, lv, &active).await?;
                }
                // From here on the mount keeps the window.
                self.held().remove(&id);
                Ok(Attached { device: active.path, mount: Some(point) })
            }
        }
    }

    async fn announce(&self, id: Uuid) -> Result<Option<VolumeLock>, StorageError> {
        self.coming.lock(&[id]).await.map(Some)
    }

    fn is_coming(&self, id: Uuid) -> Result<bool, StorageError> {
        Ok(self.coming.try_lock(id)?.is_none())
    }

    async fn arrival(&self, id: Uuid) -> Result<(), StorageError> {
        self.coming.lock(&[id]).await.map(drop)
    }

    async fn mounted(&self, id: Uuid) -> Result<Option<PathBuf>, StorageError> {
        Ok(self.is_mounted(id).await?.then(|| self.mount_point(id)))
    }

    async fn detach(&self, id: Uuid) -> Result<(), StorageError> {
        let _lock = self.locks.lock(&[id]).await?;
        let report = self.lvm.report().await?;
        match report.of(id) {
            Some((lv, _)) => self.detach_locked(id, &report, lv).await,
            None => Ok(()),
        }
    }

    async fn snapshot(&self, id: Uuid, snapshot: Uuid, quiesce: &Quiesce) -> Result<(), StorageError> {
        let _lock = self.locks.lock(&[id, snapshot]).await?;
        let changes = self.lvm.changes.lock().await;
        let mut report = self.lvm.report().await?;
        let (origin, _) = report.of(id).ok_or(StorageError::Unknown { id })?;
        let origin = origin.clone();
        if origin.is_making() {
            return Err(StorageError::NotReady { id });
        }
        let kind = VolumeKind::Snapshot { of: id };
        let copy = match report.of(snapshot).map(|(lv, kind)| (lv.clone(), kind)) {
            Some((_, other)) if other != kind => {
                let reason = "its id belongs to something else".to_owned();
                return Err(StorageError::Invalid { id: snapshot, reason });
            }
            Some((lv, _)) if !lv.is_making() => return Ok(()),
            Some((lv, _)) if lv.size_bytes == origin.size_bytes => lv,
            Some((lv, _)) => {
                // Cut short before the origin grew: nothing in it counts yet.
                self.deactivate(snapshot, &report, &lv).await?;
                self.lvm.run(LvmCommand::Remove { name: &lv.name }).await?;
                report = self.lvm.report().await?;
                self.new_snapshot(&mut report, &origin, id, snapshot).await?
            }
            None => self.new_snapshot(&mut report, &origin, id, snapshot).await?,
        };
        drop(changes);
        self.copy_at_one_point(id, &report, &origin, &copy, quiesce).await?;
        let add: Vec<String> = origin.fs().iter().map(|_| XFS_TAG.to_owned()).collect();
        self.retag(&copy.name, &add, &[MAKING_TAG.to_owned()]).await?;
        let copy = LvReport { active: true, ..copy };
        self.deactivate(snapshot, &report, &copy).await
    }

    async fn export(
        &self,
        id: Uuid,
        to: &Path,
        format: DiskFormat,
        quiesce: &Quiesce,
    ) -> Result<(), StorageError> {
        let _lock = self.locks.lock(&[id]).await?;
        let report = self.lvm.report().await?;
        let (lv, _) = report.of(id).ok_or(StorageError::Unknown { id })?;
        if lv.is_making() {
            return Err(StorageError::NotReady { id });
        }
        self.convert_at_one_point(id, &report, lv, quiesce, to, format).await
    }

    async fn set_filesystem(&self, id: Uuid, fs: Option<super::Filesystem>) -> Result<(), StorageError> {
        let _lock = self.locks.lock(&[id]).await?;
        let report = self.lvm.report().await?;
        let (lv, _) = report.of(id).ok_or(StorageError::Unknown { id })?;
        let tag = [XFS_TAG.to_owned()];
        match (lv.fs(), fs) {
            (before, now) if before == now => Ok(()),
            (_, Some(super::Filesystem::Xfs)) => self.retag(&lv.name, &tag, &[]).await,
            (_, None) => self.retag(&lv.name, &[], &tag).await,
        }
    }

    async fn set_bin(&self, id: Uuid, order: BinOrder) -> Result<(), StorageError> {
        let _lock = self.locks.lock(&[id]).await?;
        let report = self.lvm.report().await?;
        let lv = match (report.of(id), order) {
            (Some((lv, _)), _) => lv,
            (None, BinOrder::Purge) => return Ok(()),
            (None, _) => return Err(StorageError::Unknown { id }),
        };
        match order {
            BinOrder::Trash { .. } if lv.trashed_at().is_some() => Ok(()),
            BinOrder::Trash { at } => {
                self.detach_locked(id, &report, lv).await?;
                self.retag(&lv.name, &[recycle::trash_tag(at)], &[]).await
            }
            BinOrder::Restore => {
                let tags: Vec<String> =
                    lv.tags.iter().filter(|tag| tag.starts_with(recycle::TRASH_TAG)).cloned().collect();
                if tags.is_empty() { Ok(()) } else { self.retag(&lv.name, &[], &tags).await }
            }
            BinOrder::Purge => self.purge(id, &report, lv).await,
        }
    }
}
