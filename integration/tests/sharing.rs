//! Eight hosts want one blob at once, four times each: the hosts' face over real TLS, the agents' own caches and their ways
//! to each other. Then the same of a whole image in a lab: eight hosts in memory and two real ones, whose dockerd pulls it for
//! the sets that start from it. Every byte that leaves the controller is counted.

use amphi_api::host::{Acceleration, Engine, HostSpec, HostState, VolumeActivation};
use amphi_api::image::Blob;
use amphi_api::instance::BodySpec;
use amphi_api::lease::LeaseTiming;
use amphi_api::prepull::{PrepullCreate, PrepullState};
use amphi_api::wire::{FromHost, HostDesired, HostStatus, JoinAnswer, JoinRequest, PROTOCOL};
use amphi_api::{ErrorCode, HostId, ImageId};
use amphi_controller::faces::hosts::{self, BlobStream, HostSide, Links, Refusal, State};
use amphi_controller::images::{BlobRead, BlobStore};
use amphi_controller::leases::Leases;
use amphi_controller::pki::Ca;
use amphi_hostsrv::blobs::ControllerBlobs;
use amphi_hostsrv::images::{ImageCache, peers};
use amphi_hostsrv::lease::tls::PeerPapers;
use amphi_hostsrv::link::Papers;
use amphi_integration::alone::agent::{Agent, Home, Size};
use amphi_integration::archive::archive;
use amphi_integration::counting::counting;
use amphi_integration::engines::{EnginePort, HostEngines, Registry};
use amphi_integration::failing::{self, Stage, request};
use amphi_integration::lab::Layout;
use amphi_integration::wait::{seen, until};
use anyhow::{Context, Result};
use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message;

const HOSTS: usize = 8;
const EACH: usize = 4;
const SIZE: usize = 24 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// The records' side: who listens where, and that everything is everybody's.
struct Records {
    listens: Mutex<BTreeMap<HostId, SocketAddr>>,
    blobs: BlobStore,
    /// Where the one blob lies in the store.
    place: String,
    generation: watch::Sender<u64>,
}

#[async_trait::async_trait]
impl HostSide for Records {
    async fn join(&self, _: JoinRequest) -> Result<JoinAnswer, Refusal> {
        Err(Refusal::new(ErrorCode::Forbidden, "nobody joins here"))
    }
    async fn hello(&self, _: HostId, _: HostSpec) -> Result<String, Refusal> {
        Ok(String::new())
    }
    async fn heartbeat(&self, _: HostId, _: Vec<Engine>, _: u64) {}
    async fn images(&self, _: HostId, _: amphi_api::prepull::HostImages) {}
    fn figures(&self, _: HostId, _: &[amphi_api::group::InstanceFigures]) {}
    async fn status(&self, _: HostId, _: HostStatus) {}
    async fn gone(&self, _: HostId) {}
    async fn desired(&self, host: HostId) -> Arc<HostDesired> {
        Arc::new(HostDesired::empty(host))
    }
    fn desired_generation(&self, _: HostId) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
    async fn blob_allowed(&self, _: HostId, _: &str) -> bool {
        true
    }
    async fn read_blob(&self, sha256: &str, from: u64) -> Result<(BlobRead, u64), Refusal> {
        let refused = |text: String| Refusal::new(ErrorCode::NotFound, text);
        let digest = sha256.parse().map_err(|_| refused(format!("{sha256} is no digest")))?;
        self.blobs.read(digest, &self.place, from).await.map_err(|error| refused(error.to_string()))
    }
    async fn take_export(&self, _: ImageId, _: &str, _: BlobStream) -> Result<(), Refusal> {
        Err(Refusal::new(ErrorCode::Forbidden, "nobody exports here"))
    }
    fn listens_at(&self, host: HostId) -> Option<SocketAddr> {
        self.listens.lock().unwrap().get(&host).copied()
    }
}

