//! The hosts' face over real TLS: joining, certificates, blobs, and the link.

use amphi_api::host::{Acceleration, Engine, HostSpec, VolumeActivation};
use amphi_api::instance::Fault;
use amphi_api::lease::{LEASE_ALPN, LeaseEcho, LeaseGrant, LeaseRenewal, LeaseState, LeaseTiming};
use amphi_api::wire::{
    Answer, Ask, ExportDesired, ExportSource, FromHost, HostDesired, HostStatus, JoinAnswer, JoinRequest,
    PROTOCOL, ToHost,
};
use amphi_api::{ErrorCode, HostId, ImageId, InstanceId};
use amphi_controller::faces::hosts::BlobStream;
use amphi_controller::faces::hosts::{self, AskError, HostSide, Links, Refusal, State};
use amphi_controller::images::{BlobError, BlobRead, BlobStore};
use amphi_controller::leases::{Known, KnownHost, Leases};
use amphi_controller::pki::{self, Ca};
use async_trait::async_trait;
use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

/// The records' side, small: one join secret, one blob that may be fetched, and what was heard.
struct Records {
    ca: Ca,
    digest: Mutex<Option<String>>,
    allowed: Mutex<String>,
    exports: Mutex<Vec<ExportDesired>>,
    blobs: Arc<BlobStore>,
    /// Where each blob that was put lies.
    places: Mutex<std::collections::HashMap<String, String>>,
    desired: watch::Sender<u64>,
    heard: watch::Sender<Vec<String>>,
}

#[async_trait]
impl HostSide for Records {
    async fn join(&self, request: JoinRequest) -> Result<JoinAnswer, Refusal> {
        let mut digest = self.digest.lock().unwrap();
        if !digest.as_ref().is_some_and(|d| pki::join_secret_fits(&request.secret, d)) {
            return Err(Refusal::new(ErrorCode::Forbidden, "this token is unknown or was used"));
        }
        *digest = None;
        let host = HostId::new();
        let certificate = self
            .ca
            .sign_host(&request.csr, host)
            .map_err(|e| Refusal::new(ErrorCode::InvalidField, e.to_string()))?;
        Ok(JoinAnswer { host, certificate, ca: self.ca.pem().to_owned() })
    }
    async fn hello(&self, _: HostId, spec: HostSpec) -> Result<String, Refusal> {
        self.note(format!("hello {}", spec.name));
        if spec.name == "unwanted" {
            Err(Refusal::new(ErrorCode::Forbidden, "not this one"))
        } else {
            Ok("tcp:sb".into())
        }
    }
    async fn heartbeat(&self, _: HostId, _: Vec<Engine>, free: u64) {
        self.note(format!("heartbeat {free}"));
    }
    async fn images(&self, _: HostId, images: amphi_api::prepull::HostImages) {
        self.note(format!("{} blobs in the cache", images.blobs.len()));
    }

    fn figures(&self, _: HostId, figures: &[amphi_api::group::InstanceFigures]) {
        if !figures.is_empty() {
            self.note(format!("figures of {}", figures.len()));
        }
    }
    async fn status(&self, _: HostId, status: HostStatus) {
        self.note(format!("status {}", status.generation));
    }
    async fn gone(&self, _: HostId) {
        self.note("gone".into());
    }
    async fn desired(&self, host: HostId) -> Arc<HostDesired> {
        let generation = *self.desired.borrow();
        // Large once there is something, so that a reader who does not read fills every buffer in between.
        let strangers = if generation > 100 { 20_000 } else { 0 };
        let tombstones = (0..strangers)
            .map(|epoch| amphi_api::wire::Tombstone::Instance { id: InstanceId::new(), epoch })
            .collect();
        let exports = self.exports.lock().unwrap().clone();
        Arc::new(HostDesired { generation, exports, tombstones, ..HostDesired::empty(host) })
    }
    fn desired_generation(&self, _: HostId) -> watch::Receiver<u64> {
        self.desired.subscribe()
    }
    async fn read_blob(&self, sha256: &str, from: u64) -> Result<(BlobRead, u64), Refusal> {
        let digest = sha256.parse().map_err(|_| Refusal::new(ErrorCode::NotFound, "no digest"))?;
        let place = self.places.lock().unwrap().get(sha256).cloned().unwrap_or_default();
        self.blobs.read(digest, &place, from).await.map_err(refusal)
    }
    async fn take_export(&self, _: ImageId, sha256: &str, bytes: BlobStream) -> Result<(), Refusal> {
        self.blobs.put(bytes, Some(sha256)).await.map(drop).map_err(refusal)
    }
    async fn blob_allowed(&self, _: HostId, sha256: &str) -> bool {
        *self.allowed.lock().unwrap() == sha256
    }
    fn listens_at(&self, _: HostId) -> Option<SocketAddr> {
        Some("10.0.0.9:7445".parse().unwrap())
    }
}

