//! Owns the runs of `qemu-img`: sizes, overlays, growth, conversions. Each is bounded in time and memory, and every
//! format is said, never guessed from bytes that a guest might have written. Refuses to know what a disk is for.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::process::Command;

/// For runs that touch headers only.
const LOOK: Duration = Duration::from_secs(20);
/// What OpenStack's services allow `qemu-img` when it parses what users bring: address space and processor time.
const LOOK_BOUNDS: [&str; 2] = ["--as=1073741824", "--cpu=15"];
/// A conversion takes as long as its bytes; its time is bounded by the caller.
const CONVERT_BOUNDS: [&str; 1] = ["--as=2147483648"];

pub use amphi_api::disk::DiskFormat;

#[derive(Debug, thiserror::Error)]
pub enum QemuImgError {
    #[error("qemu-img refused to {doing}: {message}")]
    Refused { doing: String, message: String },
    #[error("qemu-img took longer than {} s to {doing}", limit.as_secs())]
    Timeout { doing: String, limit: Duration },
    #[error("cannot run qemu-img to {doing}: {source}")]
    Io { doing: String, source: std::io::Error },
}

/// The disk's size as a guest would see it, in bytes.
pub async fn virtual_size(format: DiskFormat, path: &Path) -> Result<u64, QemuImgError> {
    let doing = "look at the disk";
    let mut command = bounded(&LOOK_BOUNDS);
    // Somebody may have it open for writing; only its header is read.
    command.args(["info", "-U", "--output=json", "-f", format.driver()]).arg(path);
    let output = run(doing, command, LOOK).await?;
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    info["virtual-size"].as_u64().ok_or_else(|| QemuImgError::Refused {
        doing: doing.to_owned(),
        message: "it tells no size".to_owned(),
    })
}

/// An empty disk of `size` bytes over `base`, at `overlay` whole or not at all.
pub async fn create_overlay(
    format: DiskFormat,
    base: &Path,
    overlay: &Path,
    size: u64,
) -> Result<(), QemuImgError> {
    let doing = "create the root disk";
    let part = overlay.with_extension("part");
    let mut command = bounded(&LOOK_BOUNDS);
    command.args(["create", "-q", "-f", "qcow2", "-F", format.driver(), "-b"]).arg(base).arg(&part);
    command.arg(size.to_string());
    run(doing, command, LOOK).await?;
    tokio::fs::rename(&part, overlay)
        .await
        .map_err(|source| QemuImgError::Io { doing: doing.to_owned(), source })
}

/// An empty qcow2 disk over nothing.
pub async fn create_empty(path: &Path, size: u64) -> Result<(), QemuImgError> {
    let mut command = bounded(&LOOK_BOUNDS);
    command.args(["create", "-q", "-f", "qcow2"]).arg(path).arg(size.to_string());
    run("create an empty disk", command, LOOK).await.map(drop)
}

/// Lays a qcow2 disk that nobody uses over `base`, which holds the same bytes as what it lay over before.
pub async fn rebase(disk: &Path, format: DiskFormat, base: &Path) -> Result<(), QemuImgError> {
    let mut command = bounded(&LOOK_BOUNDS);
    command.args(["rebase", "-q", "-u", "-f", "qcow2", "-F", format.driver(), "-b"]).arg(base).arg(disk);
    run("lay the root disk over its image", command, LOOK).await.map(drop)
}

/// Makes a qcow2 disk that nobody uses larger.
pub async fn grow(disk: &Path, size: u64) -> Result<(), QemuImgError> {
    let mut command = bounded(&LOOK_BOUNDS);
    command.args(["resize", "-q", "-f", "qcow2"]).arg(disk).arg(size.to_string());
    run("grow the root disk", command, LOOK).await.map(drop)
}

/// A conversion. The source may be open elsewhere: whoever asks has made sure that nobody writes.
#[derive(Clone, Copy, Debug)]
pub struct Convert<'a> {
    pub from: &'a Path,
    pub from_format: DiskFormat,
    pub to: &'a Path,
    pub to_format: DiskFormat,
    /// Write into what is there (a block device) in place of making a file.
    pub into_device: bool,
    pub limit: Duration,
}

