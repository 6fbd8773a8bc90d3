//! Owns the look at an image's bytes before QEMU gets them: magic numbers of kernels and archives, a qcow2 header that
//! points at no other file, with all that may follow it. Refuses what it does not know, and to repair or convert.

use amphi_api::image::{BlobRole, ImageFormat};
use std::io::{self, Read};
use std::path::Path;

/// How much of a blob [`check`] wants to see, in bytes: a qcow2 header with all its extensions, which QEMU writes within a
/// few hundred.
const HEAD: u64 = 64 << 10;
/// Header of a qcow2 image: https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.txt
const QCOW2_MAGIC: &[u8] = b"QFI\xfb";
/// Largest disk that an image may describe, in bytes: 64 TiB. More is a mistake or worse, and no volume group here holds it.
const DISK_MAX: u64 = 64 << 40;

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

fn number(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(len)?)?;
    Some(bytes.iter().fold(0_u64, |n, byte| n << 8 | u64::from(*byte)))
}

fn check_qcow2(head: &[u8]) -> Result<(), String> {
    let at = |at: usize, len: usize| number(head, at, len).ok_or("the qcow2 header is cut short");
    if !head.starts_with(QCOW2_MAGIC) {
        return Err("it is not a qcow2 image".into());
    }
    let (version, backing) = (at(4, 4)?, at(8, 8)?);
    let (cluster_bits, size, encryption) = (at(20, 4)?, at(24, 8)?, at(32, 4)?);
    // A backing or external data file would let the guest read any file of the host.
    if backing != 0 || at(16, 4)? != 0 {
        return Err("the qcow2 image refers to a backing file".into());
    }
    if encryption != 0 {
        return Err("the qcow2 image is encrypted".into());
    }
    // 512 bytes to 2 MiB: what QEMU takes.
    if !(9..=21).contains(&cluster_bits) {
        return Err(format!("the qcow2 image has clusters of 2^{cluster_bits} bytes"));
    }
    if size > DISK_MAX {
        return Err(format!(
            "the qcow2 image describes a disk of {size} bytes; the largest is of {DISK_MAX}"
        ));
    }
    let length = match version {
        2 => 72,
        3 => {
            check_features(at(72, 8)?, at(88, 8)?)?;
            at(100, 4)?
        }
        _ => return Err(format!("the qcow2 image has the unknown version {version}")),
    };
    if version == 3 && (length < 104 || length % 8 != 0 || length > 1 << cluster_bits) {
        return Err(format!("the qcow2 image has a header of {length} bytes"));
    }
    // Extensions lie in the first cluster.
    let end = usize::try_from(1_u64 << cluster_bits).unwrap_or(usize::MAX).min(head.len());
    check_extensions(&head[..end], usize::try_from(length).unwrap_or(usize::MAX))
}

/// Features that QEMU must know to read the image, and those that a writer that does not know them clears.
fn check_features(incompatible: u64, autoclear: u64) -> Result<(), String> {
    if incompatible & 0b100 != 0 || autoclear & 0b10 != 0 {
        return Err("the qcow2 image keeps its data in another file".into());
    }
    if incompatible & 0b10 != 0 {
        return Err("the qcow2 image is marked corrupt".into());
    }
    // Bit 0: not closed in order; 3: another compression; 4: subclusters.
    match incompatible & !0b1_1111 {
        0 => Ok(()),
        unknown => Err(format!("the qcow2 image has the unknown features {unknown:#x}")),
    }
}

