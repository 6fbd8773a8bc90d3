//! Volumes of this host: an LV each, with a hard size, a file system made once, and a recycle bin.
//!
//! Owns every LVM object tagged `amphi` in one volume group, their activation, and the mount points
//! `state_dir/volumes/<id>`. It is the only part that knows LVM; others see the plain values below.
//!
//! A volume lives so: `making` (tag set at creation) → ready → trashed (tag with a time) → gone.
//! Only an LV that still carries the `making` tag is ever formatted or copied over, so a crash
//! anywhere is healed by the next `ensure` and bytes of a ready volume are never overwritten.
//!
//! Refuses: to shrink, to format what is ready, to detach what somebody holds (never lazily), to
//! attach what is in the bin, and to destroy anything but by an explicit `BinOrder::Purge`.

pub mod activation;
mod attach;
pub mod binds;
pub mod command;
pub mod copy;
pub mod driver;
pub mod filesystem;
pub mod groups;
pub mod holders;
pub mod lock;
pub mod lvm;
mod metadata;
pub mod placement;
pub mod plugin;
pub mod recycle;
pub mod report;
mod shape;
pub mod shared;
mod snapshot;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::qemu_img::{DiskFormat, QemuImgError};
use amphi_api::VolumeGroupId;
use amphi_api::host::SharedGroup;
use async_trait::async_trait;
use serde::Serialize;
use uuid::Uuid;

pub use attach::{is_marked, mark_of, write_mark};
pub use driver::{LvmConfig, LvmDriver};
pub use groups::Groups;
pub use lock::VolumeLock;

/// How an LV becomes a block device on this host; detected by trying, never configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// The kernel's device-mapper.
    Dm,
    /// A loop device as a window over a contiguous LV (kernels without device-mapper).
    Loop,
}

/// What the host's storage is, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StorageFacts {
    pub volume_group: String,
    pub size_bytes: u64,
    pub free_bytes: u64,
    /// Sizes are rounded up to a multiple of this.
    pub extent_bytes: u64,
    pub activation: Activation,
    pub lvm_version: String,
    /// Groups that other hosts see too, as far as they answer.
    pub shared: Vec<SharedGroup>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Filesystem {
    Xfs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeKind {
    Volume,
    /// A full, independent copy of volume `of` at one point in time.
    Snapshot {
        of: Uuid,
    },
}

/// One LV of ours as the engine shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ObservedVolume {
    pub id: Uuid,
    pub kind: VolumeKind,
    pub size_bytes: u64,
    /// `None`: raw, or not formatted yet (see `complete`).
    pub fs: Option<Filesystem>,
    /// False while creation, formatting or copying has not finished (or was cut short).
    pub complete: bool,
    /// Unix seconds at which it went into the recycle bin.
    pub trashed_at: Option<i64>,
    /// The block device while it is active.
    pub device: Option<PathBuf>,
    /// The mount point while it is mounted by this host.
    pub mounted: Option<PathBuf>,
    /// All LVM tags, sorted.
    pub tags: Vec<String>,
    /// The group that it is in, of those that other hosts see too.
    pub shared: Option<VolumeGroupId>,
}

/// A volume as it should be.
#[derive(Debug, Clone)]
pub struct VolumeSpec {
    pub id: Uuid,
    /// At least one extent; rounded up to whole extents.
    pub size_bytes: u64,
    /// Of a volume that begins blank. With a source, what that brings counts.
    pub fs: Option<Filesystem>,
    /// What the first bytes come from; read at creation only.
    pub source: Option<Source>,
    /// The shared group that it belongs in; none: the host's own.
    pub group: Option<VolumeGroupId>,
}

/// What a volume's bytes begin with.
#[derive(Debug, Clone)]
pub enum Source {
    /// A snapshot or volume of this host. `quiesce` says how writers of a volume in use are held meanwhile.
    Copy { of: Uuid, quiesce: Quiesce },
    /// A disk in a file, written raw. Its virtual size must fit; no file system of ours is made or looked for.
    Disk { file: PathBuf, format: DiskFormat },
    /// A volume's own bytes, read on another host. `blank`: a file system of ours is in them; else it is looked for.
    Moved { file: PathBuf, format: DiskFormat, blank: bool },
}

impl Source {
    /// A copy of what no guest writes to.
    pub fn copy(of: Uuid) -> Self {
        Source::Copy { of, quiesce: Quiesce::Filesystem }
    }

    pub fn copied(&self) -> Option<Uuid> {
        match self {
            Source::Copy { of, .. } => Some(*of),
            Source::Disk { .. } | Source::Moved { .. } => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// The block device only (a VM's disk). Refused while the volume is mounted here.
    Device,
    /// Also mounted at `state_dir/volumes/<id>` (a set's volume).
    Mounted,
}

/// Where an attached volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    pub device: PathBuf,
    pub mount: Option<PathBuf>,
}

/// Orders about the recycle bin; each comes from the controller, none is given on the host's own account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BinOrder {
    /// Detach and mark as trash since `at` (unix seconds). A second order keeps the first time.
    Trash {
        at: i64,
    },
    Restore,
    /// Detach, wipe and remove for good; a volume that is already gone is no error.
    Purge,
}

/// How writes are held while a point in time is taken.
#[derive(Clone)]
pub enum Quiesce {
    /// A file system mounted here is frozen by the driver; an unmounted volume needs nothing.
    Filesystem,
    /// A guest writes through the raw device: the driver pauses it for as long as needed and
    /// resumes it always, also after an error or when the caller goes away.
    Guest(Arc<dyn Pause>),
}

