//! The disk that a container image becomes: what a BIOS starts in a first partition, made when the guest kit was, and the root
//! file system in a second one. Pure but for the file that it is given.

use std::io::{self, Read, Seek, SeekFrom, Write};

const SECTOR: u64 = 512;
/// Where the first partition begins, in sectors: 1 MiB, as everybody has it.
const BOOT: u64 = 2048;
/// Longest code of an MBR, in bytes: behind it come the disk's number and the partitions.
const CODE: usize = 440;
const PIECE: usize = 64 << 10;

/// Where things are, in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub boot: u64,
    pub boot_length: u64,
    pub root: u64,
    pub root_length: u64,
}

impl Layout {
    /// For a boot partition of so many bytes and a root file system of so many.
    pub fn new(boot_bytes: u64, root_bytes: u64) -> Self {
        let boot_length = boot_bytes.div_ceil(SECTOR).next_multiple_of(BOOT);
        let root = BOOT + boot_length;
        Self { boot: BOOT, boot_length, root, root_length: (root_bytes / SECTOR).next_multiple_of(BOOT) }
    }

    pub fn bytes(&self) -> u64 {
        (self.root + self.root_length) * SECTOR
    }

    pub fn root_at(&self) -> u64 {
        self.root * SECTOR
    }

    /// The first sector. `number` tells this disk from others.
    pub fn mbr(&self, code: &[u8], number: [u8; 4]) -> io::Result<[u8; 512]> {
        let too_long =
            |n: u64| u32::try_from(n).map_err(|_| io::Error::other("the disk is too large for an MBR"));
        let mut sector = [0; 512];
        if code.len() > CODE {
            return Err(io::Error::other("the guest kit's MBR is too long"));
        }
        sector[..code.len()].copy_from_slice(code);
        sector[CODE..CODE + 4].copy_from_slice(&number);
        // FAT16 by LBA, active; Linux. Cylinders and heads are beyond what anybody asks for.
        for (at, (flag, kind, start, length)) in
            [(0x80, 0x0e, self.boot, self.boot_length), (0, 0x83, self.root, self.root_length)]
                .into_iter()
                .enumerate()
        {
            let entry = &mut sector[446 + at * 16..462 + at * 16];
            entry[..8].copy_from_slice(&[flag, 0xfe, 0xff, 0xff, kind, 0xfe, 0xff, 0xff]);
            entry[8..12].copy_from_slice(&too_long(start)?.to_le_bytes());
            entry[12..16].copy_from_slice(&too_long(length)?.to_le_bytes());
        }
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        Ok(sector)
    }

    /// The boot partition's bytes, but for those that are zeros anyway.
    pub fn boot(&self, mut from: impl Read, disk: &mut (impl Write + Seek)) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        let mut at = self.boot * SECTOR;
        loop {
            let got = from.read(&mut piece)?;
            if got == 0 {
                return Ok(());
            }
            if at + got as u64 > self.root_at() {
                return Err(io::Error::other("the guest kit's boot partition has grown"));
            }
            if piece[..got].iter().any(|b| *b != 0) {
                disk.seek(SeekFrom::Start(at))?;
                disk.write_all(&piece[..got])?;
            }
            at += got as u64;
        }
    }
}

/// One partition of a file, as if it were a file.
pub struct Part<F> {
    pub file: F,
    pub begin: u64,
    pub length: u64,
    pub at: u64,
}

impl<F: Seek> Part<F> {
    fn room(&mut self, wanted: usize) -> io::Result<usize> {
        self.file.seek(SeekFrom::Start(self.begin + self.at))?;
        Ok(usize::try_from(self.length.saturating_sub(self.at)).unwrap_or(usize::MAX).min(wanted))
    }
}

impl<F: Read + Seek> Read for Part<F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = self.room(into.len())?;
        let got = self.file.read(&mut into[..most])?;
        self.at += got as u64;
        Ok(got)
    }
}

impl<F: Write + Seek> Write for Part<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let most = self.room(bytes.len())?;
        let wrote = self.file.write(&bytes[..most])?;
        self.at += wrote as u64;
        Ok(wrote)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl<F> Seek for Part<F> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.at.checked_add_signed(offset),
        };
        self.at = to.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_of_two_partitions() {
        let layout = Layout::new(64 << 20, (1 << 30) + 1);
        assert_eq!(
            layout,
            Layout { boot: 2048, boot_length: 131_072, root: 133_120, root_length: 2_097_152 }
        );
        assert_eq!(layout.bytes(), (133_120 + 2_097_152) * 512);
        let mbr = layout.mbr(&[1; 440], [9, 8, 7, 6]).unwrap();
        assert_eq!((mbr[439], &mbr[440..444], &mbr[510..]), (1, &[9, 8, 7, 6][..], &[0x55, 0xaa][..]));
        assert_eq!((mbr[446], mbr[450], &mbr[454..458]), (0x80, 0x0e, &2048_u32.to_le_bytes()[..]));
        assert_eq!((mbr[462], mbr[466], &mbr[470..474]), (0, 0x83, &133_120_u32.to_le_bytes()[..]));
        assert!(layout.mbr(&[1; 441], [0; 4]).is_err());
        assert!(Layout::new(1, 4 << 40).mbr(&[], [0; 4]).is_err());
        let mut disk = io::Cursor::new(Vec::new());
        let mut boot = vec![0; 200_000];
        boot[199_999] = 7;
        layout.boot(boot.as_slice(), &mut disk).unwrap();
        let disk = disk.into_inner();
        assert_eq!((disk.len(), disk[disk.len() - 1]), ((1 << 20) + 200_000, 7));
        assert!(Layout::new(1000, 1000).boot(&[1; 3 << 20][..], &mut io::Cursor::new(Vec::new())).is_err());
    }

    #[test]
    fn a_partition_ends() {
        let mut part = Part { file: io::Cursor::new(b"0123456789".to_vec()), begin: 2, length: 4, at: 0 };
        let mut text = String::new();
        part.read_to_string(&mut text).unwrap();
        assert_eq!(text, "2345");
        part.seek(SeekFrom::End(-1)).unwrap();
        assert_eq!(part.write(b"xy").unwrap(), 1);
        assert_eq!(part.file.get_ref(), b"01234x6789");
    }
}
