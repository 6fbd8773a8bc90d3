//! The embedded engine: sled for the disk, memory for reads, one writer between them.
//!
//! Commits queue up; the writer takes all that wait, checks each against the memory and the commits before it in the
//! batch, writes the batch, makes it durable, publishes it to the readers and watchers, and only then answers
//! (group commit: 16 writers share one sync). When the disk refuses, everybody in the batch is told so and the memory
//! stays where it was; the next batch first takes the failed one back.

use super::disk::{self, Batch, Disk};
use super::memory::{Lease, Memory};
use super::{Change, Entry, Event, LeaseId, Op, Revision, Store, StoreError, Txn, Watch, check};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Most commits that share one sync.
const BATCH: usize = 256;
/// Longest a call waits for the writer: a disk that takes longer is a broken disk.
const DEADLINE: Duration = Duration::from_secs(30);
/// How often ended leases are looked for.
const LEASE_TICK: Duration = Duration::from_millis(250);
/// An export follows this many commits, or this time after the first commit since the last one.
const EXPORT_COMMITS: u64 = 10_000;
const EXPORT_AFTER: Duration = Duration::from_secs(300);

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

enum Command {
    Commit(Txn, Answer<Revision>),
    Grant(Duration, Answer<LeaseId>),
    Revoke(LeaseId, Answer<()>),
    Stop,
}

/// The embedded store. Clones share it.
pub struct SledStore {
    memory: Arc<RwLock<Memory>>,
    commands: mpsc::Sender<Command>,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl SledStore {
    /// Opens `dir/db`, makes it when it is new. A database that cannot be read is kept aside and rebuilt from
    /// `dir/export.jsonl`, loudly: what was committed after that export is lost.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let unavailable =
            |doing| move |e: std::io::Error| StoreError::Unavailable { doing, message: e.to_string() };
        std::fs::create_dir_all(dir).map_err(unavailable("make the directory"))?;
        let (database, export) = (dir.join("db"), dir.join("export.jsonl"));
        let opened = Disk::open(&database).and_then(|disk| disk.read().map(|contents| (disk, contents)));
        let (disk, contents) = match opened {
            Ok(opened) => opened,
            // Only a database that is there and unreadable is replaced; one that another process holds is not.
            Err(error) if export.exists() && !held_elsewhere(&error) => {
                let kept =
                    disk::put_aside(&database).map_err(unavailable("put the broken database aside"))?;
                let (entries, revision) = disk::import(&export).map_err(unavailable("read the export"))?;
                tracing::error!(%error, kept = %kept.display(), revision,
                    "the database could not be opened and was rebuilt from its last export; later commits are lost");
                rebuild(&database, entries, revision)?
            }
            Err(error) => return Err(error),
        };
        let mut memory = Memory::restored(contents.entries, contents.revision);
        let now = Instant::now();
        for (id, ttl) in contents.leases {
            memory.leases.insert(id, Lease { ttl, ends: now + ttl, keys: Default::default() });
        }
        for (key, lease) in contents.leased {
            if let Some(lease) = memory.leases.get_mut(&lease) {
                lease.keys.insert(key);
            }
        }
        let memory = Arc::new(RwLock::new(memory));
        let (commands, queue) = mpsc::channel();
        let mut writer = Writer { disk, memory: memory.clone(), export, unexported: 0, export_due: None };
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(&queue))
            .map_err(unavailable("start the writer"))?;
        Ok(Self { memory, commands, writer: Some(writer) })
    }

    fn read(&self) -> RwLockReadGuard<'_, Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Memory> {
        self.memory.write().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask<T>(&self, make: impl FnOnce(Answer<T>) -> Command) -> Result<T, StoreError> {
        let gone = || StoreError::Unavailable { doing: "commit", message: "the writer has ended".into() };
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

impl Drop for SledStore {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn held_elsewhere(error: &StoreError) -> bool {
    error.to_string().contains("could not acquire lock")
}

fn rebuild(
    database: &Path,
    entries: Vec<Entry>,
    revision: Revision,
) -> Result<(Disk, disk::Contents), StoreError> {
    let mut disk = Disk::open(database)?;
    let mut batch = Batch::default();
    batch.revision(revision);
    for entry in &entries {
        batch.event(&Event::Put(entry.clone()), None)?;
    }
    disk.write(&batch)?;
    let contents = disk.read()?;
    Ok((disk, contents))
}

#[async_trait]
impl Store for SledStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.read().entries.get(key).cloned())
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
        self.ask(|answer| Command::Grant(ttl, answer)).await
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let mut memory = self.write();
        let held = memory.leases.get_mut(&lease).ok_or(StoreError::NoLease(lease))?;
        if held.ends <= Instant::now() {
            return Err(StoreError::NoLease(lease));
        }
        held.ends = Instant::now() + held.ttl;
        Ok(())
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|answer| Command::Revoke(lease, answer)).await
    }
}

