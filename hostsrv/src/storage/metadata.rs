//! Tells whether a volume group's metadata are what they were, without LVM, whose every command takes a process of 10 to
//! 20 ms. Each commit, whoever makes it, writes the header of every metadata area anew: the text lies in a ring, and the header
//! says where the newest one begins, how long it is and what its checksum is. Refuses to read that text, and says nothing of a
//! device on which it does not find the header.

use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

/// The first metadata area begins here, in bytes, behind the labels (lvm2, `lib/format_text/format-text.c`).
const AREA: usize = 4096;
/// struct mda_header (lvm2, `lib/format_text/layout.h`), in bytes.
const HEADER: usize = 512;
/// At byte 4 of the header, behind its checksum.
const MAGIC: &[u8; 16] = b" LVM2 x[5A%r0N*>";
/// Where in the header the newest text's place is told: its offset and length (8 bytes each), checksum and flags (4 each).
const NEWEST: usize = 40;
/// A flag: the area is not written to any more.
const IGNORED: u32 = 1;

/// What the areas of a group's physical volumes say; equal as long as its metadata are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heads(Vec<Vec<u8>>);

/// Reads them past the kernel's cache, as LVM writes them. None: no area is where it is looked for.
pub fn heads<'a>(devices: impl Iterator<Item = &'a Path>) -> io::Result<Option<Heads>> {
    let headers = devices.map(header).collect::<io::Result<Vec<_>>>()?;
    Ok(headers.iter().any(|header| counts(header)).then_some(Heads(headers)))
}

fn header(device: &Path) -> io::Result<Vec<u8>> {
    let file = std::fs::File::options().read(true).custom_flags(libc::O_DIRECT).open(device)?;
    // As such reads want it, the buffer begins at a block's edge.
    let mut buffer = vec![0; 2 * AREA];
    let edge = buffer.as_ptr().align_offset(AREA);
    let block = &mut buffer[edge..][..AREA];
    file.read_exact_at(block, AREA as u64)?;
    Ok(block[..HEADER].to_vec())
}

/// Whether every commit changes it.
fn counts(header: &[u8]) -> bool {
    let flags = header[NEWEST + 20..][..4].try_into().map_or(IGNORED, u32::from_le_bytes);
    header[4..].starts_with(MAGIC) && header[NEWEST..][..8] != [0; 8] && flags & IGNORED == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(dir: &Path, name: &str, magic: &[u8], newest: u64, flags: u32) -> std::path::PathBuf {
        let mut bytes = vec![0; 16 << 10];
        bytes[AREA + 4..][..magic.len()].copy_from_slice(magic);
        bytes[AREA + NEWEST..][..8].copy_from_slice(&newest.to_le_bytes());
        bytes[AREA + NEWEST + 20..][..4].copy_from_slice(&flags.to_le_bytes());
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn a_commit_is_seen_and_what_is_no_area_says_nothing() {
        // Not a tmpfs, which knows no reads past the cache before Linux 6.6.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let read = |paths: &[std::path::PathBuf]| heads(paths.iter().map(|p| p.as_path()));
        let one = device(dir.path(), "one", MAGIC, 512, 0);
        let ignored = device(dir.path(), "ignored", MAGIC, 512, IGNORED);
        let empty = device(dir.path(), "empty", MAGIC, 0, 0);
        let other = device(dir.path(), "other", b"something", 512, 0);
        let before = read(&[ignored.clone(), one.clone()]).unwrap();
        assert!(before.is_some());
        assert_eq!(read(&[ignored.clone(), one.clone()]).unwrap(), before);
        device(dir.path(), "one", MAGIC, 1024, 0);
        assert_ne!(read(&[ignored.clone(), one]).unwrap(), before);
        assert_eq!(read(&[ignored, empty, other]).unwrap(), None);
        assert!(read(&[dir.path().join("none")]).is_err());
    }
}
