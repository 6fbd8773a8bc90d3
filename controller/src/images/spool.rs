//! A file in the making: its bytes counted and digested as they come, and gone with its handle unless it was kept.

use super::error::{BlobError, io};
use crate::digest::Digest;
use bytes::Bytes;
use md5::Md5;
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

/// Digests of bytes that come one after the other.
#[derive(Clone, Default)]
pub(super) struct Digests {
    sha256: Sha256,
    md5: Md5,
    pub(super) size: u64,
}

impl Digests {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.md5.update(bytes);
        self.size += bytes.len() as u64;
    }

    /// SHA-256, and MD5 in lower-case hexadecimal.
    pub(super) fn finish(self) -> (Digest, String) {
        (Digest(self.sha256.finalize().into()), hex::encode(self.md5.finalize()))
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
    file: File,
    path: Goes,
    digests: Digests,
    limit: u64,
}

/// A file with all of its bytes, on the disk.
pub struct Spooled {
    path: Goes,
    pub digest: Digest,
    pub md5: String,
    pub size: u64,
}

impl Spool {
    pub(super) async fn create(path: PathBuf, limit: u64) -> Result<Self, BlobError> {
        let file = File::create(&path).await.map_err(io("begin an upload"))?;
        Ok(Self { file, path: Goes(path), digests: Digests::default(), limit })
    }

    pub(super) fn size(&self) -> u64 {
        self.digests.size
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        if self.digests.size.saturating_add(bytes.len() as u64) > self.limit {
            return Err(BlobError::TooLarge { limit: self.limit });
        }
        self.digests.update(bytes);
        self.file.write_all(bytes).await.map_err(io("write an upload"))
    }

    pub(super) async fn finish(mut self) -> Result<Spooled, BlobError> {
        self.file.flush().await.map_err(io("write an upload"))?;
        self.file.sync_all().await.map_err(io("write an upload to the disk"))?;
        let size = self.digests.size;
        let (digest, md5) = self.digests.finish();
        Ok(Spooled { path: self.path, digest, md5, size })
    }
}

impl Spooled {
    /// A file that came whole by another way; it goes with this, too.
    pub(super) fn whole(path: PathBuf, digests: Digests) -> Self {
        let size = digests.size;
        let (digest, md5) = digests.finish();
        Self { path: Goes(path), digest, md5, size }
    }

    pub fn path(&self) -> &Path {
        &self.path.0
    }

    /// All of it; the caller knows that it is small.
    pub async fn bytes(&self) -> Result<Bytes, BlobError> {
        tokio::fs::read(self.path()).await.map(Bytes::from).map_err(io("read an upload"))
    }
}
