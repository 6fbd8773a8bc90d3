//! Eight hosts want one blob at once, four times each: the hosts' face over real TLS, the agents' own caches and their ways
//! to each other. Every byte that leaves the controller is counted.

use amphi_api::host::{Acceleration, Engine, HostSpec, VolumeActivation};
use amphi_api::image::Blob;
use amphi_api::lease::LeaseTiming;
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
use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
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

/// In front of the controller: passes everything, and counts what comes out.
async fn counting(to: SocketAddr) -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let counted = counted.clone();
            tokio::spawn(async move {
                let Ok(far) = TcpStream::connect(to).await else { return };
                let ((mut from_near, mut to_near), (mut from_far, mut to_far)) =
                    (near.into_split(), far.into_split());
                let up = async {
                    let _ended = tokio::io::copy(&mut from_near, &mut to_far).await;
                    let _closed = to_far.shutdown().await;
                };
                let down = async {
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(read @ 1..) = from_far.read(&mut buffer).await {
                        counted.fetch_add(read as u64, Ordering::SeqCst);
                        if to_near.write_all(&buffer[..read]).await.is_err() {
                            break;
                        }
                    }
                    let _closed = to_near.shutdown().await;
                };
                tokio::join!(up, down);
            });
        }
    });
    (address, count)
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
    let beat = FromHost::Heartbeat { engines: vec![], volume_group_free_bytes: 0, figures: vec![] };
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
    let (front, count) = counting(face).await;

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
    let copies = count.load(Ordering::SeqCst) as f64 / SIZE as f64;
    println!("{} pulls by {HOSTS} hosts: {copies:.2} copies out of the controller", HOSTS * EACH);
    assert!(copies < 2.0, "{copies:.2} copies");
}
