//! The mirror against a second registry of our own, on a socket of its own.

use super::*;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A second controller behind a socket, which can be cut off and counts what it is asked.
struct Other {
    desk: Desk,
    address: SocketAddr,
    down: Arc<AtomicBool>,
    blobs: Arc<AtomicU32>,
}

impl Other {
    async fn new() -> Self {
        let desk = Desk::new().await;
        let (down, blobs) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (cut, count) = (down.clone(), blobs.clone());
        let face = desk.face.clone().layer(axum::middleware::from_fn(
            move |request: axum::extract::Request, next: axum::middleware::Next| {
                let (cut, count) = (cut.clone(), count.clone());
                async move {
                    if cut.load(Ordering::SeqCst) {
                        return axum::response::IntoResponse::into_response(
                            axum::http::StatusCode::BAD_GATEWAY,
                        );
                    }
                    let authorized = request.headers().contains_key("authorization");
                    if request.uri().path().contains("/blobs/") && request.method() == "GET" && authorized {
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                    next.run(request).await
                }
            },
        ));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, face).await });
        Self { desk, address, down, blobs }
    }

    /// A controller that mirrors this one as `up`.
    async fn mirrored(&self, expiry_seconds: u32) -> (Desk, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let password = dir.path().join("password");
        std::fs::write(&password, PASSWORD).unwrap();
        let config = MirrorConfig {
            url: format!("http://{}", self.address),
            user: Some("rita".into()),
            password_file: Some(password),
            ca_file: None,
            expiry_seconds,
        };
        (Desk::with(&[("up".to_owned(), config)].into()).await, dir)
    }
}

const WEB: &str = "mirror/up/shop/web";

#[tokio::test]
async fn what_is_not_here_is_fetched_once_and_kept() {
    let other = Other::new().await;
    let v1 = other.desk.push("alice", "shop/web", "v1", "hello").await;
    let (desk, _password) = other.mirrored(3600).await;
    let layer = digest(&tar("hello"));
    assert_eq!(desk.ask("", &format!("GET /v2/{WEB}/manifests/v1"), &[], b"").await.status, 401, "nobody");
    let got = desk.ask("eve", &format!("GET /v2/{WEB}/manifests/v1"), &[], b"").await;
    assert_eq!((got.status, got.header("docker-content-digest")), (200, v1.as_str()));
    assert_eq!(digest(&got.body), v1);
    let config = got.json()["config"]["digest"].as_str().unwrap().to_owned();
    // Many at once: one fetch.
    let blob = format!("GET /v2/{WEB}/blobs/{layer}");
    let all = futures_util::future::join_all((0..16).map(|_| desk.ask("eve", &blob, &[], b""))).await;
    for answer in all {
        assert_eq!((answer.status, answer.body == tar("hello")), (200, true));
    }
    assert_eq!(other.blobs.load(Ordering::SeqCst), 1, "fetches of the layer");
    assert_eq!(desk.ask("eve", &format!("GET /v2/{WEB}/blobs/{config}"), &[], b"").await.status, 200);
    // All is here now: an image of the catalogue.
    let end = Instant::now() + Duration::from_secs(20);
    let image = || {
        let view = desk.cloud.ops.world().read();
        view.tagged(desk.shop, "mirror/up/shop/web:v1").map(|row| row.id)
    };
    while image().is_none() {
        assert!(Instant::now() < end, "no image came of it");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    other.down.store(true, Ordering::SeqCst);
    for request in [format!("GET /v2/{WEB}/manifests/v1"), format!("GET /v2/{WEB}/manifests/{v1}"), blob] {
        assert_eq!(desk.ask("eve", &request, &[], b"").await.status, 200, "{request} without the upstream");
    }
    let absent = desk.ask("eve", &format!("GET /v2/{WEB}/manifests/v2"), &[], b"").await;
    assert_eq!((absent.status, absent.code().as_str()), (503, "UNAVAILABLE"));
    let none = desk.ask("eve", "GET /v2/mirror/none/x/manifests/v1", &[], b"").await;
    assert_eq!(none.status, 404, "no such upstream");
    let push = desk.ask("eve", &format!("PUT /v2/{WEB}/manifests/v1"), &[("content-type", OCI)], b"{}").await;
    assert_eq!(push.status, 401, "nobody pushes to a mirror");
}

#[tokio::test]
async fn tags_are_looked_at_again_and_old_ones_are_given_when_nobody_answers() {
    let other = Other::new().await;
    let first = other.desk.push("alice", "shop/web", "v1", "first").await;
    let (desk, _password) = other.mirrored(0).await;
    let path = format!("GET /v2/{WEB}/manifests/v1");
    let seen = async || {
        let answer = desk.ask("eve", &path, &[], b"").await;
        (
            answer.status,
            answer.header("docker-content-digest").to_owned(),
            answer.header("warning").to_owned(),
        )
    };
    assert_eq!(seen().await, (200, first.clone(), String::new()));
    let second = other.desk.push("alice", "shop/web", "v1", "second").await;
    assert_eq!(seen().await, (200, second.clone(), String::new()), "it has moved");
    other.down.store(true, Ordering::SeqCst);
    assert_eq!(seen().await, (200, second.clone(), "110 amphi \"Response is Stale\"".into()));
    other.down.store(false, Ordering::SeqCst);
    assert_eq!(other.desk.ask("alice", "DELETE /v2/shop/web/manifests/v1", &[], b"").await.status, 202);
    assert_eq!(seen().await.0, 404, "the upstream has it no more");
    // By digest it is still here.
    assert_eq!(desk.ask("eve", &format!("GET /v2/{WEB}/manifests/{second}"), &[], b"").await.status, 200);
    let nothing = desk.ask("eve", "GET /v2/mirror/up/other/web/manifests/v1", &[], b"").await;
    assert_eq!(nothing.status, 403, "what the upstream does not let its user see");
}
