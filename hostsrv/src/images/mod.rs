//! Owns the host's image cache: blobs at `images/<sha256>`, each checked against its digest and size while it streams
//! in, fetched once however many ask. Refuses to hand out a byte whose digest it has not seen, and to evict what is in use.

mod evict;
pub mod flatten;
pub mod layers;
pub mod roots;

use crate::instance::{CachedImage, DriverError};
use amphi_api::ImageId;
use amphi_api::image::{Blob, Image};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

pub use evict::Evicted;

const ENGINE: &str = "image store";
/// How long a stream may stand still.
const SILENCE: Duration = Duration::from_secs(30);
/// The end of a name that is still being written.
const PART: &str = ".part";

/// Where blobs come from.
#[async_trait]
pub trait BlobFetcher: Send + Sync {
    /// The blob's bytes in order.
    async fn fetch(&self, sha256: &str) -> anyhow::Result<BoxStream<'static, anyhow::Result<Bytes>>>;
}

/// The cache of one host.
pub struct ImageCache {
    folder: PathBuf,
    fetcher: Arc<dyn BlobFetcher>,
    /// One lock per blob that somebody is asking for: the first fetches, the others find it there.
    asked: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl ImageCache {
    /// `folder` is made when the first blob comes.
    pub fn new(folder: impl Into<PathBuf>, fetcher: Arc<dyn BlobFetcher>) -> Self {
        Self { folder: folder.into(), fetcher, asked: Mutex::default() }
    }

    /// All blobs of an image, fetched if they are not here. A blob that is here was checked when it came.
    pub async fn ensure(&self, image: &Image) -> Result<CachedImage, DriverError> {
        let mut blobs = BTreeMap::new();
        for role in image.format.roles() {
            let blob = image.blobs.get(role).ok_or_else(|| DriverError::ImageBroken {
                image: image.id,
                message: format!("its {role:?} has not been uploaded"),
            })?;
            blobs.insert(*role, self.ensure_blob(image.id, blob).await?);
        }
        Ok(CachedImage { image: image.clone(), blobs })
    }

    async fn ensure_blob(&self, image: ImageId, blob: &Blob) -> Result<PathBuf, DriverError> {
        if !is_digest(&blob.sha256) {
            let message = format!("{:?} is no SHA-256", blob.sha256);
            return Err(DriverError::ImageBroken { image, message });
        }
        let lock = self.lock_of(&blob.sha256);
        let _first = lock.lock().await;
        let path = self.folder.join(&blob.sha256);
        match tokio::fs::metadata(&path).await {
            Ok(found) if found.len() == blob.size => {
                evict::touch(&path);
                return Ok(path);
            }
            // Somebody has cut or grown the file behind our back: not what was checked any more.
            Ok(_) => remove_file(&path).await?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(io_error("look for a blob", e)),
        }
        self.fetch(image, blob, &path).await?;
        Ok(path)
    }

    async fn fetch(&self, image: ImageId, blob: &Blob, path: &Path) -> Result<(), DriverError> {
        tokio::fs::create_dir_all(&self.folder).await.map_err(|e| io_error("make the image cache", e))?;
        // A name of its own: a caller that was dropped midway leaves its part behind, and nobody else's is harmed.
        let part = Part(self.folder.join(format!("{}.{}{PART}", blob.sha256, uuid::Uuid::new_v4().simple())));
        let mut file = tokio::fs::File::create_new(&part.0).await.map_err(|e| io_error("write a blob", e))?;
        let down = |source| DriverError::EngineDown {
            engine: ENGINE,
            doing: format!("fetch blob {} of image {image}", blob.sha256),
            source,
        };
        let silent = || down(anyhow::anyhow!("nothing came for {} s", SILENCE.as_secs()));
        let begun = tokio::time::timeout(SILENCE, self.fetcher.fetch(&blob.sha256)).await;
        let mut stream = begun.map_err(|_| silent())?.map_err(down)?;
        let mut digest = Sha256::new();
        let mut size = 0_u64;
        while let Some(chunk) = tokio::time::timeout(SILENCE, stream.next()).await.map_err(|_| silent())? {
            let chunk = chunk.map_err(down)?;
            size += chunk.len() as u64;
            if size > blob.size {
                let message = format!("blob {} has more than its {} bytes", blob.sha256, blob.size);
                return Err(DriverError::ImageBroken { image, message });
            }
            digest.update(&chunk);
            file.write_all(&chunk).await.map_err(|e| io_error("write a blob", e))?;
        }
        if size < blob.size {
            return Err(down(anyhow::anyhow!("the stream ended after {size} of {} bytes", blob.size)));
        }
        let found = hex::encode(digest.finalize());
        if found != blob.sha256 {
            let message = format!("blob {} arrived with the digest {found}", blob.sha256);
            return Err(DriverError::ImageBroken { image, message });
        }
        file.flush().await.map_err(|e| io_error("write a blob", e))?;
        file.sync_all().await.map_err(|e| io_error("write a blob", e))?;
        tokio::fs::rename(&part.0, path).await.map_err(|e| io_error("keep a blob", e))?;
        let folder = tokio::fs::File::open(&self.folder).await.map_err(|e| io_error("keep a blob", e))?;
        folder.sync_all().await.map_err(|e| io_error("keep a blob", e))
    }

    /// Evicts blobs, the longest unused first, until at most `max_bytes` are left or all that is left is in use; and
    /// parts that were never finished. `in_use` holds digests: those of all bodies that are here or about to be.
    pub async fn sweep(
        &self,
        in_use: &BTreeSet<String>,
        max_bytes: u64,
    ) -> Result<Vec<Evicted>, DriverError> {
        let (folder, mut keep) = (self.folder.clone(), in_use.clone());
        {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.retain(|_, lock| lock.strong_count() > 0);
            keep.extend(asked.keys().cloned());
        }
        let sweep = move || evict::sweep(&folder, &keep, max_bytes);
        let swept = tokio::task::spawn_blocking(sweep).await.unwrap_or_else(|e| Err(io::Error::other(e)));
        swept.map_err(|e| io_error("sweep the image cache", e))
    }

    fn lock_of(&self, sha256: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = asked.get(sha256).and_then(Weak::upgrade) {
            return lock;
        }
        asked.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        asked.insert(sha256.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

/// A file in the making, gone unless it was renamed.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // After the rename there is nothing of this name; what cannot be removed falls to the next sweep.
        let _gone = std::fs::remove_file(&self.0);
    }
}

/// Lower-case hexadecimal SHA-256, and so a safe file name.
fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

async fn remove_file(path: &Path) -> Result<(), DriverError> {
    tokio::fs::remove_file(path).await.map_err(|e| io_error("remove a changed blob", e))
}

fn io_error(doing: &str, source: io::Error) -> DriverError {
    DriverError::Io { doing: doing.to_owned(), source }
}

#[cfg(test)]
mod tests;
