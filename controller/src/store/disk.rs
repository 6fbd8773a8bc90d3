//! The durable side of the embedded engine: one sled tree, and the discipline that makes an acknowledged write survive a
//! power cut. sled's own `flush` does not reach the disk on Linux (it never calls fsync), so after each flush the
//! database file is synced through a handle of our own.
//!
//! Refuses to be used again after a failed write: sled poisons itself then, and after a failed fsync the kernel takes
//! the lost pages for clean, so no later sync proves anything. Whoever holds the contents makes a new database
//! ([`Disk::replace`]).

use super::{Entry, Event, LeaseId, Revision, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

const REVISION: &str = "!revision";
const LEASE: &str = "!lease/";
/// Records per write while a new database is filled.
const FILL: usize = 500;

#[derive(Serialize, Deserialize)]
struct Stored {
    value: serde_json::Value,
    version: u64,
    modified: Revision,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<LeaseId>,
}

/// What a store holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    pub entries: BTreeMap<String, Entry>,
    pub revision: Revision,
    pub leases: BTreeMap<LeaseId, Duration>,
    /// The lease of each key that has one.
    pub leased: BTreeMap<String, LeaseId>,
}

/// A write of one batch.
#[derive(Default)]
pub struct Batch {
    /// Absent: the key goes.
    writes: BTreeMap<String, Option<Vec<u8>>>,
}

impl Batch {
    pub fn event(&mut self, event: &Event, lease: Option<LeaseId>) {
        match event {
            Event::Put(entry) => {
                let Entry { key, value, version, modified } = entry.clone();
                let stored = Stored { value, version, modified, lease };
                // Numbers and a JSON value whose keys are strings: this cannot fail.
                self.writes.insert(key, Some(serde_json::to_vec(&stored).unwrap_or_default()));
            }
            Event::Deleted { key } => drop(self.writes.insert(key.clone(), None)),
        }
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

/// Why a database does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// What is on the disk is no readable database.
    #[error("{0}")]
    Broken(String),
    /// Something around it failed (no space, no permission, an I/O error): the database may be whole.
    #[error(transparent)]
    Unavailable(StoreError),
}

pub fn unavailable<E: std::fmt::Display>(doing: &'static str) -> impl FnOnce(E) -> StoreError {
    move |error| StoreError::Unavailable { doing, message: error.to_string() }
}

fn open_error(error: sled::Error) -> OpenError {
    match error {
        // Errors of the system carry its number; those without are sled's findings about the content.
        sled::Error::Io(error) if error.raw_os_error().is_some() => {
            OpenError::Unavailable(unavailable("open the database")(error))
        }
        error => OpenError::Broken(error.to_string()),
    }
}

/// sled asserts in places where a disk can fail; that must not end the writer.
fn guarded<T>(doing: &'static str, act: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|_| Err(unavailable(doing)("the engine gave up")))
}

pub struct Disk {
    db: Option<sled::Db>,
    file: File,
}

impl Drop for Disk {
    fn drop(&mut self) {
        let db = self.db.take();
        let _ = guarded("close", || {
            drop(db);
            Ok(())
        });
    }
}

impl Disk {
    /// Opens the database directory `path`, which [`Disk::replace`] has made, and reads all of it. An unreadable
    /// record fails the whole: half a world is worse than none. So does a database without a revision: sled takes a
    /// file that it cannot read for an empty one.
    pub fn open(path: &Path) -> Result<(Self, Contents), OpenError> {
        let (disk, contents) = Self::open_any(path)?;
        let contents =
            contents.ok_or_else(|| OpenError::Broken("it holds nothing, not even a revision".into()))?;
        Ok((disk, contents))
    }

    /// The contents are none for a database that was never written.
    fn open_any(path: &Path) -> Result<(Self, Option<Contents>), OpenError> {
        let data = path.join("db");
        // A process that was killed leaves pages that only the kernel has. sled is about to write a summary of them
        // that it does sync: they go first.
        match File::open(&data) {
            Ok(file) => file.sync_all().map_err(unavailable("sync")).map_err(OpenError::Unavailable)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(OpenError::Unavailable(unavailable("open the database")(error))),
        }
        let opened = catch_unwind(AssertUnwindSafe(|| {
            // The writer flushes by itself; a timer of sled's own would only add writes.
            let db = sled::Config::new().path(path).flush_every_ms(None).cache_capacity(16 << 20).open();
            let db = db.map_err(open_error)?;
            let contents = read(&db)?;
            Ok((db, contents))
        }));
        let (db, contents) =
            opened.unwrap_or_else(|_| Err(OpenError::Broken("reading it made the engine give up".into())))?;
        let synced = || {
            let disk =
                Self { db: Some(db), file: File::open(&data).map_err(unavailable("open the database"))? };
            disk.sync()?;
            // The file's name must survive too.
            sync_dir(path)?;
            path.parent().map_or(Ok(()), sync_dir)?;
            Ok(disk)
        };
        Ok((synced().map_err(OpenError::Unavailable)?, contents))
    }

    fn db(&self) -> Result<&sled::Db, StoreError> {
        self.db.as_ref().ok_or_else(|| unavailable("write")("the database is closed"))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.db()?.flush().map_err(unavailable("flush"))?;
        self.file.sync_data().map_err(unavailable("sync"))
    }

