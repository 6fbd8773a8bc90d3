//! Which blocks of a device are written to while its bytes are copied, out of the kernel's block events (tracefs).
//!
//! A block counts from the queueing of its write until after its completion: one that was read between the two is told
//! again, since the completion comes later than the reading. So what is not told since a reading began is as it was read.
//! The events are those of one device in a trace of their own; where one of them is lost, all of it is worth nothing and
//! that is said. A mark, a file with the device's number, goes as soon as storage finds the volume opened as another
//! device, which nobody follows: then too. Refuses files, which have no events, and device-mapper's devices: a write that
//! is split there, at a segment's end or for a snapshot's origin, tells of the completion of its last piece alone.

use super::bytes::BLOCK;
use crate::storage::{is_marked, write_mark};
use nix::libc;
use nix::sys::stat::{major, minor};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Where most machines have it.
const TRACEFS: &str = "/sys/kernel/tracing";
/// A kernel with block events has all three. Queueing and completion, by request and, of device-mapper, by bio.
const EVENTS: [&str; 3] = ["block_bio_queue", "block_rq_complete", "block_bio_complete"];
/// Of each processor, in KiB: some ten thousand events between two looks.
const BUFFER_KIB: u32 = 1024;
const LOOK: Duration = Duration::from_millis(20);
/// Reads of one look: a writer that is quicker than they are is one whose events get lost.
const READS: usize = 100_000;
const SECTOR: u64 = 512;

/// A set of blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    words: Vec<u64>,
    /// How many blocks there are.
    all: u64,
}

impl Blocks {
    pub fn none(size: u64) -> Self {
        let all = size.div_ceil(BLOCK as u64);
        Self { words: vec![0; all.div_ceil(64) as usize], all }
    }

    #[cfg(test)]
    pub fn of(size: u64, blocks: impl Iterator<Item = u64>) -> Self {
        let mut of = Self::none(size);
        blocks.for_each(|block| of.add(block * (BLOCK as u64 / SECTOR), 1));
        of
    }

    /// Those that a run of sectors lies in.
    fn add(&mut self, sector: u64, count: u64) {
        let per_block = BLOCK as u64 / SECTOR;
        let end = sector.saturating_add(count).div_ceil(per_block).min(self.all);
        for block in sector / per_block..end {
            self.words[(block / 64) as usize] |= 1 << (block % 64);
        }
    }

    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        let blocks_of = |(at, word): (usize, &u64)| {
            let word = *word;
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at as u64 * 64 + bit)
        };
        self.words.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(blocks_of)
    }
}

/// The writes of one event, as sectors: what is not a pure reading.
fn written(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_once(": ")?.1.split(' ').filter(|word| !word.is_empty()).skip(1);
    let how = words.next()?;
    // A flush alone is of no sectors.
    if how.starts_with('R') {
        return None;
    }
    let mut before = "";
    for word in words.by_ref() {
        if word == "+" {
            break;
        }
        before = word;
    }
    Some((before.parse().ok()?, words.next()?.parse().ok()?)).filter(|(_, count)| *count > 0)
}

struct Reader {
    pipe: File,
    /// The beginning of a line whose end has not come yet.
    rest: Vec<u8>,
    blocks: Blocks,
    lost: bool,
}

