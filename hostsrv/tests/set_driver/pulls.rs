//! Images that come by layer, on a real dockerd: each layer once, flipped bits found wherever they flip, faults by their
//! names, and a store of a bounded size. Every byte that leaves the source is counted.

use crate::common::engines::{BUSYBOX, DOCKER_SOCKET};
use crate::common::{PrivateHost, eventually, on_private_host, run};
use crate::stage::Stage;
use amphi_api::ImageId;
use amphi_api::image::{Blob, BlobRole, Compression, Image, ImageFormat, ImageState, Layer};
use amphi_api::wire::BodyDesired;
use amphi_hostsrv::images::registry::Registry;
use amphi_hostsrv::images::{BlobFetcher, ImageCache, Incoming};
use amphi_hostsrv::instance::set::{SetDriver, SetOptions};
use amphi_hostsrv::instance::{BodyDriver, BodyPlan, DriverError, ObservedState, Remains};
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use nix::mount::{MsFlags, mount};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Semaphore;

const STAY: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done";

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Honest,
    Flips,
    IsDown,
    /// Stops before the last byte until there is a permit.
    Waits,
}

/// A controller's blobs.
struct Source {
    blobs: Mutex<HashMap<String, Bytes>>,
    sent: Mutex<HashMap<String, u64>>,
    mood: Mutex<Mood>,
    go: Arc<Semaphore>,
    waiting: Arc<Mutex<usize>>,
}

impl Source {
    fn put(&self, bytes: Vec<u8>) -> Blob {
        let blob = Blob { sha256: hex::encode(Sha256::digest(&bytes)), size: bytes.len() as u64 };
        self.blobs.lock().unwrap().insert(blob.sha256.clone(), bytes.into());
        blob
    }

    /// Bytes sent since the last look, by blob.
    fn take_sent(&self) -> HashMap<String, u64> {
        std::mem::take(&mut self.sent.lock().unwrap())
    }

    fn is_now(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }
}

#[async_trait::async_trait]
impl BlobFetcher for Source {
    async fn fetch(&self, blob: &Blob, from: u64) -> anyhow::Result<Incoming> {
        let mood = *self.mood.lock().unwrap();
        anyhow::ensure!(mood != Mood::IsDown, "no route to host");
        let bytes = self.blobs.lock().unwrap().get(&blob.sha256).cloned();
        let mut bytes = bytes.ok_or_else(|| anyhow::anyhow!("no such blob"))?;
        // Only layers are so large.
        let large = bytes.len() > 100_000;
        if mood == Mood::Flips && large {
            let mut flipped = bytes.to_vec();
            flipped[90_000] ^= 16;
            bytes = flipped.into();
        }
        let rest = bytes.split_off(from as usize);
        *self.sent.lock().unwrap().entry(blob.sha256.clone()).or_default() += rest.len() as u64;
        let (go, waiting) = (self.go.clone(), self.waiting.clone());
        let last = rest.len().saturating_sub(1);
        let pieces: Vec<Bytes> = match mood == Mood::Waits && large {
            true => vec![rest.slice(..last), rest.slice(last..)],
            false => rest.chunks(64 << 10).map(|piece| rest.slice_ref(piece)).collect(),
        };
        let stops = mood == Mood::Waits && large;
        let pieces = stream::iter(pieces.into_iter().enumerate()).then(move |(number, piece)| {
            let (go, waiting) = (go.clone(), waiting.clone());
            async move {
                if stops && number == 1 {
                    *waiting.lock().unwrap() += 1;
                    go.acquire().await?.forget();
                }
                Ok(piece)
            }
        });
        Ok(Incoming { bytes: pieces.boxed(), peer: None })
    }
}

