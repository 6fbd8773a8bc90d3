//! XFS on a volume: made once, mounted, grown, frozen. Knows no LVM, and never repairs: what cannot be mounted is for
//! a person with xfs_repair.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::StorageError;
use super::activation::ioctl;
use super::command::{Run, complaint};

const LIMIT: Duration = Duration::from_secs(300);

/// Smallest file system that mkfs.xfs makes, in bytes: mkfs.xfs(8) of xfsprogs 5.19 and later, "The data section must be
/// at least 300MB in size" (MB as 2^20). Its way around that is meant for XFS's own tests alone and is not taken: smaller
/// volumes are refused when they are ordered with a file system, and can be had without one. At the faces volumes are
/// counted in whole GiB, so nobody meets this there.
pub const SMALLEST: u64 = 300 << 20;

/// A file system grows by at least this, in bytes: 64 blocks of 4 KiB, since a new last allocation group may not be
/// smaller (the kernel's `XFS_MIN_AG_BLOCKS`, fs/xfs/libxfs/xfs_fs.h, and `xfs_growfs_data_private`). Below it xfs_growfs
/// succeeds and changes nothing. LVM's extents are larger, so an LV that has grown always counts.
pub const SMALLEST_GROWTH: u64 = 64 * 4096;

/// Formats. Nothing is discarded, so this takes the same few milliseconds for every size.
pub async fn format(device: &Path) -> Result<(), StorageError> {
    xfs_tool("mkfs.xfs", &["-q", "-f", "-K"], device).await
}

/// Grows a mounted file system to its device. XFS, unlike ext4, asks for no CAP_SYS_RESOURCE, which a root of
/// limited capabilities (a container's) lacks; and it grows mounted only.
pub async fn grow(point: &Path) -> Result<(), StorageError> {
    xfs_tool("xfs_growfs", &["-d"], point).await
}

async fn xfs_tool(program: &'static str, args: &[&str], on: &Path) -> Result<(), StorageError> {
    let object = on.display().to_string();
    let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    args.push(object.clone());
    let run = Run { operation: program, object: &object, program, args, env: &[], limit: LIMIT };
    let output = run.output().await?;
    if output.status.success() {
        return Ok(());
    }
    let detail = format!("{} {}", complaint(&output), String::from_utf8_lossy(&output.stdout).trim());
    Err(StorageError::Program { program, object, detail })
}

/// Size of the file system on a device, in bytes; `None` when there is no XFS.
pub fn size_on(device: &Path) -> std::io::Result<Option<u64>> {
    let mut bytes = [0; 16];
    File::open(device)?.read_exact_at(&mut bytes, 0)?;
    Ok(parse_superblock(&bytes))
}

/// Magic, block size and number of data blocks, big-endian: the kernel's fs/xfs/libxfs/xfs_format.h, `xfs_dsb`.
fn parse_superblock(bytes: &[u8; 16]) -> Option<u64> {
    let (magic, rest) = bytes.split_at(4);
    let (block, blocks) = rest.split_at(4);
    if magic != b"XFSB" {
        return None;
    }
    let block = u32::from_be_bytes(block.try_into().ok()?);
    u64::from_be_bytes(blocks.try_into().ok()?).checked_mul(u64::from(block))
}

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Major and minor number of the file system's device.
    pub device: String,
    pub point: PathBuf,
    pub shared: bool,
    /// This mount alone; its file system may be writable elsewhere.
    pub read_only: bool,
}

/// The mounts of this process's namespace, later ones on top.
pub fn mounts() -> std::io::Result<Vec<Mount>> {
    Ok(parse_mounts(&std::fs::read_to_string("/proc/self/mountinfo")?))
}

fn parse_mounts(text: &str) -> Vec<Mount> {
    let parse = |line: &str| {
        let mut fields = line.split(' ').skip(2);
        let device = fields.next()?.to_owned();
        let point = PathBuf::from(unescape(fields.nth(1)?));
        let read_only = fields.next()?.split(',').any(|option| option == "ro");
        let shared = fields.take_while(|field| *field != "-").any(|field| field.starts_with("shared:"));
        Some(Mount { device, point, shared, read_only })
    };
    text.lines().filter_map(parse).collect()
}

