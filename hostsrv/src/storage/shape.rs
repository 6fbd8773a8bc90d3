//! LVs come, are filled, grow and go. Every function is one step of an operation in `driver`, under its lock.

use std::path::Path;
use std::time::Instant;

use uuid::Uuid;

use super::activation::loop_device;
use super::driver::{LvmDriver, blocking, lv_name};
use super::lvm::LvmCommand;
use super::report::{GroupReport, LvReport, MAKING_TAG, OF_TAG, TAG, XFS_TAG};
use super::{
    Activation, Filesystem, Source, StorageError, VolumeKind, VolumeSpec, copy, filesystem, placement,
};
use crate::qemu_img::{self, Convert, DiskFormat};
use std::io::Read;

impl LvmDriver {
    /// Takes room for a new LV. The caller holds `changes` since before `report` was made.
    pub(super) async fn create_lv(
        &self,
        report: &mut GroupReport,
        name: &str,
        extents: u64,
        tags: Vec<String>,
        grows: bool,
    ) -> Result<LvReport, StorageError> {
        let range = match self.lvm.activation() {
            Activation::Dm => {
                self.check_free(report, extents)?;
                None
            }
            Activation::Loop => {
                self.check_free(report, extents)?;
                let range = placement::place(&report.extents(), &report.taken, extents, grows);
                Some(range.map_err(|no| StorageError::NoContiguousRoom {
                    group: self.lvm.group().to_owned(),
                    needed: extents * report.extent_bytes,
                    largest: no.largest * report.extent_bytes,
                    free: no.free * report.extent_bytes,
                })?)
            }
        };
        self.lvm.run(LvmCommand::Create { name, extents, tags: &tags, range: range.as_ref() }).await?;
        let lv = LvReport {
            name: name.to_owned(),
            size_bytes: extents * report.extent_bytes,
            tags,
            active: self.lvm.activation() == Activation::Dm,
            origin: None,
            ranges: range.into_iter().collect(),
        };
        report.lvs.push(lv.clone());
        Ok(lv)
    }

    pub(super) fn check_free(&self, report: &GroupReport, extents: u64) -> Result<(), StorageError> {
        let needed = extents.saturating_mul(report.extent_bytes);
        if needed <= report.free_bytes {
            return Ok(());
        }
        Err(StorageError::Full { group: self.lvm.group().to_owned(), needed, free: report.free_bytes })
    }

    /// Finishes an LV that carries the `making` tag: its content, then the tag.
    pub(super) async fn fill(
        &self,
        spec: &VolumeSpec,
        report: &GroupReport,
        lv: &LvReport,
    ) -> Result<(), StorageError> {
        let fs = match &spec.source {
            Some(Source::Copy { of, quiesce }) => {
                let (from, _) = report.of(*of).ok_or(StorageError::Unknown { id: *of })?;
                self.copy_at_one_point(*of, report, from, lv, quiesce).await?;
                from.fs()
            }
            Some(Source::Disk { file, format }) => {
                self.write_disk(spec.id, report, lv, file, *format).await?;
                None
            }
            Some(Source::Moved { file, format, blank }) => {
                self.write_disk(spec.id, report, lv, file, *format).await?;
                let ours = *blank || self.begins_as_xfs(report, lv).await?;
                ours.then_some(Filesystem::Xfs)
            }
            None => {
                if spec.fs.is_some() {
                    let active = self.activate(report, lv).await?;
                    filesystem::format(&active.path).await?;
                }
                spec.fs
            }
        };
        let add: Vec<String> = fs.iter().map(|_| XFS_TAG.to_owned()).collect();
        self.retag(&lv.name, &add, &[MAKING_TAG.to_owned()]).await
    }

    /// Whether the LV begins as an XFS does (xfs_format.h, `XFS_SB_MAGIC`).
    async fn begins_as_xfs(&self, report: &GroupReport, lv: &LvReport) -> Result<bool, StorageError> {
        let active = self.activate(report, lv).await?;
        let path = active.path.clone();
        let read = move || {
            let mut magic = [0; 4];
            std::fs::File::open(path)?.read_exact(&mut magic)?;
            Ok(magic == *b"XFSB")
        };
        super::driver::blocking("looking at the first bytes of", &lv.name, read).await
    }

