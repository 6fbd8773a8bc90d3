//! What a disk's file says of itself in its first and last bytes, for whoever takes one: the catalogue, a host before QEMU
//! opens it, an import. Owns the rule that a disk stands alone (no backing file, data file, extents or parent elsewhere),
//! that nothing in it is of an unknown kind, and that it claims no absurd size. Pure; refuses to repair, and to guess: who
//! asks says which format it is.

mod qcow2;
#[cfg(test)]
mod tests;
mod vhd;
mod vhdx;
mod vmdk;

use crate::image::ImageFormat;
use crate::validate::VOLUME_GIB_MAX;
use std::io::{self, Read, Seek, SeekFrom};

/// Largest disk that a file may describe, in bytes: the largest volume.
pub const SIZE_MAX: u64 = VOLUME_GIB_MAX << 30;

/// So much of a file's beginning is looked at, in bytes: a qcow2's header with its extensions and a vmdk's descriptor lie
/// within.
const HEAD: usize = 64 << 10;
/// The same of a vhdx, whose metadata come behind its headers and its log.
const HEAD_VHDX: usize = 4 << 20;
/// So much of its end: a streamed vmdk's footer with what surrounds it, and a vhd's.
const TAIL: usize = 1536;

/// How a disk's bytes lie in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    Raw,
    Qcow2,
    /// Of one file: `monolithicSparse` or `streamOptimized`.
    Vmdk,
    /// Fixed or dynamic.
    Vhd,
    Vhdx,
}

impl DiskFormat {
    /// Of an image's disk as it was uploaded; none where the image is no disk that is known here.
    pub fn of(format: ImageFormat) -> Option<Self> {
        match format {
            ImageFormat::Raw => Some(Self::Raw),
            ImageFormat::Qcow2 => Some(Self::Qcow2),
            ImageFormat::Vmdk => Some(Self::Vmdk),
            ImageFormat::Vhd => Some(Self::Vhd),
            ImageFormat::Vhdx => Some(Self::Vhdx),
            ImageFormat::DockerArchive
            | ImageFormat::KernelInitramfs
            | ImageFormat::SetDescription
            | ImageFormat::Oci
            | ImageFormat::Other => None,
        }
    }

    /// By the name that people and OpenStack use.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Raw, Self::Qcow2, Self::Vmdk, Self::Vhd, Self::Vhdx].into_iter().find(|f| f.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
        }
    }

    /// QEMU's word for it.
    pub fn driver(self) -> &'static str {
        if self == Self::Vhd { "vpc" } else { self.name() }
    }
}

/// A file's first and last bytes, and its size.
#[derive(Clone, Debug)]
pub struct Ends {
    pub head: Vec<u8>,
    pub tail: Vec<u8>,
    pub size: u64,
}

impl Ends {
    /// Of `size` bytes from `at` on.
    pub fn read(format: DiskFormat, from: &mut (impl Read + Seek), at: u64, size: u64) -> io::Result<Self> {
        let part = |from: &mut _, begin: u64, length: usize| {
            let length = size.saturating_sub(begin).min(length as u64);
            let mut bytes = Vec::new();
            Seek::seek(from, SeekFrom::Start(at.saturating_add(begin)))?;
            Read::take(from, length).read_to_end(&mut bytes)?;
            Ok::<_, io::Error>(bytes)
        };
        let (first, last) = Self::lengths(format);
        let head = part(from, 0, first)?;
        let tail = part(from, size.saturating_sub(last as u64), last)?;
        Ok(Self { head, tail, size })
    }

    /// How many bytes of the beginning and of the end are looked at.
    pub fn lengths(format: DiskFormat) -> (usize, usize) {
        (if format == DiskFormat::Vhdx { HEAD_VHDX } else { HEAD }, TAIL)
    }

    /// Of what streams by: its end is not known yet. For formats that have nothing there.
    pub fn beginning(head: &[u8], size: u64) -> Self {
        Self { head: head.to_vec(), tail: Vec::new(), size }
    }
}

/// The size of the disk that a file describes, in bytes. The message says what is wrong with it, and begins with "it".
pub fn look(format: DiskFormat, ends: &Ends) -> Result<u64, String> {
    match format {
        DiskFormat::Raw => Ok(ends.size),
        DiskFormat::Qcow2 => qcow2::look(ends),
        DiskFormat::Vmdk => vmdk::look(ends),
        DiskFormat::Vhd => vhd::look(ends),
        DiskFormat::Vhdx => vhdx::look(ends),
    }
}

/// The format that the first bytes tell; none: they tell nothing. For people who do not say: what it answers is still to be
/// looked at.
pub fn sniff(head: &[u8]) -> Option<&'static str> {
    const STARTS: [(&[u8], &str); 6] = [
        (qcow2::MAGIC, "qcow2"),
        (vmdk::MAGIC, "vmdk"),
        (vmdk::COWD, "vmdk"),
        (vmdk::DESCRIPTOR, "vmdk"),
        (vhdx::MAGIC, "vhdx"),
        (vhd::MAGIC, "vhd"),
    ];
    if let Some((_, name)) = STARTS.iter().find(|(start, _)| head.starts_with(start)) {
        return Some(name);
    }
    // VirtualBox: the signature stands behind 64 bytes of text.
    (head.get(64..68) == Some(&[0x7f, 0x10, 0xda, 0xbe])).then_some("vdi")
}

/// A size that can be.
fn sane(size: u64) -> Result<u64, String> {
    match size {
        0 => Err("it describes a disk of 0 bytes".into()),
        n if n > SIZE_MAX => Err(format!("it describes a disk of {n} bytes; at most {SIZE_MAX} are taken")),
        n => Ok(n),
    }
}

/// Numbers at fixed places; a place behind the end is refused.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes<const N: usize>(self, at: usize) -> Result<[u8; N], String> {
        let field = at.checked_add(N).and_then(|end| self.0.get(at..end)).and_then(|b| b.try_into().ok());
        field.ok_or_else(|| "its header is cut off".to_owned())
    }
    fn part(self, at: u64, length: u64) -> Option<&'a [u8]> {
        let (from, to) = (usize::try_from(at).ok()?, usize::try_from(at.checked_add(length)?).ok()?);
        self.0.get(from..to)
    }
    fn be16(self, at: usize) -> Result<u16, String> {
        self.bytes(at).map(u16::from_be_bytes)
    }
    fn be32(self, at: usize) -> Result<u32, String> {
        self.bytes(at).map(u32::from_be_bytes)
    }
    fn be64(self, at: usize) -> Result<u64, String> {
        self.bytes(at).map(u64::from_be_bytes)
    }
    fn le16(self, at: usize) -> Result<u16, String> {
        self.bytes(at).map(u16::from_le_bytes)
    }
    fn le32(self, at: usize) -> Result<u32, String> {
        self.bytes(at).map(u32::from_le_bytes)
    }
    fn le64(self, at: usize) -> Result<u64, String> {
        self.bytes(at).map(u64::from_le_bytes)
    }
}