/// A layer's tar: files with their bytes, all executable.
fn layer_of(files: &[(&str, &[u8])], links: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let header = |kind, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size as u64);
        header.set_mode(0o755);
        header
    };
    for (name, bytes) in files {
        tar.append_data(&mut header(tar::EntryType::Regular, bytes.len()), name, *bytes).unwrap();
    }
    for (name, to) in links {
        tar.append_link(&mut header(tar::EntryType::Symlink, 0), name, to).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new("gzip")
        .args(["-1n"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("gzip runs");
    let mut input = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let write = std::thread::spawn(move || input.write_all(&bytes));
    let output = child.wait_with_output().unwrap();
    write.join().unwrap().unwrap();
    output.stdout
}

/// Bytes that no compression makes small.
fn noise(seed: u8, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 32);
    let mut last = Sha256::digest([seed]);
    while bytes.len() < size {
        last = Sha256::digest(last);
        bytes.extend_from_slice(&last);
    }
    bytes.truncate(size);
    bytes
}

struct Pulls<'a> {
    stage: Stage<'a>,
    source: Arc<Source>,
    cache: Arc<ImageCache>,
    driver: Arc<SetDriver>,
    folder: PathBuf,
}

impl<'a> Pulls<'a> {
    fn new(host: &'a mut PrivateHost) -> Self {
        let stage = Stage::new(host);
        let source = Arc::new(Source {
            blobs: Mutex::default(),
            sent: Mutex::default(),
            mood: Mutex::new(Mood::Honest),
            go: Arc::new(Semaphore::new(0)),
            waiting: Arc::default(),
        });
        let folder = stage.host.path("images");
        let cache = Arc::new(ImageCache::new(&folder, source.clone()));
        let driver = Self::agent(&stage, &cache);
        Self { stage, source, cache, driver, folder }
    }

    /// As a start of the agent makes it.
    fn agent(stage: &Stage, cache: &Arc<ImageCache>) -> Arc<SetDriver> {
        stage.runtime.block_on(async {
            let listen = (std::net::Ipv4Addr::LOCALHOST, 0).into();
            let registry = Registry::serve(cache.clone(), listen).await.expect("a registry");
            let options = SetOptions { registry: Some(registry), ..SetOptions::default() };
            let dir = stage.host.path("agent");
            Arc::new(SetDriver::new(DOCKER_SOCKET, dir, stage.bell.clone(), options).expect("a driver"))
        })
    }

    /// An image of these layers' tars; the second is kept gzipped.
    fn image(&self, tars: &[Vec<u8>]) -> Image {
        let digest = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
        let mut layers = Vec::new();
        for (number, tar) in tars.iter().enumerate() {
            let (bytes, compression) = match number {
                1 => (gzip(tar), Compression::Gzip),
                _ => (tar.clone(), Compression::None),
            };
            let blob = self.source.put(bytes);
            layers.push(Layer { sha256: blob.sha256, size: blob.size, compression, diff_id: digest(tar) });
        }
        let diff_ids: Vec<String> = layers.iter().map(|l| format!("sha256:{}", l.diff_id)).collect();
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = self.source.put(config.to_string().into_bytes());
        let media = "application/vnd.docker";
        let described: Vec<_> = layers
            .iter()
            .map(|l| {
                let packed = if l.compression == Compression::Gzip { ".gzip" } else { "" };
                json!({"mediaType": format!("{media}.image.rootfs.diff.tar{packed}"), "size": l.size,
                    "digest": format!("sha256:{}", l.sha256)})
            })
            .collect();
        let manifest = json!({"schemaVersion": 2, "layers": described,
            "mediaType": format!("{media}.distribution.manifest.v2+json"),
            "config": {"mediaType": format!("{media}.container.image.v1+json"), "size": config.size,
                "digest": format!("sha256:{}", config.sha256)}});
        let manifest = self.source.put(manifest.to_string().into_bytes());
        Image {
            id: ImageId::new(),
            format: ImageFormat::Oci,
            state: ImageState::Active,
            blobs: BTreeMap::from([(BlobRole::Manifest, manifest), (BlobRole::Config, config)]),
            layers,
            ..self.stage.image.image.clone()
        }
    }

    /// A set of one member, of this image.
    fn plan(&self, image: &Image) -> Result<BodyPlan, DriverError> {
        let mut plan = self.stage.plan(
            json!({"members": [{"index": 0, "name": "m", "image": "x", "command": ["/bin/sh", "-c", STAY]}]}),
        );
        let BodyDesired::Set { images, .. } = &mut plan.body else { panic!("a set") };
        *images = vec![image.clone()];
        let cached = self.stage.runtime.block_on(self.cache.ensure(image))?;
        plan.images = BTreeMap::from([(image.id, cached)]);
        Ok(plan)
    }