    /// Writes a disk's bytes, from its first to its last, into an LV of at least its size.
    async fn write_disk(
        &self,
        id: Uuid,
        report: &GroupReport,
        lv: &LvReport,
        file: &Path,
        format: DiskFormat,
    ) -> Result<(), StorageError> {
        let of_disk = |source| StorageError::Disk { id, source };
        let needs = qemu_img::virtual_size(format, file).await.map_err(of_disk)?;
        if needs > lv.size_bytes {
            let reason = format!("the image's disk has {needs} bytes, more than its {}", lv.size_bytes);
            return Err(StorageError::Invalid { id, reason });
        }
        let active = self.activate(report, lv).await?;
        let convert = Convert {
            from: file,
            from_format: format,
            to: &active.path,
            to_format: DiskFormat::Raw,
            into_device: true,
            limit: self.config.copy_limit,
        };
        convert.run().await.map_err(of_disk)?;
        drop(active.file);
        Ok(())
    }

    /// Brings an existing LV to `extents`.
    pub(super) async fn grow_lv(&self, spec: &VolumeSpec, extents: u64) -> Result<GroupReport, StorageError> {
        let _changes = self.lvm.changes.lock().await;
        let report = self.lvm.report().await?;
        let (lv, _) = report.of(spec.id).ok_or(StorageError::Unknown { id: spec.id })?;
        let has = lv.size_bytes / report.extent_bytes;
        if has >= extents {
            return Ok(report);
        }
        self.check_free(&report, extents - has)?;
        let range = match self.lvm.activation() {
            Activation::Dm => None,
            Activation::Loop => {
                self.place(&report, lv)?;
                let current = lv.contiguous().ok_or(StorageError::Unknown { id: spec.id })?;
                let range = placement::extend(&report.extents(), &report.taken, &current, extents - has);
                Some(range.map_err(|no| StorageError::NoRoomBehind {
                    id: spec.id,
                    needed: (extents - has) * report.extent_bytes,
                    behind: no.largest * report.extent_bytes,
                    free: no.free * report.extent_bytes,
                })?)
            }
        };
        self.remove_leftover(spec.id, &report).await?;
        let extend = LvmCommand::Extend { name: &lv.name, more: extents - has, range: range.as_ref() };
        self.lvm.run(extend).await?;
        self.lvm.report().await
    }

    /// Makes an active device, and a mounted file system on it, as large as the LV.
    pub(super) async fn settle_size(
        &self,
        id: Uuid,
        report: &GroupReport,
        lv: &LvReport,
    ) -> Result<(), StorageError> {
        let is_active = match self.lvm.activation() {
            Activation::Dm => lv.active,
            Activation::Loop => {
                let place = self.place(report, lv)?;
                blocking("looking for the window of", &lv.name, move || {
                    Ok(loop_device::find(&loop_device::windows()?, &place).is_some())
                })
                .await?
            }
        };
        if !is_active {
            return Ok(());
        }
        let active = self.activate(report, lv).await?;
        if self.is_mounted(id).await? { self.grow_mounted(id, &active.path, lv).await } else { Ok(()) }
    }

    pub(super) async fn new_snapshot(
        &self,
        report: &mut GroupReport,
        origin: &LvReport,
        id: Uuid,
        snapshot: Uuid,
    ) -> Result<LvReport, StorageError> {
        let extents = origin.size_bytes / report.extent_bytes;
        let own = format!("amphi.volume={snapshot}");
        let tags = vec![TAG.to_owned(), own, format!("{OF_TAG}{id}"), MAKING_TAG.to_owned()];
        let name = lv_name(snapshot, VolumeKind::Snapshot { of: id });
        self.create_lv(report, &name, extents, tags, false).await
    }

    /// Wipes before it removes, so that free extents never carry anybody's bytes into the next volume.
    pub(super) async fn purge(
        &self,
        id: Uuid,
        report: &GroupReport,
        lv: &LvReport,
    ) -> Result<(), StorageError> {
        self.remove_leftover(id, report).await?;
        self.detach_locked(id, report, lv).await?;
        let inactive = LvReport { active: false, ..lv.clone() };
        let active = self.activate(report, &inactive).await?;
        let (path, size, deadline) =
            (active.path.clone(), lv.size_bytes, Instant::now() + self.config.copy_limit);
        blocking("wiping", &lv.name, move || copy::wipe(&path, size, copy::Wipe::Whole, deadline)).await?;
        drop(active);
        let active = LvReport { active: true, ..lv.clone() };
        self.deactivate(id, report, &active).await?;
        let _changes = self.lvm.changes.lock().await;
        self.lvm.run(LvmCommand::Remove { name: &lv.name }).await.map(drop)
    }
}
