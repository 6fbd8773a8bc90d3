//! What a pass reads and writes: a block device past the page cache, or a file. Blocks; callers use `spawn_blocking`.

use nix::libc;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Read at once, in bytes.
pub const CHUNK: usize = 1 << 20;
/// What O_DIRECT asks of memory, offsets and lengths at most.
const ALIGNMENT: usize = 4096;

/// An open device or file.
#[derive(Debug)]
pub struct Medium {
    file: File,
    /// Reads go past the page cache, which for a device under a mounted file system may hold stale blocks.
    direct: bool,
}

/// Aligned memory for one chunk.
pub struct Scratch {
    memory: Vec<u8>,
    start: usize,
}

impl Scratch {
    pub fn new() -> Self {
        let memory = vec![0; CHUNK + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start }
    }

    fn part(&mut self, length: usize) -> &mut [u8] {
        &mut self.memory[self.start..self.start + length]
    }
}

impl Medium {
    pub fn open(path: &Path, write: bool) -> io::Result<Self> {
        let block = std::fs::metadata(path)?.file_type().is_block_device();
        let mut options = OpenOptions::new();
        options.read(true).write(write);
        if block {
            options.custom_flags(libc::O_DIRECT);
        }
        Ok(Self { file: options.open(path)?, direct: block })
    }

    /// Its size in bytes.
    pub fn size(&self) -> io::Result<u64> {
        use std::io::Seek;
        (&self.file).seek(io::SeekFrom::End(0))
    }

    /// At most `CHUNK` bytes; what lies behind a file's end reads as zeros.
    pub fn read<'a>(&self, scratch: &'a mut Scratch, offset: u64, length: usize) -> io::Result<&'a [u8]> {
        // A device's size is a multiple of its sectors, so that rounding up stays within it.
        let whole = if self.direct { length.next_multiple_of(512) } else { length };
        let part = scratch.part(whole);
        let mut done = 0;
        while done < whole {
            match self.file.read_at(&mut part[done..], offset + done as u64)? {
                0 if self.direct => return Err(io::ErrorKind::UnexpectedEof.into()),
                0 => {
                    part[done..].fill(0);
                    break;
                }
                read => done += read,
            }
        }
        Ok(&scratch.part(length)[..])
    }

    /// Writes a block of `length` bytes; none given: zeros.
    pub fn write(&self, scratch: &mut Scratch, offset: u64, length: usize, bytes: &[u8]) -> io::Result<()> {
        let part = scratch.part(length);
        match bytes.is_empty() {
            true => part.fill(0),
            false => part.copy_from_slice(bytes),
        }
        self.file.write_all_at(part, offset)
    }

    pub fn set_size(&self, size: u64) -> io::Result<()> {
        self.file.set_len(size)
    }

    /// Durable, and read from the disk from here on.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()?;
        if !self.direct {
            let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            nix::fcntl::posix_fadvise(&self.file, 0, 0, advice)?;
        }
        Ok(())
    }
}