/// mountinfo writes blanks and their like as three octal digits behind a backslash.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub fn is_mounted(point: &Path) -> std::io::Result<bool> {
    Ok(mounts()?.iter().any(|mount| mount.point == point))
}

/// Mounts XFS, replaying its log. `nouuid`, since a snapshot carries its volume's UUID and both may be mounted.
pub fn mount_xfs(device: &Path, point: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(point)?;
    mount(Some(device), point, Some("xfs"), MsFlags::MS_NODEV, Some("nouuid")).map_err(Into::into)
}

/// Unmounts whatever is mounted there, never lazily, and removes the mount point.
pub fn unmount(point: &Path) -> std::io::Result<()> {
    while is_mounted(point)? {
        umount2(point, MntFlags::UMOUNT_NOFOLLOW)?;
    }
    match std::fs::remove_dir(point) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes `directory` a shared mount of its own. A guest's mount namespace copies the host's mounts when the
/// guest starts; only because these are shared does an unmount here reach that copy, which would otherwise
/// keep a volume busy for as long as an unrelated guest lives.
pub fn share(directory: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let here = mounts()?;
    match here.iter().rev().find(|mount| mount.point == directory) {
        Some(mount) if mount.shared => return Ok(()),
        Some(_) => {}
        None => mount(Some(directory), directory, None::<&str>, MsFlags::MS_BIND, None::<&str>)?,
    }
    mount(None::<&str>, directory, None::<&str>, MsFlags::MS_SHARED, None::<&str>).map_err(Into::into)
}

/// A frozen file system; thawed when this goes, whatever happens.
pub struct Frozen(File);

impl Frozen {
    pub fn freeze(point: &Path) -> std::io::Result<Frozen> {
        let directory = File::open(point)?;
        ioctl::freeze(&directory)?;
        Ok(Frozen(directory))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = ioctl::thaw(&self.0) {
            tracing::error!(%error, "a frozen file system could not be thawed");
        }
    }
}

/// Thaws a file system that a process which died left frozen.
pub fn thaw_leftover(point: &Path) {
    if let Ok(directory) = File::open(point)
        && ioctl::thaw(&directory).is_ok()
    {
        tracing::warn!(point = %point.display(), "thawed a file system that had been left frozen");
    }
}

/// Stops the file system that is mounted here, if one is: nothing in memory is written any more. A directory that is no
/// mount is left alone, or it would be the host's own file system that stops.
pub fn shut_down(point: &Path) -> bool {
    let device = |file: &File| file.metadata().map(|meta| meta.dev());
    let (Ok(directory), Some(Ok(parent))) = (File::open(point), point.parent().map(File::open)) else {
        return false;
    };
    match (device(&directory), device(&parent)) {
        (Ok(here), Ok(above)) if here != above => ioctl::shut_down(&directory).is_ok(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_become_mounts() {
        let text = "36 35 98:0 /a /mnt/with\\040blank rw,noatime shared:3 master:1 - ext4 /dev/root rw\n\
                    37 35 98:1 / /mnt ro - ext4 /dev/shared:9 rw\nbroken\n";
        let mount = |device: &str, point: &str, shared, read_only| Mount {
            device: device.into(),
            point: point.into(),
            shared,
            read_only,
        };
        let expected = [mount("98:0", "/mnt/with blank", true, false), mount("98:1", "/mnt", false, true)];
        assert_eq!(parse_mounts(text), expected);
        assert_eq!(unescape("a\\0b\\134"), "a\\0b\\");
    }

    #[test]
    fn a_superblock_gives_the_size() {
        let mut bytes = [0; 16];
        assert_eq!(parse_superblock(&bytes), None);
        bytes[..4].copy_from_slice(b"XFSB");
        bytes[4..8].copy_from_slice(&4096u32.to_be_bytes());
        bytes[8..].copy_from_slice(&262_144u64.to_be_bytes());
        assert_eq!(parse_superblock(&bytes), Some(1 << 30));
    }
}
