//! The records in memory: typed, indexed, kept current by the store's watch. Reads never touch the store; a commit
//! waits until the world has applied its revision, so that whoever wrote reads what was written.
//!
//! Also says, per host, at which revision its desired state last changed, and wakes whoever waits for that.

use super::ahead::Ticket;
use super::feed::{Before, Feed};
use super::view::View;
use crate::model::network::legacy;
use crate::scheduler::Policy;
use crate::store::{Change, Compare, Op, Revision, Store, StoreError, Txn, Watch};
use amphi_api::HostId;
use jiff::Timestamp;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;
use tokio::sync::watch;

/// How long a commit may take to come back through the watch before that is an error.
const APPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between attempts to read the store again after a watch ended.
const RELOAD_PAUSE: Duration = Duration::from_millis(500);

pub struct World {
    view: RwLock<View>,
    applied: watch::Sender<Revision>,
    wakes: Mutex<HashMap<HostId, watch::Sender<Revision>>>,
    feed: Mutex<Feed>,
}

/// A transaction on its way to the store.
pub(super) struct Staged {
    world: Arc<World>,
    ticket: Ticket,
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.world.view.write().unwrap_or_else(PoisonError::into_inner).unstage(self.ticket);
    }
}

#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the record {key} cannot be read: {message}")]
    Unreadable { key: String, message: String },
}

impl World {
    /// Reads everything, then follows the store until the world is dropped. A record that cannot be read stops the
    /// start: half a world must not give orders.
    pub async fn open(store: Arc<dyn Store>) -> Result<Arc<Self>, WorldError> {
        renew(store.as_ref()).await?;
        let (view, feed, watch) = Self::load(store.as_ref()).await?;
        let world = Arc::new(Self {
            applied: watch::Sender::new(view.revision()),
            view: RwLock::new(view),
            wakes: Mutex::new(HashMap::new()),
            feed: Mutex::new(feed),
        });
        tokio::spawn(follow(Arc::downgrade(&world), store, watch));
        Ok(world)
    }

    async fn load(store: &dyn Store) -> Result<(View, Feed, Watch), WorldError> {
        let (entries, revision) = store.range("/").await?;
        let watch = store.watch("/", revision).await?;
        let mut view = View::default();
        let modified: Vec<_> = entries.iter().map(|entry| (entry.key.clone(), entry.modified)).collect();
        for entry in entries {
            let key = entry.key.clone();
            view.put(entry).map_err(|e| WorldError::Unreadable { key, message: e.to_string() })?;
        }
        view.settle(revision);
        let feed = Feed::of_records(&view, &modified);
        Ok((view, feed, watch))
    }

    /// The present state. Never hold it across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a transaction in before it is durable, for the decisions that come next; until the guard goes.
    pub(super) fn stage(self: &Arc<Self>, txn: &Txn) -> Staged {
        let ticket = self.view.write().unwrap_or_else(PoisonError::into_inner).stage(txn);
        Staged { world: self.clone(), ticket }
    }

    /// Waits until the commit of this revision can be read here.
    pub async fn reached(&self, revision: Revision) -> bool {
        let mut applied = self.applied.subscribe();
        let wait = applied.wait_for(|now| *now >= revision);
        tokio::time::timeout(APPLY_TIMEOUT, wait).await.is_ok_and(|r| r.is_ok())
    }

    /// Changes with every applied commit: what tasks wake on.
    pub fn changes(&self) -> watch::Receiver<Revision> {
        self.applied.subscribe()
    }

    /// The generation of a host's desired state; changes are coalesced.
    pub fn generation(&self, host: HostId) -> watch::Receiver<Revision> {
        let present = self.read().generation(host);
        let mut wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = wakes.entry(host).or_insert_with(|| watch::Sender::new(present));
        sender.subscribe()
    }

    fn apply(&self, change: Change) {
        let revision = change.revision;
        let touched = {
            let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
            let before = Before::of(&view, &change);
            let touched = view.apply(change);
            self.feed().take(&before, &view, Timestamp::now());
            touched
        };
        let wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        for host in touched {
            if let Some(wake) = wakes.get(&host) {
                wake.send_replace(revision);
            }
        }
        drop(wakes);
        self.applied.send_replace(revision);
    }

    /// What has happened. Never hold it across an await.
    pub(super) fn feed(&self) -> MutexGuard<'_, Feed> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What placement goes by from now on.
    pub(super) fn set_policy(&self, policy: Policy) {
        self.view.write().unwrap_or_else(PoisonError::into_inner).fleet.set_policy(policy);
    }

    fn replace(&self, mut fresh: View, feed: Feed) {
        let revision = fresh.revision();
        *self.feed() = feed;
        {
            let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
            fresh.fleet.set_policy(*view.fleet.policy());
            *view = fresh;
        }
        let wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        wakes.values().for_each(|wake| {
            wake.send_replace(revision);
        });
        drop(wakes);
        self.applied.send_replace(revision);
    }
}

/// Brings records of an older version into today's form, before anything reads them.
async fn renew(store: &dyn Store) -> Result<(), WorldError> {
    let (entries, _) = store.range("/").await?;
    for entry in entries {
        let unreadable =
            |e: serde_json::Error| WorldError::Unreadable { key: entry.key.clone(), message: e.to_string() };
        let written = legacy::renewed(&entry.key, &entry.value).map_err(unreadable)?;
        if written.is_empty() {
            continue;
        }
        let compares = vec![Compare { key: entry.key.clone(), version: entry.version }];
        let ops = written.into_iter().map(|(key, value)| Op::Put { key, value, lease: None }).collect();
        match store.commit(Txn { compares, ops }).await {
            // Another controller was faster.
            Ok(_) | Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

async fn follow(world: std::sync::Weak<World>, store: Arc<dyn Store>, mut watch: Watch) {
    loop {
        let next = watch.recv().await;
        let Some(world) = world.upgrade() else { return };
        match next {
            Some(Ok(change)) => world.apply(change),
            ended => {
                if let Some(Err(error)) = ended {
                    tracing::warn!(%error, "the watch ended; reading the store again");
                }
                loop {
                    match World::load(store.as_ref()).await {
                        Ok((view, feed, fresh)) => {
                            world.replace(view, feed);
                            watch = fresh;
                            break;
                        }
                        Err(error) => {
                            tracing::error!(%error, "cannot read the store");
                            if Arc::strong_count(&world) == 1 {
                                return;
                            }
                            tokio::time::sleep(RELOAD_PAUSE).await;
                        }
                    }
                }
            }
        }
    }
}
