//! Images in Docker's own store: has those pulled that come by layer, loads the archive of others when their image is
//! absent, and makes the anchor's image. Remembers what it has seen there.

use super::engine::Engine;
use super::flush::flush;
use super::{ENGINE, archive, pull};
use crate::images::registry::Registry;
use crate::instance::{CachedImage, DriverError};
use amphi_api::ImageId;
use amphi_api::image::BlobRole;
use bollard::errors::Error;
use bollard::query_parameters::ImportImageOptionsBuilder;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio_util::io::ReaderStream;

/// The anchor image's name; its tag is the product's version.
const ANCHOR_TAG: &str = concat!("amphi-anchor:", env!("CARGO_PKG_VERSION"));
/// The name of images that came by this agent; their tag is the digest of their configuration.
pub const STORED: &str = "amphi-image";
/// Piece size when an archive is streamed, in bytes.
const PIECE: usize = 256 << 10;

pub struct Images {
    busybox: PathBuf,
    /// None: images that come by layer cannot be had.
    registry: Option<Arc<Registry>>,
    /// Docker's data root.
    docker_root: PathBuf,
    /// Pulls, by the digest of the configuration: the first of those who ask pulls, the others find it there.
    turns: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// Loads go one at a time: two sets that start together must not load one image twice.
    loading: tokio::sync::Mutex<()>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Archive's sha256 to image id: reading it out of a large archive takes a walk over the file.
    ids: HashMap<String, String>,
    /// Image ids that were in Docker's store when last seen.
    present: HashSet<String>,
    anchor: Option<String>,
}

impl Images {
    pub fn new(busybox: PathBuf, registry: Option<Arc<Registry>>, docker_root: PathBuf) -> Images {
        let (loading, known) = (tokio::sync::Mutex::new(()), Mutex::default());
        Images { busybox, registry, docker_root, turns: Mutex::default(), loading, known }
    }

    /// Waits until what has come into Docker's store is on the disk.
    pub async fn flush(&self, engine: &Engine) {
        flush(&self.docker_root, engine.limits.load).await;
    }

    /// Makes sure that Docker has the image; answers its id there.
    pub async fn ensure(&self, engine: &Engine, cached: &CachedImage) -> Result<String, DriverError> {
        let image = cached.image.id;
        let broken = |message: String| DriverError::ImageBroken { image, message };
        if let (false, Some(registry)) = (cached.image.layers.is_empty(), &self.registry) {
            return pull::ensure(self, registry, engine, cached).await;
        }
        let path =
            cached.blobs.get(&BlobRole::Archive).ok_or_else(|| broken("it has no archive".to_owned()))?;
        let digest = cached.image.blobs.get(&BlobRole::Archive).map(|blob| blob.sha256.clone());
        let known = digest.as_ref().and_then(|digest| self.known(|known| known.ids.get(digest).cloned()));
        let id = match known {
            Some(id) => id,
            None => read_id(path.clone(), image).await?,
        };
        if !self.is_present(engine, &id).await? {
            let _one = self.loading.lock().await;
            if !self.is_present(engine, &id).await? {
                self.load_archive(engine, image, path).await?;
                self.flush(engine).await;
                if !self.is_present(engine, &id).await? {
                    return Err(broken(format!("Docker loaded it, yet has no image {id}")));
                }
                pull::keep(engine, &id, id.trim_start_matches("sha256:")).await?;
            }
        }
        if let Some(digest) = digest {
            self.known(|known| known.ids.insert(digest, id.clone()));
        }
        Ok(id)
    }