struct Writer {
    disk: Disk,
    memory: Arc<RwLock<Memory>>,
    export: PathBuf,
    unexported: u64,
    export_due: Option<Instant>,
}

/// What a batch will do, before it is durable. Later commits of the batch see the earlier ones.
#[derive(Default)]
struct Pending {
    batch: Batch,
    changes: Vec<Change>,
    versions: BTreeMap<String, u64>,
    leases: Vec<LeaseWork>,
    answers: Vec<Box<dyn FnOnce(Result<(), StoreError>) + Send>>,
}

enum LeaseWork {
    Granted(LeaseId, Duration),
    Ended(LeaseId),
    /// The key belongs to this lease from now on, or to none.
    Bound(String, Option<LeaseId>),
}

impl Writer {
    fn run(&mut self, queue: &mpsc::Receiver<Command>) {
        loop {
            let first = match queue.recv_timeout(LEASE_TICK) {
                Ok(command) => Some(command),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            };
            let mut pending = Pending::default();
            let mut stop = false;
            let rest = std::iter::from_fn(|| queue.try_recv().ok()).take(BATCH - 1);
            for command in first.into_iter().chain(rest) {
                match command {
                    Command::Stop => stop = true,
                    command => self.consider(command, &mut pending),
                }
            }
            self.end_leases(&mut pending);
            self.finish(pending);
            self.export_if_due(stop);
            if stop {
                return;
            }
        }
    }

