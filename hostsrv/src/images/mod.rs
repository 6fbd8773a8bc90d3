//! Owns the host's image cache: blobs at `images/<sha256>`, each checked against its digest and size while it streams
//! in, fetched once however many ask, checked again when its file looks otherwise and once a day. Refuses to hand out a last
//! byte whose digest it has not seen, and to evict what is in use. A container image's layers are not fetched with it: its
//! own engine asks for those that it lacks, by the registry here.

pub mod bases;
mod coming;
pub mod evict;
mod facts;
pub mod flatten;
mod handing;
pub mod layers;
pub mod manifest;
pub mod peers;
pub mod prepull;
pub mod registry;
pub mod roots;
mod shelf;
mod trouble;

use crate::instance::{CachedImage, DriverError};
use amphi_api::image::{Blob, BlobRole, Image};
use amphi_api::{HostId, ImageId};
use async_trait::async_trait;
use bytes::Bytes;
use coming::{Coming, State};
use futures_util::stream::BoxStream;
use shelf::Shelf;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;
use tokio::sync::{Notify, Semaphore};

use bases::Bases;
pub use evict::Evicted;
pub use handing::Bytestream;
pub use trouble::Trouble;

/// Bytes on their way.
pub struct Incoming {
    pub bytes: BoxStream<'static, anyhow::Result<Bytes>>,
    /// The host that they come from; none: the controller.
    pub peer: Option<HostId>,
}

/// Where blobs come from.
#[async_trait]
pub trait BlobFetcher: Send + Sync {
    /// The blob's bytes in order, from byte `from` on. What is begun anew may come from another host; what is taken up
    /// again comes from the controller.
    async fn fetch(&self, blob: &Blob, from: u64) -> anyhow::Result<Incoming>;
}

/// The cache of one host.
pub struct ImageCache {
    shelf: Arc<Shelf>,
    fetcher: Arc<dyn BlobFetcher>,
    /// Blobs that somebody is asking for: the first fetches, the others wait for the same.
    asked: Mutex<BTreeMap<String, Weak<Coming>>>,
    /// Other hosts that are served at once.
    guests: Semaphore,
    bases: Bases,
}

impl ImageCache {
    /// `folder` is made when the first blob comes.
    pub fn new(folder: impl Into<PathBuf>, fetcher: Arc<dyn BlobFetcher>) -> Self {
        let shelf = Arc::new(Shelf { folder: folder.into(), grown: Notify::new() });
        let bases = Bases::new(shelf.folder.join("bases"));
        Self { shelf, fetcher, asked: Mutex::default(), guests: Semaphore::new(peers::GUESTS), bases }
    }

    /// What a body needs of an image before its driver sees it, fetched if it is not here: of a container image that comes
    /// by layer the manifest and the configuration, of any other all its blobs; of a disk in a foreign format the base that
    /// was made of it.
    pub async fn ensure(&self, image: &Image) -> Result<CachedImage, DriverError> {
        let mut blobs = BTreeMap::new();
        for role in roles(image) {
            let blob = image.blobs.get(role).ok_or_else(|| DriverError::ImageBroken {
                image: image.id,
                message: format!("its {role:?} has not been uploaded"),
            })?;
            let path = match bases::foreign(image.format).filter(|_| *role == BlobRole::Disk) {
                Some(of) => self.bases.ensure(image.id, of, blob, self.ensure_blob(image.id, blob)).await?,
                None => self.ensure_blob(image.id, blob).await?,
            };
            blobs.insert(*role, path);
        }
        Ok(CachedImage { image: image.clone(), blobs })
    }

    /// All layers of a container image, the lowest first.
    pub async fn ensure_layers(&self, image: &Image) -> Result<Vec<PathBuf>, DriverError> {
        let layers = image.layers.iter().map(async |layer| {
            let blob = Blob { sha256: layer.sha256.clone(), size: layer.size };
            self.have(image.id, &blob, true).await
        });
        futures_util::future::try_join_all(layers).await
    }

    /// One blob of an image.
    pub async fn ensure_blob(&self, image: ImageId, blob: &Blob) -> Result<PathBuf, DriverError> {
        self.have(image, blob, false).await
    }

    async fn have(&self, image: ImageId, blob: &Blob, layer: bool) -> Result<PathBuf, DriverError> {
        check_digest(blob).map_err(|trouble| trouble.of(image))?;
        let coming = self.coming(blob, layer);
        coming.kept().await.map_err(|trouble| trouble.of(image))?;
        Ok(self.shelf.path(&blob.sha256))
    }