impl Records {
    fn note(&self, what: String) {
        self.heard.send_modify(|heard| heard.push(what));
    }

    async fn heard(&self, what: &str, times: usize) {
        let mut heard = self.heard.subscribe();
        let wait = heard.wait_for(|h| h.iter().filter(|w| *w == what).count() == times);
        if tokio::time::timeout(Duration::from_secs(10), wait).await.is_err() {
            panic!("not {times} times {what:?}: {:?}", self.heard.borrow());
        }
    }
}

fn refusal(error: BlobError) -> Refusal {
    let code = match error {
        BlobError::Unknown { .. } => ErrorCode::NotFound,
        BlobError::NoDigest { .. } | BlobError::WrongDigest { .. } => ErrorCode::InvalidField,
        _ => ErrorCode::Unavailable,
    };
    Refusal::new(code, error.to_string())
}

struct Face {
    address: SocketAddr,
    records: Arc<Records>,
    links: Arc<Links>,
    blobs: Arc<BlobStore>,
    leases: Arc<Leases>,
    secret: String,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<std::io::Result<()>>,
    _dir: tempfile::TempDir,
}

impl Face {
    async fn start() -> Self {
        // The client's side of these tests needs a provider; a second test finds it there.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let secret = pki::new_join_secret();
        let blobs = Arc::new(BlobStore::open(&dir.path().join("images")).await.unwrap());
        let records = Arc::new(Records {
            blobs: blobs.clone(),
            places: Mutex::default(),
            ca: Ca::open(&dir.path().join("ca")).unwrap(),
            digest: Mutex::new(Some(secret.digest)),
            allowed: Mutex::default(),
            exports: Mutex::default(),
            desired: watch::Sender::new(1),
            heard: watch::Sender::default(),
        });
        let links = Arc::new(Links::new(Duration::from_millis(500)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = records.ca.server_config(&["127.0.0.1".into()]).unwrap();
        let stop = CancellationToken::new();
        let leases = Arc::new(Leases::new(LeaseTiming::default(), true));
        let state = State { side: records.clone(), links: links.clone(), leases: leases.clone() };
        let served = tokio::spawn(hosts::serve(listener, tls, state, stop.clone().cancelled_owned()));
        Self { address, records, links, blobs, leases, secret: secret.secret, stop, served, _dir: dir }
    }

    /// A certificate for `host`, as joining gives it.
    fn papers(&self, host: HostId) -> Papers {
        Papers::signed_by(&self.records.ca, host)
    }

    async fn connect(&self, papers: Option<&Papers>) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_for(papers, &[]).await
    }

    /// The same, saying what for (ALPN).
    async fn connect_for(
        &self,
        papers: Option<&Papers>,
        what: &[&[u8]],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.records.ca.pem().as_bytes()).unwrap()).unwrap();
        let config = rustls::ClientConfig::builder().with_root_certificates(roots);
        let mut config = match papers {
            None => config.with_no_client_auth(),
            Some(papers) => {
                let certificate = CertificateDer::from_pem_slice(papers.certificate.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(papers.key.as_bytes()).unwrap();
                config.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        config.alpn_protocols = what.iter().map(|word| word.to_vec()).collect();
        let tcp = TcpStream::connect(self.address).await?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect(self.address.ip().into(), tcp).await
    }

    /// Status and body of one request.
    async fn http(&self, papers: Option<&Papers>, head: &str, body: &str) -> std::io::Result<(u16, Vec<u8>)> {
        Self::request(self.connect(papers).await?, head, body).await
    }

    async fn request(
        mut stream: TlsStream<TcpStream>,
        head: &str,
        body: &str,
    ) -> std::io::Result<(u16, Vec<u8>)> {
        let length = body.len();
        let request = format!(
            "{head} HTTP/1.1\r\nHost: c\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
        read.expect("an answer in time")?;
        let end =
            answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let status = String::from_utf8_lossy(&answer[9..12]).parse().expect("a status");
        Ok((status, answer.split_off(end + 4)))
    }

    async fn join(&self, secret: &str, csr: &str) -> (u16, String) {
        let request = JoinRequest { secret: secret.into(), name: "h1".into(), csr: csr.into() };
        let body = serde_json::to_string(&request).unwrap();
        let (status, body) = self.http(None, "POST /hosts/v1/join", &body).await.unwrap();
        (status, String::from_utf8(body).unwrap())
    }

    async fn link(&self, papers: &Papers) -> Link {
        let stream = self.connect(Some(papers)).await.unwrap();
        let answer = tokio_tungstenite::client_async("ws://c/hosts/v1/link", stream).await;
        Link(answer.expect("upgraded").0)
    }

    async fn greeted(&self, papers: &Papers) -> Link {
        let mut link = self.link(papers).await;
        link.say(&hello("h1")).await;
        assert!(
            matches!(link.next().await, Ok(ToHost::Welcome { ovn_remote, .. }) if ovn_remote == "tcp:sb")
        );
        assert_eq!(link.generation().await, *self.records.desired.borrow());
        link
    }
}

struct Papers {
    certificate: String,
    key: String,
}

fn csr() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::new(vec![]).unwrap().serialize_request(&key).unwrap();
    (request.pem().unwrap(), key.serialize_pem())
}

impl Papers {
    fn signed_by(ca: &Ca, host: HostId) -> Self {
        let (csr, key) = csr();
        Self { certificate: ca.sign_host(&csr, host).unwrap(), key }
    }
}

struct Link(WebSocketStream<TlsStream<TcpStream>>);

impl Link {
    async fn say(&mut self, message: &FromHost) {
        self.0.send(Message::text(serde_json::to_string(message).unwrap())).await.expect("sent");
    }

    /// The next message, or why there is none any more.
    async fn next(&mut self) -> Result<ToHost, String> {
        let next = tokio::time::timeout(Duration::from_secs(12), self.0.next());
        match next.await.expect("a message in time") {
            Some(Ok(Message::Text(text))) => Ok(serde_json::from_str(&text).expect("a known message")),
            Some(Ok(Message::Close(frame))) => Err(frame.map(|f| f.reason.to_string()).unwrap_or_default()),
            other => Err(format!("{other:?}")),
        }
    }

    async fn generation(&mut self) -> u64 {
        match self.next().await {
            Ok(ToHost::Desired(desired)) => desired.generation,
            other => panic!("a desired state, not {other:?}"),
        }
    }
}

fn hello(name: &str) -> FromHost {
    let spec = HostSpec {
        name: name.into(),
        chassis: name.into(),
        address: "10.99.0.11".into(),
        cpus: 2,
        memory_mib: 1_024,
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
        guest_kit: true,
        isolation: None,
        wire: amphi_api::wire::WIRE,
        agent_version: "0".into(),
    };
    FromHost::Hello { protocol: PROTOCOL, spec }
}

#[tokio::test]
async fn a_host_joins_once() {
    let face = Face::start().await;
    let (csr, key) = csr();
    let (status, body) = face.join("wrong", &csr).await;
    assert_eq!(status, 403, "{body}");
    let (status, body) = face.join(&face.secret, &csr).await;
    assert_eq!(status, 200, "{body}");
    let answer: JoinAnswer = serde_json::from_str(&body).unwrap();
    let papers = Papers { certificate: answer.certificate, key };
    assert_eq!(
        pki::host_of(&CertificateDer::from_pem_slice(papers.certificate.as_bytes()).unwrap()),
        Some(answer.host)
    );
    face.greeted(&papers).await;
    assert_eq!(face.join(&face.secret, &csr).await.0, 403, "a token is good for one host");
    for (body, status) in [("{", 400), ("{\"secret\":1}", 400), (&*"x".repeat(64 << 10), 413)] {
        let answer = face.http(None, "POST /hosts/v1/join", body).await.unwrap();
        assert_eq!(answer.0, status, "{}", String::from_utf8_lossy(&answer.1));
    }
}

#[tokio::test]
async fn guessing_is_slowed_down() {
    let face = Face::start().await;
    let mut refused = 0;
    for _ in 0..80 {
        refused += usize::from(face.join("wrong", "").await.0 == 503);
    }
    assert!(refused > 0, "80 joins in a row all came through");
}

#[tokio::test]
async fn only_our_certificates_count() {
    let face = Face::start().await;
    let dir = tempfile::tempdir().unwrap();
    let strange = Papers::signed_by(&Ca::open(dir.path()).unwrap(), HostId::new());
    for path in ["/hosts/v1/link", "/hosts/v1/blobs/00"] {
        let (status, _) = face.http(None, &format!("GET {path}"), "").await.unwrap();
        assert_eq!(status, 401, "{path} without a certificate");
        // Refused within TLS: there is no answer at all.
        let answer = face.http(Some(&strange), &format!("GET {path}"), "").await;
        assert!(answer.is_err(), "{path} with a certificate of another CA: {answer:?}");
    }
    assert_eq!(face.join(&face.secret, &csr().0).await.0, 200, "nobody else is disturbed");
}

/// A request's first line with a header of its own.
fn with(request: &str, header: &str) -> String {
    format!("{request} HTTP/1.1\r\n{header}\r\nX-Rest:")
}

#[tokio::test]
async fn a_blob_that_many_want_is_sent_to_the_first() {
    let face = Face::start().await;
    let bytes = vec![7; 3 << 20];
    let parts = futures_util::stream::iter([Ok::<_, String>(bytes::Bytes::from(bytes.clone()))]);
    let put = face.blobs.put(parts, None).await.unwrap();
    let sha256 = put.digest.to_string();
    face.records.places.lock().unwrap().insert(sha256.clone(), put.place);
    *face.records.allowed.lock().unwrap() = sha256.clone();
    let get = format!("GET /hosts/v1/blobs/{sha256}");
    let sharing = with(&get, "Amphi-Blob-Peers: yes");
    let hosts: Vec<HostId> = (0..3).map(|_| HostId::new()).collect();
    let papers: Vec<Papers> = hosts.iter().map(|host| face.papers(*host)).collect();
    let link = face.greeted(&papers[0]).await;
    let ask = async |at: usize, head: &str| face.http(Some(&papers[at]), head, "").await.unwrap();
    assert_eq!(ask(0, &sharing).await.0, 200);
    let (status, body) = ask(1, &sharing).await;
    let peer: amphi_api::wire::BlobPeer = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, peer.host, peer.address.port()), (300, hosts[0], 7445));
    // Whom that did not help, and who takes nothing from others, is served.
    for (at, head) in [(1, &sharing), (2, &get), (0, &sharing)] {
        let (status, body) = ask(at, head).await;
        assert!(status == 200 && body == bytes, "{at}: {status}, {} bytes", body.len());
    }
    // Who is not there is named to nobody.
    drop(link);
    face.records.heard("gone", 1).await;
    assert_eq!(ask(2, &sharing).await.0, 200);
}

