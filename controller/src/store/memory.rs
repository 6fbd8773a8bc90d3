//! The readable side of the embedded engine: entries, leases, history and watchers. Everything in here is durable
//! already: the writer publishes a commit only after the disk has it. So it is also what an export is made of.

use super::disk::{Contents, Kept};
use super::{Change, Entry, Event, LeaseId, Revision, StoreError, Watch};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Changes kept for watchers that come late or again.
pub const HISTORY: usize = 1_000;
/// Changes that wait for a slow watcher before it is told to list again.
pub const BACKLOG: usize = 1_024;

#[derive(Default)]
pub struct Memory {
    pub entries: BTreeMap<String, Kept>,
    pub revision: Revision,
    pub leases: BTreeMap<LeaseId, Lease>,
    leased: BTreeMap<String, LeaseId>,
    history: VecDeque<Arc<Change>>,
    /// The newest revision that is no longer in the history.
    compacted: Revision,
    watchers: Vec<Watcher>,
}

pub struct Lease {
    pub ttl: Duration,
    pub ends: Instant,
    pub keys: BTreeSet<String>,
}

/// What a commit does to the leases.
pub enum LeaseWork {
    Granted(LeaseId, Duration),
    Ended(LeaseId),
    /// The key belongs to this lease from now on, or to none.
    Bound(String, Option<LeaseId>),
}

struct Watcher {
    prefix: String,
    sender: mpsc::Sender<Result<Change, StoreError>>,
}

impl Memory {
    /// The world as read from disk; history begins here, and every lease begins anew.
    pub fn restored(contents: Contents) -> Self {
        let Contents { entries, revision, leases, leased } = contents;
        let mut memory = Self { entries, revision, compacted: revision, ..Self::default() };
        leases.into_iter().for_each(|(id, ttl)| memory.lease(LeaseWork::Granted(id, ttl)));
        leased.into_iter().for_each(|(key, id)| memory.lease(LeaseWork::Bound(key, Some(id))));
        memory
    }

    pub fn contents(&self) -> Contents {
        Contents {
            entries: self.entries.clone(),
            revision: self.revision,
            leases: self.leases.iter().map(|(id, lease)| (*id, lease.ttl)).collect(),
            leased: self.leased.clone(),
        }
    }

    pub fn version(&self, key: &str) -> u64 {
        self.entries.get(key).map_or(0, Kept::version)
    }

    pub fn alive(&self, lease: LeaseId) -> bool {
        self.leases.get(&lease).is_some_and(|lease| lease.ends > Instant::now())
    }

    pub fn range(&self, prefix: &str) -> Vec<Entry> {
        let from = self.entries.range(prefix.to_owned()..);
        from.take_while(|(key, _)| key.starts_with(prefix)).map(|(key, kept)| kept.entry(key)).collect()
    }

    pub fn lease(&mut self, work: LeaseWork) {
        match work {
            LeaseWork::Granted(id, ttl) => {
                self.leases.insert(id, Lease { ttl, ends: Instant::now() + ttl, keys: BTreeSet::new() });
            }
            LeaseWork::Ended(id) => {
                for key in self.leases.remove(&id).map(|lease| lease.keys).unwrap_or_default() {
                    self.leased.remove(&key);
                }
            }
            LeaseWork::Bound(key, owner) => {
                let before = self.leased.remove(&key).and_then(|id| self.leases.get_mut(&id));
                before.map(|lease| lease.keys.remove(&key));
                if let Some((id, lease)) = owner.and_then(|id| Some((id, self.leases.get_mut(&id)?))) {
                    lease.keys.insert(key.clone());
                    self.leased.insert(key, id);
                }
            }
        }
    }

    /// Takes a durable commit and tells the watchers, in order.
    pub fn publish(&mut self, change: Change) {
        self.revision = change.revision;
        for event in &change.events {
            match event {
                Event::Put(entry) => drop(self.entries.insert(entry.key.clone(), Kept::of(entry))),
                Event::Deleted { key } => drop(self.entries.remove(key)),
            }
        }
        self.watchers.retain(|watcher| watcher.tell(&change));
        self.history.push_back(Arc::new(change));
        while self.history.len() > HISTORY {
            if let Some(dropped) = self.history.pop_front() {
                self.compacted = dropped.revision;
            }
        }
    }

    pub fn watch(&mut self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        if after < self.compacted {
            return Err(StoreError::Compacted(self.compacted));
        }
        let missed: Vec<_> = self.history.iter().filter(|c| c.revision > after).cloned().collect();
        let (sender, receiver) = mpsc::channel(BACKLOG.max(missed.len()) + 1);
        let watcher = Watcher { prefix: prefix.to_owned(), sender };
        if missed.iter().all(|change| watcher.tell(change)) {
            self.watchers.push(watcher);
        }
        Ok(receiver)
    }
}

impl Watcher {
    /// False: the watcher is gone, or so slow that it was told to list again.
    fn tell(&self, change: &Change) -> bool {
        let concerns = |event: &&Event| match event {
            Event::Put(entry) => entry.key.starts_with(&self.prefix),
            Event::Deleted { key } => key.starts_with(&self.prefix),
        };
        let events: Vec<_> = change.events.iter().filter(concerns).cloned().collect();
        if events.is_empty() {
            return !self.sender.is_closed();
        }
        // The last place is kept for the word that says why the stream ends.
        if self.sender.capacity() <= 1 {
            let _ = self.sender.try_send(Err(StoreError::Compacted(change.revision)));
            return false;
        }
        self.sender.try_send(Ok(Change { revision: change.revision, events })).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: Revision) -> Change {
        let entry = Entry { key: "/k".into(), value: revision.into(), version: revision, modified: revision };
        Change { revision, events: vec![Event::Put(entry)] }
    }

    #[test]
    fn who_is_too_late_or_too_slow_is_told_to_list_again() {
        let mut memory = Memory::default();
        let mut slow = memory.watch("/", 0).unwrap();
        let newest = (HISTORY.max(BACKLOG) + 10) as u64;
        (1..=newest).for_each(|revision| memory.publish(change(revision)));
        let kept = newest - HISTORY as u64;
        assert_eq!(memory.watch("/", kept - 1).err(), Some(StoreError::Compacted(kept)));
        let mut late = memory.watch("/", kept).unwrap();
        for revision in kept + 1..=newest {
            assert_eq!(late.try_recv().unwrap(), Ok(change(revision)));
        }
        for revision in 1..=BACKLOG as u64 {
            assert_eq!(slow.try_recv().unwrap(), Ok(change(revision)));
        }
        assert_eq!(slow.try_recv().unwrap(), Err(StoreError::Compacted(BACKLOG as u64 + 1)));
        assert_eq!(slow.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
    }

    #[test]
    fn a_key_belongs_to_the_lease_that_was_named_last() {
        let mut memory = Memory::default();
        for id in [1, 2] {
            memory.lease(LeaseWork::Granted(id, Duration::from_secs(60)));
        }
        for owner in [Some(1), Some(2), None, Some(1)] {
            memory.lease(LeaseWork::Bound("/k".into(), owner));
            let held: Vec<_> =
                memory.leases.iter().filter(|(_, l)| l.keys.contains("/k")).map(|(id, _)| *id).collect();
            assert_eq!(held, owner.into_iter().collect::<Vec<_>>());
            assert_eq!(memory.contents().leased.get("/k").copied(), owner);
        }
        memory.lease(LeaseWork::Ended(1));
        assert!(memory.contents().leased.is_empty());
    }
}
