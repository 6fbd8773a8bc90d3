//! Owns members' output: one file each on the scratch disk, turned when it is full, a line an entry with its time and
//! channel. Written whether anybody listens or not; refuses to hold a member up.

use amphi_guest::words::Logs;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest entry; a longer line is several.
const ENTRY_MAX: usize = 16 << 10;
/// How often one who follows looks whether anybody still listens.
const LOOK: Duration = Duration::from_millis(500);

/// One member's output.
pub struct Log {
    path: String,
    most_bytes: u64,
    most_files: u32,
    open: Mutex<Open>,
    changed: Condvar,
}

struct Open {
    file: File,
    bytes: u64,
    /// Counts the turns of the file.
    turn: u64,
}

/// One entry: `TIME CHANNEL END TEXT`, END being `n` where the line ends with it.
struct Entry {
    time_us: i64,
    channel: u8,
    text: Vec<u8>,
}

/// Microseconds since the epoch.
pub fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |past| past.as_micros() as i64)
}

impl Log {
    /// Goes on where an earlier start of the guest has ended.
    pub fn open(member: &str, most_bytes: u64, most_files: u32) -> io::Result<Arc<Self>> {
        fs::create_dir_all("/scratch/logs")?;
        let path = format!("/scratch/logs/{member}.log");
        let file = File::options().create(true).append(true).open(&path)?;
        let bytes = file.metadata()?.len();
        let open = Mutex::new(Open { file, bytes, turn: 0 });
        Ok(Arc::new(Self {
            path,
            most_bytes: most_bytes.max(1 << 16),
            most_files,
            open,
            changed: Condvar::new(),
        }))
    }

    fn append(&self, channel: u8, text: &[u8]) -> io::Result<()> {
        let (line, end) = text.strip_suffix(b"\n").map_or((text, 'p'), |line| (line, 'n'));
        let mut entry = format!("{} {channel} {end} ", now_us()).into_bytes();
        entry.extend_from_slice(line);
        entry.push(b'\n');
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.bytes + entry.len() as u64 > self.most_bytes && open.bytes > 0 {
            for number in (0..self.most_files.saturating_sub(1)).rev() {
                let from = if number == 0 { self.path.clone() } else { format!("{}.{number}", self.path) };
                // One that is not there yet is not missed.
                let _none = fs::rename(from, format!("{}.{}", self.path, number + 1));
            }
            open.file = File::options().create(true).write(true).truncate(true).open(&self.path)?;
            open.bytes = 0;
            open.turn += 1;
        }
        open.file.write_all(&entry)?;
        open.bytes += entry.len() as u64;
        self.changed.notify_all();
        Ok(())
    }

    /// Takes all that comes out of a pipe, on a thread of its own, until nobody writes any more.
    pub fn collect(self: &Arc<Self>, pipe: File, channel: u8) {
        let log = self.clone();
        std::thread::spawn(move || {
            let mut pipe = BufReader::with_capacity(ENTRY_MAX, pipe);
            let mut line = Vec::new();
            while let Ok(1..) = pipe.by_ref().take(ENTRY_MAX as u64).read_until(b'\n', &mut line) {
                if let Err(error) = log.append(channel, &line) {
                    crate::say(&format!("output is lost: {error}"));
                }
                line.clear();
            }
        });
    }

    /// Tells the entries that are asked for, in order; with `follow` until `tell` says no.
    pub fn read(&self, what: &Logs, mut tell: impl FnMut(u8, Vec<u8>) -> bool) -> io::Result<()> {
        let wanted = |entry: &Entry| what.since_us.is_none_or(|since| entry.time_us >= since);
        // Nothing: only whether anybody still listens.
        let mut shown = |entry: Option<Entry>| {
            let Some(entry) = entry else { return tell(1, Vec::new()) };
            let mut text = if what.timestamps { stamp(entry.time_us).into_bytes() } else { Vec::new() };
            text.extend_from_slice(&entry.text);
            tell(entry.channel, text)
        };
        let (turn, current) = {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            (open.turn, File::open(&self.path)?)
        };
        let mut before = std::collections::VecDeque::new();
        let tail = what.tail.map_or(usize::MAX, |tail| tail as usize);
        let mut keep = |entry: Entry| {
            if wanted(&entry) {
                before.push_back(entry);
                if before.len() > tail {
                    before.pop_front();
                }
            }
        };
        for number in (1..self.most_files).rev() {
            if let Ok(file) = File::open(format!("{}.{number}", self.path)) {
                let mut file = BufReader::new(file);
                while let Some(entry) = next(&mut file)? {
                    keep(entry);
                }
            }
        }
        let mut file = BufReader::new(current);
        while let Some(entry) = next(&mut file)? {
            keep(entry);
        }
        for entry in before {
            if !shown(Some(entry)) {
                return Ok(());
            }
        }
        if !what.follow {
            return Ok(());
        }
        let mut turn = turn;
        loop {
            while let Some(entry) = next(&mut file)? {
                if wanted(&entry) && !shown(Some(entry)) {
                    return Ok(());
                }
            }
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            if open.turn != turn {
                turn = open.turn;
                file = BufReader::new(File::open(&self.path)?);
                continue;
            }
            if file.get_ref().metadata()?.len() == io::Seek::stream_position(&mut file)? {
                drop(self.changed.wait_timeout(open, LOOK));
            }
            if !shown(None) {
                return Ok(());
            }
        }
    }
}

/// The next whole entry; none: nothing more has been written.
fn next(file: &mut BufReader<File>) -> io::Result<Option<Entry>> {
    loop {
        let mut line = Vec::new();
        file.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            // Just being written: it is read when it is whole.
            file.seek_relative(-(line.len() as i64))?;
            return Ok(None);
        }
        // What a power cut left is no entry.
        if let Some(entry) = parse(&line) {
            return Ok(Some(entry));
        }
    }
}

fn parse(line: &[u8]) -> Option<Entry> {
    let mut fields = line.strip_suffix(b"\n")?.splitn(4, |b| *b == b' ');
    let time_us = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let channel = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let ends = fields.next()? == b"n";
    let mut text = fields.next()?.to_vec();
    if ends {
        text.push(b'\n');
    }
    Some(Entry { time_us, channel, text })
}

/// RFC 3339 in UTC, with a blank. Days by Howard Hinnant's algorithm (chrono-compatible low-level date algorithms).
fn stamp(time_us: i64) -> String {
    let (seconds, micros) = (time_us.div_euclid(1_000_000), time_us.rem_euclid(1_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}000Z ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_back_and_times_are_told() {
        let entry = parse(b"1767225600000001 2 n a b \xff\n").unwrap();
        assert_eq!(
            (entry.time_us, entry.channel, &entry.text[..]),
            (1_767_225_600_000_001, 2, &b"a b \xff\n"[..])
        );
        assert_eq!(parse(b"5 1 p x\n").unwrap().text, b"x");
        for junk in [&b"x"[..], b"x\n", b"1 1 n\n", b"1 1 n half"] {
            assert!(parse(junk).is_none(), "{junk:?}");
        }
        assert_eq!(stamp(1_767_225_600_000_001), "2026-01-01T00:00:00.000001000Z ");
        assert_eq!(stamp(951_826_399_000_000), "2000-02-29T12:13:19.000000000Z ");
    }
}