#[tokio::test]
async fn blobs_go_to_whom_they_concern() {
    let face = Face::start().await;
    let papers = face.papers(HostId::new());
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let parts: Vec<Result<_, String>> =
        bytes.chunks(100_000).map(|c| Ok(bytes::Bytes::copy_from_slice(c))).collect();
    let put = face.blobs.put(futures_util::stream::iter(parts), None).await.unwrap();
    let sha256 = put.digest.to_string();
    face.records.places.lock().unwrap().insert(sha256.clone(), put.place.clone());
    let get = format!("GET /hosts/v1/blobs/{sha256}");
    assert_eq!(face.http(Some(&papers), &get, "").await.unwrap().0, 404, "not this host's");
    *face.records.allowed.lock().unwrap() = sha256.clone();
    let (status, body) = face.http(Some(&papers), &get, "").await.unwrap();
    assert!(status == 200 && body == bytes, "{status}, {} bytes", body.len());
    // What broke off goes on where it broke off; any other range is answered whole.
    for (range, expected) in [
        ("bytes=2999000-", (206, &bytes[2_999_000..])),
        ("bytes=0-", (206, &bytes[..])),
        ("bytes=3000000-", (200, &bytes[..])),
        ("bytes=5-9", (200, &bytes[..])),
        ("bytes=-5", (200, &bytes[..])),
    ] {
        let head = with(&get, &format!("Range: {range}"));
        let (status, body) = face.http(Some(&papers), &head, "").await.unwrap();
        assert!((status, &body[..]) == expected, "{range}: {status}, {} bytes", body.len());
    }
    face.blobs.remove(put.digest, &put.place).await.unwrap();
    assert_eq!(face.http(Some(&papers), &get, "").await.unwrap().0, 404, "allowed, but not there");
}