impl Convert<'_> {
    fn arguments(&self, from_device: bool) -> Vec<&str> {
        let mut args = vec!["convert", "-q", "-U"];
        if from_device {
            // Past the page cache, which under a mounted file system may hold stale blocks. A file has no such
            // second view, and its file system may know no other way than the cache (tmpfs).
            args.extend(["-T", "none"]);
        }
        args.extend(["-f", self.from_format.driver(), "-O", self.to_format.driver()]);
        if self.into_device {
            args.extend(["-n", "-t", "none"]);
        }
        args
    }

    pub async fn run(&self) -> Result<(), QemuImgError> {
        let doing = "convert the disk";
        let from = tokio::fs::metadata(self.from)
            .await
            .map_err(|source| QemuImgError::Io { doing: doing.to_owned(), source })?;
        let mut command = bounded(&CONVERT_BOUNDS);
        command.args(self.arguments(from.file_type().is_block_device())).arg(self.from).arg(self.to);
        run(doing, command, self.limit).await.map(drop)
    }
}

/// A file that somebody has brought, whose ends were looked at, written anew as a qcow2 that may become `most` bytes large.
pub async fn rewrite(
    format: DiskFormat,
    from: &Path,
    to: &Path,
    most: u64,
    limit: Duration,
) -> Result<(), QemuImgError> {
    let doing = "make a qcow2 disk of it";
    let mut command = bounded(&[CONVERT_BOUNDS[0], &format!("--fsize={most}")]);
    command.args(["convert", "-q", "-f", format.driver(), "-O", "qcow2"]).arg(from).arg(to);
    match run(doing, command, limit).await {
        // The signal of a file that would become too large leaves no word behind.
        Err(QemuImgError::Refused { message, .. })
            if message.is_empty() || message.contains("File too large") =>
        {
            let message = format!("it ended, as it does when a disk expands to more than {most} bytes");
            Err(QemuImgError::Refused { doing: doing.to_owned(), message })
        }
        done => done.map(drop),
    }
}

fn bounded(bounds: &[&str]) -> Command {
    let mut command = Command::new("prlimit");
    command.args(bounds).arg("qemu-img");
    command
}

async fn run(doing: &str, mut command: Command, limit: Duration) -> Result<Output, QemuImgError> {
    let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match tokio::time::timeout(limit, running).await {
        Ok(output) => output.map_err(|source| QemuImgError::Io { doing: doing.into(), source })?,
        Err(_) => return Err(QemuImgError::Timeout { doing: doing.into(), limit }),
    };
    if output.status.success() {
        return Ok(output);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let message = text.trim().chars().take(500).collect();
    Err(QemuImgError::Refused { doing: doing.into(), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_past_the_cache_and_written_into_and_a_file_is_neither() {
        let convert = |from_device, into_device| {
            let (from, to) = (Path::new("/a"), Path::new("/b"));
            let (from_format, to_format) = (DiskFormat::Qcow2, DiskFormat::Raw);
            let limit = Duration::from_secs(1);
            Convert { from, from_format, to, to_format, into_device, limit }.arguments(from_device).join(" ")
        };
        assert_eq!(convert(false, false), "convert -q -U -f qcow2 -O raw");
        assert_eq!(convert(true, false), "convert -q -U -T none -f qcow2 -O raw");
        assert_eq!(convert(false, true), "convert -q -U -f qcow2 -O raw -n -t none");
    }

    #[tokio::test]
    async fn overlays_grow_and_convert_and_broken_images_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        std::fs::write(&base, vec![7_u8; 1 << 20]).unwrap();
        assert_eq!(virtual_size(DiskFormat::Raw, &base).await.unwrap(), 1 << 20);
        let overlay = folder.path().join("root.qcow2");
        create_overlay(DiskFormat::Raw, &base, &overlay, 5 << 20).await.unwrap();
        assert_eq!(virtual_size(DiskFormat::Qcow2, &overlay).await.unwrap(), 5 << 20);
        grow(&overlay, 6 << 20).await.unwrap();
        assert_eq!(virtual_size(DiskFormat::Qcow2, &overlay).await.unwrap(), 6 << 20);
        let raw = folder.path().join("raw");
        let convert = Convert {
            from: &overlay,
            from_format: DiskFormat::Qcow2,
            to: &raw,
            to_format: DiskFormat::Raw,
            into_device: false,
            limit: Duration::from_secs(60),
        };
        convert.run().await.unwrap();
        let bytes = std::fs::read(&raw).unwrap();
        assert_eq!((bytes.len(), bytes[1 << 19], bytes[5 << 20]), (6 << 20, 7, 0));
        let broken = virtual_size(DiskFormat::Qcow2, &base).await.unwrap_err().to_string();
        assert!(broken.contains("not in qcow2 format"), "{broken}");
    }
}
