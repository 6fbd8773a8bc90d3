//! Copies of a volume at one point in time.
//!
//! With device-mapper a temporary copy-on-write snapshot pins the instant (a mounted file system is frozen
//! by LVM, a guest paused for milliseconds) and is copied at leisure, then removed: an LV that still had such
//! a snapshot could not be extended online. With loop activation the writer is held for the whole copy.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::activation::dm;
use super::driver::{LvmDriver, blocking};
use super::filesystem::Frozen;
use super::lvm::LvmCommand;
use super::report::{GroupReport, LvReport, TAG};
use super::{Activation, Quiesce, StorageError, copy};
use crate::qemu_img::{Convert, DiskFormat};

/// A paused guest may need longer than a metadata command, yet not for ever.
const PAUSE_LIMIT: Duration = Duration::from_secs(30);

/// Resumes the guest when it goes, unless that was done in order.
struct Paused(Option<Quiesce>);

impl Paused {
    async fn pause(id: Uuid, quiesce: &Quiesce) -> Result<Paused, StorageError> {
        let Quiesce::Guest(guest) = quiesce else { return Ok(Paused(None)) };
        // Armed first: a pause that is cut short may have paused all the same.
        let paused = Paused(Some(quiesce.clone()));
        match tokio::time::timeout(PAUSE_LIMIT, guest.pause()).await {
            Ok(Ok(())) => Ok(paused),
            Ok(Err(reason)) => {
                Err(StorageError::Invalid { id, reason: format!("its guest cannot be paused: {reason}") })
            }
            Err(_) => Err(StorageError::Timeout {
                operation: "pausing the guest",
                object: id.to_string(),
                seconds: PAUSE_LIMIT.as_secs(),
            }),
        }
    }

    async fn resume(mut self) {
        if let Some(quiesce) = self.0.take() {
            resume(quiesce).await;
        }
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        if let (Some(quiesce), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(resume(quiesce));
        }
    }
}

async fn resume(quiesce: Quiesce) {
    let Quiesce::Guest(guest) = quiesce else { return };
    match tokio::time::timeout(PAUSE_LIMIT, guest.resume()).await {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => tracing::error!(reason, "a paused guest could not be resumed"),
        Err(_) => tracing::error!("resuming a paused guest took too long"),
    }
}

fn leftover(id: Uuid) -> String {
    format!("tmp-{id}")
}

/// The bytes of one point in time, and how long their reader may take.
struct Still {
    device: PathBuf,
    size: u64,
    limit: Duration,
}

impl LvmDriver {
    /// Fills `to` with the bytes of `from` (volume or snapshot `id`). The caller holds the locks of both.
    pub(super) async fn copy_at_one_point(
        &self,
        id: Uuid,
        report: &GroupReport,
        from: &LvReport,
        to: &LvReport,
        quiesce: &Quiesce,
    ) -> Result<(), StorageError> {
        let target = self.activate(report, to).await?;
        let path = target.path.clone();
        let copied = self
            .at_one_point(id, report, from, quiesce, |still| async move {
                blocking("copying", &from.name, move || {
                    copy::copy(&still.device, &path, still.size, Instant::now() + still.limit)
                })
                .await
                .map(drop)
            })
            .await;
        drop(target.file);
        copied
    }

    /// Writes the bytes of `from` into a disk file. The caller holds the lock.
    pub(super) async fn convert_at_one_point(
        &self,
        id: Uuid,
        report: &GroupReport,
        from: &LvReport,
        quiesce: &Quiesce,
        to: &Path,
        format: DiskFormat,
    ) -> Result<(), StorageError> {
        self.at_one_point(id, report, from, quiesce, |still| async move {
            let convert = Convert {
                from: &still.device,
                from_format: DiskFormat::Raw,
                to,
                to_format: format,
                into_device: false,
                limit: still.limit,
            };
            convert.run().await.map_err(|source| StorageError::Disk { id, source })
        })
        .await
    }