    fn memory(&self) -> RwLockReadGuard<'_, Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn consider(&mut self, command: Command, pending: &mut Pending) {
        match command {
            Command::Commit(txn, answer) => match self.stage(txn, pending) {
                Ok(revision) => pending.answers.push(Box::new(move |written| {
                    let _ = answer.send(written.map(|()| revision));
                })),
                Err(error) => drop(answer.send(Err(error))),
            },
            Command::Grant(ttl, answer) => {
                let lease = uuid::Uuid::new_v4().as_u64_pair().0 >> 1;
                pending.batch.lease(lease, Some(ttl));
                pending.leases.push(LeaseWork::Granted(lease, ttl));
                pending.answers.push(Box::new(move |written| {
                    let _ = answer.send(written.map(|()| lease));
                }));
            }
            Command::Revoke(lease, answer) => {
                if !self.memory().leases.contains_key(&lease) {
                    let _ = answer.send(Err(StoreError::NoLease(lease)));
                    return;
                }
                self.end_lease(lease, pending);
                pending.answers.push(Box::new(move |written| drop(answer.send(written))));
            }
            Command::Stop => {}
        }
    }

    /// Adds one transaction to the batch, or says why not.
    fn stage(&self, txn: Txn, pending: &mut Pending) -> Result<Revision, StoreError> {
        let memory = self.memory();
        let version = |key: &str| pending.versions.get(key).copied().unwrap_or_else(|| memory.version(key));
        check::compares_hold(&txn.compares, version)?;
        let present = pending.changes.last().map_or(memory.revision, |c| c.revision);
        let mut leases = Vec::new();
        for op in &txn.ops {
            if let Op::Put { key, lease, .. } = op {
                if let Some(lease) = lease
                    && !memory.leases.get(lease).is_some_and(|l| l.ends > Instant::now())
                {
                    return Err(StoreError::NoLease(*lease));
                }
                leases.push((key.clone(), *lease));
            }
        }
        let revision = present + 1;
        let events = check::events(&txn.ops, revision, version);
        if events.is_empty() {
            return Ok(present);
        }
        drop(memory);
        for event in &events {
            let (key, version) = match event {
                Event::Put(entry) => (&entry.key, entry.version),
                Event::Deleted { key } => (key, 0),
            };
            let lease = leases.iter().find(|(k, _)| k == key).and_then(|(_, lease)| *lease);
            pending.batch.event(event, lease)?;
            pending.versions.insert(key.clone(), version);
            pending.leases.push(LeaseWork::Bound(key.clone(), lease));
        }
        pending.batch.revision(revision);
        pending.changes.push(Change { revision, events });
        Ok(revision)
    }

    fn end_leases(&mut self, pending: &mut Pending) {
        let now = Instant::now();
        let ended: Vec<_> =
            self.memory().leases.iter().filter(|(_, l)| l.ends <= now).map(|(id, _)| *id).collect();
        for lease in ended {
            self.end_lease(lease, pending);
        }
    }

    fn end_lease(&self, lease: LeaseId, pending: &mut Pending) {
        let keys: Vec<String> =
            self.memory().leases.get(&lease).map(|l| l.keys.iter().cloned().collect()).unwrap_or_default();
        let ops = keys.into_iter().map(|key| Op::Delete { key }).collect();
        if let Err(error) = self.stage(Txn { compares: vec![], ops }, pending) {
            tracing::error!(lease, %error, "the keys of an ended lease cannot be deleted");
            return;
        }
        pending.batch.lease(lease, None);
        pending.leases.push(LeaseWork::Ended(lease));
    }

    fn finish(&mut self, pending: Pending) {
        let written = if pending.batch.is_empty() { Ok(()) } else { self.disk.write(&pending.batch) };
        if let Err(error) = &written {
            tracing::error!(%error, commits = pending.changes.len(), "a batch was not written");
        } else {
            self.unexported += pending.changes.len() as u64;
            let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
            for work in pending.leases {
                memory.apply_lease(work);
            }
            for change in pending.changes {
                memory.publish(change);
            }
        }
        for answer in pending.answers {
            answer(written.clone());
        }
    }

    fn export_if_due(&mut self, now: bool) {
        if self.unexported == 0 {
            return;
        }
        let due = *self.export_due.get_or_insert_with(|| Instant::now() + EXPORT_AFTER);
        if !now && self.unexported < EXPORT_COMMITS && Instant::now() < due {
            return;
        }
        let written = {
            let memory = self.memory();
            disk::export(&self.export, &memory.entries, memory.revision)
        };
        match written {
            Ok(()) => self.unexported = 0,
            Err(error) => tracing::error!(%error, "the export could not be written; it is tried again"),
        }
        self.export_due = None;
    }
}

impl Memory {
    fn apply_lease(&mut self, work: LeaseWork) {
        match work {
            LeaseWork::Granted(id, ttl) => {
                self.leases.insert(id, Lease { ttl, ends: Instant::now() + ttl, keys: Default::default() });
            }
            LeaseWork::Ended(id) => drop(self.leases.remove(&id)),
            LeaseWork::Bound(key, owner) => {
                for lease in self.leases.values_mut() {
                    lease.keys.remove(&key);
                }
                if let Some(lease) = owner.and_then(|id| self.leases.get_mut(&id)) {
                    lease.keys.insert(key);
                }
            }
        }
    }
}
