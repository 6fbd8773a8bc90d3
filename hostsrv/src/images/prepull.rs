//! Images that the host is to have before anything starts from them: fetches what the desired state names, a few at a time,
//! tries again what failed, and tells what images are here. Owns the list that the controller sees of this host's images.
//! Refuses to keep anything from eviction: what is to stay counts as in use where the cache is swept.

use super::ImageCache;
use crate::instance::{CachedImage, DriverError};
use amphi_api::ImageId;
use amphi_api::image::BlobRole;
use amphi_api::instance::Fault;
use amphi_api::prepull::{HELD_MAX, HostImages, ImageFetch, Mark};
use amphi_api::wire::{HostDesired, PrepullDesired};
use async_trait::async_trait;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Images that are fetched at once.
const ABREAST: usize = 2;
/// How often it is looked how far a fetch has come.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is looked what is here, and how soon a fetch that failed is tried again.
const PERIOD: Duration = Duration::from_secs(30);

/// The engine of container images.
#[async_trait]
pub trait ContainerStore: Send + Sync {
    /// Has the engine take the image.
    async fn fetch(&self, image: &CachedImage) -> Result<(), DriverError>;

    /// Digests of the configurations of its images that came by this agent.
    async fn held(&self) -> Result<BTreeSet<String>, DriverError>;
}

/// How it stands with an image that is to be here.
struct Fetch {
    order: PrepullDesired,
    task: Option<JoinHandle<Result<(), DriverError>>>,
    held: bool,
    fault: Option<Fault>,
    again: Option<Instant>,
}

impl Drop for Fetch {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Runs until the process ends.
pub async fn keep(
    images: Arc<ImageCache>,
    containers: Arc<dyn ContainerStore>,
    mut orders: watch::Receiver<Option<Arc<HostDesired>>>,
    tell: watch::Sender<Arc<HostImages>>,
) {
    let mut fetches: BTreeMap<ImageId, Fetch> = BTreeMap::new();
    let mut here = BTreeSet::new();
    loop {
        let desired = orders.borrow_and_update().clone();
        take_orders(&mut fetches, desired.iter().flat_map(|desired| &desired.images));
        for fetch in
            fetches.values_mut().filter(|fetch| fetch.task.as_ref().is_some_and(JoinHandle::is_finished))
        {
            conclude(fetch).await;
        }
        let told = look(&images, &*containers, &mut here).await;
        for fetch in fetches.values_mut().filter(|fetch| fetch.order.kept && fetch.held) {
            // Somebody has removed it.
            fetch.held = fetch.order.image.mark().is_some_and(|mark| is_here(&here, mark));
        }
        begin(&mut fetches, &images, &containers);
        let mut told = HostImages { fetches: Vec::with_capacity(fetches.len()), ..told };
        for fetch in fetches.values() {
            told.fetches.push(fetch.told(&images).await);
        }
        tell.send_if_modified(|held| {
            let differs = **held != told;
            if differs {
                *held = Arc::new(told);
            }
            differs
        });
        let pause = if fetches.values().any(|fetch| fetch.task.is_some()) { LOOK } else { PERIOD };
        if let Ok(Err(_)) = tokio::time::timeout(pause, orders.changed()).await {
            return;
        }
    }
}

/// What is ordered now, and no more; an image of other bytes than before is another one.
fn take_orders<'a>(fetches: &mut BTreeMap<ImageId, Fetch>, orders: impl Iterator<Item = &'a PrepullDesired>) {
    let mut due: BTreeMap<ImageId, &PrepullDesired> = orders.map(|order| (order.image.id, order)).collect();
    fetches.retain(|id, fetch| match due.get(id).copied() {
        Some(order) if order.image.blobs == fetch.order.image.blobs => {
            fetch.order.kept = order.kept;
            due.remove(id);
            true
        }
        _ => false,
    });
    for (id, order) in due {
        let fetch = Fetch { order: order.clone(), task: None, held: false, fault: None, again: None };
        fetches.insert(id, fetch);
    }
}

fn begin(
    fetches: &mut BTreeMap<ImageId, Fetch>,
    images: &Arc<ImageCache>,
    containers: &Arc<dyn ContainerStore>,
) {
    let mut busy = fetches.values().filter(|fetch| fetch.task.is_some()).count();
    let now = Instant::now();
    for fetch in fetches.values_mut() {
        let due = fetch.task.is_none() && !fetch.held && fetch.again.is_none_or(|again| now >= again);
        if !due || busy >= ABREAST {
            continue;
        }
        busy += 1;
        let (images, containers, image) = (images.clone(), containers.clone(), fetch.order.image.clone());
        fetch.task = Some(tokio::spawn(async move {
            let cached = images.ensure(&image).await?;
            match image.mark() {
                Some(Mark::Container(_)) => containers.fetch(&cached).await,
                _ if image.format.is_container() => containers.fetch(&cached).await,
                _ => Ok(()),
            }
        }));
    }
}

/// A fetch has ended, this way or that.
async fn conclude(fetch: &mut Fetch) {
    let Some(task) = fetch.task.take() else { return };
    let image = fetch.order.image.id;
    let (code, message) = match task.await {
        Ok(Ok(())) => {
            tracing::info!(%image, name = fetch.order.image.name, "is here beforehand");
            (fetch.held, fetch.fault, fetch.again) = (true, None, None);
            return;
        }
        Ok(Err(error)) => (error.code(), error.to_string()),
        Err(error) => ("internal", error.to_string()),
    };
    tracing::warn!(%image, "cannot be fetched beforehand: {message}");
    let same = fetch.fault.as_ref().is_some_and(|fault| fault.message == message);
    if !same {
        fetch.fault = Some(Fault { code: code.to_owned(), message, since: Timestamp::now() });
    }
    fetch.again = Some(Instant::now() + PERIOD);
}