fn spec() -> HostSpec {
    HostSpec {
        name: "h".into(),
        chassis: "h".into(),
        address: "127.0.0.1".into(),
        cpus: 1,
        memory_mib: 1,
        reserved_cpus: 0,
        reserved_memory_mib: 0,
        volume_group_bytes: 0,
        volume_group_free_bytes: 0,
        acceleration: Acceleration::Tcg,
        activation: VolumeActivation::Loop,
        engines: vec![],
        shared_groups: Vec::new(),
        physical_networks: Vec::new(),
        moves_at: None,
        takes_passes: false,
        guest_kit: false,
        isolation: None,
        wire: amphi_api::wire::WIRE,
        agent_version: "0".into(),
    }
}

/// What joining leaves on a host.
fn papers(folder: &Path, url: &str, ca: &Ca, host: HostId) {
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::new(vec![]).unwrap().serialize_request(&key).unwrap();
    let certificate = ca.sign_host(&request.pem().unwrap(), host).unwrap();
    std::fs::create_dir_all(folder).unwrap();
    let (id, key) = (host.to_string(), key.serialize_pem());
    let files: [(&str, &str); 5] = [
        ("url", url),
        ("host-id", &id),
        ("ca.pem", ca.pem()),
        ("host.pem", &certificate),
        ("host.key", &key),
    ];
    for (name, text) in files {
        std::fs::write(folder.join(name), text).unwrap();
    }
}

/// The host's link, said hello on and read for as long as it lasts.
async fn link(folder: &Path, address: SocketAddr) {
    let read = |name| std::fs::read(folder.join(name)).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&read("ca.pem")).unwrap()).unwrap();
    let certificate = CertificateDer::from_pem_slice(&read("host.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(&read("host.key")).unwrap();
    let tls = rustls::ClientConfig::builder().with_root_certificates(roots);
    let tls = tls.with_client_auth_cert(vec![certificate], key).unwrap();
    let tcp = TcpStream::connect(address).await.unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(address.ip().into(), tcp).await;
    let upgraded = tokio_tungstenite::client_async("ws://c/hosts/v1/link", stream.unwrap()).await;
    let mut socket = upgraded.unwrap().0;
    let hello = serde_json::to_string(&FromHost::Hello { protocol: PROTOCOL, spec: spec() }).unwrap();
    socket.send(Message::text(hello)).await.unwrap();
    let beat =
        FromHost::Heartbeat { engines: vec![], volume_group_free_bytes: 0, figures: vec![], images: None };
    let beat = serde_json::to_string(&beat).unwrap();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(2));
        loop {
            tokio::select! {
                heard = socket.next() => if heard.is_none_or(|heard| heard.is_err()) { return },
                _ = ticks.tick() => if socket.send(Message::text(beat.clone())).await.is_err() { return },
            }
        }
    });
}

/// Where other hosts knock.
async fn gate(folder: &Path, cache: Arc<ImageCache>) -> SocketAddr {
    let tls = PeerPapers::read(folder).unwrap().server().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, cache) = (tokio_rustls::TlsAcceptor::from(tls.clone()), cache.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(tcp).await else { return };
                let (mut stream, mut line) = (BufReader::new(stream), String::new());
                if stream.read_line(&mut line).await.is_ok()
                    && let Ok(ask) = serde_json::from_str::<peers::Ask>(&line)
                    && let Err(error) = peers::serve(&mut stream, &ask, &cache).await
                {
                    eprintln!("a host was not served to the end: {error:#}");
                }
            });
        }
    });
    address
}

#[test]
fn many_pulls_cost_the_controller_few_copies() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, story()).await.expect("in time") });
}