    /// A layer's bytes, the first of them before the last has come. They end early where something is wrong.
    pub async fn open(&self, blob: &Blob) -> Result<Bytestream, Trouble> {
        check_digest(blob)?;
        // Again: between a look and an open the file may be taken away.
        for _ in 0..3 {
            let coming = self.coming(blob, true);
            let mut state = coming.state.clone();
            let begun = state.wait_for(|state| !matches!(state, State::Looking)).await;
            let state = begun.map(|state| state.clone()).unwrap_or(State::Looking);
            let (path, kept) = match state {
                State::Failed(trouble) => return Err(trouble),
                State::Kept => (self.shelf.path(&blob.sha256), true),
                _ => (self.shelf.part(&blob.sha256), false),
            };
            match tokio::fs::File::open(path).await {
                Ok(file) if kept => return Ok(handing::kept(self.shelf.clone(), blob.clone(), file)),
                Ok(file) => return Ok(handing::part(self.shelf.clone(), blob.clone(), file, coming)),
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Trouble::io("open a blob")(error));
                }
                Err(_) if kept => {}
                // It takes its place, or was not what it should be: in a moment its state says which.
                Err(_) => coming.kept().await?,
            }
        }
        Err(Trouble::Down {
            doing: format!("open blob {}", blob.sha256),
            message: "it goes as soon as it comes: the cache is too small for it".into(),
        })
    }

    /// The same of a blob that is here or coming: nothing is fetched for it.
    async fn open_here(&self, blob: &Blob) -> Option<Bytestream> {
        check_digest(blob).ok()?;
        let comes = {
            let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            let coming = asked.get(&blob.sha256).and_then(Weak::upgrade);
            coming.is_some_and(|coming| !coming.state.borrow().is_over())
        };
        let here = tokio::fs::metadata(self.shelf.path(&blob.sha256)).await;
        if comes || here.is_ok_and(|here| here.len() == blob.size) {
            return self.open(blob).await.ok();
        }
        None
    }

    /// Takes a blob away that was found not to be what it should be; answers what to tell of it.
    pub fn discard(&self, sha256: &str, why: &str) -> Trouble {
        self.shelf.discard(sha256, why)
    }

    /// When a blob was last asked for; none where it is not here.
    pub fn used(&self, sha256: &str) -> Option<SystemTime> {
        facts::used(&self.shelf.path(sha256))
    }

    /// Digests of the blobs that are here, layers apart, with the time of their last use.
    pub async fn here(&self) -> Vec<(SystemTime, String)> {
        let folder = self.shelf.folder.clone();
        tokio::task::spawn_blocking(move || evict::here(&folder)).await.unwrap_or_default()
    }

    /// How much of an image is here, in percent. Layers that the engine has already are not fetched, and so never come.
    pub async fn come(&self, image: &Image) -> u8 {
        let own = roles(image).iter().filter_map(|role| image.blobs.get(role));
        let blobs = own.map(|blob| (&blob.sha256, blob.size));
        let (mut all, mut come) = (0u64, 0u64);
        for (sha256, size) in blobs.chain(image.layers.iter().map(|layer| (&layer.sha256, layer.size))) {
            let mut here = tokio::fs::metadata(self.shelf.path(sha256)).await;
            if here.is_err() {
                here = tokio::fs::metadata(self.shelf.part(sha256)).await;
            }
            all = all.saturating_add(size);
            come = come.saturating_add(here.map_or(0, |here| here.len().min(size)));
        }
        // Not more than a hundred.
        u8::try_from(u128::from(come) * 100 / u128::from(all.max(1))).unwrap_or(100)
    }

    /// Waits until something has come in.
    pub async fn grown(&self) {
        self.shelf.grown.notified().await;
    }

    /// Evicts blobs until at most `max_bytes` are left or all that is left is in use: layers first, since the engine has
    /// its own of them, then the longest unused; and parts that were never finished. `in_use` holds digests: those of all
    /// bodies that are here or about to be.
    pub async fn sweep(
        &self,
        in_use: &BTreeSet<String>,
        max_bytes: u64,
    ) -> Result<Vec<Evicted>, DriverError> {
        let (folder, mut keep) = (self.shelf.folder.clone(), in_use.clone());
        {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.retain(|_, coming| coming.strong_count() > 0);
            keep.extend(asked.keys().cloned());
        }
        let bases = self.bases.clone();
        let sweep = move || {
            bases.sweep(&keep)?;
            evict::sweep(&folder, &keep, max_bytes)
        };
        let swept = tokio::task::spawn_blocking(sweep).await.unwrap_or_else(|e| Err(io::Error::other(e)));
        swept.map_err(|source| DriverError::Io { doing: "sweep the image cache".into(), source })
    }

    /// Reads again what was last read a day ago; answers the digests of what was not what it should be, and is gone.
    pub async fn look_through(&self) -> Result<Vec<String>, DriverError> {
        self.shelf.look_through().await.map_err(|trouble| trouble.of(ImageId(uuid::Uuid::nil())))
    }

    fn coming(&self, blob: &Blob, layer: bool) -> Arc<Coming> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let found = asked.get(&blob.sha256).and_then(Weak::upgrade);
        // One that is over says how it was then.
        if let Some(coming) = found.filter(|coming| !coming.state.borrow().is_over()) {
            return coming;
        }
        asked.retain(|_, coming| coming.strong_count() > 0);
        let coming = Coming::begin(self.shelf.clone(), self.fetcher.clone(), blob.clone(), layer);
        asked.insert(blob.sha256.clone(), Arc::downgrade(&coming));
        coming
    }
}

/// The blobs that a host wants of an image before anything else.
fn roles(image: &Image) -> &'static [BlobRole] {
    match image.layers.is_empty() {
        false => &[BlobRole::Manifest, BlobRole::Config],
        true => image.format.roles(),
    }
}

fn check_digest(blob: &Blob) -> Result<(), Trouble> {
    match is_digest(&blob.sha256) {
        true => Ok(()),
        false => Err(Trouble::Broken(format!("{:?} is no SHA-256", blob.sha256))),
    }
}

/// Lower-case hexadecimal SHA-256, and so a safe file name.
fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests;
