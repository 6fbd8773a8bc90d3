//! Bytes of images by their digest, on a shelf: the controller's file system or a bucket. Owns `blobs/` and
//! `uploads/`: a blob is there whole and verified, or not at all; an upload goes on at the byte where it stopped. Refuses to know what an image is and who may see
//! what: records name digests, and the place of each one's file.

mod apart;
mod error;
mod layer;
pub mod oci;
mod pour;
mod read;
mod session;
pub mod shelf;
mod spool;
mod tar;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub use tar::make as make_tar;

pub use apart::{Apart, take_apart};
pub use error::{BlobError, SessionError};
pub use read::{BlobRead, Placed};
pub use session::{Owner, UploadId};
pub use shelf::{Found, Shelf};
pub use spool::Spooled;

use crate::digest::Digest;
use amphi_api::disk::{DiskFormat, Ends};
use bytes::Bytes;
use error::io;
use futures_util::{Stream, StreamExt};
use spool::{Digests, Spool};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use tokio::io::AsyncReadExt;

/// Largest blob, in bytes: 1 TiB. An upload without end should not become a full disk without a word.
pub const BLOB_MAX: u64 = 1 << 40;

/// The store. Cheap to share behind an `Arc`.
pub struct BlobStore {
    shelf: Arc<dyn Shelf>,
    uploads: PathBuf,
    limit: u64,
    sessions: session::Sessions,
}

/// A blob's file that was just put where it belongs; nobody knows of it until a record names the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub digest: Digest,
    pub size: u64,
    /// Lower-case hexadecimal MD5, what glance calls an image's checksum; none: it was not taken.
    pub md5: Option<String>,
    pub place: String,
}

impl BlobStore {
    /// Opens `dir`, with the blobs on its own file system. What a crash left of uploads that cannot go on goes; those that
    /// can stay.
    pub async fn open(dir: &Path) -> Result<Self, BlobError> {
        let shelf = shelf::disk::Disk::open(dir.join("blobs")).await?;
        Self::on(Arc::new(shelf), dir).await
    }

    /// The same with the blobs elsewhere; uploads lie in `dir` until they are whole.
    pub async fn on(shelf: Arc<dyn Shelf>, dir: &Path) -> Result<Self, BlobError> {
        let uploads = dir.join("uploads");
        tokio::fs::create_dir_all(&uploads).await.map_err(io("make the blob store"))?;
        Ok(Self { shelf, uploads, limit: BLOB_MAX, sessions: Default::default() })
    }

    /// Takes no blob of more bytes than these.
    pub fn with_limit(self, limit: u64) -> Self {
        Self { limit, ..self }
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// A file in the making; it goes with its handle.
    async fn spool(&self, digests: Digests) -> Result<Spool, BlobError> {
        let path = self.uploads.join(format!("{}.part", uuid::Uuid::new_v4()));
        Spool::create(path, self.limit, digests).await
    }

    /// Takes bytes into a file that can be kept. With `expected`, other bytes are refused.
    pub async fn spool_all<E: std::fmt::Display>(
        &self,
        bytes: impl Stream<Item = Result<Bytes, E>>,
        expected: Option<&str>,
    ) -> Result<Spooled, BlobError> {
        let mut spool = self.spool(Digests::with_md5()).await?;
        let mut bytes = pin!(bytes);
        while let Some(part) = bytes.next().await {
            let part =
                part.map_err(|e| BlobError::Interrupted { received: spool.size(), reason: e.to_string() })?;
            spool.write(part).await?;
        }
        let spooled = spool.finish().await?;
        if let Some(expected) = expected.filter(|e| *e != spooled.digest.to_string()) {
            let found = spooled.digest.to_string();
            return Err(BlobError::WrongDigest { expected: expected.to_owned(), found });
        }
        Ok(spooled)
    }

    /// Takes bytes; they are whole and on the disk when this returns. With `expected`, other bytes are refused.
    pub async fn put<E: std::fmt::Display>(
        &self,
        bytes: impl Stream<Item = Result<Bytes, E>>,
        expected: Option<&str>,
    ) -> Result<Stored, BlobError> {
        let spooled = self.spool_all(bytes, expected).await?;
        self.keep(spooled).await
    }

    /// Puts a finished file where blobs lie.
    pub async fn keep(&self, spooled: Spooled) -> Result<Stored, BlobError> {
        let place = uuid::Uuid::new_v4().simple().to_string();
        let (digest, size) = (spooled.digest, spooled.size);
        self.shelf.keep(spooled.path(), size, digest, &place).await?;
        Ok(Stored { digest, size, md5: spooled.md5.clone(), place })
    }

    /// A blob's bytes from an offset on, and the size of the whole.
    pub async fn read(&self, digest: Digest, place: &str, from: u64) -> Result<(BlobRead, u64), BlobError> {
        self.shelf.read(digest, place, from).await
    }

    /// The size of a blob's file; none: it is not there.
    pub async fn has(&self, digest: Digest, place: &str) -> Result<Option<u64>, BlobError> {
        self.shelf.size(digest, place).await
    }

    /// What the layer in a blob's file is once unpacked.
    pub async fn measure(&self, digest: Digest, place: &str) -> Result<crate::digest::LayerFacts, BlobError> {
        if let Some(path) = self.shelf.local(digest, place) {
            return layer::measure(path, digest).await;
        }
        let (read, _) = self.shelf.read(digest, place, 0).await?;
        let here = self.spool_all(read.stream(), Some(&digest.to_string())).await?;
        layer::measure(here.path().to_owned(), digest).await
    }

    /// A disk's first and last bytes.
    pub async fn ends(&self, digest: Digest, place: &str, format: DiskFormat) -> Result<Ends, BlobError> {
        let (head, size) = self.shelf.read(digest, place, 0).await?;
        let (first, last) = Ends::lengths(format);
        let part = async |read: BlobRead, most: usize| {
            let mut bytes = Vec::new();
            read.take(most as u64).read_to_end(&mut bytes).await.map_err(io("read a blob"))?;
            Ok::<_, BlobError>(bytes)
        };
        let head = part(head, first).await?;
        let (tail, _) = self.shelf.read(digest, place, size.saturating_sub(last as u64)).await?;
        Ok(Ends { head, tail: part(tail, last).await?, size })
    }

    /// Removes a blob's file; one that is not there is no error. The caller knows that no record names it.
    pub async fn remove(&self, digest: Digest, place: &str) -> Result<(), BlobError> {
        self.shelf.remove(digest, place).await
    }

    /// All blobs' files.
    pub async fn list(&self) -> Result<Vec<Found>, BlobError> {
        let mut found = self.shelf.list().await?;
        found.sort_by(|a, b| (a.digest, &a.place).cmp(&(b.digest, &b.place)));
        Ok(found)
    }
}