/// What follows the header: type, length, and as many bytes padded to 8.
fn check_extensions(head: &[u8], mut at: usize) -> Result<(), String> {
    loop {
        // A header that ends with the file, or with its cluster, has none.
        let (Some(kind), Some(length)) = (number(head, at, 4), number(head, at.saturating_add(4), 4)) else {
            return match at >= head.len() {
                true => Ok(()),
                false => Err("the qcow2 header's extensions are cut short".into()),
            };
        };
        match kind {
            0 => return Ok(()),
            // The names of features; bitmaps; a backing file's format, which without one means nothing.
            0x6803_f857 | 0x2385_2875 | 0xe279_2aca => {}
            0x4441_5441 => return Err("the qcow2 image names another file for its data".into()),
            0x0537_be77 => return Err("the qcow2 image is encrypted".into()),
            other => return Err(format!("the qcow2 image has the unknown header extension {other:#x}")),
        }
        let padded = usize::try_from(length).ok().and_then(|length| length.checked_next_multiple_of(8));
        let next = padded.and_then(|padded| at.checked_add(8)?.checked_add(padded));
        at = next.filter(|next| *next <= head.len()).ok_or("the qcow2 header's extensions are cut short")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qcow2(change: impl FnOnce(&mut Vec<u8>)) -> Result<(), String> {
        // As `qemu-img create -f qcow2` writes it: 64 KiB clusters, a header of 112 bytes, the names of features.
        let mut head = vec![0_u8; 1024];
        head[..4].copy_from_slice(QCOW2_MAGIC);
        (head[7], head[23], head[103]) = (3, 16, 112);
        head[112..120].copy_from_slice(&[0x68, 0x03, 0xf8, 0x57, 0, 0, 0, 96]);
        change(&mut head);
        check(ImageFormat::Qcow2, BlobRole::Disk, &head)
    }

    #[test]
    fn qcow2_headers() {
        assert_eq!(qcow2(|_| {}), Ok(()));
        assert_eq!(qcow2(|h| h[79] = 0b1_1001), Ok(()), "features that QEMU knows");
        assert_eq!(qcow2(|h| h[216..220].copy_from_slice(&[0xe2, 0x79, 0x2a, 0xca])), Ok(()));
        assert_eq!(qcow2(|h| h.truncate(216)), Ok(()), "nothing after it");
        assert_eq!(qcow2(|h| (h[7], h[72]) = (2, 0)), Ok(()));
        assert_eq!(qcow2(|h| h[26] = 0x40), Ok(()), "64 TiB");
        for (change, part) in [
            ((|h| h[0] = 0) as fn(&mut Vec<u8>), "not a qcow2"),
            (|h| h[15] = 1, "backing"),
            (|h| h[19] = 1, "backing"),
            (|h| h[79] = 4, "another file"),
            (|h| h[95] = 2, "another file"),
            (|h| h[79] = 2, "corrupt"),
            (|h| h[79] = 32, "unknown features 0x20"),
            (|h| h[72] = 0x80, "unknown features"),
            (|h| h[35] = 2, "encrypted"),
            (|h| h[7] = 9, "version 9"),
            (|h| h[23] = 8, "clusters of 2^8"),
            (|h| h[20] = 1, "clusters of"),
            (|h| h[24] = 1, "describes a disk"),
            (|h| (h[26], h[31]) = (0x40, 1), "describes a disk"),
            (|h| h[103] = 96, "header of 96"),
            (|h| h[103] = 105, "header of 105"),
            (|h| h[100] = 0xff, "header of"),
            (|h| h[216..220].copy_from_slice(b"DATA"), "names another file"),
            (|h| h[216..220].copy_from_slice(&[0x05, 0x37, 0xbe, 0x77]), "encrypted"),
            (|h| h[216] = 1, "unknown header extension 0x1000000"),
            (|h| h[116] = 0xff, "extensions are cut short"),
            (|h| h.truncate(214), "extensions are cut short"),
            (|h| h.truncate(218), "extensions are cut short"),
            // In version 2 they follow at once, whatever version 3 has there.
            (|h| (h[7], h[72], h[73], h[74], h[75]) = (2, b'D', b'A', b'T', b'A'), "names another file"),
            (|h| h.truncate(40), "cut short"),
            (|h| h.truncate(6), "cut short"),
        ] {
            let error = qcow2(change).unwrap_err();
            assert!(error.contains(part), "wanted {part:?} in {error}");
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