#[tokio::test]
async fn a_link_from_hello_to_goodbye() {
    let face = Face::start().await;
    let host = HostId::new();
    let mut link = face.greeted(&face.papers(host)).await;
    assert!(face.links.is_up(host));
    face.records.heard("hello h1", 1).await;
    face.records.desired.send_replace(2);
    assert_eq!(link.generation().await, 2);
    link.say(&FromHost::Status(HostStatus { generation: 2, ..HostStatus::default() })).await;
    link.say(&FromHost::Heartbeat {
        engines: vec![],
        volume_group_free_bytes: 7,
        figures: vec![],
        images: None,
    })
    .await;
    face.records.heard("status 2", 1).await;
    face.records.heard("heartbeat 7", 1).await;
    link.0.close(None).await.unwrap();
    face.records.heard("gone", 1).await;
    assert!(!face.links.is_up(host));
}

#[tokio::test]
async fn a_slow_host_gets_the_newest_only() {
    let face = Face::start().await;
    let mut link = face.greeted(&face.papers(HostId::new())).await;
    for generation in 101..=400 {
        face.records.desired.send_replace(generation);
        // As commits come: each is seen, and none of them is read.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut seen = vec![link.generation().await];
    while *seen.last().unwrap() != 400 {
        seen.push(link.generation().await);
    }
    assert!(seen.is_sorted() && seen.len() < 50, "{} desired states of 2 MB for 300 changes", seen.len());
}

#[tokio::test]
async fn a_newer_link_takes_the_place() {
    let face = Face::start().await;
    let host = HostId::new();
    let papers = face.papers(host);
    let mut older = face.greeted(&papers).await;
    let mut newer = face.greeted(&papers).await;
    older.next().await.expect_err("the older is closed");
    face.records.desired.send_replace(5);
    assert_eq!(newer.generation().await, 5);
    assert!(face.links.is_up(host));
    let heard = face.records.heard.borrow().clone();
    assert!(!heard.contains(&"gone".to_owned()), "the host was never gone: {heard:?}");
    drop(newer);
    face.records.heard("gone", 1).await;
}

#[tokio::test]
async fn what_is_no_hello_is_refused_by_name() {
    let face = Face::start().await;
    let host = HostId::new();
    let papers = face.papers(host);
    let future = serde_json::json!({"type": "hello", "protocol": PROTOCOL + 1, "spec": {"of": "the future"}})
        .to_string();
    let unwanted = serde_json::to_string(&hello("unwanted")).unwrap();
    let early = r#"{"type":"heartbeat","engines":[],"volume_group_free_bytes":0}"#;
    for (first, word) in
        [(&*future, "protocol 2"), (&*unwanted, "not this one"), (early, "hello"), ("{", "hello")]
    {
        let mut link = face.link(&papers).await;
        link.0.send(Message::text(first)).await.unwrap();
        let reason = link.next().await.expect_err("refused");
        assert!(reason.contains(word), "{first}: {reason:?}");
    }
    // A text of more than 16 MiB ends the link.
    let mut link = face.greeted(&papers).await;
    let _ = link.0.send(Message::text(" ".repeat(17 << 20))).await;
    link.next().await.expect_err("closed");
}

#[tokio::test]
async fn questions() {
    let face = Face::start().await;
    let host = HostId::new();
    let ask = || Ask::ConsoleLog { instance: InstanceId::new(), member: None, lines: 3 };
    assert!(matches!(face.links.ask(host, ask()).await, Err(AskError::NotConnected)));
    let mut link = face.greeted(&face.papers(host)).await;
    let text = |text: &str| Answer::ConsoleLog { text: text.into() };
    let (answers, ()) = tokio::join!(
        async {
            tokio::join!(
                face.links.ask(host, ask()),
                face.links.ask(host, ask()),
                face.links.ask(host, ask())
            )
        },
        async {
            let mut ids = Vec::new();
            while ids.len() < 3 {
                match link.next().await {
                    Ok(ToHost::Ask { id, .. }) => ids.push(id),
                    other => panic!("a question, not {other:?}"),
                }
            }
            // Answered in another order; each asker gets its own.
            let fault =
                Fault { code: "engine_down".into(), message: "no".into(), since: jiff::Timestamp::now() };
            link.say(&FromHost::Answer { id: ids[2], answer: Err(fault) }).await;
            link.say(&FromHost::Answer { id: ids[1], answer: Ok(text("second")) }).await;
            link.say(&FromHost::Answer { id: 99, answer: Ok(text("nobody asked")) }).await;
            link.say(&FromHost::Answer { id: ids[0], answer: Ok(text("first")) }).await;
        }
    );
    let first = answers.0.unwrap();
    assert_eq!(first, text("first"));
    assert_eq!(answers.1.unwrap(), text("second"));
    assert!(matches!(answers.2, Err(AskError::Refused(fault)) if fault.code == "engine_down"));
    assert!(matches!(face.links.ask(host, ask()).await, Err(AskError::Timeout)), "the host says nothing");
    let (answer, ()) = tokio::join!(face.links.ask(host, ask()), async { drop(link) });
    assert!(matches!(answer, Err(AskError::NotConnected)), "{answer:?}: known at once when the link ends");
}

#[tokio::test]
async fn silence_ends_a_link() {
    let face = Face::start().await;
    let mut link = face.greeted(&face.papers(HostId::new())).await;
    let start = Instant::now();
    let reason = link.next().await.expect_err("closed");
    let after = start.elapsed().as_secs_f32();
    assert!((6.5..10.0).contains(&after), "after {after} s: {reason}");
    face.records.heard("gone", 1).await;
}

#[tokio::test]
async fn the_face_ends_with_its_links() {
    let face = Face::start().await;
    let mut link = face.greeted(&face.papers(HostId::new())).await;
    let _idle = face.connect(None).await.unwrap();
    face.stop.cancel();
    link.next().await.expect_err("closed");
    face.records.heard("gone", 1).await;
    let ended = tokio::time::timeout(Duration::from_secs(6), face.served).await;
    ended.expect("in time").unwrap().unwrap();
}

#[tokio::test]
async fn a_host_hands_over_only_what_it_is_asked_for() {
    let face = Face::start().await;
    let papers = face.papers(HostId::new());
    let image = ImageId::new();
    // SHA-256 of "hello", as sha256sum prints it.
    let digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let put = async |papers: Option<&Papers>, digest: &str, image: ImageId, body: &str| {
        let head = format!("PUT /hosts/v1/blobs/{digest}?export={image}");
        face.http(papers, &head, body).await.map(|(status, _)| status).unwrap_or(0)
    };
    assert_eq!(put(Some(&papers), digest, image, "hello").await, 403);
    let source = ExportSource::Root(InstanceId::new());
    let export = ExportDesired { image, format: amphi_api::image::ImageFormat::Raw, source };
    face.records.exports.lock().unwrap().push(export);
    assert_ne!(put(None, digest, image, "hello").await, 201, "without a certificate");
    assert_eq!(put(Some(&papers), digest, ImageId::new(), "hello").await, 403, "another image");
    assert_eq!(put(Some(&papers), digest, image, "other").await, 400, "other bytes");
    assert_eq!(put(Some(&papers), "nonsense", image, "hello").await, 400);
    assert!(face.blobs.list().await.unwrap().is_empty(), "nothing was kept");
    // More than an ordinary request may have.
    let large = "x".repeat(5 << 20);
    let of_large = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(large.as_bytes()));
    for _ in 0..2 {
        assert_eq!(put(Some(&papers), digest, image, "hello").await, 201);
        assert_eq!(put(Some(&papers), &of_large, image, &large).await, 201);
    }
    let mut kept: Vec<_> = face.blobs.list().await.unwrap().into_iter().map(|found| found.digest).collect();
    kept.dedup();
    assert_eq!(kept.len(), 2);
}

