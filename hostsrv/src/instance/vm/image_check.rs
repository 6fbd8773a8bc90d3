//! Owns the look at an image's bytes before QEMU gets them: magic numbers of kernels and archives, a qcow2 header that
//! points at no other file. Refuses to repair or convert.

use amphi_api::image::{BlobRole, ImageFormat};
use std::io::{self, Read};
use std::path::Path;

/// How much of a blob [`check`] wants to see, in bytes.
const HEAD: u64 = 1024;
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
}
