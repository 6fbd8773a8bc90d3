//! Devices and mounts of volumes: activation both ways, the mount with its interlock, and what is seen of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use super::activation::dm;
use super::activation::loop_device::{self, Place, Window};
use super::driver::{Active, LvmDriver, blocking};
use super::filesystem::{self, Mount};
use super::lvm::LvmCommand;
use super::report::{GroupReport, LvReport};
use super::shared::Part;
use super::{Activation, ObservedVolume, StorageError, VolumeKind, VolumeSpec, holders};

/// How long a device may take to become free after its last user has gone.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where a file of a volume's name, set by whoever follows the writes to its device, stands for as long as it is that device.
fn followed_below(run_dir: &Path) -> PathBuf {
    run_dir.join("followed")
}

/// The mark of a followed volume; a file by nobody else's name.
pub fn mark_of(run_dir: &Path, id: Uuid) -> PathBuf {
    followed_below(run_dir).join(super::driver::lv_name(id, VolumeKind::Volume))
}

impl LvmDriver {
    pub(super) fn place(&self, report: &GroupReport, lv: &LvReport) -> Result<Place, StorageError> {
        let range = lv.contiguous();
        let found = range.as_ref().and_then(|range| Some((range, report.offset(range)?)));
        let (range, offset) = found.ok_or_else(|| StorageError::Lvm {
            operation: "loop activation",
            object: format!("{}/{}", self.lvm.group(), lv.name),
            detail: "the LV is not one contiguous piece".to_owned(),
        })?;
        let direct = self.lvm.part().is_some();
        Ok(Place { pv: PathBuf::from(&range.pv), offset, size: lv.size_bytes, direct })
    }

    pub(super) async fn activate(&self, report: &GroupReport, lv: &LvReport) -> Result<Active, StorageError> {
        match self.lvm.activation() {
            Activation::Dm => {
                if !lv.active {
                    self.lvm.run(LvmCommand::Activate { name: &lv.name }).await?;
                }
                self.followed_no_more(lv, lv.active).await?;
                Ok(Active { path: dm::path(self.lvm.group(), &lv.name), file: None, found: lv.active })
            }
            Activation::Loop => {
                let place = self.place(report, lv)?;
                let open =
                    blocking("opening the window of", &lv.name, move || loop_device::open(&place)).await?;
                self.followed_no_more(lv, open.found).await?;
                Ok(Active { path: open.device, file: Some(open.file), found: open.found })
            }
        }
    }

    /// Whoever follows the writes to a volume follows one device: what is opened anew is another one. Said before anybody writes
    /// to it.
    async fn followed_no_more(&self, lv: &LvReport, found: bool) -> Result<(), StorageError> {
        let mark = followed_below(&self.config.run_dir).join(&lv.name);
        let gone = move || match std::fs::remove_file(&mark) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        if found { Ok(()) } else { blocking("unmarking", &lv.name, gone).await }
    }

    pub(super) async fn deactivate(
        &self,
        id: Uuid,
        report: &GroupReport,
        lv: &LvReport,
    ) -> Result<(), StorageError> {
        let holder = match self.lvm.activation() {
            Activation::Dm if !lv.active => None,
            Activation::Dm => match self.lvm.run(LvmCommand::Deactivate { name: &lv.name }).await {
                Ok(_) => None,
                Err(StorageError::Lvm { detail, .. })
                    if detail.contains("in use") || detail.contains("busy") =>
                {
                    Some(dm::path(self.lvm.group(), &lv.name))
                }
                Err(error) => return Err(error),
            },
            Activation::Loop => {
                let place = self.place(report, lv)?;
                self.held().remove(&id);
                // If somebody else still has it, the next look keeps it open again.
                blocking("closing the window of", &lv.name, move || loop_device::close(&place, PATIENCE))
                    .await?
            }
        };
        let Some(device) = holder else { return Ok(()) };
        Err(self.busy(id, &device).await)
    }

    pub(super) async fn busy(&self, id: Uuid, device: &Path) -> StorageError {
        let device = device.to_owned();
        let found =
            blocking("looking for holders of", &id.to_string(), move || Ok(holders::holders(&device))).await;
        StorageError::Busy { id, holders: holders::describe(&found.unwrap_or_default()) }
    }

    pub(super) async fn detach_locked(
        &self,
        id: Uuid,
        report: &GroupReport,
        lv: &LvReport,
    ) -> Result<(), StorageError> {
        let point = self.mount_point(id);
        let unmounted = blocking("unmounting", &id.to_string(), move || filesystem::unmount(&point)).await;
        match unmounted {
            Err(StorageError::Io { source, .. }) if source.kind() == std::io::ErrorKind::ResourceBusy => {
                let device = self.device_of_mounted(report, lv).await?;
                return Err(self.busy(id, &device).await);
            }
            other => other?,
        }
        self.deactivate(id, report, lv).await
    }