    fn prepare(&self, image: &Image) -> Result<(), DriverError> {
        let plan = self.plan(image)?;
        self.stage.runtime.block_on(self.driver.prepare(&plan))
    }

    /// As if Docker had never had it.
    fn take_away(&mut self, image: &Image) {
        self.stage.host.docker(&["rmi", "-f", &id_of(image)]);
        self.driver = Self::agent(&self.stage, &self.cache);
    }

    fn has(&self, image: &Image) -> bool {
        let listed = self.stage.host.docker(&["image", "ls", "-aq", "--no-trunc"]);
        listed.lines().any(|line| line == id_of(image))
    }

    fn layer_path(&self, image: &Image, layer: usize) -> PathBuf {
        self.folder.join(&image.layers[layer].sha256)
    }
}

fn id_of(image: &Image) -> String {
    format!("sha256:{}", image.blobs[&BlobRole::Config].sha256)
}

/// Of each of its blobs, just all bytes.
fn whole(image: &Image, layers: impl IntoIterator<Item = usize>) -> HashMap<String, u64> {
    let layers = layers.into_iter().map(|n| (image.layers[n].sha256.clone(), image.layers[n].size));
    image.blobs.values().map(|blob| (blob.sha256.clone(), blob.size)).chain(layers).collect()
}

fn busybox() -> Vec<u8> {
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    layer_of(&[("bin/busybox", &busybox)], &[("bin/sh", "busybox"), ("bin/sleep", "busybox")])
}

/// One bit, and the time as it was.
fn flip(path: &Path, at: usize) {
    let modified = std::fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
    std::fs::File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
}

#[test]
fn layers_come_once_and_stay_within_bounds() {
    on_private_host("pulls::layers_come_once_and_stay_within_bounds", |host| {
        let mut pulls = Pulls::new(host);
        pulls.stage.host.docker(&[
            "import",
            &pulls.stage.host.path("busybox.tar").display().to_string(),
            BUSYBOX,
        ]);
        let (base, second) = (busybox(), layer_of(&[("b", &noise(1, 3 << 20))], &[]));
        let third = layer_of(&[("c", &noise(2, 2 << 20))], &[]);
        let one = pulls.image(&[base.clone(), second.clone(), third]);
        let two = pulls.image(&[base, second, layer_of(&[("d", &noise(3, 1 << 20))], &[])]);

        // Eight sets of one image at once.
        let plans: Vec<BodyPlan> = (0..8).map(|_| pulls.plan(&one).expect("a plan")).collect();
        let all = join_all(plans.iter().map(|plan| pulls.driver.prepare(plan)));
        for prepared in pulls.stage.runtime.block_on(all) {
            prepared.expect("prepared");
        }
        assert_eq!(pulls.source.take_sent(), whole(&one, 0..3), "each blob once");
        assert!(pulls.has(&one), "Docker's id is the digest of the configuration");
        pulls.stage.run(pulls.driver.ensure(&plans[0]));
        pulls.stage.running();
        let sum = pulls.stage.host.docker(&[
            "exec",
            &pulls.stage.container(&plans[0], "m"),
            "/bin/busybox",
            "sha256sum",
            "/b",
            "/c",
        ]);
        for seed in [(1, 3 << 20), (2, 2 << 20)] {
            assert!(sum.contains(&hex::encode(Sha256::digest(noise(seed.0, seed.1)))), "{sum}");
        }

        // One layer more costs that layer.
        pulls.prepare(&two).expect("prepared");
        assert_eq!(pulls.source.take_sent(), whole(&two, [2]));

        // Another agent, on another port, finds all of it, and no name of a pull is left.
        pulls.driver = Pulls::agent(&pulls.stage, &pulls.cache);
        pulls.prepare(&one).expect("prepared");
        pulls.prepare(&two).expect("prepared");
        assert_eq!(pulls.source.take_sent(), HashMap::new());
        let names =
            pulls.stage.host.docker(&["image", "ls", "--digests", "--format", "{{.Repository}}@{{.Digest}}"]);
        assert!(!names.contains("127.0.0.1"), "{names}");
        assert_eq!(names.matches("amphi-image").count(), 2, "{names}");

        let sweep = |in_use: &[&Image], max| {
            let in_use: BTreeSet<String> =
                in_use.iter().map(|image| image.blobs[&BlobRole::Config].sha256.clone()).collect();
            let used = |sha256: &str| pulls.cache.used(sha256);
            pulls.stage.run(pulls.driver.sweep_images(&in_use, used, max))
        };
        assert_eq!(sweep(&[], 1 << 40), [""; 0], "there is room");
        assert_eq!(sweep(&[&two], 0), [""; 0], "one is ordered, of the other there is a container");
        let gone = sweep(&[], 0);
        assert_eq!(gone, [format!("amphi-image:{}", two.blobs[&BlobRole::Config].sha256)]);
        assert!(pulls.has(&one) && !pulls.has(&two));
        let left = pulls.stage.host.docker(&["image", "ls"]);
        assert!(left.contains("busybox"), "what is not ours stays: {left}");
        pulls.stage.running();

        // Layers are the first to go from the cache, and are not needed to start what Docker has.
        let in_use = one.blobs.values().map(|blob| blob.sha256.clone()).collect();
        let evicted = pulls.stage.run(pulls.cache.sweep(&in_use, 0));
        assert!(evicted.len() >= 4, "{evicted:?}");
        pulls.source.take_sent();
        pulls.stage.run(pulls.driver.remove(plans[0].instance, 5, Remains::Nothing));
        let again = pulls.plan(&one).expect("a plan");
        pulls.stage.run(pulls.driver.ensure(&again));
        assert_eq!(pulls.source.take_sent(), HashMap::new());
        pulls.stage.run(pulls.driver.remove(again.instance, 5, Remains::Nothing));
        // Docker has the lower two layers of it still.
        pulls.prepare(&two).expect("prepared");
        assert_eq!(pulls.source.take_sent(), whole(&two, [2]));
    });
}

