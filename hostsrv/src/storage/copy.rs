//! Bytes of block devices: wiping before extents are given back, and sparse copies.
//!
//! Blocks; callers use `spawn_blocking` and give a deadline. Reads and writes bypass the page cache
//! (O_DIRECT), which for a device under a mounted file system may hold stale blocks.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;

const CHUNK: usize = 4 << 20;
/// Granularity in which zeros are skipped.
const BLOCK: usize = 64 << 10;
const ALIGNMENT: usize = 4096;
const WIPE_STEP: u64 = 256 << 20;

/// Whether wiping can be left to the device (discard, hole) or may write every zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wipe {
    OffloadedOnly,
    Whole,
}

/// Makes the first `size` bytes read as zeros; false when that would need writing and was not wanted.
pub fn wipe(device: &Path, size: u64, how: Wipe, deadline: Instant) -> io::Result<bool> {
    let file = OpenOptions::new().read(true).write(true).open(device)?;
    let mut offset = 0;
    while offset < size {
        check(deadline)?;
        let step = WIPE_STEP.min(size - offset);
        let run =
            |flags| fallocate(&file, flags | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset as i64, step as i64);
        match run(FallocateFlags::FALLOC_FL_PUNCH_HOLE) {
            Err(Errno::EOPNOTSUPP) if how == Wipe::OffloadedOnly => return Ok(false),
            Err(Errno::EOPNOTSUPP) => run(FallocateFlags::FALLOC_FL_ZERO_RANGE)?,
            other => other?,
        }
        offset += step;
    }
    file.sync_all()?;
    Ok(true)
}

/// Copies the first `size` bytes; blocks of zeros are skipped where the target could be wiped cheaply.
/// Returns the bytes written.
pub fn copy(from: &Path, to: &Path, size: u64, deadline: Instant) -> io::Result<u64> {
    let skip_zeros = wipe(to, size, Wipe::OffloadedOnly, deadline)?;
    let source = direct(from)?;
    let target = direct(to)?;
    let mut memory = vec![0u8; CHUNK + ALIGNMENT];
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    let buffer = &mut memory[start..start + CHUNK];
    let (mut offset, mut written) = (0, 0);
    while offset < size {
        check(deadline)?;
        let length = CHUNK.min((size - offset) as usize);
        source.read_exact_at(&mut buffer[..length], offset)?;
        for (begin, end) in runs(&buffer[..length], skip_zeros) {
            target.write_all_at(&buffer[begin..end], offset + begin as u64)?;
            written += (end - begin) as u64;
        }
        offset += length as u64;
    }
    target.sync_all()?;
    Ok(written)
}

/// The parts of `bytes` to write, as (begin, end), in multiples of `BLOCK`.
fn runs(bytes: &[u8], skip_zeros: bool) -> Vec<(usize, usize)> {
    if !skip_zeros {
        return vec![(0, bytes.len())];
    }
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (index, block) in bytes.chunks(BLOCK).enumerate() {
        if is_zero(block) {
            continue;
        }
        let (begin, end) = (index * BLOCK, index * BLOCK + block.len());
        match runs.last_mut() {
            Some(last) if last.1 == begin => last.1 = end,
            _ => runs.push((begin, end)),
        }
    }
    runs
}

fn is_zero(block: &[u8]) -> bool {
    // Compares the block with itself, shifted by one: a plain memcmp, quick without any optimiser.
    block.first().is_none_or(|first| *first == 0 && block[1..] == block[..block.len() - 1])
}

fn direct(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)
}

fn check(deadline: Instant) -> io::Result<()> {
    if Instant::now() < deadline {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "not done by its deadline"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_left_out() {
        let mut bytes = vec![0u8; 5 * BLOCK];
        bytes[BLOCK + 7] = 1;
        bytes[2 * BLOCK] = 1;
        bytes[5 * BLOCK - 1] = 1;
        assert_eq!(runs(&bytes, true), [(BLOCK, 3 * BLOCK), (4 * BLOCK, 5 * BLOCK)]);
        assert_eq!(runs(&bytes, false), [(0, 5 * BLOCK)]);
        assert!(is_zero(&[]) && is_zero(&[0, 0]) && !is_zero(&[1]) && !is_zero(&[1, 1]));
    }
}
