//! Devices and mounts of volumes: activation both ways, the mount with its interlock, and what is seen of them.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
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
/// It holds the device's number; nothing yet while the device is looked up.
fn followed_below(run_dir: &Path) -> PathBuf {
    run_dir.join("followed")
}

/// The mark of a followed volume; a file by nobody else's name.
pub fn mark_of(run_dir: &Path, id: Uuid) -> PathBuf {
    followed_below(run_dir).join(super::driver::lv_name(id, VolumeKind::Volume))
}

/// Writes the followed device's number into its mark. Fails if the mark is gone: the volume became another device since.
pub fn write_mark(mark: &Path, number: u64) -> io::Result<()> {
    let mut mark = std::fs::OpenOptions::new().write(true).truncate(true).open(mark)?;
    mark.write_all(number.to_string().as_bytes())
}

/// Whether the mark stands and is of the device of this number.
pub fn is_marked(mark: &Path, number: u64) -> bool {
    std::fs::read_to_string(mark).is_ok_and(|text| text == number.to_string())
}

/// Takes the mark away unless it is of just this device, which must have been there before.
fn check_mark(mark: &Path, device: &Path, found: bool) -> io::Result<()> {
    if found && std::fs::metadata(device).is_ok_and(|device| is_marked(mark, device.rdev())) {
        return Ok(());
    }
    match std::fs::remove_file(mark) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
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
                let path = dm::path(self.lvm.group(), &lv.name);
                self.compare_mark(lv, path.clone(), lv.active).await?;
                Ok(Active { path, file: None, found: lv.active })
            }
            Activation::Loop => {
                let place = self.place(report, lv)?;
                let open =
                    blocking("opening the window of", &lv.name, move || loop_device::open(&place)).await?;
                self.compare_mark(lv, open.device.clone(), open.found).await?;
                Ok(Active { path: open.device, file: Some(open.file), found: open.found })
            }
        }
    }

    /// Whoever follows the writes to a volume follows one device: what is opened anew is another one, and so may be what
    /// somebody else has opened since. Said before anybody here writes to it.
    async fn compare_mark(&self, lv: &LvReport, device: PathBuf, found: bool) -> Result<(), StorageError> {
        let mark = followed_below(&self.config.run_dir).join(&lv.name);
        blocking("unmarking", &lv.name, move || check_mark(&mark, &device, found)).await
    }

    /// Before a device is closed. The mark stays where it is of just this device: a move's last pass detaches the volume first
    /// and then asks what was written until then, which the trace of this device knows. Nothing is written between the two, and
    /// the next one to open the volume compares again. Of another device, one that somebody else has opened, nobody would ever
    /// hear again: the mark goes with it.
    async fn compare_mark_at_end(&self, report: &GroupReport, lv: &LvReport) -> Result<(), StorageError> {
        let mark = followed_below(&self.config.run_dir).join(&lv.name);
        let path = dm::path(self.lvm.group(), &lv.name);
        let place = match self.lvm.activation() {
            Activation::Dm if !lv.active => return Ok(()),
            Activation::Dm => None,
            Activation::Loop => Some(self.place(report, lv)?),
        };
        let compare = move || {
            if !mark.exists() {
                return Ok(());
            }
            let Some(place) = place else { return check_mark(&mark, &path, true) };
            let windows = loop_device::windows()?;
            match loop_device::find(&windows, &place) {
                Some(window) => check_mark(&mark, &window.device, true),
                None => Ok(()),
            }
        };
        blocking("unmarking", &lv.name, compare).await
    }

    pub(super) async fn deactivate(
        &self,
        id: Uuid,
        report: &GroupReport,
        lv: &LvReport,
    ) -> Result<(), StorageError> {
        self.compare_mark_at_end(report, lv).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_of_one_device() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("vol-x");
        // Any device of a number of its own will do.
        let (own, other) = (Path::new("/dev/null"), Path::new("/dev/zero"));
        let number = std::fs::metadata(own).unwrap().rdev();
        write_mark(&mark, number).unwrap_err();
        let set = || {
            std::fs::write(&mark, b"").unwrap();
            write_mark(&mark, number).unwrap();
        };
        let nowhere = dir.path().join("none");
        let table = [
            (own, true, true),
            (own, false, false),
            (other, true, false),
            (other, false, false),
            (nowhere.as_path(), true, false),
        ];
        for (device, found, stays) in table {
            set();
            check_mark(&mark, device, found).unwrap();
            assert_eq!(is_marked(&mark, number), stays, "{} {found}", device.display());
            assert_eq!(mark.exists(), stays);
        }
        // While it is not known yet which device is followed, whoever opens one has the follower look again.
        std::fs::write(&mark, b"").unwrap();
        check_mark(&mark, own, true).unwrap();
        write_mark(&mark, number).unwrap_err();
        check_mark(&mark, own, true).unwrap();
    }
}
