//! The durable side of the embedded engine, as the writer sees it: a database that is born whole, read whole, written
//! in batches, and closed. What sled needs to survive a power cut is in [`super::engine`].
//!
//! Refuses to fill the file system to the brim: sled was seen to wait for ever on a full disk, holding locks of the whole
//! process. So room is looked for before every batch, and refused without it. Refuses to be used again after a write
//! that failed all the same: sled poisons itself then, and after a failed fsync the kernel takes the lost pages for
//! clean, so no later sync proves anything. Opening anew is what helps: it reads what the disk really has.

use super::engine::{Engine, LEASE, REVISION, Stored};
use super::{Entry, Event, LeaseId, Revision, StoreError};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Records per write while a new database is filled.
const FILL: usize = 500;

/// What a store holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    pub entries: BTreeMap<String, Kept>,
    pub revision: Revision,
    pub leases: BTreeMap<LeaseId, Duration>,
    /// The lease of each key that has one.
    pub leased: BTreeMap<String, LeaseId>,
}

/// An entry beside its key, as it is held for good: its value is text, which takes a tenth of the tree that it is read
/// into, and is shared with whoever copies the whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    value: Arc<[u8]>,
    version: u64,
    modified: Revision,
}

impl Kept {
    pub fn of(entry: &Entry) -> Self {
        // A JSON value whose keys are strings: this cannot fail.
        let value = serde_json::to_vec(&entry.value).unwrap_or_default();
        Self { value: value.into(), version: entry.version, modified: entry.modified }
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn entry(&self, key: &str) -> Entry {
        // Written by `of`, never by anybody else: it can be read.
        let value = serde_json::from_slice(&self.value).unwrap_or_default();
        Entry { key: key.to_owned(), value, version: self.version, modified: self.modified }
    }
}

/// A write of one batch.
#[derive(Default)]
pub struct Batch {
    writes: Writes,
}

/// What a key shall hold; none: the key goes.
pub type Writes = BTreeMap<String, Option<Vec<u8>>>;

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