impl fmt::Debug for Quiesce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Quiesce::Filesystem => "Filesystem",
            Quiesce::Guest(_) => "Guest",
        })
    }
}

/// Pauses and resumes whatever writes to a raw device.
#[async_trait]
pub trait Pause: Send + Sync {
    async fn pause(&self) -> Result<(), String>;
    async fn resume(&self) -> Result<(), String>;
}

/// The volumes of one host. Every call is idempotent and bounded in time.
#[async_trait]
pub trait VolumeDriver: Send + Sync {
    async fn probe(&self) -> Result<StorageFacts, StorageError>;

    /// Every volume and snapshot of ours, sorted by id, bin included.
    async fn observe(&self) -> Result<Vec<ObservedVolume>, StorageError>;

    /// Creates, fills and formats what is missing; grows LV, device and mounted file system online.
    async fn ensure(&self, spec: &VolumeSpec) -> Result<(), StorageError>;

    async fn attach(&self, id: Uuid, how: Attach) -> Result<Attached, StorageError>;

    /// Tells whoever else drives these volumes (Docker's plug-in does, in a process of its own) that the volume is on its way,
    /// until the answer is dropped: it is being made and attached by the caller.
    async fn announce(&self, _: Uuid) -> Result<Option<VolumeLock>, StorageError> {
        Ok(None)
    }

    /// Whether the volume is on its way, as [`Self::announce`] says; nobody waits.
    fn is_coming(&self, _: Uuid) -> Result<bool, StorageError> {
        Ok(false)
    }

    /// Waits until nobody says any more that the volume is on its way: it has come, or failed to.
    async fn arrival(&self, _: Uuid) -> Result<(), StorageError> {
        Ok(())
    }

    /// Where the volume is mounted by this host, as the kernel alone tells, within microseconds. Nothing is ever
    /// mounted that is not ready or is in the bin.
    async fn mounted(&self, id: Uuid) -> Result<Option<PathBuf>, StorageError>;

    /// Unmounts and deactivates; an unknown volume counts as detached.
    async fn detach(&self, id: Uuid) -> Result<(), StorageError>;

    /// Copies volume `id` at one point in time into the snapshot `snapshot`.
    async fn snapshot(&self, id: Uuid, snapshot: Uuid, quiesce: &Quiesce) -> Result<(), StorageError>;

    /// Writes the bytes that a volume or snapshot has at one point in time into a new disk file. What was begun is
    /// left for the caller to remove.
    async fn export(
        &self,
        id: Uuid,
        to: &Path,
        format: DiskFormat,
        quiesce: &Quiesce,
    ) -> Result<(), StorageError>;

    /// Says which file system is in a volume's bytes, after they came from elsewhere. `attach` goes by it.
    async fn set_filesystem(&self, id: Uuid, fs: Option<Filesystem>) -> Result<(), StorageError>;

    /// Works on volumes and snapshots alike.
    async fn set_bin(&self, id: Uuid, order: BinOrder) -> Result<(), StorageError>;
}

#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("lvm {operation} of {object}: {detail}")]
    Lvm { operation: &'static str, object: String, detail: String },
    #[error("{program} on {object}: {detail}")]
    Program { program: &'static str, object: String, detail: String },
    #[error("{operation} {object}: {source}")]
    Io { operation: &'static str, object: String, source: std::io::Error },
    #[error("volume {id}: {source}")]
    Disk { id: Uuid, source: QemuImgError },
    #[error("{operation} of {object} took longer than {seconds} s")]
    Timeout { operation: &'static str, object: String, seconds: u64 },
    #[error("volume group {group} is full: {needed} bytes needed, {free} free")]
    Full { group: String, needed: u64, free: u64 },
    #[error(
        "volume group {group} has no contiguous room: {needed} bytes needed in one piece, largest piece {largest}, {free} free in all"
    )]
    NoContiguousRoom { group: String, needed: u64, largest: u64, free: u64 },
    #[error(
        "volume {id} cannot grow where it lies: {needed} more bytes needed behind it, {behind} free there, {free} free in all"
    )]
    NoRoomBehind { id: Uuid, needed: u64, behind: u64, free: u64 },
    #[error("volume {id} has {has} bytes and cannot shrink to {wanted}")]
    Shrink { id: Uuid, has: u64, wanted: u64 },
    #[error("volume {id} has {size} bytes; a file system needs at least {least}")]
    TooSmall { id: Uuid, size: u64, least: u64 },
    #[error("volume group {group} is shared, and this host may not change its metadata: {why}")]
    NotKeeper { group: String, why: String },
    #[error("volume {id} is in a shared group, and this host may not have it active: {why}")]
    NotHolder { id: Uuid, why: String },
    #[error("volume {id} is unknown on this host")]
    Unknown { id: Uuid },
    #[error("volume {id} is not ready: its creation has not finished")]
    NotReady { id: Uuid },
    #[error("volume {id} is in the recycle bin since {since} (unix seconds)")]
    Trashed { id: Uuid, since: i64 },
    #[error("volume {id} has no file system to mount")]
    NoFilesystem { id: Uuid },
    #[error("volume {id} is busy: {holders}")]
    Busy { id: Uuid, holders: String },
    #[error("volume {id}: {reason}")]
    Invalid { id: Uuid, reason: String },
}

impl StorageError {
    /// For `map_err` on I/O: names what was done to what.
    pub(crate) fn io(
        operation: &'static str,
        object: impl std::fmt::Display,
    ) -> impl FnOnce(std::io::Error) -> StorageError {
        let object = object.to_string();
        move |source| StorageError::Io { operation, object, source }
    }
}
