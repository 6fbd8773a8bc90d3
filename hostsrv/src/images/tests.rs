//! The cache against a fetcher that lies, breaks off, stalls and counts, and against a disk that changes behind its back.

use super::*;
use amphi_api::ProjectId;
use amphi_api::image::{Compression, ImageFormat, ImageState, Layer};
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

#[derive(Clone, Copy, Debug)]
enum Mood {
    Honest,
    FlipsABit,
    BreaksOff,
    /// After so many bytes of each stream.
    BreaksEvery(usize),
    EndsEarly,
    NeverStops,
    IsDown,
    /// Nothing after so many bytes before a permit comes.
    Waits(usize),
}

pub(super) struct Fake {
    pub bytes: Vec<u8>,
    mood: Mutex<Mood>,
    fetches: AtomicUsize,
    sent: Arc<AtomicU64>,
    go: Arc<Semaphore>,
    peer: Option<HostId>,
}

#[async_trait]
impl BlobFetcher for Fake {
    async fn fetch(&self, _: &Blob, from: u64) -> anyhow::Result<Incoming> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        let from = from as usize;
        let mut bytes = self.bytes.clone();
        let (mut end, mut wait) = (None, usize::MAX);
        match *self.mood.lock().unwrap() {
            Mood::Honest => {}
            Mood::FlipsABit => bytes[70_000] ^= 4,
            Mood::BreaksOff => {
                bytes.truncate(70_000);
                end = Some(Err(anyhow::anyhow!("connection reset")));
            }
            Mood::BreaksEvery(many) => {
                bytes.truncate(from + many);
                end = Some(Err(anyhow::anyhow!("connection reset")));
            }
            Mood::EndsEarly => bytes.truncate(70_000),
            Mood::NeverStops => bytes.push(0),
            Mood::IsDown => anyhow::bail!("no route to host"),
            Mood::Waits(at) => wait = at,
        }
        let chunks: Vec<anyhow::Result<Bytes>> =
            bytes[from..].chunks(1000).map(|c| Ok(Bytes::copy_from_slice(c))).chain(end).collect();
        let (sent, go) = (self.sent.clone(), self.go.clone());
        let stream = futures_util::stream::iter(chunks).enumerate().then(move |(number, chunk)| {
            let (sent, go) = (sent.clone(), go.clone());
            async move {
                if from + number * 1000 >= wait {
                    go.acquire().await.unwrap().forget();
                    go.add_permits(1);
                }
                // Others get their turn, so that parallel callers really overlap.
                tokio::task::yield_now().await;
                sent.fetch_add(chunk.as_ref().map_or(0, |c: &Bytes| c.len() as u64), Ordering::SeqCst);
                chunk
            }
        });
        Ok(Incoming { bytes: stream.boxed(), peer: self.peer })
    }
}

pub(super) struct Setup {
    pub folder: tempfile::TempDir,
    pub fake: Arc<Fake>,
    pub cache: Arc<ImageCache>,
    pub image: Image,
}

fn setup_of(mood: Mood, size: u32) -> Setup {
    setup_from(mood, size, None)
}

fn setup_from(mood: Mood, size: u32, peer: Option<HostId>) -> Setup {
    let bytes: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
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
    let fake = Arc::new(Fake {
        bytes,
        mood: Mutex::new(mood),
        fetches: AtomicUsize::new(0),
        sent: Arc::default(),
        go: Arc::new(Semaphore::new(0)),
        peer,
    });
    let folder = tempfile::tempdir().unwrap();
    let cache = Arc::new(ImageCache::new(folder.path().join("images"), fake.clone()));
    Setup { folder, fake, cache, image }
}

fn setup(mood: Mood) -> Setup {
    setup_of(mood, 100_000)
}

pub(super) fn honest() -> Setup {
    setup(Mood::Honest)
}

impl Setup {
    fn blob(&self) -> &Blob {
        &self.image.blobs[&BlobRole::Disk]
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("images").join(&self.blob().sha256)
    }