    /// Writes a batch; durable when this returns. After an error this disk must not be used again; whether the next
    /// opening finds the batch is not known.
    pub fn write(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut writes = sled::Batch::default();
        for (key, bytes) in &batch.writes {
            match bytes {
                Some(bytes) => writes.insert(key.as_bytes(), bytes.as_slice()),
                None => writes.remove(key.as_bytes()),
            }
        }
        guarded("write", || {
            self.db()?.apply_batch(writes).map_err(unavailable("write"))?;
            self.sync()
        })
    }

    /// Makes a new database with these contents beside `path` and puts it into its place. Durable when this returns;
    /// cut short, [`Disk::settle`] finds the old one. `keep` names what becomes of the old one; without it, it goes.
    pub fn replace(path: &Path, contents: &Contents, keep: Option<&Path>) -> Result<Self, StoreError> {
        let next = beside(path, "next");
        remove(&next)?;
        let filled = Self::fill(&next, contents);
        if let Err(error) = filled {
            let _ = remove(&next);
            return Err(error);
        }
        let old = keep.map_or_else(|| beside(path, "old"), Path::to_owned);
        if path.exists() {
            if keep.is_none() {
                remove(&old)?;
            }
            std::fs::rename(path, &old).map_err(unavailable("put the old database aside"))?;
        }
        std::fs::rename(&next, path).map_err(unavailable("put the new database into place"))?;
        path.parent().map_or(Ok(()), sync_dir)?;
        if keep.is_none() && remove(&old).is_err() {
            tracing::warn!(path = %old.display(), "the old database stays until the next start");
        }
        let (disk, _) = Self::open(path).map_err(|error| unavailable("open the new database")(error))?;
        Ok(disk)
    }

    fn fill(path: &Path, contents: &Contents) -> Result<(), StoreError> {
        let (disk, _) = Self::open_any(path).map_err(|error| unavailable("make a new database")(error))?;
        let mut batch = Batch::default();
        batch.revision(contents.revision);
        contents.leases.iter().for_each(|(lease, ttl)| batch.lease(*lease, Some(*ttl)));
        for entry in contents.entries.values() {
            batch.event(&Event::Put(entry.clone()), contents.leased.get(&entry.key).copied());
            if batch.writes.len() >= FILL {
                disk.write(&std::mem::take(&mut batch))?;
            }
        }
        disk.write(&batch)
    }

    /// Ends what [`Disk::replace`] had begun when the process ended: an old database that has no successor goes back
    /// to its place, and drafts go.
    pub fn settle(path: &Path) -> Result<(), StoreError> {
        let old = beside(path, "old");
        if !path.exists() && old.exists() {
            std::fs::rename(&old, path).map_err(unavailable("put the old database back"))?;
        }
        remove(&old)?;
        remove(&beside(path, "next"))
    }
}

fn read(db: &sled::Db) -> Result<Option<Contents>, OpenError> {
    let broken = |what: &str, error: &dyn std::fmt::Display| OpenError::Broken(format!("{what}: {error}"));
    let number = |bytes: &[u8]| -> Result<u64, OpenError> {
        let text = String::from_utf8_lossy(bytes);
        text.parse().map_err(|error| broken(&format!("{text:?} should be a number"), &error))
    };
    let mut contents = Contents::default();
    let mut written = false;
    for item in db.iter() {
        let (key, bytes) = item.map_err(open_error)?;
        let key = String::from_utf8(key.to_vec()).map_err(|error| broken("a key", &error))?;
        if let Some(lease) = key.strip_prefix(LEASE) {
            contents.leases.insert(number(lease.as_bytes())?, Duration::from_millis(number(&bytes)?));
        } else if key == REVISION {
            contents.revision = number(&bytes)?;
            written = true;
        } else {
            let stored: Stored = serde_json::from_slice(&bytes).map_err(|error| broken(&key, &error))?;
            contents.leased.extend(stored.lease.map(|lease| (key.clone(), lease)));
            let Stored { value, version, modified, .. } = stored;
            contents.entries.insert(key.clone(), Entry { key, value, version, modified });
        }
    }
    Ok(written.then_some(contents))
}

pub fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(unavailable("sync the directory"))
}

/// `db` and `old`: `db.old`.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    path.with_added_extension(suffix)
}

fn remove(dir: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(unavailable("remove an old database")(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(n: u64) -> Contents {
        let entries = (0..n).map(|i| {
            let key = format!("/k/{i}");
            (key.clone(), Entry { key, value: i.into(), version: 2, modified: i })
        });
        let leases = [(7, Duration::from_millis(1_500))].into();
        Contents { entries: entries.collect(), revision: n, leases, leased: [("/k/0".to_owned(), 7)].into() }
    }

    #[test]
    fn a_replacement_cut_short_leaves_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let (old, new) = (contents(3), contents(1_200));
        drop(Disk::replace(&path, &old, None).unwrap());
        // Cut between the two renames.
        std::fs::rename(&path, beside(&path, "old")).unwrap();
        Disk::fill(&beside(&path, "next"), &new).unwrap();
        Disk::settle(&path).unwrap();
        assert_eq!(Disk::open(&path).unwrap().1, old);
        drop(Disk::replace(&path, &new, None).unwrap());
        Disk::settle(&path).unwrap();
        assert_eq!(Disk::open(&path).unwrap().1, new);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