    /// Its keys, each with the `phase` of its record if that has one: `KEY=PHASE`.
    #[cfg(debug_assertions)]
    pub fn phases(&self) -> impl Iterator<Item = String> {
        self.writes.iter().map(|(key, value)| {
            let stored = value.as_ref().and_then(|bytes| serde_json::from_slice::<Stored>(bytes).ok());
            let phase = stored.as_ref().and_then(|stored| stored.value["phase"].as_str());
            phase.map_or_else(|| key.clone(), |phase| format!("{key}={phase}"))
        })
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

const FAILED: &str = "the database has failed; start again once the disk is well";
/// Free space that is left to the file system, in bytes: far more than sled takes in one batch.
const ROOM: u64 = 16 << 20;
/// sled in a thread of its own: it asserts where a disk can fail, and on a full disk it was seen to wait for ever.
/// Then the thread is left behind, with its database.
pub struct Disk {
    path: PathBuf,
    jobs: Option<mpsc::Sender<Job>>,
    /// Hangs up when the thread has closed the database.
    closed: mpsc::Receiver<()>,
}

pub struct Job(pub Writes, pub mpsc::Sender<Result<(), StoreError>>);

/// Longest that one batch, or closing, may take.
const WRITE: Duration = Duration::from_secs(20);
/// Longest that reading a whole database may take.
const OPEN: Duration = Duration::from_secs(300);

impl Drop for Disk {
    fn drop(&mut self) {
        if self.jobs.take().is_some() {
            let _ = self.closed.recv_timeout(WRITE);
        }
    }
}

impl Disk {
    /// Opens the database directory `path`, which [`Disk::replace`] has made, and reads all of it. An unreadable
    /// record fails the whole: half a world is worse than none. So does a database without a revision: sled takes a
    /// file that it cannot read for an empty one.
    pub fn open(path: &Path) -> Result<(Self, Contents), OpenError> {
        let (disk, contents) = Self::start(path)?;
        let contents =
            contents.ok_or_else(|| OpenError::Broken("it holds nothing, not even a revision".into()))?;
        Ok((disk, contents))
    }

    /// The contents are none for a database that was never written.
    fn start(path: &Path) -> Result<(Self, Option<Contents>), OpenError> {
        let unavailable = |message: &str| OpenError::Unavailable(unavailable("open the database")(message));
        has_room(path, 0).map_err(OpenError::Unavailable)?;
        let (jobs, queue) = mpsc::channel();
        let (closing, closed) = mpsc::channel();
        let (ready, opened) = mpsc::channel();
        let opening = path.to_owned();
        let work = move || {
            // Dropped last, also when sled panics.
            let _closing: mpsc::Sender<()> = closing;
            match Engine::open(&opening) {
                Ok((engine, contents)) => {
                    if ready.send(Ok(contents)).is_ok() {
                        engine.work(&queue);
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        };
        let thread = std::thread::Builder::new().name("store-disk".into()).spawn(work);
        thread.map_err(|error| unavailable(&error.to_string()))?;
        let contents = match opened.recv_timeout(OPEN) {
            Ok(opened) => opened?,
            Err(mpsc::RecvTimeoutError::Timeout) => return Err(unavailable("it took too long")),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(OpenError::Broken("reading it made the engine give up".into()));
            }
        };
        Ok((Self { path: path.to_owned(), jobs: Some(jobs), closed }, contents))
    }

    /// Writes a batch; durable when this returns. For want of space it is refused before anything is done. After any
    /// other error this disk refuses everything; whether the next opening finds the batch is not known.
    pub fn write(&mut self, batch: Batch) -> Result<(), StoreError> {
        let size =
            batch.writes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum();
        has_room(&self.path, size)?;
        let (answer, answered) = mpsc::channel();
        let gone = |_| unavailable("write")("the engine gave up");
        let jobs = self.jobs.as_ref().ok_or_else(|| unavailable("write")(FAILED))?;
        let asked = jobs.send(Job(batch.writes, answer)).map_err(|e| gone(e.to_string()));
        let written = asked.and_then(|()| match answered.recv_timeout(WRITE) {
            Ok(written) => written,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(unavailable("write")("the disk took too long")),
            Err(error) => Err(gone(error.to_string())),
        });
        if written.is_err() {
            self.jobs = None;
        }
        written
    }

    /// Whether it refuses everything from now on.
    pub fn has_failed(&self) -> bool {
        self.jobs.is_none()
    }

    /// Makes a new database with these contents beside `path` and puts it into its place. Durable when this returns;
    /// cut short, [`Disk::settle`] finds the old one. `keep` names what becomes of the old one; without it, it goes.
    pub fn replace(path: &Path, contents: &Contents, keep: Option<&Path>) -> Result<Self, StoreError> {
        let next = beside(path, "next");
        remove(&next)?;
        let filled = Self::fill(&next, contents);
        // Closed before it moves: sled knows its directory by name.
        drop(filled.inspect_err(|_| drop(remove(&next)))?);
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

    fn fill(path: &Path, contents: &Contents) -> Result<Self, StoreError> {
        let (mut disk, _) = Self::start(path).map_err(|error| unavailable("make a new database")(error))?;
        let mut batch = Batch::default();
        batch.revision(contents.revision);
        contents.leases.iter().for_each(|(lease, ttl)| batch.lease(*lease, Some(*ttl)));
        for (key, kept) in &contents.entries {
            batch.event(&Event::Put(kept.entry(key)), contents.leased.get(key).copied());
            if batch.writes.len() >= FILL {
                disk.write(std::mem::take(&mut batch))?;
            }
        }
        disk.write(batch)?;
        Ok(disk)
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

/// Whether these bytes can be written with room to spare; sled writes some of them more than once.
fn has_room(path: &Path, bytes: usize) -> Result<(), StoreError> {
    let parent = path.parent().unwrap_or(path);
    let stat = nix::sys::statvfs::statvfs(parent).map_err(unavailable("look for free space"))?;
    let free = stat.blocks_available() * stat.fragment_size();
    let needed = ROOM + 4 * bytes as u64;
    if free < needed {
        let (free, needed) = (free >> 20, needed >> 20);
        return Err(unavailable("write")(format!(
            "{free} MiB are free on the file system of {}, {needed} MiB are needed",
            path.display()
        )));
    }
    Ok(())
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
            (key.clone(), Kept::of(&Entry { key, value: i.into(), version: 2, modified: i }))
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