/// The host of this number, as the records tell of it.
fn known(n: usize) -> KnownHost {
    let known = Known { voter: true, enforces: true, barred: false };
    KnownHost { name: format!("h{n}"), address: None, known }
}

fn renewal(sequence: u64, echo: Option<LeaseEcho>) -> LeaseRenewal {
    let address = "10.99.0.11:7444".parse().unwrap();
    LeaseRenewal { sequence, echo, address, state: LeaseState::Held, boot: None, witness: false }
}

#[test]
fn a_lease_is_renewed_while_the_controller_has_no_time() {
    let busy = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let hosts = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let face = Arc::new(busy.block_on(Face::start()));
    let host = HostId::new();
    face.leases.know([(host, known(0))].into(), Instant::now());
    let body = serde_json::to_string(&renewal(1, None)).unwrap();

    // Its only worker does nothing else until it is let go.
    let (let_go, held) = std::sync::mpsc::channel::<()>();
    let (begun, began) = std::sync::mpsc::channel();
    busy.spawn(async move {
        begun.send(()).unwrap();
        let _ = held.recv();
    });
    began.recv().unwrap();
    hosts.block_on(async {
        let (asker, line) = (face.clone(), body.clone());
        let of_before = tokio::spawn(async move {
            asker.http(Some(&asker.papers(host)), "POST /hosts/v1/lease", &line).await
        });
        for _ in 0..3 {
            let stream = face.connect_for(Some(&face.papers(host)), &[b"h2", LEASE_ALPN]).await.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(LEASE_ALPN));
            let (status, answer) = Face::request(stream, "POST /hosts/v1/lease", &body).await.unwrap();
            assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
        }
        assert!(!of_before.is_finished());
        // Nothing else is to be had there, and nobody without a certificate has it.
        let stream = face.connect_for(Some(&face.papers(host)), &[LEASE_ALPN]).await.unwrap();
        assert_eq!(Face::request(stream, "GET /hosts/v1/link", "").await.unwrap().0, 404);
        let stream = face.connect_for(None, &[LEASE_ALPN]).await.unwrap();
        assert_eq!(Face::request(stream, "POST /hosts/v1/lease", &body).await.unwrap().0, 401);
        drop(let_go);
        assert_eq!(of_before.await.unwrap().unwrap().0, 200);
    });
}

