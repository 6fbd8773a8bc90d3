//! The records' home: versioned JSON values under string keys, with etcd's semantics, so that the embedded engine is
//! the smaller brother and nothing above can tell. Refuses to know what a record means.
//!
//! - A **revision** counts commits of the whole store; it only grows.
//! - A **version** counts the puts of one key since it was created: 1, 2, …; 0 means absent.
//! - A commit is all or nothing, and durable (it survives a power cut) before it is acknowledged.
//! - A watch delivers every commit from a revision on, in order, after it is durable.

mod check;
pub mod conformance;
mod disk;
mod engine;
mod export;
mod memory;
mod sled;
#[cfg(debug_assertions)]
mod trap;
mod writer;

pub use sled::SledStore;

use async_trait::async_trait;
use std::time::Duration;
use tokio::sync::mpsc;

/// Counts commits; the empty store is at 0.
pub type Revision = u64;
/// Names a lease.
pub type LeaseId = u64;

/// Most operations in one transaction: etcd's default bound.
pub const TXN_OPS_MAX: usize = 128;
/// Largest value, in bytes: etcd's default request bound, with room for the key.
pub const VALUE_MAX: usize = 1_500_000;

/// A key and its value, as of a revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// `/kind/id`.
    pub key: String,
    pub value: serde_json::Value,
    pub version: u64,
    /// The commit that put this value.
    pub modified: Revision,
}

/// What must hold for a transaction to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    pub key: String,
    /// The key's version; 0: it must be absent.
    pub version: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// With a lease, the key goes when the lease ends.
    Put { key: String, value: serde_json::Value, lease: Option<LeaseId> },
    /// Deleting an absent key is no error.
    Delete { key: String },
}

/// Compares, then writes, all or nothing. No key may be written twice in one transaction.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub ops: Vec<Op>,
}

/// One commit as a watcher sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub revision: Revision,
    pub events: Vec<Event>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Put(Entry),
    Deleted { key: String },
}

/// A stream of changes. It ends with `Err(Compacted)` when the watcher fell too far behind: list again.
pub type Watch = mpsc::Receiver<Result<Change, StoreError>>;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A compare did not hold; nothing was written. `key` is the first such key.
    #[error("{key} is at version {found}, not {expected}")]
    Conflict { key: String, expected: u64, found: u64 },
    #[error("the transaction is refused: {0}")]
    Invalid(String),
    #[error("lease {0} is unknown or has ended")]
    NoLease(LeaseId),
    /// The watch asked for revisions that are no longer kept.
    #[error("revisions before {0} are no longer kept; list again")]
    Compacted(Revision),
    /// The engine cannot commit now (disk full, I/O error, no quorum). Nothing is known to be written.
    #[error("the store cannot {doing}: {message}")]
    Unavailable { doing: &'static str, message: String },
}

/// An engine. Every call is bounded in time by the engine.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;
    /// All entries under a prefix in key order, and the revision they were read at.
    async fn range(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), StoreError>;
    /// Returns the new revision once the commit is durable. A transaction without ops commits nothing and returns
    /// the present revision.
    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError>;
    /// Changes under a prefix with a revision above `after`.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError>;
    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;
    /// Ends the lease and deletes its keys.
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError>;
    /// Waits until the engine will never commit again as long as it is open, and says why. Reads go on, of what was
    /// committed; whoever opened it decides what follows. What passes by itself (a full disk) is no such failure.
    async fn failed(&self) -> StoreError;
}
