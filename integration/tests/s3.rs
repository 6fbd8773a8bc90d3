//! Blobs in an S3-compatible store, moto's: the shelf by the suite that every shelf passes, what becomes of it while the store
//! is slow, busy, wrong or gone, and a controller whose images lie there.

use amphi_controller::digest::Digest;
use amphi_controller::images::BlobError;
use amphi_controller::images::shelf::s3::{S3, S3Config};
use amphi_controller::images::shelf::{Shelf, conformance};
use amphi_integration::alone::{Controller, free_port};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Method, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use sha2::Digest as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// The virtual environment with moto in it, made once.
fn venv() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let venv = root.join("target/s3");
    let made = Command::new(root.join("scripts/clients.sh"))
        .args([&venv, &root.join("integration/s3/requirements.txt")])
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(made.success(), "scripts/clients.sh ended with {made}");
    venv
}

/// A server of one bucket, gone with this.
struct Moto {
    child: Mutex<Child>,
    port: u16,
}

impl Moto {
    async fn start(bucket: &str) -> Self {
        let port = free_port().unwrap();
        let child = Command::new(venv().join("bin/moto_server"))
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let moto = Self { child: Mutex::new(child), port };
        let end = Instant::now() + PATIENCE;
        loop {
            // It takes any credentials, but wants to see some.
            let made = reqwest::Client::new()
                .put(format!("{}/{bucket}", moto.url()))
                .header("authorization", "AWS4-HMAC-SHA256 Credential=id/20260101/us-east-1/s3/aws4_request")
                .send()
                .await;
            match made {
                Ok(answer) if answer.status().is_success() => return moto,
                other => assert!(Instant::now() < end, "no bucket: {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        self.kill();
    }
}

type Fault = Box<dyn FnMut(&Method, &str) -> Option<Answer> + Send>;

/// What the door does with a request in place of handing it on.
enum Answer {
    Code(u16, &'static str),
    /// None, as long as anybody waits.
    Silence,
    /// The store is killed in the middle of it.
    Kill,
}

/// A door before the store: it hands on what comes, one key of a list at a time, but for what is told to go wrong.
struct Door {
    address: SocketAddr,
    fault: Arc<Mutex<Option<Fault>>>,
    seen: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone)]
struct Behind {
    moto: Arc<Moto>,
    http: reqwest::Client,
    fault: Arc<Mutex<Option<Fault>>>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Door {
    async fn open(moto: Arc<Moto>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (fault, seen) = (Arc::default(), Arc::default());
        let behind =
            Behind { moto, http: reqwest::Client::new(), fault: Arc::clone(&fault), seen: Arc::clone(&seen) };
        let app = axum::Router::new()
            .fallback(hand_on)
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(behind);
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, fault, seen }
    }

    fn goes_wrong(&self, fault: impl FnMut(&Method, &str) -> Option<Answer> + Send + 'static) {
        *self.fault.lock().unwrap() = Some(Box::new(fault));
    }

    fn is_well(&self) {
        *self.fault.lock().unwrap() = None;
    }

    fn shelf(&self, folder: &Path, bucket: &str) -> S3 {
        S3::open(&S3Config {
            endpoint: format!("http://{}", self.address),
            bucket: bucket.into(),
            region: "us-east-1".into(),
            prefix: "blobs".into(),
            credentials_file: credentials(folder),
            virtual_hosted: false,
            ca_file: None,
        })
        .unwrap()
    }
}

async fn hand_on(State(behind): State<Behind>, request: Request<Body>) -> Response {
    let (head, body) = request.into_parts();
    let address = head.uri.to_string();
    behind.seen.lock().unwrap().push(format!(
        "{} http://{}{address}",
        head.method,
        head.headers["host"].to_str().unwrap()
    ));
    let body: Bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let wrong = behind.fault.lock().unwrap().as_mut().and_then(|fault| fault(&head.method, &address));
    match wrong {
        Some(Answer::Code(status, code)) => {
            let text = format!("<Error><Code>{code}</Code></Error>");
            return (StatusCode::from_u16(status).unwrap(), text).into_response();
        }
        Some(Answer::Silence) => std::future::pending().await,
        Some(Answer::Kill) => behind.moto.kill(),
        None => {}
    }
    let more = if address.contains("list-type=2") { "&max-keys=1" } else { "" };
    let mut on = behind.http.request(head.method, format!("{}{address}{more}", behind.moto.url()));
    for name in ["range", "content-md5"] {
        if let Some(value) = head.headers.get(name) {
            on = on.header(name, value);
        }
    }
    let Ok(answer) = on.body(body).send().await else { return StatusCode::BAD_GATEWAY.into_response() };
    if address.contains("uploads=") && answer.status().is_success() {
        // moto says of every upload that it began in 2010; those here have just begun.
        let text = answer.text().await.unwrap();
        let now = format!("<Initiated>{}</Initiated>", jiff::Timestamp::now());
        return text.replace("<Initiated>2010-11-10T20:48:33.000Z</Initiated>", &now).into_response();
    }
    let (status, headers) = (answer.status(), answer.headers().clone());
    let mut response = (status, Body::from_stream(answer.bytes_stream())).into_response();
    for (name, value) in &headers {
        if name != "transfer-encoding" && name != "connection" {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

fn credentials(folder: &Path) -> PathBuf {
    let path = folder.join("s3.toml");
    std::fs::write(&path, "access_key_id = \"id\"\nsecret_access_key = \"hush\"\n").unwrap();
    path
}

fn ready() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A file of so many bytes, and its digest.
fn file(folder: &Path, size: usize) -> (PathBuf, Digest) {
    let bytes: Vec<u8> = (0..size as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let path = folder.join(format!("{size}.part"));
    std::fs::write(&path, &bytes).unwrap();
    (path, Digest(sha2::Sha256::digest(&bytes).into()))
}

/// Uploads in parts that the store still holds.
async fn left(moto: &Moto, bucket: &str) -> usize {
    let answer = reqwest::get(format!("{}/{bucket}?uploads", moto.url())).await.unwrap();
    let text = answer.text().await.unwrap();
    assert!(text.contains("ListMultipartUploadsResult"), "{text}");
    text.matches("<Upload>").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_is_a_shelf_like_any_other() {
    ready();
    let (moto, folder) = (Arc::new(Moto::start("amphi").await), tempfile::tempdir().unwrap());
    let door = Door::open(moto.clone()).await;
    conformance::all(&door.shelf(folder.path(), "amphi"), folder.path()).await;
    assert_eq!(left(&moto, "amphi").await, 0);
    // Another implementation signs all of that alike.
    let seen = door.seen.lock().unwrap().join("\n");
    for word in ["uploads=", "partNumber=2", "continuation-token=", "HEAD ", "DELETE "] {
        assert!(seen.contains(word), "no {word} among what was asked:\n{seen}");
    }
    let list = folder.path().join("seen");
    std::fs::write(&list, seen).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("s3/signed.py");
    let checked = Command::new(venv().join("bin/python3"))
        .args([&script, &list])
        .args(["id", "hush"])
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
    println!("{}", String::from_utf8_lossy(&checked.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_busy_slow_or_gone() {
    ready();
    let (moto, folder) = (Arc::new(Moto::start("amphi").await), tempfile::tempdir().unwrap());
    let door = Door::open(moto.clone()).await;
    let shelf = door.shelf(folder.path(), "amphi");
    let (large, digest) = file(folder.path(), (40 << 20) + 1);
    let told = |error: BlobError, word: &str| {
        let text = error.to_string();
        assert!(matches!(error, BlobError::Away { .. }) && text.contains(word), "{text}");
        assert!(
            text.contains("amphi at http://") && !text.contains("hush") && !text.contains("X-Amz"),
            "{text}"
        );
    };

    // Each thing is refused twice before it is done: asked again, it comes to its end.
    let mut count = 0;
    door.goes_wrong(move |_, _| {
        count += 1;
        match count % 3 {
            1 => Some(Answer::Code(503, "SlowDown")),
            2 => Some(Answer::Code(500, "InternalError")),
            _ => None,
        }
    });
    shelf.keep(&large, (40 << 20) + 1, digest, "busy").await.unwrap();
    assert_eq!(shelf.size(digest, "busy").await.unwrap(), Some((40 << 20) + 1));

    // For good: said, and nothing of it stays.
    door.goes_wrong(|method, address| {
        (method == Method::PUT && address.contains("partNumber=2")).then_some(Answer::Code(503, "SlowDown"))
    });
    told(shelf.keep(&large, (40 << 20) + 1, digest, "p").await.unwrap_err(), "SlowDown; tried 5 times");
    let end = Instant::now() + PATIENCE;
    while left(&moto, "amphi").await > 0 {
        assert!(Instant::now() < end, "an upload was not ended");
        tokio::task::yield_now().await;
    }
    for (status, code, word) in [
        (403, "InvalidAccessKeyId", "images.s3.credentials_file"),
        (403, "SignatureDoesNotMatch", "images.s3.credentials_file"),
        (403, "RequestTimeTooSkewed", "clock"),
        (301, "PermanentRedirect", "images.s3.region"),
    ] {
        door.goes_wrong(move |_, _| Some(Answer::Code(status, code)));
        told(shelf.keep(&large, (40 << 20) + 1, digest, "p").await.unwrap_err(), word);
        told(shelf.read(digest, "busy", 0).await.map(|_| ()).unwrap_err(), word);
        told(shelf.list().await.unwrap_err(), word);
    }

    // Left over: the parts came, and neither their end nor that they are given up was heard.
    let heard = Arc::new(AtomicBool::new(false));
    let hears = heard.clone();
    door.goes_wrong(move |method, address| match *method {
        Method::DELETE => {
            hears.store(true, Ordering::SeqCst);
            Some(Answer::Code(403, "AccessDenied"))
        }
        Method::POST if address.contains("uploadId") => Some(Answer::Code(500, "InternalError")),
        _ => None,
    });
    told(shelf.keep(&large, (40 << 20) + 1, digest, "p").await.unwrap_err(), "InternalError");
    let end = Instant::now() + PATIENCE;
    while !heard.load(Ordering::SeqCst) {
        assert!(Instant::now() < end, "nobody gave the upload up");
        tokio::task::yield_now().await;
    }
    door.is_well();
    assert_eq!(left(&moto, "amphi").await, 1);
    shelf.tidy(Duration::from_secs(3600)).await.unwrap();
    assert_eq!(left(&moto, "amphi").await, 1, "one that may go on was ended");
    shelf.tidy(Duration::ZERO).await.unwrap();
    assert_eq!(left(&moto, "amphi").await, 0);
    assert_eq!(shelf.list().await.unwrap().len(), 1, "what is whole stays");

    // No answer at all is waited for within bounds, and nobody else waits for it.
    door.goes_wrong(|_, _| Some(Answer::Silence));
    let began = Instant::now();
    told(shelf.size(digest, "busy").await.unwrap_err(), "no answer within 20 s");
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    door.is_well();

    // A bucket that is not there.
    let nowhere = door.shelf(folder.path(), "other");
    told_of("other", nowhere.list().await.unwrap_err());
    told_of("other", nowhere.keep(&large, (40 << 20) + 1, digest, "p").await.unwrap_err());

    // Killed in the middle of an upload.
    door.goes_wrong(|method, address| {
        (method == Method::PUT && address.contains("partNumber=2")).then_some(Answer::Kill)
    });
    told(shelf.keep(&large, (40 << 20) + 1, digest, "p").await.unwrap_err(), "tried 5 times");
    told(shelf.read(digest, "busy", 0).await.map(|_| ()).unwrap_err(), "tried 5 times");
}

fn told_of(bucket: &str, error: BlobError) {
    let text = error.to_string();
    assert!(text.contains(&format!("{bucket} at http://")) && text.contains("images.s3.bucket"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_lie_in_a_bucket_and_say_so_when_it_is_away() {
    ready();
    let moto = Arc::new(Moto::start("images").await);
    let folder = tempfile::tempdir().unwrap();
    let settings = format!(
        "[images]\npush_seconds = 1\ngrace_seconds = 1\nsweep_seconds = 1\n[images.s3]\nendpoint = {:?}\nbucket = \"images\"\n\
         prefix = \"blobs\"\ncredentials_file = {:?}\n",
        moto.url(),
        credentials(folder.path())
    );
    let program = Path::new(env!("CARGO_BIN_EXE_amphi-lab"));
    let place = program.with_file_name(format!("s3-{}", std::process::id()));
    let controller = Controller::start_in(program.parent().unwrap(), place, &settings).unwrap();
    let (token, http) = (controller.read("admin-token").unwrap(), reqwest::Client::new());
    let at = |path: &str| format!("{}/v1{path}", controller.url());
    let create = async |name: &str| -> String {
        let made = http.post(at("/images")).bearer_auth(&token).json(&json!({"name": name, "format": "raw"}));
        let made: serde_json::Value = made.send().await.unwrap().json().await.unwrap();
        made["id"].as_str().unwrap().to_owned()
    };
    let put = async |image: &str, bytes: Vec<u8>| {
        let put = http.put(at(&format!("/images/{image}/blobs/disk"))).bearer_auth(&token).body(bytes);
        put.send().await.unwrap()
    };
    let delete = async |image: &str| {
        let gone = http.delete(at(&format!("/images/{image}"))).bearer_auth(&token).send().await.unwrap();
        assert_eq!(gone.status(), 204);
    };
    let keys = async || {
        let text =
            reqwest::get(format!("{}/images?list-type=2", moto.url())).await.unwrap().text().await.unwrap();
        text.matches("<Key>blobs/").count()
    };
    let bytes: Vec<u8> = (0u32..9 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let image = create("disk").await;
    let answer = put(&image, bytes.clone()).await;
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    assert!(!controller.folder().join("state/images/blobs").exists(), "bytes on the controller's own disk");
    let uploads = controller.folder().join("state/images/uploads");
    assert_eq!(std::fs::read_dir(&uploads).unwrap().count(), 0, "what is in the bucket stays here as well");
    let shown = http.get(at(&format!("/images/{image}"))).bearer_auth(&token).send().await.unwrap();
    let shown: serde_json::Value = shown.json().await.unwrap();
    let sha256 = shown["blobs"]["disk"]["sha256"].as_str().unwrap().to_owned();
    for from in [0, 1, bytes.len() / 2, bytes.len() - 1] {
        let get = http.get(at(&format!("/blobs/{sha256}"))).bearer_auth(&token);
        let got = get.header("range", format!("bytes={from}-")).send().await.unwrap().bytes().await.unwrap();
        assert!(got == bytes[from..], "from {from}: {} bytes", got.len());
    }

    // What nobody names goes from there, while the same bytes are pushed again and again: whoever was told 200 has them.
    delete(&image).await;
    let (small, end) = (vec![7u8; 1 << 20], Instant::now() + Duration::from_secs(15));
    let (mut rounds, mut emptied) = (0, 0);
    while Instant::now() < end {
        let image = create("again").await;
        let answer = put(&image, small.clone()).await;
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
        let digest = hex::encode(sha2::Sha256::digest(&small));
        let got = http.get(at(&format!("/blobs/{digest}"))).bearer_auth(&token).send().await.unwrap();
        assert_eq!(got.status(), 200, "a blob that an image names");
        assert!(got.bytes().await.unwrap() == small);
        delete(&image).await;
        // Now and then long enough for the sweep to be there first.
        if rounds % 20 == 19 {
            let patience = Instant::now() + PATIENCE;
            while keys().await > 0 {
                assert!(Instant::now() < patience, "{} blobs stay in the bucket", keys().await);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            emptied += 1;
        }
        rounds += 1;
    }
    println!("{rounds} pushes beside the sweep, the bucket emptied {emptied} times");
    assert!(emptied > 0, "the bucket was never empty");

    moto.kill();
    let other = create("other").await;
    let began = Instant::now();
    let answer = put(&other, bytes).await;
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    println!("a bucket that is away was told after {} ms", began.elapsed().as_millis());
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("images at http://") && !text.contains("hush"), "{text}");
    let log = controller.log().unwrap();
    assert!(!log.contains("hush") && !log.contains("X-Amz-Signature"), "a secret in the log");
}
