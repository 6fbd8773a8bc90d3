//! Two hosts over real TLS: one hands on what it has and what is still coming, and nothing else; the other looks at it.

use super::*;
use crate::images::{BlobFetcher, Incoming};
use crate::peer_wire::greet;
use amphi_api::HostId;
use amphi_api::ImageId;
use amphi_api::host::HOST_URI;
use async_trait::async_trait;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// A controller: it counts, and may wait before the last piece.
struct Controller {
    bytes: Bytes,
    asked: AtomicUsize,
    go: Arc<Semaphore>,
    /// Names this host in place of bytes, with the papers of who asks.
    peer: Mutex<Option<(Arc<PeerPapers>, BlobPeer)>>,
}

#[async_trait]
impl BlobFetcher for Controller {
    async fn fetch(&self, blob: &Blob, from: u64) -> anyhow::Result<Incoming> {
        let peer = self.peer.lock().unwrap().clone().filter(|_| from == 0);
        if let Some((papers, peer)) = peer
            && let Ok(bytes) = fetch(&papers, &peer, blob).await
        {
            return Ok(Incoming { bytes, peer: Some(peer.host) });
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        let rest = self.bytes.slice(from as usize..);
        let last = rest.len() - 1000;
        let (go, pieces) = (self.go.clone(), [rest.slice(..last), rest.slice(last..)]);
        let pieces = stream::iter(pieces.into_iter().enumerate()).then(move |(number, piece)| {
            let go = go.clone();
            async move {
                if number == 1 {
                    go.acquire().await?.forget();
                    go.add_permits(1);
                }
                Ok(piece)
            }
        });
        Ok(Incoming { bytes: pieces.boxed(), peer: None })
    }
}

/// Papers as a joining gives them.
fn papers(dir: &Path, host: HostId, issuer: &Issuer<'_, KeyPair>, ca: &str) -> PeerPapers {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.subject_alt_names = vec![SanType::URI(format!("{HOST_URI}{host}").try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, issuer).unwrap();
    let dir = dir.join(host.to_string());
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("ca.pem"), ca).unwrap();
    std::fs::write(dir.join("host.pem"), certificate.pem()).unwrap();
    std::fs::write(dir.join("host.key"), key.serialize_pem()).unwrap();
    // As `Papers` has it; not needed between hosts.
    std::fs::write(dir.join("controller.json"), "{}").unwrap();
    PeerPapers::read(&dir).unwrap()
}

struct Pair {
    _dir: tempfile::TempDir,
    blob: Blob,
    first: Arc<ImageCache>,
    controllers: [Arc<Controller>; 2],
    second: Arc<ImageCache>,
}

async fn pair() -> Pair {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = ca.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(ca, key);
    let hosts = [HostId::new(), HostId::new()];
    let [serving, asking] = hosts.map(|host| papers(dir.path(), host, &issuer, &pem));
    let bytes: Bytes = (0..3_000_000_u32).map(|n| (n % 249) as u8).collect();
    let blob = Blob { sha256: hex::encode(Sha256::digest(&bytes)), size: bytes.len() as u64 };
    let controllers = [(); 2].map(|()| {
        let (go, peer) = (Arc::new(Semaphore::new(0)), Mutex::default());
        Arc::new(Controller { bytes: bytes.clone(), asked: AtomicUsize::new(0), go, peer })
    });
    let cache =
        |n: usize| Arc::new(ImageCache::new(dir.path().join(format!("images{n}")), controllers[n].clone()));
    let (first, second) = (cache(0), cache(1));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(serving.server().unwrap());
    let served = first.clone();
    tokio::spawn(crate::peer_wire::take(listener, 16, move |tcp| {
        let (acceptor, served) = (acceptor.clone(), served.clone());
        async move {
            let Ok((mut stream, _)) = greet(tcp, &acceptor, CONNECT).await else { return };
            let Ok(ask) = read::<Ask>(&mut stream, LINE_MAX).await else { return };
            let _ended = serve(&mut stream, &ask, &served).await;
        }
    }));
    let peer = BlobPeer { host: hosts[0], address };
    *controllers[1].peer.lock().unwrap() = Some((Arc::new(asking), peer));
    Pair { _dir: dir, blob, first, controllers, second }
}

impl Pair {
    fn asked(&self) -> [usize; 2] {
        [0, 1].map(|n| self.controllers[n].asked.load(Ordering::SeqCst))
    }

    async fn second_has_it(&self) {
        let path = self.second.ensure_blob(ImageId::new(), &self.blob).await.unwrap();
        assert!(std::fs::read(path).unwrap() == self.controllers[0].bytes);
    }
}

#[tokio::test]
async fn a_host_hands_on_what_it_has_and_what_still_comes() {
    let pair = pair().await;
    // The first host's is not whole yet when the second one begins with it.
    let mut coming = pair.first.open(&pair.blob).await.unwrap();
    coming.next().await.unwrap().unwrap();
    let mut second = pair.second.open(&pair.blob).await.unwrap();
    second.next().await.unwrap().unwrap();
    assert_eq!(pair.asked(), [1, 0]);
    pair.controllers[0].go.add_permits(1);
    pair.second_has_it().await;
    assert_eq!(pair.asked(), [1, 0], "one copy for both");
}

#[tokio::test]
async fn who_is_not_served_by_a_host_is_served_by_the_controller() {
    let pair = pair().await;
    pair.controllers.iter().for_each(|controller| controller.go.add_permits(1));
    // It is not there, and is not fetched for others.
    pair.second_has_it().await;
    assert_eq!(pair.asked(), [0, 1]);

    // As many are served as may be.
    let full = self::pair().await;
    full.controllers.iter().for_each(|controller| controller.go.add_permits(1));
    full.first.ensure_blob(ImageId::new(), &full.blob).await.unwrap();
    let guests = full.first.guests.try_acquire_many(GUESTS as u32).unwrap();
    full.second_has_it().await;
    assert_eq!(full.asked(), [1, 1]);
    drop(guests);

    // Another host answers there than the one that was named.
    let other = self::pair().await;
    other.controllers.iter().for_each(|controller| controller.go.add_permits(1));
    other.first.ensure_blob(ImageId::new(), &other.blob).await.unwrap();
    if let Some((_, peer)) = &mut *other.controllers[1].peer.lock().unwrap() {
        peer.host = HostId::new();
    }
    other.second_has_it().await;
    assert_eq!(other.asked(), [1, 1]);
}

#[tokio::test]
async fn a_bit_that_flipped_on_the_other_host_goes_no_further() {
    let pair = pair().await;
    pair.controllers.iter().for_each(|controller| controller.go.add_permits(1));
    let path = pair.first.ensure_blob(ImageId::new(), &pair.blob).await.unwrap();
    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[2_000_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    // The other host finds it while it hands it on, and cuts; the rest is asked of the controller, and does not fit.
    let error = pair.second.ensure_blob(ImageId::new(), &pair.blob).await.unwrap_err();
    assert_eq!(error.code(), "engine_down", "{error}");
    assert!(error.to_string().contains("fetched anew"), "{error}");
    assert!(!path.exists(), "the other host has let go of it");
    pair.second_has_it().await;
}