async fn story() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open(&dir.path().join("ca")).unwrap();
    let links = Arc::new(Links::new(Duration::from_secs(5)));
    let blobs = BlobStore::open(&dir.path().join("store")).await.unwrap();
    let bytes: Vec<u8> = (0..SIZE).map(|n| (n % 251) as u8 ^ (n >> 13) as u8).collect();
    let upload = futures_util::stream::iter([Ok::<_, String>(bytes.clone().into())]);
    let put = blobs.put(upload, None).await.unwrap();
    let blob = Blob { sha256: put.digest.to_string(), size: put.size };
    let records = Arc::new(Records {
        listens: Mutex::default(),
        blobs,
        place: put.place,
        generation: watch::Sender::new(1),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let face = listener.local_addr().unwrap();
    let tls = ca.server_config(&["127.0.0.1".into()]).unwrap();
    let leases = Arc::new(Leases::new(LeaseTiming::default(), true));
    let state = State { side: records.clone(), links: links.clone(), leases };
    tokio::spawn(hosts::serve(listener, tls, state, std::future::pending()));
    let (front, count) = counting(face).await.unwrap();

    let hosts: Vec<HostId> = (0..HOSTS).map(|_| HostId::new()).collect();
    let mut caches = Vec::new();
    for host in &hosts {
        let folder = dir.path().join(host.to_string());
        papers(&folder, &format!("https://{front}"), &ca, *host);
        link(&folder, face).await;
        let source = ControllerBlobs::new(&Papers::read(&folder).unwrap()).unwrap();
        let source = source.with_peers(PeerPapers::read(&folder).unwrap());
        let cache = Arc::new(ImageCache::new(folder.join("images"), Arc::new(source)));
        let address = gate(&folder, cache.clone()).await;
        records.listens.lock().unwrap().insert(*host, address);
        caches.push(cache);
    }
    let up = async {
        while !hosts.iter().all(|host| links.is_up(*host)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE / 4, up).await.expect("all links are up");

    let image = ImageId::new();
    let pulls = caches.iter().flat_map(|cache| (0..EACH).map(|_| cache.ensure_blob(image, &blob)));
    let pulled = tokio::time::timeout(PATIENCE / 2, join_all(pulls)).await.expect("all pulls end");
    for pulled in pulled {
        assert!(std::fs::read(pulled.unwrap()).unwrap() == bytes);
    }
    let copies = count.down() as f64 / SIZE as f64;
    println!("{} pulls by {HOSTS} hosts: {copies:.2} copies out of the controller", HOSTS * EACH);
    assert!(copies < 2.0, "{copies:.2} copies");
}

/// Of the image's layers, in MiB.
const LAYERS: [usize; 2] = [16, 8];
/// Pulls of each host in memory, and sets of each real one.
const PULLS: [usize; 2] = [3, 4];
const REAL: [&str; 2] = ["h1", "h2"];

/// What is spawned on it has the network of that process.
fn runtime_beside(process: i32) -> Result<tokio::runtime::Runtime> {
    let network = std::fs::File::open(format!("/proc/{process}/ns/net"))?;
    // Threads have the network of the thread that started them.
    let made = std::thread::spawn(move || {
        nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET)?;
        anyhow::Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
    });
    made.join().map_err(|_| anyhow::anyhow!("no thread for the lab's network"))?
}

/// A host in memory, beside the controller.
async fn remembered(name: String, state: PathBuf, url: String, token: String) -> Result<Agent> {
    let size = Size { cpus: 4, memory_mib: 4096 };
    let home = Home { run: state.join("run"), state, name, url: Some(url), size };
    amphi_hostsrv::join::join(&home.name, &home.pki(), &token).await?;
    let engines = HostEngines::new(&home.name, Arc::new(Registry::default()), Duration::from_millis(1));
    let gate = std::net::TcpListener::bind("10.99.0.1:0")?;
    Agent::start_at(&home, &EnginePort::Here(engines), Some(gate))
}

#[test]
fn ten_hosts_of_which_two_are_real_pull_one_image_32_times() -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("sharing-lab"))?;
    let stage = Stage::up(layout, &images, Path::new(env!("CARGO_BIN_EXE_amphi-lab")), 2, |_| {})?;
    let network = runtime_beside(stage.lab.first_process("controller")?)?;
    let (front, count) = network.block_on(network.spawn(counting("10.99.0.1:7443".parse()?)))??;
    let url = format!("https://{front}");
    // Each real host comes to the controller by the same door.
    for host in REAL {
        stage.lab.run(host, &["sh", "-c", &format!("printf %s {url} >/var/lib/amphi/pki/url")])?;
        stage.lab.kill(host, "hostsrv", nix::sys::signal::Signal::SIGKILL)?;
        stage.lab.start(host, "hostsrv")?;
    }
    let folder = tempfile::tempdir()?;
    let mut agents = Vec::new();
    for number in 0..HOSTS {
        let (name, state) = (format!("m{number}"), folder.path().join(format!("m{number}")));
        let token = stage.ask(stage.client.create_join_token(&Default::default()))?.token;
        agents.push(network.block_on(network.spawn(remembered(name, state, url.clone(), token)))??);
    }
    until("ten hosts are up", PATIENCE, || {
        let hosts = stage.ask(stage.client.hosts())?;
        let up = hosts.iter().filter(|h| h.state == HostState::Up).count();
        Ok(seen(up == HOSTS + REAL.len(), || format!("{up} are")))
    })?;
    // What every host has anyway: the anchor's image, the link, its facts.
    for host in REAL {
        let first = stage.create(&request(&format!("first-{host}"), vec![failing::set()], Some(host)))?;
        stage.delete(first.id)?;
    }

    let (archive, _) = archive(folder.path(), "shared", &LAYERS)?;
    stage.image(json!({"name": "shared", "format": "docker-archive"}), &[("archive", archive)])?;
    let image = stage.ask(stage.client.find_image("shared"))?;
    let size: u64 = image.layers.iter().map(|layer| layer.size).sum();
    let before = count.down();
    let order = PrepullCreate { all: true, ..PrepullCreate::default() };
    stage.ask(stage.client.prepull_image(image.id, &order))?;
    let caches: Vec<_> = agents.iter().map(Agent::images).collect();
    let pulls = caches.into_iter().flat_map(|cache| std::iter::repeat_n(cache, PULLS[0])).map(|cache| {
        let image = image.clone();
        network.spawn(async move { cache.ensure_layers(&image).await.map(|paths| paths.len()) })
    });
    let pulls: Vec<_> = pulls.collect();
    let set = |name: &str| -> Result<BodySpec> {
        let command = ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000000 & wait $!; done"];
        let member = json!({"name": name, "index": 0, "image": "shared", "command": command});
        Ok(BodySpec::Set(serde_json::from_value(json!({"members": [member]}))?))
    };
    let mut ordered = Vec::new();
    for host in REAL {
        for number in 0..PULLS[1] {
            let mut order = request(&format!("s-{host}-{number}"), vec![set("one")?], Some(host));
            order.memory_mib = 64;
            ordered.push(stage.order(&order)?.id);
        }
    }
    let ends = network.block_on(async { tokio::time::timeout(PATIENCE, join_all(pulls)).await });
    let ends = ends.context("pulls in memory")?;
    for end in ends {
        assert_eq!(end??, image.layers.len());
    }
    for id in ordered {
        stage.runs(id)?;
    }
    until("all ten have it", PATIENCE, || {
        let told = stage.ask(stage.client.image_on_hosts(image.id))?;
        let held = told.hosts.iter().filter(|h| h.state == PrepullState::Held && !h.ordered).count();
        Ok(seen(held == HOSTS + REAL.len(), || format!("{told:?}")))
    })?;
    for host in REAL {
        let id = stage.host(host)?.id;
        let told = stage.ask(stage.client.host(id))?;
        assert!(told.images.iter().any(|held| held.image == image.id), "{:?}", told.images);
    }
    let bytes = count.down() - before;
    let copies = bytes as f64 / size as f64;
    let all = PULLS[0] * HOSTS + PULLS[1] * REAL.len();
    println!(
        "{all} pulls of {size} bytes by ten hosts: {bytes} bytes out of the controller, {copies:.2} copies"
    );
    // One copy to whoever asked first; whoever was sent to a host that had nothing yet comes back at most once.
    assert!(copies < 2.0, "{copies:.2} copies");
    drop(agents);
    stage.down()
}