    /// Makes sure that Docker has the anchor's image; answers its id.
    pub async fn ensure_anchor(&self, engine: &Engine) -> Result<String, DriverError> {
        if let Some(id) = self.known(|known| known.anchor.clone()) {
            return Ok(id);
        }
        let _one = self.loading.lock().await;
        let doing = format!("make the anchor image {ANCHOR_TAG}");
        let io = |source| DriverError::Io { doing: doing.clone(), source };
        let busybox = tokio::fs::read(&self.busybox).await.map_err(|source| DriverError::Io {
            doing: format!("read {}", self.busybox.display()),
            source,
        })?;
        let (archive, id) = archive::anchor_archive(&busybox, ANCHOR_TAG).map_err(io)?;
        if !self.is_present(engine, &id).await? {
            let pieces = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from(archive))]);
            load(engine, &doing, pieces).await?;
        }
        self.known(|known| known.anchor = Some(id.clone()));
        Ok(id)
    }

    /// Somebody removed images: ask Docker again.
    pub fn forget(&self) {
        self.known(|known| {
            known.present.clear();
            known.anchor = None;
        });
    }

    pub async fn is_present(&self, engine: &Engine, id: &str) -> Result<bool, DriverError> {
        if self.known(|known| known.present.contains(id)) {
            return Ok(true);
        }
        let doing = format!("look for image {id}");
        let found = engine
            .find(&doing, engine.limits.call, |docker| async move { docker.inspect_image(id).await })
            .await?;
        if found.is_some() {
            self.known(|known| known.present.insert(id.to_owned()));
        }
        Ok(found.is_some())
    }

    async fn load_archive(&self, engine: &Engine, image: ImageId, path: &Path) -> Result<(), DriverError> {
        let file = tokio::fs::File::open(path)
            .await
            .map_err(|source| DriverError::Io { doing: format!("open image {image}"), source })?;
        match load(engine, &format!("load image {image}"), ReaderStream::with_capacity(file, PIECE)).await {
            // A full disk is no fault of the image.
            Err(DriverError::EngineRefused { message, .. }) if !message.contains("no space left") => {
                Err(DriverError::ImageBroken { image, message })
            }
            other => other,
        }
    }

    /// The turn to pull an image.
    pub fn turn(&self, tag: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns();
        if let Some(turn) = turns.get(tag).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        turns.insert(tag.to_owned(), Arc::downgrade(&turn));
        turn
    }

    /// Whether somebody has, or waits for, the turn to pull it.
    pub fn has_turn(&self, tag: &str) -> bool {
        self.turns().get(tag).is_some_and(|turn| turn.strong_count() > 0)
    }

    /// Whether anything is being pulled.
    pub fn has_turns(&self) -> bool {
        self.turns().values().any(|turn| turn.strong_count() > 0)
    }

    fn turns(&self) -> MutexGuard<'_, BTreeMap<String, Weak<tokio::sync::Mutex<()>>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known<T>(&self, work: impl FnOnce(&mut Known) -> T) -> T {
        // Facts are inserted whole: a panic elsewhere leaves nothing half done.
        work(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn read_id(path: PathBuf, image: ImageId) -> Result<String, DriverError> {
    let doing = format!("read image {image}");
    let read = tokio::task::spawn_blocking(move || {
        let file = File::open(path)?;
        Ok::<_, std::io::Error>(archive::image_id(std::io::BufReader::new(file)))
    });
    let read = read.await.map_err(std::io::Error::other).and_then(|read| read);
    read.map_err(|source| DriverError::Io { doing, source })?
        .map_err(|message| DriverError::ImageBroken { image, message })
}

async fn load<S>(engine: &Engine, doing: &str, archive: S) -> Result<(), DriverError>
where
    S: Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
{
    engine
        .call(doing, engine.limits.load, |docker| async move {
            let options = ImportImageOptionsBuilder::default().quiet(true).build();
            let mut answers = std::pin::pin!(docker.import_image_stream(options, archive, None));
            while let Some(answer) = answers.next().await {
                match answer {
                    Ok(_) | Err(Error::JsonDataError { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
        .await
        .map_err(|error| match error {
            // Docker hangs up in the middle of a stream it cannot use.
            DriverError::EngineDown { source, doing, .. }
                if format!("{source:#}").contains("error decoding") =>
            {
                DriverError::EngineRefused { engine: ENGINE, doing, message: format!("{source:#}") }
            }
            other => other,
        })
}
