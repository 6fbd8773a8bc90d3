//! A machine that turns a disk into a tar of its root file system, or fills a disk with one, and ends. Owns the order of
//! things and what is told to the host. All that is untrusted is read in here, where there is nothing but this machine and
//! its disks.

mod disks;
mod fill;
mod look;
mod lvm;
pub mod probe;
mod services;
mod tar;
mod tree;
mod within;

use crate::boot;
use crate::channel;
use amphi_guest::conversion::{RESULT_SERIAL, Report, Told, WORD};
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two words of progress.
const BEAT: Duration = Duration::from_secs(1);
/// Written at once, in bytes; so many zeros in their place are passed over.
const PIECE: usize = 256 << 10;

/// What this machine was started for; none: members.
pub fn wanted() -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    line.split_whitespace()
        .find_map(|word| word.strip_prefix(WORD).and_then(|rest| rest.strip_prefix('=')))
        .map(str::to_owned)
}

/// Why it goes no further.
pub enum Ended {
    /// It lies in the disk: the same again would end the same.
    Refused(String),
    Failed(io::Error),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Does it, and switches the machine off.
pub fn run(what: &str) -> io::Result<()> {
    let mut port = channel::find()?;
    let ended = match what {
        "container" => to_tar(&mut port),
        "disk" => fill::run(&mut port),
        other => Err(Ended::Refused(format!("this guest kit does not know how to convert to '{other}'"))),
    };
    let message = match ended {
        Ok(()) => None,
        Err(Ended::Refused(message)) => Some(message),
        // The kernel's own words about a file system that is broken come as these.
        Err(Ended::Failed(error)) => Some(error.to_string()),
    };
    if let Some(message) = message {
        tell(&mut port, &Told::Refused { message: amphi_guest::conversion::text(&message) })?;
    }
    nix::unistd::sync();
    crate::say("converted");
    // It comes back only where the kernel refuses.
    let Err(error) = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_POWER_OFF);
    Err(error.into())
}

fn tell(port: &mut File, word: &Told) -> io::Result<()> {
    let mut line = serde_json::to_vec(word)?;
    line.push(b'\n');
    port.write_all(&line)
}

/// Progress that is told once a beat.
fn beat(port: &mut File) -> impl FnMut(u64, u64) + '_ {
    let mut last = Instant::now();
    move |entries, bytes| {
        if last.elapsed() >= BEAT {
            last = Instant::now();
            // The host may have gone; then this machine goes too.
            let _told = tell(port, &Told::Progress { entries, bytes });
        }
    }
}

fn to_tar(port: &mut File) -> Result<(), Ended> {
    let mut report = Report::default();
    let root = disks::find(&mut report)?;
    let added = look::look(&root, &mut report);
    let result = boot::disk(RESULT_SERIAL)?;
    let out = Blank { device: File::options().write(true).open(result)?, at: 0 };
    let out = BufWriter::with_capacity(PIECE, out);
    let walk = tree::Walk::new(Path::new(&root), out, &mut report, &added);
    let out = walk.run(&mut beat(port))?;
    let mut out = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    out.device.sync_all()?;
    let tar_bytes = out.device.stream_position()?;
    tell(port, &Told::Done { tar_bytes, report: Box::new(report) })?;
    Ok(())
}

/// A disk that holds zeros: those that belong there are not written.
struct Blank {
    device: File,
    at: u64,
}

impl Write for Blank {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        self.at += piece.len() as u64;
        if piece.iter().all(|b| *b == 0) {
            self.device.seek(SeekFrom::Start(self.at))?;
        } else {
            self.device.write_all(piece)?;
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.device.flush()
    }
}