    /// All but the small files beside blobs.
    fn held(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.folder.path().join("images")) else { return Vec::new() };
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.ends_with(facts::SEEN)).collect()
    }

    pub(super) fn fetches(&self) -> usize {
        self.fake.fetches.load(Ordering::SeqCst)
    }

    fn in_mood(&self, mood: Mood) {
        *self.fake.mood.lock().unwrap() = mood;
    }

    async fn ensure(&self) -> Result<Vec<u8>, DriverError> {
        let cached = self.cache.ensure(&self.image).await?;
        Ok(std::fs::read(&cached.blobs[&BlobRole::Disk]).unwrap())
    }

    async fn read(&self) -> (Vec<u8>, Option<Trouble>) {
        let mut bytes = Vec::new();
        let mut stream = match self.cache.open(self.blob()).await {
            Ok(stream) => stream,
            Err(trouble) => return (bytes, Some(trouble)),
        };
        while let Some(piece) = stream.next().await {
            match piece {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(trouble) => return (bytes, Some(trouble)),
            }
        }
        (bytes, None)
    }
}

/// One bit, and the time as it was: what a medium does.
fn flip(path: &std::path::Path, at: usize) {
    let modified = std::fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    let mut file = std::fs::File::options().write(true).open(path).unwrap();
    std::io::Write::write_all(&mut file, &bytes).unwrap();
    file.set_modified(modified).unwrap();
}

#[tokio::test]
async fn an_image_is_fetched_once_and_is_what_it_says() {
    let all = setup(Mood::Honest);
    for _ in 0..2 {
        assert_eq!(all.ensure().await.unwrap(), all.fake.bytes);
    }
    assert_eq!(all.fetches(), 1);
    // Another agent finds it.
    let next = ImageCache::new(all.folder.path().join("images"), all.fake.clone());
    next.ensure(&all.image).await.unwrap();
    assert_eq!(all.fetches(), 1);
}

#[tokio::test]
async fn bad_streams_are_refused_and_named() {
    for (mood, code, word, kept) in [
        (Mood::FlipsABit, "image_broken", "arrived with the digest", 0),
        (Mood::NeverStops, "image_broken", "more than its 100000 bytes", 0),
        (Mood::BreaksOff, "engine_down", "connection reset", 70_000),
        (Mood::EndsEarly, "engine_down", "after 70000 of 100000", 70_000),
        (Mood::IsDown, "engine_down", "no route to host", 0),
    ] {
        let all = setup(mood);
        let error = all.cache.ensure(&all.image).await.unwrap_err();
        assert_eq!(error.code(), code, "{mood:?}: {error}");
        assert!(error.to_string().contains(word), "{mood:?}: {error}");
        assert!(!all.path().exists(), "{mood:?}");
        let sent = all.fake.sent.swap(0, Ordering::SeqCst);
        all.in_mood(Mood::Honest);
        assert_eq!(all.ensure().await.unwrap(), all.fake.bytes, "{mood:?}");
        assert_eq!(all.held(), [all.blob().sha256.clone()], "{mood:?}");
        // What had come counts.
        assert_eq!(all.fake.sent.load(Ordering::SeqCst), 100_000 - kept, "{mood:?}, after {sent}");
    }
}

