//! The cache against a fetcher that lies, breaks off, stalls and counts.

use super::*;
use amphi_api::ProjectId;
use amphi_api::image::{BlobRole, ImageFormat, ImageState};
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Clone, Copy, Debug)]
enum Mood {
    Honest,
    FlipsABit,
    BreaksOff,
    EndsEarly,
    NeverStops,
    IsDown,
}

struct Fake {
    bytes: Vec<u8>,
    mood: Mutex<Mood>,
    fetches: AtomicUsize,
}

#[async_trait]
impl BlobFetcher for Fake {
    async fn fetch(&self, _sha256: &str) -> anyhow::Result<BoxStream<'static, anyhow::Result<Bytes>>> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        let mut bytes = self.bytes.clone();
        let mut end = None;
        match *self.mood.lock().unwrap() {
            Mood::Honest => {}
            Mood::FlipsABit => bytes[70_000] ^= 4,
            Mood::BreaksOff => {
                bytes.truncate(70_000);
                end = Some(Err(anyhow::anyhow!("connection reset")));
            }
            Mood::EndsEarly => bytes.truncate(70_000),
            Mood::NeverStops => bytes.push(0),
            Mood::IsDown => anyhow::bail!("no route to host"),
        }
        let chunks: Vec<anyhow::Result<Bytes>> =
            bytes.chunks(1000).map(|c| Ok(Bytes::copy_from_slice(c))).chain(end).collect();
        // Between chunks others get their turn, so that parallel callers really overlap.
        let stream = futures_util::stream::iter(chunks).then(|chunk| async {
            tokio::task::yield_now().await;
            chunk
        });
        Ok(stream.boxed())
    }
}

fn setup(mood: Mood) -> (tempfile::TempDir, Arc<Fake>, ImageCache, Image) {
    let bytes: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
    let blob = Blob { sha256: hex::encode(Sha256::digest(&bytes)), size: bytes.len() as u64 };
    let image = Image {
        id: ImageId::new(),
        project: ProjectId::DEFAULT,
        name: "disk".into(),
        format: ImageFormat::Raw,
        cmdline: String::new(),
        state: ImageState::Active,
        layers: Vec::new(),
        blobs: BTreeMap::from([(BlobRole::Disk, blob)]),
        created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
    };
    let fake = Arc::new(Fake { bytes, mood: Mutex::new(mood), fetches: AtomicUsize::new(0) });
    let folder = tempfile::tempdir().unwrap();
    let cache = ImageCache::new(folder.path().join("images"), fake.clone());
    (folder, fake, cache, image)
}

fn held(folder: &tempfile::TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(folder.path().join("images")).unwrap();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn an_image_is_fetched_once_and_is_what_it_says() {
    let (_folder, fake, cache, image) = setup(Mood::Honest);
    for _ in 0..2 {
        let cached = cache.ensure(&image).await.unwrap();
        assert_eq!(std::fs::read(&cached.blobs[&BlobRole::Disk]).unwrap(), fake.bytes);
    }
    assert_eq!(fake.fetches.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn bad_streams_are_refused_named_and_leave_nothing() {
    for (mood, code, word) in [
        (Mood::FlipsABit, "image_broken", "arrived with the digest"),
        (Mood::NeverStops, "image_broken", "more than its 100000 bytes"),
        (Mood::BreaksOff, "engine_down", "connection reset"),
        (Mood::EndsEarly, "engine_down", "after 70000 of 100000"),
        (Mood::IsDown, "engine_down", "no route to host"),
    ] {
        let (folder, fake, cache, image) = setup(mood);
        let error = cache.ensure(&image).await.unwrap_err();
        assert_eq!(error.code(), code, "{mood:?}: {error}");
        assert!(error.to_string().contains(word), "{mood:?}: {error}");
        assert_eq!(held(&folder), [""; 0], "{mood:?}");
        *fake.mood.lock().unwrap() = Mood::Honest;
        cache.ensure(&image).await.unwrap();
        assert_eq!(held(&folder).len(), 1, "{mood:?}");
    }
}

#[tokio::test]
async fn parallel_callers_fetch_once() {
    let (_folder, fake, cache, image) = setup(Mood::Honest);
    let all = futures_util::future::join_all((0..20).map(|_| cache.ensure(&image))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(fake.fetches.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_blob_that_was_cut_is_fetched_again() {
    let (_folder, fake, cache, image) = setup(Mood::Honest);
    let path = cache.ensure(&image).await.unwrap().blobs[&BlobRole::Disk].clone();
    std::fs::write(&path, b"short").unwrap();
    cache.ensure(&image).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), fake.bytes);
    assert_eq!(fake.fetches.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn digests_that_are_paths_and_missing_blobs_are_refused() {
    let (_folder, _fake, cache, mut image) = setup(Mood::Honest);
    image.blobs.get_mut(&BlobRole::Disk).unwrap().sha256 = "../../etc/passwd".into();
    assert_eq!(cache.ensure(&image).await.unwrap_err().code(), "image_broken");
    image.blobs.clear();
    assert_eq!(cache.ensure(&image).await.unwrap_err().code(), "image_broken");
}

#[tokio::test]
async fn the_sweep_takes_what_nobody_uses() {
    let (folder, _fake, cache, image) = setup(Mood::Honest);
    assert_eq!(cache.sweep(&BTreeSet::new(), 0).await.unwrap(), []);
    cache.ensure(&image).await.unwrap();
    let digest = image.blobs[&BlobRole::Disk].sha256.clone();
    let part = folder.path().join("images").join(format!("{digest}.x{PART}"));
    std::fs::write(&part, b"young").unwrap();
    assert_eq!(cache.sweep(&BTreeSet::from([digest.clone()]), 0).await.unwrap(), []);
    assert_eq!(cache.sweep(&BTreeSet::new(), 100_000).await.unwrap(), []);
    assert_eq!(
        cache.sweep(&BTreeSet::new(), 99_999).await.unwrap(),
        [Evicted { sha256: digest, size: 100_000 }]
    );
    assert!(part.exists(), "a part that may still be written");
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(7200);
    std::fs::File::options().write(true).open(&part).unwrap().set_modified(long_ago).unwrap();
    cache.sweep(&BTreeSet::new(), 0).await.unwrap();
    assert!(!part.exists(), "a part that nobody writes any more");
}
