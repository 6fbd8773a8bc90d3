//! Owns the look at an image's bytes before QEMU gets them: magic numbers of kernels and archives, and disks that stand
//! alone. Refuses what it does not know, and to repair or convert.

use crate::images::bases;
use amphi_api::disk::{self, DiskFormat, Ends};
use amphi_api::image::{BlobRole, ImageFormat};
use std::io::{self, Read};
use std::path::Path;

/// How much of a kernel and of an initramfs is looked at, in bytes.
const HEAD: u64 = 4096;

/// Whether a blob in this host's cache is as its format says; else what is wrong.
pub fn check(format: ImageFormat, role: BlobRole, path: &Path) -> io::Result<Result<(), String>> {
    let mut file = std::fs::File::open(path)?;
    let Some(disk) = bases::lies(format).filter(|_| role == BlobRole::Disk) else {
        let mut head = Vec::new();
        file.take(HEAD).read_to_end(&mut head)?;
        return Ok(match role {
            BlobRole::Kernel => check_kernel(&head),
            BlobRole::Initramfs => check_initramfs(&head),
            _ => Ok(()),
        });
    };
    let size = file.metadata()?.len();
    if disk == DiskFormat::Raw && size < 512 {
        return Ok(Err("the disk is smaller than a sector".into()));
    }
    let ends = Ends::read(disk, &mut file, 0, size)?;
    Ok(disk::look(disk, &ends).map(drop).map_err(|why| format!("the disk is not to be used: {why}")))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path();
        let disk = |format| check(format, BlobRole::Disk, path).unwrap();
        std::fs::write(path, [7; 511]).unwrap();
        assert!(disk(ImageFormat::Raw).unwrap_err().contains("smaller than a sector"));
        assert!(disk(ImageFormat::Qcow2).unwrap_err().contains("no qcow2"));
        // What it is made of has become a qcow2 on the way.
        assert!(disk(ImageFormat::Vmdk).unwrap_err().contains("no qcow2"));
        std::fs::write(path, [7; 512]).unwrap();
        assert_eq!(disk(ImageFormat::Raw), Ok(()));
        assert!(check(ImageFormat::Raw, BlobRole::Disk, Path::new("/no/such/disk")).is_err());
    }

    #[test]
    fn kernels_and_archives() {
        let mut kernel = vec![0_u8; 1024];
        assert!(check_kernel(&kernel).is_err());
        kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(check_kernel(&kernel), Ok(()));
        for (head, good) in [(&b"070701"[..], true), (b"\x1f\x8b", true), (b"hello", false), (b"", false)] {
            assert_eq!(check_initramfs(head).is_ok(), good);
        }
    }
}
