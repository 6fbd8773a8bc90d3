//! A file in the making: its bytes counted and digested as they come, and gone with its handle unless it was kept.

use super::error::{BlobError, io};
use super::pour::Pour;
use crate::digest::Digest;
use bytes::Bytes;
use md5::Md5;
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use tokio::fs::File;

/// Digests of bytes that come one after the other.
#[derive(Clone, Default)]
pub(super) struct Digests {
    pub(super) sha256: Sha256,
    /// None: it is not taken.
    pub(super) md5: Option<Md5>,
    pub(super) size: u64,
}

impl Digests {
    /// The default takes SHA-256 alone: MD5 takes more than twice as long, and nothing here relies on it.
    pub(super) fn with_md5() -> Self {
        Self { md5: Some(Md5::default()), ..Self::default() }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(md5) = &mut self.md5 {
            md5.update(bytes);
        }
        self.size += bytes.len() as u64;
    }

    /// SHA-256, and MD5 in lower-case hexadecimal.
    pub(super) fn finish(self) -> (Digest, Option<String>) {
        (Digest(self.sha256.finalize().into()), self.md5.map(|md5| hex::encode(md5.finalize())))
    }
}

/// Goes with its file when the upload ends in any way but the good one (then the file has been renamed away).
pub(super) struct Goes(PathBuf);

impl Drop for Goes {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub(super) struct Spool {
    file: std::fs::File,
    pour: Pour,
    path: Goes,
    size: u64,
    limit: u64,
}

/// A file with all of its bytes, on the disk.
pub struct Spooled {
    path: Goes,
    pub digest: Digest,
    /// Lower-case hexadecimal; none: it was not taken.
    pub md5: Option<String>,
    pub size: u64,
}

impl Spool {
    pub(super) async fn create(path: PathBuf, limit: u64, digests: Digests) -> Result<Self, BlobError> {
        let file = File::create(&path).await.map_err(io("begin an upload"))?.into_std().await;
        let path = Goes(path);
        let pour = Pour::new(Some(file.try_clone().map_err(io("begin an upload"))?), Some(digests), None);
        Ok(Self { file, pour, path, size: 0, limit })
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), BlobError> {
        self.size = self.size.saturating_add(bytes.len() as u64);
        if self.size > self.limit {
            return Err(BlobError::TooLarge { limit: self.limit });
        }
        self.pour.take(bytes).await.map_err(io("write an upload"))
    }

    pub(super) async fn finish(mut self) -> Result<Spooled, BlobError> {
        let digests = self.pour.end().await.map_err(io("write an upload"))?;
        let file = self.file;
        let synced = tokio::task::spawn_blocking(move || file.sync_all()).await;
        synced
            .unwrap_or_else(|e| Err(std::io::Error::other(e)))
            .map_err(io("write an upload to the disk"))?;
        let lost = || std::io::Error::other("its digests were lost");
        let digests = digests.ok_or_else(lost).map_err(io("write an upload"))?;
        Ok(Spooled::of(self.path, digests))
    }
}

impl Spooled {
    /// A file that came whole by another way; it goes with this, too.
    pub(super) fn whole(path: PathBuf, digests: Digests) -> Self {
        Self::of(Goes(path), digests)
    }

    fn of(path: Goes, digests: Digests) -> Self {
        let size = digests.size;
        let (digest, md5) = digests.finish();
        Self { path, digest, md5, size }
    }

    pub fn path(&self) -> &Path {
        &self.path.0
    }

    /// All of it; the caller knows that it is small.
    pub async fn bytes(&self) -> Result<Bytes, BlobError> {
        tokio::fs::read(self.path()).await.map(Bytes::from).map_err(io("read an upload"))
    }
}
