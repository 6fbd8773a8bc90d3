//! Bytes of images by their digest, on the controller's file system. Owns `blobs/` and `uploads/`: a blob is there whole and
//! verified, or not at all; an upload goes on at the byte where it stopped. Refuses to know what an image is and who may see
//! what: records name digests, and the place of each one's file.

mod apart;
mod error;
mod layer;
pub mod oci;
mod read;
mod recipe;
mod session;
mod spool;
mod tar;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub use tar::make as make_tar;

pub use apart::{Apart, take_apart};
pub use error::{BlobError, SessionError};
pub use read::{BlobRead, Placed};
pub use recipe::{Piece, Recipe};
pub use session::{Owner, UploadId};
pub use spool::Spooled;

use crate::digest::Digest;
use bytes::Bytes;
use error::io;
use futures_util::{Stream, StreamExt};
use spool::Spool;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::SystemTime;
use tokio::fs::File;

/// Largest blob, in bytes: 1 TiB. An upload without end should not become a full disk without a word.
pub const BLOB_MAX: u64 = 1 << 40;

/// The store. Cheap to share behind an `Arc`.
pub struct BlobStore {
    blobs: PathBuf,
    uploads: PathBuf,
    limit: u64,
    sessions: session::Sessions,
}

/// A blob's file, whether a record names it or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub digest: Digest,
    /// Which of the files of this digest it is; empty: the plain one.
    pub place: String,
    pub modified: SystemTime,
}

/// A blob's file that was just put where it belongs; nobody knows of it until a record names the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub digest: Digest,
    pub size: u64,
    /// Lower-case hexadecimal MD5: what glance calls an image's checksum.
    pub md5: String,
    pub place: String,
}

impl BlobStore {
    /// Opens `dir`. What a crash left of uploads that cannot go on goes; those that can stay.
    pub async fn open(dir: &Path) -> Result<Self, BlobError> {
        let store = Self {
            blobs: dir.join("blobs"),
            uploads: dir.join("uploads"),
            limit: BLOB_MAX,
            sessions: Default::default(),
        };
        for dir in [&store.blobs, &store.uploads] {
            tokio::fs::create_dir_all(dir).await.map_err(io("make the blob store"))?;
        }
        Ok(store)
    }

    /// Takes no blob of more bytes than these.
    pub fn with_limit(self, limit: u64) -> Self {
        Self { limit, ..self }
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    fn path(&self, digest: Digest, place: &str) -> PathBuf {
        let name = digest.to_string();
        let dir = self.blobs.join(&name[..2]);
        if place.is_empty() { dir.join(name) } else { dir.join(format!("{name}.{place}")) }
    }

    /// A file in the making; it goes with its handle.
    async fn spool(&self) -> Result<Spool, BlobError> {
        let path = self.uploads.join(format!("{}.part", uuid::Uuid::new_v4()));
        Spool::create(path, self.limit).await
    }

    /// Takes bytes into a file that can be kept. With `expected`, other bytes are refused.
    pub async fn spool_all<E: std::fmt::Display>(
        &self,
        bytes: impl Stream<Item = Result<Bytes, E>>,
        expected: Option<&str>,
    ) -> Result<Spooled, BlobError> {
        let mut spool = self.spool().await?;
        let mut bytes = pin!(bytes);
        while let Some(part) = bytes.next().await {
            let part =
                part.map_err(|e| BlobError::Interrupted { received: spool.size(), reason: e.to_string() })?;
            spool.write(&part).await?;
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
        let path = self.path(spooled.digest, &place);
        let dir = path.parent().unwrap_or(&self.blobs).to_owned();
        tokio::fs::create_dir_all(&dir).await.map_err(io("keep a blob"))?;
        tokio::fs::rename(spooled.path(), &path).await.map_err(io("keep a blob"))?;
        for dir in [&dir, &self.blobs] {
            let dir = File::open(dir).await.map_err(io("keep a blob"))?;
            dir.sync_all().await.map_err(io("keep a blob"))?;
        }
        let (digest, size) = (spooled.digest, spooled.size);
        Ok(Stored { digest, size, md5: spooled.md5.clone(), place })
    }

    /// A blob's file and its size.
    pub async fn open_blob(&self, digest: Digest, place: &str) -> Result<(File, u64), BlobError> {
        let file = match File::open(self.path(digest, place)).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(BlobError::Unknown { sha256: digest.to_string() });
            }
            file => file.map_err(io("open a blob"))?,
        };
        let size = file.metadata().await.map_err(io("open a blob"))?.len();
        Ok((file, size))
    }

    /// The size of a blob's file; none: it is not there.
    pub async fn has(&self, digest: Digest, place: &str) -> Result<Option<u64>, BlobError> {
        match tokio::fs::metadata(self.path(digest, place)).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            found => Ok(Some(found.map_err(io("look for a blob"))?.len())),
        }
    }

    /// What the layer in a blob's file is once unpacked.
    pub async fn measure(&self, digest: Digest, place: &str) -> Result<crate::digest::LayerFacts, BlobError> {
        layer::measure(self.path(digest, place), digest).await
    }

    /// Removes a blob's file; one that is not there is no error. The caller knows that no record names it.
    pub async fn remove(&self, digest: Digest, place: &str) -> Result<(), BlobError> {
        match tokio::fs::remove_file(self.path(digest, place)).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("remove a blob")(error)),
            _ => Ok(()),
        }
    }

    /// All blobs' files. What has another name is left alone.
    pub async fn list(&self) -> Result<Vec<Found>, BlobError> {
        let mut found = Vec::new();
        let mut dirs = tokio::fs::read_dir(&self.blobs).await.map_err(io("list blobs"))?;
        while let Some(dir) = dirs.next_entry().await.map_err(io("list blobs"))? {
            let mut files = tokio::fs::read_dir(dir.path()).await.map_err(io("list blobs"))?;
            while let Some(file) = files.next_entry().await.map_err(io("list blobs"))? {
                let name = file.file_name().into_string().unwrap_or_default();
                let (digest, place) = name.split_once('.').unwrap_or((&name, ""));
                // One may go while it is looked at.
                let (Ok(digest), Ok(metadata)) = (digest.parse(), file.metadata().await) else { continue };
                let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.push(Found { digest, place: place.to_owned(), modified });
            }
        }
        found.sort_by(|a, b| (a.digest, &a.place).cmp(&(b.digest, &b.place)));
        Ok(found)
    }
}