impl Reader {
    /// Takes what there is.
    fn look(&mut self) -> io::Result<()> {
        let mut memory = [0; 64 << 10];
        for _ in 0..READS {
            match self.pipe.read(&mut memory) {
                // While it is on, an empty pipe says that it would block: somebody has ended the trace.
                Ok(0) => return Err(io::Error::other("the trace has ended")),
                Ok(read) => self.take(&memory[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("events come quicker than they are read"))
    }

    fn take(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return };
        let lines: Vec<u8> = self.rest.drain(..=end).collect();
        for line in lines.split(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(line);
            let line = line.trim_start();
            // A program's name comes last on its line, and may itself have line ends: what follows those is nobody's event,
            // or one too many.
            if EVENTS.iter().any(|event| line.starts_with(event)) {
                if let Some((sector, count)) = written(line) {
                    self.blocks.add(sector, count);
                }
            } else if line.contains("LOST") {
                self.lost = true;
            }
        }
    }
}

/// The following of one device.
pub struct Changes {
    reader: Arc<Mutex<Reader>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    trace: PathBuf,
    mark: PathBuf,
    /// The device's.
    number: u64,
    size: u64,
}

impl Changes {
    /// Follows the writes to a device of `size` bytes from here on, for as long as the file `mark` is there and of this device.
    /// Blocks.
    pub fn follow(run_dir: &Path, mark: PathBuf, device: &Path, size: u64) -> io::Result<Self> {
        let name = mark.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let begin = || {
            let number = number_of(device)?;
            write_mark(&mark, number)?;
            let (trace, pipe) = open_trace(run_dir, &name, number)?;
            Ok::<_, io::Error>((number, trace, pipe))
        };
        let (number, trace, pipe) = match begin() {
            Ok(begun) => begun,
            Err(error) => {
                let _gone = std::fs::remove_file(&mark);
                return Err(error);
            }
        };
        let reader = Reader { pipe, rest: Vec::new(), blocks: Blocks::none(size), lost: false };
        let (reader, ended) = (Arc::new(Mutex::new(reader)), Arc::new(AtomicBool::new(false)));
        let (read, end) = (reader.clone(), ended.clone());
        let look = move || {
            while !end.load(Ordering::Relaxed) {
                let mut reader = lock(&read);
                if reader.look().is_err() {
                    reader.lost = true;
                    return;
                }
                drop(reader);
                std::thread::park_timeout(LOOK);
            }
        };
        let thread = match std::thread::Builder::new().name("changes".into()).spawn(look) {
            Ok(thread) => thread,
            Err(error) => {
                // The kernel removes no trace whose pipe is open.
                drop(reader);
                let _removed = std::fs::remove_dir(&trace);
                let _gone = std::fs::remove_file(&mark);
                return Err(error);
            }
        };
        Ok(Self { reader, ended, thread: Some(thread), trace, mark, number, size })
    }

    /// What was written to since this was asked last; none if that is not known. Blocks for some milliseconds.
    pub fn take(&self) -> Option<Blocks> {
        let mut reader = lock(&self.reader);
        let whole = reader.look().is_ok()
            && is_on(&self.trace)
            && !self.overran().unwrap_or(true)
            && is_marked(&self.mark, self.number);
        if !whole {
            reader.lost = true;
        }
        (!reader.lost).then(|| std::mem::replace(&mut reader.blocks, Blocks::none(self.size)))
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether this is the device that is followed.
    pub fn is_of(&self, device: &Path) -> bool {
        std::fs::metadata(device).is_ok_and(|device| device.rdev() == self.number)
    }

    /// Whether the kernel had no room for an event.
    fn overran(&self) -> io::Result<bool> {
        for processor in std::fs::read_dir(self.trace.join("per_cpu"))? {
            let stats = std::fs::read_to_string(processor?.path().join("stats"))?;
            if has_lost(&stats) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _gone = std::fs::remove_file(&self.mark);
        let (thread, reader, trace) = (self.thread.take(), self.reader.clone(), self.trace.clone());
        // The kernel waits for its processors in between, and nobody should wait for that. A thread that cannot be had
        // leaves a trace behind that the next following of the volume removes.
        let _ended = std::thread::Builder::new().name("unfollow".into()).spawn(move || {
            if let Some(thread) = thread {
                thread.thread().unpark();
                let _joined = thread.join();
            }
            let _off = std::fs::write(trace.join("tracing_on"), "0");
            drop(reader);
            let _removed = std::fs::remove_dir(&trace);
        });
    }
}

fn lock(reader: &Mutex<Reader>) -> MutexGuard<'_, Reader> {
    reader.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether one processor's buffer had no room for an event, or lost one to another that came while it was written.
fn has_lost(stats: &str) -> bool {
    let lost = |line: &str| {
        let (what, count) = line.split_once(':')?;
        Some(["overrun", "commit overrun", "dropped events"].contains(&what.trim()) && count.trim() != "0")
    };
    stats.lines().filter_map(lost).any(|lost| lost)
}

/// Whether nobody has switched the trace or one of its events off.
fn is_on(trace: &Path) -> bool {
    let on = |what: &str| std::fs::read_to_string(trace.join(what)).is_ok_and(|text| text.trim() == "1");
    on("tracing_on") && EVENTS.iter().all(|event| on(&format!("events/block/{event}/enable")))
}

/// The number of a device that can be followed.
fn number_of(device: &Path) -> io::Result<u64> {
    let device = std::fs::metadata(device)?;
    if !device.file_type().is_block_device() {
        return Err(io::Error::other("no block device"));
    }
    if is_mapped(Path::new("/sys/dev/block"), device.rdev())? {
        return Err(io::Error::other("device-mapper does not tell of every completion"));
    }
    Ok(device.rdev())
}

/// Whether the device is device-mapper's. An error where the kernel does not show it.
fn is_mapped(devices: &Path, number: u64) -> io::Result<bool> {
    let device = devices.join(format!("{}:{}", major(number), minor(number)));
    std::fs::metadata(&device)?;
    device.join("dm").try_exists()
}

fn tracefs(run_dir: &Path) -> io::Result<PathBuf> {
    let usual = Path::new(TRACEFS);
    if usual.join("instances").exists() {
        return Ok(usual.to_owned());
    }
    let own = run_dir.join("tracing");
    if !own.join("instances").exists() {
        std::fs::create_dir_all(&own)?;
        let flags =
            nix::mount::MsFlags::MS_NOSUID | nix::mount::MsFlags::MS_NODEV | nix::mount::MsFlags::MS_NOEXEC;
        nix::mount::mount(Some("tracefs"), &own, Some("tracefs"), flags, None::<&str>)?;
    }
    Ok(own)
}

/// A trace of its own with its pipe, on.
fn open_trace(run_dir: &Path, name: &str, number: u64) -> io::Result<(PathBuf, File)> {
    // As the kernel numbers them within itself.
    let number = major(number) << 20 | minor(number);
    let trace = tracefs(run_dir)?.join("instances").join(format!("amphi-{name}-{}", std::process::id()));
    sweep(&trace, name);
    std::fs::create_dir(&trace)?;
    let open = || {
        let set = |what: &str, to: &str| {
            OpenOptions::new().write(true).open(trace.join(what))?.write_all(to.as_bytes())
        };
        set("buffer_size_kb", &BUFFER_KIB.to_string())?;
        // Nothing but the events themselves, and none is overwritten unseen.
        set("options/context-info", "0")?;
        for event in EVENTS {
            set(&format!("events/block/{event}/filter"), &format!("dev == {number}"))?;
            set(&format!("events/block/{event}/enable"), "1")?;
        }
        let pipe = trace.join("trace_pipe");
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(pipe)
    };
    match open() {
        Ok(pipe) => Ok((trace, pipe)),
        Err(error) => {
            let _removed = std::fs::remove_dir(&trace);
            Err(error)
        }
    }
}

/// Traces of the volume that an agent that died has left.
fn sweep(trace: &Path, name: &str) {
    let Some(entries) = trace.parent().and_then(|all| std::fs::read_dir(all).ok()) else { return };
    let ours = format!("amphi-{name}-");
    for entry in entries.flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(ours.as_bytes()) {
            // One that is still being read is not removed by the kernel.
            let _removed = std::fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
#[path = "changes_tests.rs"]
mod tests;
