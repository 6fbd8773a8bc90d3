//! The readable side of the embedded engine: entries, history and watchers. Everything in here is durable already: the
//! writer publishes a commit only after the disk has it.

use super::{Change, Entry, Event, LeaseId, Revision, StoreError, Watch};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Changes kept for watchers that come late or again.
const HISTORY: usize = 10_000;
/// Changes that wait for a slow watcher before it is told to list again.
const BACKLOG: usize = 4_096;

#[derive(Default)]
pub struct Memory {
    pub entries: BTreeMap<String, Entry>,
    pub revision: Revision,
    pub leases: BTreeMap<LeaseId, Lease>,
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

struct Watcher {
    prefix: String,
    sender: mpsc::Sender<Result<Change, StoreError>>,
}

impl Memory {
    /// The world as read from disk; history begins here.
    pub fn restored(entries: BTreeMap<String, Entry>, revision: Revision) -> Self {
        Self { entries, revision, compacted: revision, ..Self::default() }
    }

    pub fn version(&self, key: &str) -> u64 {
        self.entries.get(key).map_or(0, |e| e.version)
    }

    pub fn range(&self, prefix: &str) -> Vec<Entry> {
        let from = self.entries.range(prefix.to_owned()..);
        from.take_while(|(key, _)| key.starts_with(prefix)).map(|(_, entry)| entry.clone()).collect()
    }

    /// Takes a durable commit and tells the watchers, in order.
    pub fn publish(&mut self, change: Change) {
        self.revision = change.revision;
        for event in &change.events {
            match event {
                Event::Put(entry) => drop(self.entries.insert(entry.key.clone(), entry.clone())),
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
