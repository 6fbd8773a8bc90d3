//! The one writer of the embedded engine. Commits queue up; the writer takes all that wait, checks each against the
//! memory and the commits before it in the batch, writes the batch, makes it durable, publishes it to readers and
//! watchers, and only then answers (group commit: 16 writers share one sync).
//!
//! When the disk refuses, everybody in the batch is told so and the memory stays where it was: what was acknowledged
//! and nothing else; reads go on. Without space, the next batch is simply tried; after an I/O error everything is
//! refused until the store is opened anew. A batch that was refused may then be found, but one that was acknowledged
//! is never lost.

use super::disk::{Batch, Disk};
use super::memory::{LeaseWork, Memory};
use super::{Change, Event, LeaseId, Op, Revision, StoreError, Txn, check, export};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Most commits that share one sync.
const BATCH: usize = 256;
/// How often ended leases are looked for.
const LEASE_TICK: Duration = Duration::from_millis(250);
/// An export follows this many commits, or this time after the first commit since the last one.
const EXPORT_COMMITS: u64 = 10_000;
const EXPORT_AFTER: Duration = Duration::from_secs(300);
/// Between two exports, also after a failed one.
const EXPORT_PAUSE: Duration = Duration::from_secs(30);

pub type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

pub enum Command {
    Commit(Txn, Answer<Revision>),
    Grant(Duration, Answer<LeaseId>),
    Revoke(LeaseId, Answer<()>),
    Stop,
}

pub struct Writer {
    disk: Disk,
    /// The last batch was refused; said in the log once.
    refusing: bool,
    memory: Arc<RwLock<Memory>>,
    export: Export,
    failure: watch::Sender<Option<StoreError>>,
    #[cfg(debug_assertions)]
    trap: super::trap::Trap,
    _lock: File,
}

/// What a batch will do, before it is durable. Later commits of the batch see the earlier ones.
#[derive(Default)]
struct Pending {
    batch: Batch,
    changes: Vec<Change>,
    versions: BTreeMap<String, u64>,
    leases: Vec<LeaseWork>,
    bound: BTreeMap<String, Option<LeaseId>>,
    ended: BTreeSet<LeaseId>,
    answers: Vec<Settle>,
}

/// Gives an answer, knowing whether the batch was written.
type Settle = Box<dyn FnOnce(&Result<(), StoreError>)>;

impl Pending {
    /// Answers once the batch is durable. That goes for refusals too: a conflict with a commit of the same batch is
    /// none if that commit does not come to be.
    fn settle<T: Send + 'static>(&mut self, answer: Answer<T>, outcome: Result<T, StoreError>) {
        self.answers.push(Box::new(move |written| {
            let _ = answer.send(written.clone().and(outcome));
        }));
    }
}

impl Writer {
    /// `failure` is told when this disk will never take a batch again.
    pub fn new(
        disk: Disk,
        memory: Arc<RwLock<Memory>>,
        export: PathBuf,
        lock: File,
        failure: watch::Sender<Option<StoreError>>,
    ) -> Self {
        let export = Export { path: export, unexported: 0, since: None, not_before: None, under_way: None };
        Self {
            disk,
            refusing: false,
            memory,
            export,
            failure,
            #[cfg(debug_assertions)]
            trap: super::trap::Trap::from_env(),
            _lock: lock,
        }
    }