#[test]
fn flipped_bits_are_found_and_faults_have_their_names() {
    on_private_host("pulls::flipped_bits_are_found_and_faults_have_their_names", |host| {
        let mut pulls = Pulls::new(host);
        let one = pulls.image(&[busybox(), layer_of(&[("b", &noise(1, 3 << 20))], &[])]);

        // On the wire: nothing of it is kept, neither here nor in Docker.
        pulls.source.is_now(Mood::Flips);
        let error = pulls.prepare(&one).unwrap_err();
        assert_eq!(error.code(), "image_broken", "{error}");
        assert!(error.to_string().contains("arrived with the digest"), "{error}");
        assert!(!pulls.has(&one));

        // Not to be had: told at once, though Docker itself would try for a minute.
        pulls.source.is_now(Mood::IsDown);
        let before = Instant::now();
        let error = pulls.prepare(&one).unwrap_err();
        assert_eq!(error.code(), "engine_down", "{error}");
        assert!(error.to_string().contains("no route to host"), "{error}");
        assert!(before.elapsed() < Duration::from_secs(10), "{:?}", before.elapsed());

        pulls.source.is_now(Mood::Honest);
        pulls.prepare(&one).expect("prepared");
        assert!(pulls.has(&one));

        // In the cache: found while Docker is given it, and healed by the way.
        for layer in 0..2 {
            pulls.source.take_sent();
            pulls.take_away(&one);
            flip(&pulls.layer_path(&one, layer), 1000);
            pulls.prepare(&one).expect("prepared");
            assert!(pulls.has(&one));
            let sent = pulls.source.take_sent();
            let expected = [(one.layers[layer].sha256.clone(), one.layers[layer].size)];
            assert_eq!(sent, HashMap::from(expected), "that layer, and once");
        }
        let manifest = pulls.folder.join(&one.blobs[&BlobRole::Manifest].sha256);
        pulls.take_away(&one);
        flip(&manifest, 20);
        pulls.prepare(&one).expect("prepared");

        // A cache without room.
        pulls.take_away(&one);
        std::fs::create_dir_all(&pulls.folder).unwrap();
        mount(Some("tmpfs"), &pulls.folder, Some("tmpfs"), MsFlags::empty(), Some("size=1M"))
            .expect("a small disk");
        let error = pulls.prepare(&one).unwrap_err();
        assert_eq!(error.code(), "internal", "{error}");
        assert!(error.to_string().contains("No space left"), "{error}");
        run("umount", &[&pulls.folder.display().to_string()]);
        pulls.prepare(&one).expect("prepared");
    });
}

