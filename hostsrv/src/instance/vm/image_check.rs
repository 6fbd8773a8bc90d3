//! Owns the look at an image's bytes before QEMU gets them: magic numbers of kernels and archives, a qcow2 header that
//! points at no other file, and `qemu-img` runs bounded in time and memory. Refuses to repair or convert.

use crate::instance::DriverError;
use amphi_api::image::{BlobRole, ImageFormat};
use std::io::{self, Read};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::process::Command;

/// How much of a blob [`check`] wants to see, in bytes.
const HEAD: u64 = 1024;
const QEMU_IMG_LIMIT: Duration = Duration::from_secs(20);
/// What OpenStack's services allow `qemu-img` when it parses what users bring: address space and processor time.
const QEMU_IMG_BOUNDS: [&str; 2] = ["--as=1073741824", "--cpu=15"];
/// Header of a qcow2 image: https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.txt
const QCOW2_MAGIC: &[u8] = b"QFI\xfb";

/// The first bytes of a blob.
pub fn head(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(HEAD).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether a blob begins as its format says; else what is wrong.
pub fn check(format: ImageFormat, role: BlobRole, head: &[u8]) -> Result<(), String> {
    match (format, role) {
        (_, BlobRole::Kernel) => check_kernel(head),
        (_, BlobRole::Initramfs) => check_initramfs(head),
        (ImageFormat::Qcow2, _) => check_qcow2(head),
        (ImageFormat::Raw, _) if head.len() < 512 => Err("the disk is smaller than a sector".into()),
        _ => Ok(()),
    }
}

fn check_kernel(head: &[u8]) -> Result<(), String> {
    // The kernel's Documentation/arch/x86/boot.rst: signature at 0x1fe, "HdrS" at 0x202. ELF: a PVH kernel.
    let bz = head.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && head.get(0x202..0x206) == Some(b"HdrS");
    if bz || head.starts_with(b"\x7fELF") {
        return Ok(());
    }
    Err("the kernel is neither a bzImage nor an ELF file".into())
}

fn check_initramfs(head: &[u8]) -> Result<(), String> {
    // What the kernel's init/initramfs.c and lib/decompress.c take.
    const STARTS: [&[u8]; 10] = [
        b"070701",
        b"070702",
        b"\x1f\x8b",
        b"\x1f\x9e",
        b"BZh",
        b"\x5d\x00",
        b"\xfd7zXZ",
        b"\x89LZO",
        b"\x02\x21\x4c\x18",
        b"\x28\xb5\x2f\xfd",
    ];
    if STARTS.iter().any(|start| head.starts_with(start)) {
        return Ok(());
    }
    Err("the initramfs is neither a cpio archive nor a compressed one".into())
}

fn check_qcow2(head: &[u8]) -> Result<(), String> {
    let number = |at: usize, len: usize| {
        head.get(at..at + len).map(|bytes| bytes.iter().fold(0_u64, |n, byte| n << 8 | u64::from(*byte)))
    };
    if !head.starts_with(QCOW2_MAGIC) {
        return Err("it is not a qcow2 image".into());
    }
    let (Some(version), Some(backing), Some(encryption)) = (number(4, 4), number(8, 8), number(32, 4)) else {
        return Err("the qcow2 header is cut short".into());
    };
    // A backing or external data file would let the guest read any file of the host.
    if backing != 0 {
        return Err("the qcow2 image refers to a backing file".into());
    }
    if encryption != 0 {
        return Err("the qcow2 image is encrypted".into());
    }
    match version {
        2 => Ok(()),
        3 => match number(72, 8) {
            None => Err("the qcow2 header is cut short".into()),
            Some(incompatible) if incompatible & 0b100 != 0 => {
                Err("the qcow2 image keeps its data in another file".into())
            }
            Some(incompatible) if incompatible & 0b10 != 0 => Err("the qcow2 image is marked corrupt".into()),
            Some(_) => Ok(()),
        },
        _ => Err(format!("the qcow2 image has the unknown version {version}")),
    }
}

/// The disk's size as a guest would see it, in bytes. The inner error: the image is broken.
pub async fn virtual_size(format: ImageFormat, path: &Path) -> Result<Result<u64, String>, DriverError> {
    let mut command = qemu_img();
    command.args(["info", "--output=json", "-f", format_name(format)]).arg(path);
    let output = run("look at the image", command).await?;
    if !output.status.success() {
        return Ok(Err(words(&output)));
    }
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    Ok(info["virtual-size"].as_u64().ok_or_else(|| "qemu-img tells no size".to_owned()))
}

/// An empty disk over the image, of `size` bytes. The image's format is given, never guessed from bytes that a guest
/// might have written.
pub async fn create_overlay(
    format: ImageFormat,
    base: &Path,
    overlay: &Path,
    size: u64,
) -> Result<(), DriverError> {
    let part = overlay.with_extension("part");
    let mut command = qemu_img();
    command.args(["create", "-q", "-f", "qcow2", "-F", format_name(format), "-b"]).arg(base).arg(&part);
    command.arg(size.to_string());
    let output = run("create the root disk", command).await?;
    if !output.status.success() {
        return Err(DriverError::EngineRefused {
            engine: "qemu-img",
            doing: "create the root disk".into(),
            message: words(&output),
        });
    }
    tokio::fs::rename(&part, overlay)
        .await
        .map_err(|source| DriverError::Io { doing: "name the root disk".into(), source })
}

fn format_name(format: ImageFormat) -> &'static str {
    if format == ImageFormat::Qcow2 { "qcow2" } else { "raw" }
}

