//! The durable side of the embedded engine: one sled tree, and the discipline that makes an acknowledged write survive a
//! power cut. sled's own `flush` does not reach the disk on Linux (it never calls fsync), so after each flush the
//! database file is synced through a handle of our own.

use super::{Entry, Event, LeaseId, Revision, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

const REVISION: &str = "!revision";
const LEASE: &str = "!lease/";

#[derive(Serialize, Deserialize)]
struct Stored {
    value: serde_json::Value,
    version: u64,
    modified: Revision,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<LeaseId>,
}

/// What a disk holds.
#[derive(Default)]
pub struct Contents {
    pub entries: BTreeMap<String, Entry>,
    pub revision: Revision,
    /// Leases, and the key that each entry's lease belongs to.
    pub leases: BTreeMap<LeaseId, Duration>,
    pub leased: BTreeMap<String, LeaseId>,
}

/// A write of one batch.
#[derive(Default)]
pub struct Batch {
    /// Absent: the key goes.
    writes: BTreeMap<String, Option<Vec<u8>>>,
}

impl Batch {
    pub fn event(&mut self, event: &Event, lease: Option<LeaseId>) -> Result<(), StoreError> {
        match event {
            Event::Put(entry) => {
                let stored = Stored {
                    value: entry.value.clone(),
                    version: entry.version,
                    modified: entry.modified,
                    lease,
                };
                let bytes = serde_json::to_vec(&stored).map_err(|e| StoreError::Invalid(e.to_string()))?;
                self.writes.insert(entry.key.clone(), Some(bytes));
            }
            Event::Deleted { key } => drop(self.writes.insert(key.clone(), None)),
        }
        Ok(())
    }

    pub fn revision(&mut self, revision: Revision) {
        self.writes.insert(REVISION.to_owned(), Some(revision.to_string().into_bytes()));
    }

    pub fn lease(&mut self, lease: LeaseId, ttl: Option<Duration>) {
        let millis = ttl.map(|ttl| ttl.as_millis().to_string().into_bytes());
        self.writes.insert(format!("{LEASE}{lease}"), millis);
    }

    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

pub struct Disk {
    db: sled::Db,
    file: File,
    /// What takes back a batch that failed half way: applied before anything else.
    undo: Option<BTreeMap<String, Option<Vec<u8>>>>,
}

fn unavailable<E: std::fmt::Display>(doing: &'static str) -> impl FnOnce(E) -> StoreError {
    move |error| StoreError::Unavailable { doing, message: error.to_string() }
}

impl Disk {
    /// Opens or makes the database in `dir`. Fails when another process holds it.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let db = sled::Config::new()
            .path(dir)
            // The writer flushes by itself; a timer of sled's own would only add writes.
            .flush_every_ms(None)
            .cache_capacity(16 << 20)
            .open()
            .map_err(unavailable("open the database"))?;
        let file = File::open(dir.join("db")).map_err(unavailable("open the database file"))?;
        let disk = Self { db, file, undo: None };
        disk.sync()?;
        // The file's name must survive too.
        for path in [Some(dir), dir.parent()].into_iter().flatten() {
            File::open(path).and_then(|d| d.sync_all()).map_err(unavailable("sync the directory"))?;
        }
        Ok(disk)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.db.flush().map_err(unavailable("flush"))?;
        self.file.sync_data().map_err(unavailable("sync"))
    }

    /// Everything on the disk. An unreadable record fails the whole: half a world is worse than none.
    pub fn read(&self) -> Result<Contents, StoreError> {
        let mut contents = Contents::default();
        for item in self.db.iter() {
            let (key, bytes) = item.map_err(unavailable("read"))?;
            let key = String::from_utf8(key.to_vec()).map_err(unavailable("read a key"))?;
            if let Some(lease) = key.strip_prefix(LEASE) {
                let id = lease.parse().map_err(unavailable("read a lease"))?;
                contents.leases.insert(id, Duration::from_millis(number(&bytes)?));
            } else if key == REVISION {
                contents.revision = number(&bytes)?;
            } else {
                let stored: Stored = serde_json::from_slice(&bytes).map_err(unavailable("read a record"))?;
                contents.leased.extend(stored.lease.map(|lease| (key.clone(), lease)));
                let Stored { value, version, modified, .. } = stored;
                contents.entries.insert(key.clone(), Entry { key, value, version, modified });
            }
        }
        Ok(contents)
    }

    /// Writes a batch; durable when this returns. After an error nothing of it will ever be seen.
    pub fn write(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if let Some(undo) = &self.undo {
            self.apply(undo)?;
            self.undo = None;
        }
        let mut before = BTreeMap::new();
        for key in batch.writes.keys() {
            let held = self.db.get(key).map_err(unavailable("read"))?;
            before.insert(key.clone(), held.map(|bytes| bytes.to_vec()));
        }
        let written = self.apply(&batch.writes);
        if written.is_err() {
            // sled may hold the batch in its memory and bring it to the disk with a later flush.
            self.undo = Some(before);
        }
        written
    }

    fn apply(&self, writes: &BTreeMap<String, Option<Vec<u8>>>) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (key, bytes) in writes {
            match bytes {
                Some(bytes) => batch.insert(key.as_bytes(), bytes.as_slice()),
                None => batch.remove(key.as_bytes()),
            }
        }
        self.db.apply_batch(batch).map_err(unavailable("write"))?;
        self.sync()
    }
}

fn number(bytes: &[u8]) -> Result<u64, StoreError> {
    let text = std::str::from_utf8(bytes).map_err(unavailable("read a number"))?;
    text.parse().map_err(unavailable("read a number"))
}

/// A line of an export.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Revision(Revision),
    Entry { key: String, value: serde_json::Value, version: u64, modified: Revision },
}

/// Writes all entries as JSON lines beside the database, replacing the last export as a whole.
pub fn export(path: &Path, entries: &BTreeMap<String, Entry>, revision: Revision) -> std::io::Result<()> {
    let next = path.with_extension("next");
    let mut out = BufWriter::new(File::create(&next)?);
    let mut line = |line: &Line| -> std::io::Result<()> {
        serde_json::to_writer(&mut out, line)?;
        out.write_all(b"\n")
    };
    for e in entries.values() {
        line(&Line::Entry {
            key: e.key.clone(),
            value: e.value.clone(),
            version: e.version,
            modified: e.modified,
        })?;
    }
    // Last, so that an export that was cut short is known by its absence.
    line(&Line::Revision(revision))?;
    out.into_inner().map_err(|e| e.into_error())?.sync_all()?;
    std::fs::rename(&next, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// Reads an export. Leases and what they held are not in it: they had ended by the time anyone needs this.
pub fn import(path: &Path) -> std::io::Result<(Vec<Entry>, Revision)> {
    let mut entries = Vec::new();
    for line in BufReader::new(File::open(path)?).lines() {
        match serde_json::from_str(&line?)? {
            Line::Entry { key, value, version, modified } => {
                entries.push(Entry { key, value, version, modified })
            }
            Line::Revision(revision) => return Ok((entries, revision)),
        }
    }
    Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the export has no end"))
}

/// Where a database that would not open is kept.
pub fn put_aside(dir: &Path) -> std::io::Result<PathBuf> {
    let name = format!("{}.broken-{}", dir.display(), jiff::Timestamp::now().as_second());
    std::fs::rename(dir, &name)?;
    Ok(name.into())
}
