//! The embedded engine: sled for the disk, memory for reads, one writer between them ([`super::writer`]).
//!
//! Owns a directory: `lock`, `db/` (sled), `export.jsonl`. Refuses a directory that another process holds, and refuses
//! to begin anew where there was something: a database that is broken or gone is made again from the export, loudly.

use super::disk::{Contents, Disk, OpenError, beside, sync_dir, unavailable};
use super::memory::Memory;
use super::writer::{Answer, Command, Writer};
use super::{Entry, LeaseId, Revision, Store, StoreError, Txn, Watch, check, export};
use async_trait::async_trait;
use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Longest a call waits for the writer: a disk that takes longer is a broken disk.
const DEADLINE: Duration = Duration::from_secs(30);
/// A longer lease is a mistake.
const TTL_MAX: Duration = Duration::from_secs(366 * 86_400);
/// How far the revision leaps when a store is made again from its export. Revisions stamp what leaves the store
/// (generations of desired states), so one that was given out before must never come again.
const LEAP: Revision = 1 << 32;

/// The embedded store. Dropping it ends the writer, once all that waits is written.
pub struct SledStore {
    memory: Arc<RwLock<Memory>>,
    commands: mpsc::Sender<Command>,
    /// Why nothing is committed any more.
    failure: watch::Receiver<Option<StoreError>>,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl SledStore {
    /// Opens `dir/db`, makes it when it is new. Blocks for as long as reading all of it takes.
    ///
    /// A database that cannot be read is kept aside as `db.broken-TIME` and made again from `dir/export.jsonl`: what
    /// was committed after that export is lost, the log says so, and the revision leaps ahead of any that was given
    /// out. An opening that fails for want of space or permission, or by an I/O error, changes nothing.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(unavailable("make the directory"))?;
        dir.parent().filter(|p| !p.as_os_str().is_empty()).map_or(Ok(()), sync_dir)?;
        let lock = File::create(dir.join("lock")).map_err(unavailable("open the lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                unavailable("open")(format!("another process has {} open", dir.display()))
            }
            TryLockError::Error(error) => unavailable("lock")(error),
        })?;
        let (database, export) = (dir.join("db"), dir.join("export.jsonl"));
        Disk::settle(&database)?;
        let opened = open_database(&database, &export);
        let (disk, contents) = match opened {
            Ok(opened) => opened,
            Err(OpenError::Unavailable(error)) => return Err(error),
            Err(OpenError::Broken(message)) if !export.exists() => {
                return Err(StoreError::Unavailable { doing: "read the database", message });
            }
            Err(OpenError::Broken(message)) => {
                let mut contents = export::read(&export).map_err(unavailable("read the export"))?;
                tracing::error!(
                    reason = message,
                    revision = contents.revision,
                    "the database cannot be read; it is made again from its last export, later commits are lost"
                );
                contents.revision += LEAP;
                let time = jiff::Timestamp::now().as_millisecond();
                let kept = beside(&database, &format!("broken-{time}"));
                (Disk::replace(&database, &contents, Some(&kept))?, contents)
            }
        };
        let memory = Arc::new(RwLock::new(Memory::restored(contents)));
        let (commands, queue) = mpsc::channel();
        let (told, failure) = watch::channel(None);
        let mut writer = Writer::new(disk, memory.clone(), export, lock, told);
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(&queue))
            .map_err(unavailable("start the writer"))?;
        Ok(Self { memory, commands, failure, writer: Some(writer) })
    }

    fn read(&self) -> RwLockReadGuard<'_, Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Memory> {
        self.memory.write().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask<T>(&self, make: impl FnOnce(Answer<T>) -> Command) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(make(answer)).map_err(|_| gone())?;
        match tokio::time::timeout(DEADLINE, answered).await {
            Ok(answer) => answer.map_err(|_| gone())?,
            Err(_) => Err(StoreError::Unavailable {
                doing: "commit",
                message: format!(
                    "the disk took longer than {} s; whether it was written is not known",
                    DEADLINE.as_secs()
                ),
            }),
        }
    }
}

/// The writer ends with the store, or by a panic.
fn gone() -> StoreError {
    StoreError::Unavailable { doing: "commit", message: "the writer has ended".into() }
}

/// A database is born whole, by a rename, so that one without contents is known to be broken; one that is behind its
/// own export has lost something.
fn open_database(database: &Path, export: &Path) -> Result<(Disk, Contents), OpenError> {
    let broken = |what: &str| Err(OpenError::Broken(what.to_owned()));
    match (database.exists(), export.exists()) {
        (false, true) => broken("it is gone, though an export of it is there"),
        (false, false) => {
            let contents = Contents::default();
            Ok((Disk::replace(database, &contents, None).map_err(OpenError::Unavailable)?, contents))
        }
        (true, exported) => {
            let (disk, contents) = Disk::open(database)?;
            // An export that cannot be read says nothing about the database.
            if exported && export::revision(export).is_ok_and(|exported| exported > contents.revision) {
                return broken("it is behind its own export");
            }
            Ok((disk, contents))
        }
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

#[async_trait]
impl Store for SledStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.read().entries.get(key).map(|kept| kept.entry(key)))
    }

    async fn range(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), StoreError> {
        let memory = self.read();
        Ok((memory.range(prefix), memory.revision))
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError> {
        check::well_formed(&txn)?;
        self.ask(|answer| Command::Commit(txn, answer)).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.write().watch(prefix, after)
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        if ttl.is_zero() || ttl > TTL_MAX {
            return Err(StoreError::Invalid(format!("a lease of {ttl:?}: more than none, at most a year")));
        }
        self.ask(|answer| Command::Grant(ttl, answer)).await
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let mut memory = self.write();
        // One that has ended stays ended, even while its keys are still being deleted.
        let now = Instant::now();
        let held = memory.leases.get_mut(&lease).filter(|held| held.ends > now);
        let held = held.ok_or(StoreError::NoLease(lease))?;
        held.ends = now + held.ttl;
        Ok(())
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|answer| Command::Revoke(lease, answer)).await
    }

    async fn failed(&self) -> StoreError {
        let mut failure = self.failure.clone();
        let told = failure.wait_for(Option::is_some).await;
        told.ok().and_then(|failure| failure.clone()).unwrap_or_else(gone)
    }
}