    pub(super) async fn device_of_mounted(
        &self,
        report: &GroupReport,
        lv: &LvReport,
    ) -> Result<PathBuf, StorageError> {
        Ok(self.activate(report, lv).await?.path)
    }

    /// Makes a mounted file system as large as its LV.
    pub(super) async fn grow_mounted(
        &self,
        id: Uuid,
        device: &Path,
        lv: &LvReport,
    ) -> Result<(), StorageError> {
        let path = device.to_owned();
        let size =
            blocking("reading the superblock of", &lv.name, move || filesystem::size_on(&path)).await?;
        // A last piece that is too small for an allocation group of its own stays unused.
        match size {
            Some(size) if size + filesystem::SMALLEST_GROWTH <= lv.size_bytes => {
                filesystem::grow(&self.mount_point(id)).await
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn mount(&self, id: Uuid, lv: &LvReport, active: &Active) -> Result<(), StorageError> {
        if active.found {
            // Whoever has the raw device open could write under the file system.
            let device = active.path.clone();
            let found =
                blocking("looking for holders of", &lv.name, move || Ok(holders::holders(&device))).await?;
            if !found.is_empty() {
                return Err(StorageError::Busy { id, holders: holders::describe(&found) });
            }
        }
        let (device, point) = (active.path.clone(), self.mount_point(id));
        blocking("mounting", &lv.name, move || match filesystem::size_on(&device)? {
            Some(_) => filesystem::mount_xfs(&device, &point).map(Some).map_err(|error| {
                let hint = "if it stays so, the file system needs xfs_repair, which a person must decide on";
                std::io::Error::new(error.kind(), format!("{error}; {hint}"))
            }),
            None => Ok(None),
        })
        .await?
        .ok_or(StorageError::NoFilesystem { id })?;
        self.grow_mounted(id, &active.path, lv).await
    }

    pub(super) fn observed(
        &self,
        id: Uuid,
        kind: VolumeKind,
        report: &GroupReport,
        lv: &LvReport,
        windows: &[Window],
        mounts: &[Mount],
    ) -> ObservedVolume {
        let point = self.mount_point(id);
        let device = match self.lvm.activation() {
            Activation::Dm => lv.active.then(|| dm::path(self.lvm.group(), &lv.name)),
            Activation::Loop => self
                .place(report, lv)
                .ok()
                .and_then(|place| loop_device::find(windows, &place).map(|window| window.device.clone())),
        };
        ObservedVolume {
            id,
            kind,
            size_bytes: lv.size_bytes,
            fs: lv.fs(),
            complete: !lv.is_making(),
            trashed_at: lv.trashed_at(),
            device,
            mounted: mounts.iter().any(|mount| mount.point == point).then_some(point),
            tags: lv.tags.clone(),
            shared: self.lvm.part().and_then(Part::id),
        }
    }

    /// Of a volume in a shared group whose metadata another host keeps: as large as it has become there.
    pub(super) async fn follow(&self, spec: &VolumeSpec) -> Result<(), StorageError> {
        let id = spec.id;
        let _lock = self.locks.lock(&[id]).await?;
        let report = self.lvm.report().await?;
        let (lv, _) = report.of(id).ok_or(StorageError::NotReady { id })?;
        if lv.is_making() || lv.size_bytes < spec.size_bytes {
            return Err(StorageError::NotReady { id });
        }
        if self.lvm.activation() == Activation::Dm && lv.active {
            self.lvm.run(LvmCommand::Refresh { name: &lv.name }).await?;
        }
        self.settle_size(id, &report, lv).await
    }

    /// Whether a fence has cut this host off from the file system that is mounted here.
    pub(super) async fn is_cut_off(&self, id: Uuid) -> Result<bool, StorageError> {
        let point = self.mount_point(id);
        blocking("looking at", &id.to_string(), move || {
            Ok(std::fs::metadata(point).is_err_and(|error| error.raw_os_error() == Some(nix::libc::EIO)))
        })
        .await
    }

    /// After a restart of the agent a guest alone keeps its window; take part in that again.
    pub(super) async fn keep_device(
        &self,
        seen: &ObservedVolume,
        report: &GroupReport,
        lv: &LvReport,
    ) -> Result<(), StorageError> {
        let raw =
            self.lvm.activation() == Activation::Loop && seen.device.is_some() && seen.mounted.is_none();
        if !raw
            || !self.config.keeps_devices
            || seen.trashed_at.is_some()
            || self.held().contains_key(&seen.id)
        {
            return Ok(());
        }
        // Somebody who works on it decides about it; the next look will find it if it stays.
        let Some(_lock) = self.locks.try_lock(seen.id)? else { return Ok(()) };
        let place = self.place(report, lv)?;
        let open =
            blocking("keeping the window of", &lv.name, move || loop_device::open_existing(&place)).await?;
        if let Some(open) = open {
            self.held().insert(seen.id, open.file);
        }
        Ok(())
    }
}