impl Fetch {
    async fn told(&self, images: &ImageCache) -> ImageFetch {
        let image = &self.order.image;
        let percent = if self.held { 100 } else { images.come(image).await / 10 * 10 };
        ImageFetch { image: image.id, percent, held: self.held, fault: self.fault.clone() }
    }
}

fn is_here(here: &BTreeSet<(bool, String)>, mark: Mark<'_>) -> bool {
    match mark {
        Mark::Blob(digest) => here.contains(&(false, digest.to_owned())),
        Mark::Container(digest) => here.contains(&(true, digest.to_owned())),
    }
}

/// What is here, all of it into `here`, and as much of it as is told. An engine that does not answer has what it had.
async fn look(
    images: &ImageCache,
    containers: &dyn ContainerStore,
    here: &mut BTreeSet<(bool, String)>,
) -> HostImages {
    let mut blobs = images.here().await;
    let containers = match containers.held().await {
        Ok(held) => held,
        Err(error) => {
            tracing::debug!("the engine does not tell its images: {error}");
            here.iter().filter(|(container, _)| *container).map(|(_, digest)| digest.clone()).collect()
        }
    };
    *here = blobs.iter().map(|(_, digest)| (false, digest.clone())).collect();
    here.extend(containers.iter().map(|digest| (true, digest.clone())));
    blobs.sort_by(|a, b| b.cmp(a));
    // What was never asked for lately is told last, and so not at all where there is too much.
    let mut lately: Vec<(Option<SystemTime>, String)> =
        containers.into_iter().map(|digest| (images.used(&digest), digest)).collect();
    lately.sort_by(|a, b| b.cmp(a));
    HostImages {
        blobs: blobs.into_iter().take(HELD_MAX).map(|(_, digest)| digest).collect(),
        containers: lately.into_iter().take(HELD_MAX).map(|(_, digest)| digest).collect(),
        fetches: Vec::new(),
    }
}

/// Container images without an engine: those whose layers have come into the cache are there.
pub struct CacheOnly {
    images: Arc<ImageCache>,
    whole: Mutex<BTreeSet<String>>,
}

impl CacheOnly {
    pub fn new(images: Arc<ImageCache>) -> Self {
        Self { images, whole: Mutex::default() }
    }

    fn whole(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.whole.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ContainerStore for CacheOnly {
    async fn fetch(&self, image: &CachedImage) -> Result<(), DriverError> {
        self.images.ensure_layers(&image.image).await?;
        self.whole().extend(image.image.blobs.get(&BlobRole::Config).map(|blob| blob.sha256.clone()));
        Ok(())
    }

    async fn held(&self) -> Result<BTreeSet<String>, DriverError> {
        let here: BTreeSet<String> = self.images.here().await.into_iter().map(|(_, digest)| digest).collect();
        Ok(self.whole().intersection(&here).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Setup, honest};
    use super::*;
    use amphi_api::HostId;
    use amphi_api::image::Image;

    struct Nothing;

    #[async_trait]
    impl ContainerStore for Nothing {
        async fn fetch(&self, _: &CachedImage) -> Result<(), DriverError> {
            Ok(())
        }

        async fn held(&self) -> Result<BTreeSet<String>, DriverError> {
            Ok(BTreeSet::new())
        }
    }

    fn order(image: &Image, kept: bool) -> Option<Arc<HostDesired>> {
        let images = vec![PrepullDesired { image: image.clone(), kept }];
        Some(Arc::new(HostDesired { images, ..HostDesired::empty(HostId::new()) }))
    }

    async fn until(
        told: &mut watch::Receiver<Arc<HostImages>>,
        what: &str,
        so: impl Fn(&HostImages) -> bool,
    ) {
        let waited = tokio::time::timeout(Duration::from_secs(20), told.wait_for(|told| so(told))).await;
        let so = waited.map(|seen| drop(seen.unwrap())).is_ok();
        assert!(so, "not {what}: {:?}", told.borrow());
    }

    #[tokio::test]
    async fn what_is_ordered_comes_and_is_told_and_what_is_kept_comes_again() {
        let setup = honest();
        let Setup { folder, cache, image, .. } = &setup;
        let digest = image.blobs.values().next().unwrap().sha256.clone();
        let (give, orders) = watch::channel(None);
        let (tell, mut told) = watch::channel(Arc::default());
        let kept = tokio::spawn(keep(cache.clone(), Arc::new(Nothing), orders, tell));
        give.send_replace(order(image, false));
        until(&mut told, "held", |told| told.fetches.iter().any(|f| f.held && f.percent == 100)).await;
        until(&mut told, "told", |told| told.blobs.contains(&digest)).await;
        // Nothing is asked for any more, and it is evicted: it is not fetched again.
        let evicted = cache.sweep(&BTreeSet::new(), 0).await.unwrap();
        assert_eq!(evicted.len(), 1);
        give.send_replace(Some(Arc::new(HostDesired::empty(HostId::new()))));
        until(&mut told, "told to be gone", |told| told.blobs.is_empty() && told.fetches.is_empty()).await;
        assert_eq!(setup.fetches(), 1);
        // By policy it is.
        give.send_replace(order(image, true));
        until(&mut told, "held again", |told| told.fetches.iter().any(|f| f.held)).await;
        std::fs::remove_file(folder.path().join("images").join(&digest)).unwrap();
        give.send_replace(order(image, true));
        until(&mut told, "seen to be gone", |told| told.fetches.iter().all(|f| !f.held)).await;
        until(&mut told, "held once more", |told| told.fetches.iter().any(|f| f.held)).await;
        assert_eq!(setup.fetches(), 3);
        drop(give);
        kept.await.unwrap();
    }
}