#[tokio::test]
async fn a_host_renews_its_lease_with_its_own_certificate() {
    let face = Face::start().await;
    let hosts: Vec<HostId> = (0..3).map(|_| HostId::new()).collect();
    face.leases.know(hosts.iter().enumerate().map(|(n, id)| (*id, known(n))).collect(), Instant::now());
    let renew = async |host: HostId, echo: Option<LeaseEcho>| {
        let body = serde_json::to_string(&renewal(7, echo)).unwrap();
        let (status, body) =
            face.http(Some(&face.papers(host)), "POST /hosts/v1/lease", &body).await.unwrap();
        (status, serde_json::from_slice::<LeaseGrant>(&body).ok())
    };
    let (status, grant) = renew(hosts[0], None).await;
    let grant = grant.expect("a grant");
    assert_eq!((status, grant.sequence, grant.on, grant.barred), (200, 7, true, false));
    let voters = grant.voters.expect("the voters, the first time");
    assert_eq!(voters.iter().map(|v| v.id).collect::<Vec<_>>(), hosts);
    assert_eq!(voters[0].address, Some("10.99.0.11:7444".parse().unwrap()));
    let echo = LeaseEcho { controller: grant.controller, number: grant.number, list: grant.list };
    assert_eq!(renew(hosts[0], Some(echo)).await.1.expect("a grant").voters, None, "it has them");
    face.leases.seize_fenced(hosts[1]);
    assert!(renew(hosts[1], None).await.1.expect("a grant").barred);
    assert_eq!(renew(HostId::new(), None).await.0, 404, "a host that no record knows");
    assert_eq!(face.http(None, "POST /hosts/v1/lease", "{}").await.unwrap().0, 401);
    assert_eq!(face.http(Some(&face.papers(hosts[0])), "POST /hosts/v1/lease", "{}").await.unwrap().0, 400);
}