#[test]
fn an_anchor_runs_while_its_member_s_image_comes() {
    on_private_host("pulls::an_anchor_runs_while_its_member_s_image_comes", |host| {
        let pulls = Pulls::new(host);
        let one = pulls.image(&[busybox(), layer_of(&[("b", &noise(2, 3 << 20))], &[])]);
        let containers = || pulls.stage.host.docker(&["ps", "-a", "--format", "{{.Names}} {{.State}}"]);

        // Not to be had: nothing of the set stays.
        let plan = pulls.plan(&one).expect("a plan");
        pulls.source.is_now(Mood::IsDown);
        let error = pulls.stage.runtime.block_on(pulls.driver.ensure(&plan)).unwrap_err();
        assert_eq!(error.code(), "engine_down", "{error}");
        assert_eq!(containers(), "", "an anchor without members");

        // On its way: the anchor has its network, and the set does not run yet.
        pulls.source.is_now(Mood::Waits);
        let (driver, ordered) = (pulls.driver.clone(), plan.clone());
        let going = pulls.stage.runtime.spawn(async move { driver.ensure(&ordered).await });
        let anchor = pulls.stage.container(&plan, "anchor");
        eventually("the anchor runs", || match containers() {
            now if now == format!("{anchor} running") => Ok(()),
            now => Err(now),
        });
        let body = pulls.stage.run(pulls.driver.observe());
        assert_eq!(body.iter().map(|b| b.state).collect::<Vec<_>>(), [ObservedState::Degraded]);
        assert!(!going.is_finished());
        pulls.source.go.add_permits(16);
        pulls.stage.runtime.block_on(going).unwrap().expect("it starts");
        let body = pulls.stage.run(pulls.driver.observe());
        assert_eq!(body.iter().map(|b| b.state).collect::<Vec<_>>(), [ObservedState::Running]);
    });
}

#[test]
fn a_dockerd_that_dies_in_a_pull_goes_on_with_the_next() {
    on_private_host("pulls::a_dockerd_that_dies_in_a_pull_goes_on_with_the_next", |host| {
        let pulls = Pulls::new(host);
        let one = pulls.image(&[busybox(), layer_of(&[("b", &noise(1, 3 << 20))], &[])]);
        pulls.source.is_now(Mood::Waits);
        let plan = pulls.plan(&one).expect("a plan");
        let driver = pulls.driver.clone();
        let going = pulls.stage.runtime.spawn(async move { driver.prepare(&plan).await });
        eventually("the layers wait for their last byte", || match *pulls.source.waiting.lock().unwrap() {
            2 => Ok(()),
            waiting => Err(waiting),
        });
        pulls.stage.host.kill("dockerd");
        let error = pulls.stage.runtime.block_on(going).unwrap().unwrap_err();
        assert_eq!(error.code(), "engine_down", "{error}");
        pulls.source.is_now(Mood::Honest);
        let began = SystemTime::now();
        pulls.source.take_sent();
        let _ = std::fs::remove_file("/run/docker.pid");
        // Its containerd dies with it, and is an orphan of this process, the first one here: as long as it is not waited for
        // the next dockerd takes it for alive.
        let pid = std::fs::read_to_string("/run/docker/containerd/containerd.pid").expect("a pid");
        let pid = nix::unistd::Pid::from_raw(pid.trim().parse().expect("a number"));
        nix::sys::wait::waitpid(pid, None).expect("an orphan");
        pulls.stage.host.start_dockerd();
        pulls.prepare(&one).unwrap_or_else(|error| panic!("{error}, {:?} later", began.elapsed()));
        assert!(pulls.has(&one));
        let sent: u64 = pulls.source.take_sent().values().sum();
        assert!(sent < 1 << 20, "what had come by then is not sent again: {sent}");
    });
}