    async fn at_one_point<W: Future<Output = Result<(), StorageError>> + Send>(
        &self,
        id: Uuid,
        report: &GroupReport,
        from: &LvReport,
        quiesce: &Quiesce,
        read: impl FnOnce(Still) -> W + Send,
    ) -> Result<(), StorageError> {
        match self.lvm.activation() {
            Activation::Dm if from.active => self.read_snapshot(id, from, quiesce, read).await,
            _ => self.read_held(id, report, from, quiesce, read).await,
        }
    }

    /// Removes a temporary snapshot that a crash left: nobody else works on a volume whose lock we hold.
    /// It would keep its origin from growing and from being deactivated.
    pub(super) async fn remove_leftover(&self, id: Uuid, report: &GroupReport) -> Result<(), StorageError> {
        let name = leftover(id);
        let is_ours = report.lv(&name).is_some_and(|lv| lv.has(TAG));
        if is_ours { self.lvm.run(LvmCommand::Remove { name: &name }).await.map(drop) } else { Ok(()) }
    }

    /// The writer is held for as long as the reader takes.
    async fn read_held<W: Future<Output = Result<(), StorageError>> + Send>(
        &self,
        id: Uuid,
        report: &GroupReport,
        from: &LvReport,
        quiesce: &Quiesce,
        read: impl FnOnce(Still) -> W + Send,
    ) -> Result<(), StorageError> {
        let source = self.activate(report, from).await?;
        let mounted = self.is_mounted(id).await?;
        let paused = Paused::pause(id, quiesce).await?;
        let is_held = source.found && (mounted || matches!(quiesce, Quiesce::Guest(_)));
        let limit = if is_held { self.config.freeze_limit } else { self.config.copy_limit };
        let point = mounted.then(|| self.mount_point(id));
        let frozen =
            blocking("freezing", &from.name, move || point.as_deref().map(Frozen::freeze).transpose()).await;
        let done = match frozen {
            Ok(frozen) => {
                let still = Still { device: source.path.clone(), size: from.size_bytes, limit };
                let done = read(still).await;
                drop(frozen);
                done
            }
            Err(error) => Err(error),
        };
        paused.resume().await;
        if self.lvm.activation() == Activation::Dm && !source.found {
            self.lvm.run(LvmCommand::Deactivate { name: &from.name }).await?;
        }
        done
    }

    async fn read_snapshot<W: Future<Output = Result<(), StorageError>> + Send>(
        &self,
        id: Uuid,
        from: &LvReport,
        quiesce: &Quiesce,
        read: impl FnOnce(Still) -> W + Send,
    ) -> Result<(), StorageError> {
        let name = leftover(id);
        {
            let _changes = self.lvm.changes.lock().await;
            let now = self.lvm.report().await?;
            self.remove_leftover(id, &now).await?;
            let now = self.lvm.report().await?;
            let free = now.free_bytes / now.extent_bytes;
            // Room for every block of the origin to change, and the exception table beside it.
            let whole = from.size_bytes / now.extent_bytes;
            let extents = (whole + whole / 64 + 1).min(free);
            if extents == 0 {
                let group = self.lvm.group().to_owned();
                return Err(StorageError::Full { group, needed: now.extent_bytes, free: now.free_bytes });
            }
            let paused = Paused::pause(id, quiesce).await?;
            let taken = self.lvm.run(LvmCommand::Snapshot { name: &name, of: &from.name, extents }).await;
            paused.resume().await;
            taken?;
        }
        let device = dm::path(self.lvm.group(), &name);
        let done = read(Still { device, size: from.size_bytes, limit: self.config.copy_limit }).await;
        let _changes = self.lvm.changes.lock().await;
        let removed = self.lvm.run(LvmCommand::Remove { name: &name }).await;
        done?;
        removed.map(drop)
    }
}