#[tokio::test]
async fn what_another_host_spoilt_is_named_and_fetched_anew() {
    for mood in [Mood::FlipsABit, Mood::NeverStops] {
        let host = HostId::new();
        let all = setup_from(mood, 100_000, Some(host));
        let error = all.cache.ensure(&all.image).await.unwrap_err();
        assert_eq!(error.code(), "engine_down", "{mood:?}: {error}");
        assert!(error.to_string().contains(&host.to_string()), "{mood:?}: {error}");
        assert_eq!(all.held(), [""; 0], "{mood:?}");
        all.in_mood(Mood::Honest);
        assert_eq!(all.ensure().await.unwrap(), all.fake.bytes, "{mood:?}");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_is_taken_up_again() {
    let all = setup(Mood::BreaksEvery(30_000));
    assert_eq!(all.ensure().await.unwrap(), all.fake.bytes);
    assert_eq!((all.fetches(), all.fake.sent.load(Ordering::SeqCst)), (4, 100_000));
}

#[tokio::test]
async fn what_was_kept_of_an_earlier_try_is_not_trusted() {
    let all = setup(Mood::BreaksOff);
    all.cache.ensure(&all.image).await.unwrap_err();
    flip(&all.path().with_extension("part"), 5);
    all.in_mood(Mood::Honest);
    let error = all.cache.ensure(&all.image).await.unwrap_err();
    assert_eq!(error.code(), "engine_down", "{error}");
    assert!(error.to_string().contains("fetched anew"), "{error}");
    assert_eq!(all.ensure().await.unwrap(), all.fake.bytes);
}

#[tokio::test]
async fn parallel_callers_fetch_once() {
    let all = setup(Mood::Honest);
    let ensured = futures_util::future::join_all((0..20).map(|_| all.ensure()));
    let read = futures_util::future::join_all((0..20).map(|_| all.read()));
    let (ensured, read) = futures_util::future::join(ensured, read).await;
    assert!(ensured.iter().all(|bytes| bytes.as_ref().unwrap() == &all.fake.bytes));
    assert!(read.iter().all(|(bytes, trouble)| bytes == &all.fake.bytes && trouble.is_none()));
    assert_eq!(all.fetches(), 1);
}

#[tokio::test]
async fn bytes_are_handed_on_before_the_last_has_come_and_the_last_only_when_all_are_right() {
    // Larger than what is written at once.
    let all = setup_of(Mood::Waits(2_500_000), 3_000_000);
    let mut stream = all.cache.open(all.blob()).await.unwrap();
    let mut bytes = Vec::new();
    while bytes.len() < 2 << 20 {
        bytes.extend_from_slice(&stream.next().await.unwrap().unwrap());
    }
    assert!(!all.path().exists(), "it is still coming");
    all.fake.go.add_permits(1);
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    assert!(bytes == all.fake.bytes);

    let bad = setup_of(Mood::FlipsABit, 3_000_000);
    let (bytes, trouble) = bad.read().await;
    assert!(bytes.len() < 3_000_000, "{}", bytes.len());
    assert!(matches!(&trouble, Some(Trouble::Broken(why)) if why.contains("arrived with")), "{trouble:?}");
}

#[tokio::test]
async fn who_leaves_ends_the_fetch_and_what_came_is_kept() {
    let all = setup_of(Mood::Waits(1_500_000), 3_000_000);
    let mut stream = all.cache.open(all.blob()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    all.in_mood(Mood::Honest);
    all.fake.sent.store(0, Ordering::SeqCst);
    assert!(all.ensure().await.unwrap() == all.fake.bytes);
    assert!(all.fake.sent.load(Ordering::SeqCst) < 3_000_000, "it went on");
}

#[tokio::test]
async fn a_blob_that_was_changed_is_fetched_again() {
    let all = setup(Mood::Honest);
    all.ensure().await.unwrap();
    std::fs::write(all.path(), b"short").unwrap();
    assert_eq!(all.ensure().await.unwrap(), all.fake.bytes);
    let mut same_size = all.fake.bytes.clone();
    same_size[7] ^= 1;
    std::fs::write(all.path(), &same_size).unwrap();
    assert_eq!(all.ensure().await.unwrap(), all.fake.bytes);
    assert_eq!(all.fetches(), 3);
    // Only looked at: it is read, and found to be as it was.
    std::fs::File::options().write(true).open(all.path()).unwrap().set_modified(SystemTime::now()).unwrap();
    std::fs::remove_file(facts::path_of(&all.path())).unwrap();
    all.ensure().await.unwrap();
    assert_eq!(all.fetches(), 3);
}

#[tokio::test]
async fn a_flipped_bit_is_found_while_it_is_handed_on() {
    let all = setup_of(Mood::Honest, 1_000_000);
    all.ensure().await.unwrap();
    assert!(all.read().await.1.is_none());
    flip(&all.path(), 500_000);
    let (bytes, trouble) = all.read().await;
    assert!(bytes.len() < 1_000_000, "never all of it: {}", bytes.len());
    assert!(
        matches!(&trouble, Some(Trouble::Changed(why)) if why.contains(&all.blob().sha256)),
        "{trouble:?}"
    );
    assert!(!all.path().exists(), "it is gone");
    let (bytes, trouble) = all.read().await;
    assert!(bytes == all.fake.bytes && trouble.is_none(), "{trouble:?}");
    assert_eq!(all.fetches(), 2);
}

#[tokio::test]
async fn a_medium_that_lost_a_bit_is_found_when_it_is_read_again() {
    let all = setup(Mood::Honest);
    all.ensure().await.unwrap();
    flip(&all.path(), 99_999);
    assert_eq!(all.cache.look_through().await.unwrap(), [""; 0], "read a moment ago");
    // As if it had been a day ago.
    let small = facts::path_of(&all.path());
    let mut facts: serde_json::Value = serde_json::from_slice(&std::fs::read(&small).unwrap()).unwrap();
    facts["verified_s"] = (facts["verified_s"].as_u64().unwrap() - 100_000).into();
    std::fs::write(&small, facts.to_string()).unwrap();
    assert_eq!(all.cache.look_through().await.unwrap(), [all.blob().sha256.clone()]);
    assert_eq!(all.held(), [""; 0]);
    assert_eq!(all.ensure().await.unwrap(), all.fake.bytes);
}

#[tokio::test]
async fn digests_that_are_paths_and_missing_blobs_are_refused() {
    let mut all = setup(Mood::Honest);
    all.image.blobs.get_mut(&BlobRole::Disk).unwrap().sha256 = "../../etc/passwd".into();
    assert_eq!(all.cache.ensure(&all.image).await.unwrap_err().code(), "image_broken");
    assert!(matches!(all.cache.open(all.blob()).await, Err(Trouble::Broken(_))));
    all.image.blobs.clear();
    assert_eq!(all.cache.ensure(&all.image).await.unwrap_err().code(), "image_broken");
}

#[tokio::test]
async fn layers_are_left_to_who_asks_for_them() {
    let mut all = setup(Mood::Honest);
    let blob = all.blob().clone();
    all.image.format = ImageFormat::DockerArchive;
    all.image.blobs =
        [BlobRole::Archive, BlobRole::Manifest, BlobRole::Config].map(|role| (role, blob.clone())).into();
    let roles = |cached: CachedImage| cached.blobs.into_keys().collect::<Vec<_>>();
    assert_eq!(roles(all.cache.ensure(&all.image).await.unwrap()), [BlobRole::Archive], "an old one");
    let diff_id = "0".repeat(64);
    let layer = Layer { sha256: blob.sha256, size: blob.size, compression: Compression::None, diff_id };
    all.image.layers = vec![layer];
    let cached = all.cache.ensure(&all.image).await.unwrap();
    assert_eq!(roles(cached), [BlobRole::Manifest, BlobRole::Config]);
    assert_eq!(all.cache.ensure_layers(&all.image).await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_sweep_takes_what_nobody_uses() {
    let all = setup(Mood::Honest);
    assert_eq!(all.cache.sweep(&BTreeSet::new(), 0).await.unwrap(), []);
    all.ensure().await.unwrap();
    let digest = all.blob().sha256.clone();
    let folder = all.folder.path().join("images");
    let part = folder.join(format!("{}{}", "1".repeat(64), shelf::PART));
    let alone = folder.join(format!("{}{}", "1".repeat(64), facts::SEEN));
    std::fs::write(&part, b"young").unwrap();
    std::fs::write(&alone, b"{}").unwrap();
    assert_eq!(all.cache.sweep(&BTreeSet::from([digest.clone()]), 0).await.unwrap(), []);
    assert!(!alone.exists(), "what is known of nothing");
    assert_eq!(all.cache.sweep(&BTreeSet::new(), 100_000).await.unwrap(), []);
    assert!(all.cache.used(&digest).is_some());
    let gone = all.cache.sweep(&BTreeSet::new(), 99_999).await.unwrap();
    assert_eq!(gone, [Evicted { sha256: digest.clone(), size: 100_000 }]);
    assert_eq!(all.cache.used(&digest), None);
    assert!(part.exists(), "a part that may still be written");
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(7200);
    std::fs::File::options().write(true).open(&part).unwrap().set_modified(long_ago).unwrap();
    all.cache.sweep(&BTreeSet::new(), 0).await.unwrap();
    assert!(!part.exists(), "a part that nobody writes any more");
}
