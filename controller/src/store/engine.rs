//! sled, and the discipline that makes an acknowledged write survive a power cut:
//! - its `flush` never calls fsync on Linux, so the database file is synced through a handle of our own after each;
//! - it puts large pages into files of their own, which it never syncs: a power cut then leaves a database that does
//!   not open. So no page may grow large: values are stored in small pieces, and keys are short.

use super::disk::{Contents, Job, Kept, OpenError, Writes, sync_dir, unavailable};
use super::{Entry, LeaseId, Revision, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

pub const REVISION: &str = "!revision";
pub const LEASE: &str = "!lease/";
/// Largest piece of a value, in bytes. A leaf of sled holds up to 17 of them before it splits, and goes into a file of
/// its own from a quarter of a segment (128 KiB) on.
const PIECE: usize = 4 << 10;
/// How long sled may keep its lock after it was closed: tasks in its pool end a little later.
const LINGER: Duration = Duration::from_secs(5);
const LOCKED: &str = "could not acquire lock";

#[derive(Serialize, Deserialize)]
pub struct Stored {
    pub value: serde_json::Value,
    pub version: u64,
    pub modified: Revision,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseId>,
}

/// Lives in the disk's thread.
pub struct Engine {
    db: sled::Db,
    file: File,
    /// In how many pieces the value of a key is stored, where that is more than one.
    pieces: BTreeMap<String, usize>,
}

fn open_error(error: sled::Error) -> OpenError {
    match error {
        // Errors of the system carry its number; those without are sled's findings about the content, or its lock.
        sled::Error::Io(error) if error.raw_os_error().is_some() || error.to_string().contains(LOCKED) => {
            OpenError::Unavailable(unavailable("open the database")(error))
        }
        error => OpenError::Broken(error.to_string()),
    }
}

/// The first piece is under the key itself; a NUL is in no key.
fn piece_key(key: &str, index: usize) -> String {
    if index == 0 { key.to_owned() } else { format!("{key}\0{index:06}") }
}

impl Engine {
    /// The contents are none for a database that was never written.
    pub fn open(path: &Path) -> Result<(Self, Option<Contents>), OpenError> {
        let data = path.join("db");
        // A process that was killed leaves pages that only the kernel has. sled is about to write a summary of them
        // that it does sync: they go first.
        match File::open(&data) {
            Ok(file) => file.sync_all().map_err(unavailable("sync")).map_err(OpenError::Unavailable)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(OpenError::Unavailable(unavailable("open the database")(error))),
        }
        // The writer flushes by itself; a timer of sled's own would only add writes.
        let config = sled::Config::new().path(path).flush_every_ms(None).cache_capacity(16 << 20);
        let patience = Instant::now() + LINGER;
        let db = loop {
            match config.open() {
                Err(error) if error.to_string().contains(LOCKED) && Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                opened => break opened.map_err(open_error)?,
            }
        };
        let (values, pieces) = assemble(&db)?;
        let contents = contents(values)?;
        let synced = || {
            let file = File::open(&data).map_err(unavailable("open the database"))?;
            let engine = Self { db, file, pieces };
            engine.sync()?;
            // The file's name must survive too.
            sync_dir(path)?;
            path.parent().map_or(Ok(()), sync_dir)?;
            Ok(engine)
        };
        Ok((synced().map_err(OpenError::Unavailable)?, contents))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.db.flush().map_err(unavailable("flush"))?;
        self.file.sync_data().map_err(unavailable("sync"))
    }

    /// Until the other side hangs up, or a write fails.
    pub fn work(mut self, queue: &mpsc::Receiver<Job>) {
        for Job(writes, answer) in queue {
            let batch = self.in_pieces(writes);
            let written = self.db.apply_batch(batch).map_err(unavailable("write")).and_then(|()| self.sync());
            let failed = written.is_err();
            let _ = answer.send(written);
            if failed {
                // Closing may take for ever now; nobody waits for it.
                return;
            }
        }
    }

    fn in_pieces(&mut self, writes: Writes) -> sled::Batch {
        let mut batch = sled::Batch::default();
        for (key, value) in writes {
            let pieces: Vec<_> =
                value.as_deref().map_or_else(Vec::new, |value| value.chunks(PIECE).collect());
            for (index, piece) in pieces.iter().enumerate() {
                batch.insert(piece_key(&key, index).as_bytes(), *piece);
            }
            let before = self.pieces.remove(&key).unwrap_or(1);
            for index in pieces.len()..before {
                batch.remove(piece_key(&key, index).as_bytes());
            }
            if pieces.len() > 1 {
                self.pieces.insert(key, pieces.len());
            }
        }
        batch
    }
}

type Values = BTreeMap<String, Vec<u8>>;

/// All values, and of how many pieces those are that have more than one.
fn assemble(db: &sled::Db) -> Result<(Values, BTreeMap<String, usize>), OpenError> {
    let (mut values, mut pieces) = (Values::new(), BTreeMap::new());
    // In key order: a value's pieces follow each other, the first one first.
    for item in db.iter() {
        let (key, bytes) = item.map_err(open_error)?;
        let key = String::from_utf8(key.to_vec()).map_err(|error| broken("a key", &error))?;
        let Some((whole, index)) = key.split_once('\0') else {
            values.insert(key, bytes.to_vec());
            continue;
        };
        let count = pieces.entry(whole.to_owned()).or_insert(1);
        match values.get_mut(whole) {
            Some(value) if index.parse() == Ok(*count) => value.extend_from_slice(&bytes),
            _ => return Err(broken(whole, &"a piece of it is missing")),
        }
        *count += 1;
    }
    Ok((values, pieces))
}

fn contents(values: Values) -> Result<Option<Contents>, OpenError> {
    let number = |bytes: &[u8]| -> Result<u64, OpenError> {
        let text = String::from_utf8_lossy(bytes);
        text.parse().map_err(|error| broken(&format!("{text:?} should be a number"), &error))
    };
    let mut contents = Contents::default();
    let mut written = false;
    for (key, bytes) in values {
        if let Some(lease) = key.strip_prefix(LEASE) {
            contents.leases.insert(number(lease.as_bytes())?, Duration::from_millis(number(&bytes)?));
        } else if key == REVISION {
            contents.revision = number(&bytes)?;
            written = true;
        } else {
            let stored: Stored = serde_json::from_slice(&bytes).map_err(|error| broken(&key, &error))?;
            contents.leased.extend(stored.lease.map(|lease| (key.clone(), lease)));
            let Stored { value, version, modified, .. } = stored;
            let kept = Kept::of(&Entry { key: key.clone(), value, version, modified });
            contents.entries.insert(key, kept);
        }
    }
    Ok(written.then_some(contents))
}

fn broken(what: &str, error: &dyn std::fmt::Display) -> OpenError {
    OpenError::Broken(format!("{what}: {error}"))
}
