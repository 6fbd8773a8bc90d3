//! ext4 on a volume: made once, checked when it asks for it, mounted, grown, frozen. Knows no LVM.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::StorageError;
use super::activation::ioctl;
use super::command::{Run, complaint};

const LIMIT: Duration = Duration::from_secs(300);

/// Formats. Inode tables and journal are zeroed by the kernel after the first mount, and nothing is
/// discarded, so this takes the same few milliseconds for every size.
pub async fn format(device: &Path) -> Result<(), StorageError> {
    let options = "nodiscard,lazy_itable_init=1,lazy_journal_init=1";
    ext4_tool("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", options], device, &[0]).await
}

/// Repairs what can be repaired without asking; exit codes above 1 mean that it could not.
pub async fn check(device: &Path) -> Result<(), StorageError> {
    ext4_tool("e2fsck", &["-p"], device, &[0, 1]).await
}

/// Grows a mounted file system to its device. The kernel wants CAP_SYS_RESOURCE for that, which a root of
/// limited capabilities (a container's) lacks; `Ok(false)` then.
pub async fn grow_online(device: &Path) -> Result<bool, StorageError> {
    match ext4_tool("resize2fs", &[], device, &[0]).await {
        Err(StorageError::Program { detail, .. }) if detail.contains("Permission denied to resize") => {
            Ok(false)
        }
        other => other.map(|()| true),
    }
}

/// Grows an unmounted file system to its device; resize2fs insists on a full check before.
pub async fn grow_offline(device: &Path) -> Result<(), StorageError> {
    ext4_tool("e2fsck", &["-f", "-p"], device, &[0, 1]).await?;
    ext4_tool("resize2fs", &[], device, &[0]).await
}

async fn ext4_tool(
    program: &'static str,
    args: &[&str],
    device: &Path,
    good: &[i32],
) -> Result<(), StorageError> {
    let object = device.display().to_string();
    let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    args.push(object.clone());
    let run = Run { operation: program, object: &object, program, args, env: &[], limit: LIMIT };
    let output = run.output().await?;
    if output.status.code().is_some_and(|code| good.contains(&code)) {
        return Ok(());
    }
    // e2fsck tells on standard output what is wrong.
    let detail = format!("{} {}", complaint(&output), String::from_utf8_lossy(&output.stdout).trim());
    Err(StorageError::Program { program, object, detail })
}

/// What the superblock says that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    pub size_bytes: u64,
    /// The kernel or fsck found errors that were never repaired.
    pub errors: bool,
}

/// Reads the superblock; `None` when there is no ext4.
pub fn superblock(device: &Path) -> std::io::Result<Option<Superblock>> {
    let mut bytes = [0; 1024];
    File::open(device)?.read_exact_at(&mut bytes, 1024)?;
    Ok(parse_superblock(&bytes))
}

/// Offsets from the kernel's Documentation/filesystems/ext4/super.rst.
fn parse_superblock(bytes: &[u8; 1024]) -> Option<Superblock> {
    let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if u16_at(0x38) != 0xEF53 {
        return None;
    }
    let is_64bit = u32_at(0x60) & 0x80 != 0;
    let blocks = u64::from(u32_at(0x4)) | if is_64bit { u64::from(u32_at(0x150)) << 32 } else { 0 };
    let block = 1024u64.checked_shl(u32_at(0x18)).filter(|size| *size <= 65536)?;
    Some(Superblock { size_bytes: blocks.checked_mul(block)?, errors: u16_at(0x3A) & 2 != 0 })
}

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub point: PathBuf,
    pub shared: bool,
}

/// The mounts of this process's namespace, later ones on top.
pub fn mounts() -> std::io::Result<Vec<Mount>> {
    Ok(parse_mounts(&std::fs::read_to_string("/proc/self/mountinfo")?))
}

fn parse_mounts(text: &str) -> Vec<Mount> {
    let parse = |line: &str| {
        let mut fields = line.split(' ').skip(4);
        let point = PathBuf::from(unescape(fields.next()?));
        let shared =
            fields.skip(1).take_while(|field| *field != "-").any(|field| field.starts_with("shared:"));
        Some(Mount { point, shared })
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

/// Mounts ext4, replaying its journal.
pub fn mount_ext4(device: &Path, point: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(point)?;
    let flags = MsFlags::MS_NODEV;
    mount(Some(device), point, Some("ext4"), flags, None::<&str>).map_err(Into::into)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_become_mounts() {
        let text = "36 35 98:0 /a /mnt/with\\040blank rw,noatime shared:3 master:1 - ext4 /dev/root rw\n\
                    37 35 98:0 / /mnt rw - ext4 /dev/shared:9 rw\nbroken\n";
        let mount = |point: &str, shared| Mount { point: point.into(), shared };
        assert_eq!(parse_mounts(text), [mount("/mnt/with blank", true), mount("/mnt", false)]);
        assert_eq!(unescape("a\\0b\\134"), "a\\0b\\");
    }

    #[test]
    fn a_superblock_gives_size_and_state() {
        let mut bytes = [0u8; 1024];
        assert_eq!(parse_superblock(&bytes), None);
        bytes[0x38..0x3A].copy_from_slice(&0xEF53u16.to_le_bytes());
        bytes[0x4..0x8].copy_from_slice(&256u32.to_le_bytes());
        bytes[0x18] = 2;
        bytes[0x150] = 1;
        assert_eq!(parse_superblock(&bytes), Some(Superblock { size_bytes: 256 * 4096, errors: false }));
        bytes[0x60] = 0x80;
        bytes[0x3A] = 3;
        let size_bytes = (256 + (1u64 << 32)) * 4096;
        assert_eq!(parse_superblock(&bytes), Some(Superblock { size_bytes, errors: true }));
        bytes[0x18] = 200;
        assert_eq!(parse_superblock(&bytes), None);
    }
}