    /// Until the last sender is gone or a stop comes; then all that waits is written first.
    pub fn run(&mut self, queue: &mpsc::Receiver<Command>) {
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
                stop |= matches!(command, Command::Stop);
                self.consider(command, &mut pending);
            }
            self.end_leases(&mut pending);
            self.finish(pending);
            self.export.go_on(&self.memory, stop);
            if stop {
                return;
            }
        }
    }

    fn memory(&self) -> RwLockReadGuard<'_, Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn consider(&self, command: Command, pending: &mut Pending) {
        match command {
            Command::Commit(txn, answer) => {
                let outcome = self.stage(&txn, pending);
                pending.settle(answer, outcome);
            }
            Command::Grant(ttl, answer) => {
                let lease = uuid::Uuid::new_v4().as_u64_pair().0 >> 1;
                pending.batch.lease(lease, Some(ttl));
                pending.leases.push(LeaseWork::Granted(lease, ttl));
                pending.settle(answer, Ok(lease));
            }
            Command::Revoke(lease, answer) => {
                let there = self.memory().leases.contains_key(&lease) && !pending.ended.contains(&lease);
                if there {
                    self.end_lease(lease, pending);
                }
                pending.settle(answer, if there { Ok(()) } else { Err(StoreError::NoLease(lease)) });
            }
            Command::Stop => {}
        }
    }

    /// Adds one transaction to the batch, or says why not.
    fn stage(&self, txn: &Txn, pending: &mut Pending) -> Result<Revision, StoreError> {
        let memory = self.memory();
        let version = |key: &str| pending.versions.get(key).copied().unwrap_or_else(|| memory.version(key));
        check::compares_hold(&txn.compares, version)?;
        let mut leases = BTreeMap::new();
        for op in &txn.ops {
            if let Op::Put { key, lease: Some(lease), .. } = op {
                if !memory.alive(*lease) || pending.ended.contains(lease) {
                    return Err(StoreError::NoLease(*lease));
                }
                leases.insert(key.as_str(), *lease);
            }
        }
        let present = pending.changes.last().map_or(memory.revision, |change| change.revision);
        let revision = present + 1;
        let events = check::events(&txn.ops, revision, version);
        drop(memory);
        if events.is_empty() {
            return Ok(present);
        }
        for event in &events {
            let (key, version) = match event {
                Event::Put(entry) => (&entry.key, entry.version),
                Event::Deleted { key } => (key, 0),
            };
            let lease = leases.get(key.as_str()).copied();
            pending.batch.event(event, lease);
            pending.versions.insert(key.clone(), version);
            pending.bound.insert(key.clone(), lease);
            pending.leases.push(LeaseWork::Bound(key.clone(), lease));
        }
        pending.batch.revision(revision);
        pending.changes.push(Change { revision, events });
        Ok(revision)
    }

    fn end_leases(&self, pending: &mut Pending) {
        let now = Instant::now();
        let memory = self.memory();
        let ended =
            memory.leases.iter().filter(|(id, lease)| lease.ends <= now && !pending.ended.contains(id));
        let ended: Vec<_> = ended.map(|(id, _)| *id).collect();
        drop(memory);
        ended.into_iter().for_each(|lease| self.end_lease(lease, pending));
    }

    /// Deletes the keys that the lease has now, with all that came before in this batch.
    fn end_lease(&self, lease: LeaseId, pending: &mut Pending) {
        let mut keys: BTreeSet<String> =
            self.memory().leases.get(&lease).map(|l| l.keys.clone()).unwrap_or_default();
        for (key, owner) in &pending.bound {
            if *owner == Some(lease) {
                keys.insert(key.clone())
            } else {
                keys.remove(key)
            };
        }
        let ops = keys.into_iter().map(|key| Op::Delete { key }).collect();
        // Nothing is compared and no lease is named: this has nothing to refuse.
        let _ = self.stage(&Txn { compares: vec![], ops }, pending);
        pending.ended.insert(lease);
        pending.batch.lease(lease, None);
        pending.leases.push(LeaseWork::Ended(lease));
    }

    fn finish(&mut self, mut pending: Pending) {
        let written =
            if pending.batch.is_empty() { Ok(()) } else { self.write(std::mem::take(&mut pending.batch)) };
        if written.is_ok() {
            self.export.unexported += pending.changes.len() as u64;
            let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
            pending.leases.into_iter().for_each(|work| memory.lease(work));
            pending.changes.into_iter().for_each(|change| memory.publish(change));
        }
        for answer in pending.answers {
            answer(&written);
        }
    }

    fn write(&mut self, batch: Batch) -> Result<(), StoreError> {
        #[cfg(debug_assertions)]
        let keys = self.trap.before(&batch);
        let written = self.disk.write(batch);
        #[cfg(debug_assertions)]
        self.trap.after(keys);
        match (&written, std::mem::replace(&mut self.refusing, written.is_err())) {
            (Err(error), false) => tracing::error!(%error, "the store refuses commits"),
            (Ok(()), true) => tracing::warn!("the store takes commits again"),
            _ => {}
        }
        if let (Err(error), true) = (&written, self.disk.has_failed()) {
            self.failure.send_if_modified(|told| told.replace(error.clone()).is_none());
        }
        written
    }
}

/// The periodic export, in a thread of its own so that no commit waits for it.
struct Export {
    path: PathBuf,
    /// Commits since the last good one.
    unexported: u64,
    /// When the oldest of them was first seen here.
    since: Option<Instant>,
    not_before: Option<Instant>,
    under_way: Option<(std::thread::JoinHandle<bool>, u64)>,
}

impl Export {
    fn due(&mut self) -> bool {
        let now = Instant::now();
        if self.unexported == 0 || self.under_way.is_some() || self.not_before.is_some_and(|t| now < t) {
            return false;
        }
        let since = *self.since.get_or_insert(now);
        self.unexported >= EXPORT_COMMITS || now >= since + EXPORT_AFTER
    }

    /// Begins an export when one is due. `last`: the store closes, whatever is new is exported before this returns.
    fn go_on(&mut self, memory: &RwLock<Memory>, last: bool) {
        if let Some((thread, commits)) = self.under_way.take_if(|(thread, _)| last || thread.is_finished()) {
            if !thread.join().unwrap_or(false) {
                self.unexported += commits;
            }
            self.not_before = Some(Instant::now() + EXPORT_PAUSE);
        }
        let due = if last { self.unexported > 0 } else { self.due() };
        if !due {
            return;
        }
        let contents = memory.read().unwrap_or_else(PoisonError::into_inner).contents();
        let path = self.path.clone();
        let write = move || {
            let written = export::write(&path, &contents);
            written.inspect_err(|error| tracing::error!(%error, "the export could not be written")).is_ok()
        };
        self.since = None;
        if last {
            write();
            return;
        }
        match std::thread::Builder::new().name("store-export".into()).spawn(write) {
            Ok(thread) => self.under_way = Some((thread, std::mem::take(&mut self.unexported))),
            Err(error) => {
                tracing::error!(%error, "the export has no thread");
                self.not_before = Some(Instant::now() + EXPORT_PAUSE);
            }
        }
    }
}