fn qemu_img() -> Command {
    let mut command = Command::new("prlimit");
    command.args(QEMU_IMG_BOUNDS).arg("qemu-img");
    command
}

async fn run(doing: &str, mut command: Command) -> Result<Output, DriverError> {
    let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
    match tokio::time::timeout(QEMU_IMG_LIMIT, running).await {
        Ok(output) => output.map_err(|source| DriverError::Io { doing: doing.into(), source }),
        Err(_) => {
            Err(DriverError::EngineTimeout { engine: "qemu-img", doing: doing.into(), limit: QEMU_IMG_LIMIT })
        }
    }
}

fn words(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.trim().chars().take(500).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qcow2(change: impl FnOnce(&mut Vec<u8>)) -> Result<(), String> {
        let mut head = vec![0_u8; 112];
        head[..4].copy_from_slice(QCOW2_MAGIC);
        head[7] = 3;
        change(&mut head);
        check(ImageFormat::Qcow2, BlobRole::Disk, &head)
    }

    #[test]
    fn qcow2_headers() {
        assert_eq!(qcow2(|_| {}), Ok(()));
        for (change, part) in [
            ((|h| h[0] = 0) as fn(&mut Vec<u8>), "not a qcow2"),
            (|h| h[15] = 1, "backing"),
            (|h| h[79] = 4, "another file"),
            (|h| h[79] = 2, "corrupt"),
            (|h| h[35] = 2, "encrypted"),
            (|h| h[7] = 9, "version 9"),
            (|h| h.truncate(40), "cut short"),
            (|h| h.truncate(6), "cut short"),
        ] {
            let error = qcow2(change).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn kernels_and_archives() {
        let mut kernel = vec![0_u8; 1024];
        assert!(check(ImageFormat::KernelInitramfs, BlobRole::Kernel, &kernel).is_err());
        kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(check(ImageFormat::KernelInitramfs, BlobRole::Kernel, &kernel), Ok(()));
        for (head, good) in [(&b"070701"[..], true), (b"\x1f\x8b", true), (b"hello", false), (b"", false)] {
            assert_eq!(check(ImageFormat::KernelInitramfs, BlobRole::Initramfs, head).is_ok(), good);
        }
    }

    #[tokio::test]
    async fn overlays_grow_and_broken_images_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        std::fs::write(&base, vec![0_u8; 1 << 20]).unwrap();
        assert_eq!(virtual_size(ImageFormat::Raw, &base).await.unwrap(), Ok(1 << 20));
        let overlay = folder.path().join("root.qcow2");
        create_overlay(ImageFormat::Raw, &base, &overlay, 5 << 20).await.unwrap();
        assert_eq!(virtual_size(ImageFormat::Qcow2, &overlay).await.unwrap(), Ok(5 << 20));
        let head = head(&overlay).unwrap();
        assert!(check(ImageFormat::Qcow2, BlobRole::Disk, &head).unwrap_err().contains("backing"));
        let broken = virtual_size(ImageFormat::Qcow2, &base).await.unwrap().unwrap_err();
        assert!(broken.contains("not in qcow2 format"), "{broken}");
    }
}
