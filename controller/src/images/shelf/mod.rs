//! Where finished blobs lie: on the controller's file system or in a bucket. A shelf knows names and bytes; what
//! comes to it is whole, verified and on the local disk before, and is there whole or not at all afterwards. Refuses to know
//! what a blob is, who may see it, and when it goes.

pub mod conformance;
pub mod disk;
pub mod s3;

use super::error::BlobError;
use super::read::BlobRead;
use crate::digest::Digest;
use async_trait::async_trait;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A blob's file, whether a record names it or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub digest: Digest,
    /// Which of the files of this digest it is; empty: the plain one.
    pub place: String,
    pub modified: SystemTime,
}

#[async_trait]
pub trait Shelf: Send + Sync {
    /// Puts a file of so many bytes there; it is gone from where it was, or may go. Durable when this returns.
    async fn keep(&self, from: &Path, size: u64, digest: Digest, place: &str) -> Result<(), BlobError>;

    /// The bytes from an offset on, and the size of the whole.
    async fn read(&self, digest: Digest, place: &str, from: u64) -> Result<(BlobRead, u64), BlobError>;

    /// The size; none: it is not there.
    async fn size(&self, digest: Digest, place: &str) -> Result<Option<u64>, BlobError>;

    /// One that is not there is no error.
    async fn remove(&self, digest: Digest, place: &str) -> Result<(), BlobError>;

    /// All of them, in no order. What has another name is left alone.
    async fn list(&self) -> Result<Vec<Found>, BlobError>;

    /// The file of one, where it lies on this machine.
    fn local(&self, digest: Digest, place: &str) -> Option<PathBuf>;

    /// Takes away what began so long ago to become a blob here and never did.
    async fn tidy(&self, _untouched: Duration) -> Result<(), BlobError> {
        Ok(())
    }
}

/// Below the top: two digits of the digest, then all of it and the place.
fn name(digest: Digest, place: &str) -> String {
    let name = digest.to_string();
    let dot = if place.is_empty() { "" } else { "." };
    format!("{}/{name}{dot}{place}", &name[..2])
}

/// What a name's last part stands for.
fn named(last: &str) -> Option<(Digest, String)> {
    let (digest, place) = last.split_once('.').unwrap_or((last, ""));
    Some((digest.parse().ok()?, place.to_owned()))
}
