//! The client of the native face against a server that is told what to answer.

mod fake;

use amphi_api::client::{Client, ClientError};
use amphi_api::image::BlobRole;
use amphi_api::instance::InstanceState;
use amphi_api::{ErrorCode, ImageId, InstanceId};
use fake::{Fake, id, instance, refused};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn client(url: &str) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::new(url, " s3cret\n").unwrap()
}

fn web() -> InstanceId {
    id(1).parse().unwrap()
}

#[tokio::test]
async fn paths_queries_and_the_token() {
    let server = Fake::start(|asked, _| match asked.line.as_str() {
        "GET /v1/instances" => (200, json!({"instances": [instance(1, "web", "running")]})),
        line if line.contains("console-log") => (200, json!({"text": "boot\n"})),
        _ => (202, Value::Null),
    });
    let client = client(&format!("{}/", server.url));
    assert_eq!(client.find_instance("web").await.unwrap().id, web());
    client.delete_instance(web(), true).await.unwrap();
    client.delete_instance(web(), false).await.unwrap();
    assert_eq!(client.console_log(web(), Some(7), Some("a b")).await.unwrap().text, "boot\n");
    let one = id(1);
    assert_eq!(
        server.lines(),
        [
            "GET /v1/instances".to_owned(),
            format!("DELETE /v1/instances/{one}?volume=delete"),
            format!("DELETE /v1/instances/{one}"),
            format!("GET /v1/instances/{one}/console-log?lines=7&member=a+b"),
        ]
    );
    for asked in server.asked() {
        assert_eq!(asked.token.as_deref(), Some("Bearer s3cret"), "{}", asked.line);
    }
}

#[tokio::test]
async fn errors_by_kind() {
    let server = Fake::start(|asked, _| match asked.line.as_str() {
        "GET /v1/hosts" => (400, refused("invalid_field", "no good", Some("name"))),
        "GET /v1/networks" => (502, Value::Null),
        "GET /v1/images" => (200, json!({"pictures": []})),
        "GET /v1/volumes" => (200, json!({"volumes": [{"id": 1}]})),
        _ => (302, Value::Null),
    });
    let ours = client(&server.url);
    match ours.hosts().await.unwrap_err() {
        ClientError::Api { status: 400, detail, .. } => {
            assert_eq!((detail.code, detail.field.as_deref()), (ErrorCode::InvalidField, Some("name")));
        }
        other => panic!("{other:?}"),
    }
    let protocol = |error: ClientError| match error {
        ClientError::Protocol { message, .. } => message,
        other => panic!("{other:?}"),
    };
    assert!(protocol(ours.networks().await.unwrap_err()).contains("502"));
    assert!(protocol(ours.images().await.unwrap_err()).contains("no `images`"));
    assert!(protocol(ours.volumes().await.unwrap_err()).contains("`volumes` cannot be read"));
    // Redirects are not followed: the token is for the controller alone.
    assert!(protocol(ours.ports().await.unwrap_err()).contains("302"));

    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", closed.local_addr().unwrap());
    // Bound and never accepted: the kernel completes the connection, nobody answers.
    let quiet = client(&url).with_call_timeout(Duration::from_millis(200));
    assert!(matches!(quiet.hosts().await.unwrap_err(), ClientError::Timeout { .. }));
    drop(closed);
    match client(&url).hosts().await.unwrap_err() {
        ClientError::Unreachable { url: at, reason, .. } => {
            assert_eq!(at, url);
            assert!(reason.contains("refused"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn urls_and_tokens_that_cannot_be() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    for (url, token) in
        [("localhost:8774", "t"), ("ftp://x", "t"), ("http://x", " "), ("http://x", "a\nb"), ("", "t")]
    {
        assert!(matches!(Client::new(url, token), Err(ClientError::Setup { .. })), "{url} {token:?}");
    }
}

#[tokio::test]
async fn names_that_are_not_unique_list_the_ids() {
    let server = Fake::start(|_, _| {
        (200, json!({"instances": [instance(1, "web", "running"), instance(2, "web", "error")]}))
    });
    let error = client(&server.url).find_instance("web").await.unwrap_err().to_string();
    assert_eq!(error, format!("2 instances are named 'web'; use an id: {}, {}", id(1), id(2)));
    assert_eq!(client(&server.url).find_instance(&id(2)).await.unwrap().state, InstanceState::Error);
}

#[tokio::test]
async fn a_wait_bears_a_controller_that_is_away_for_a_moment() {
    let server = Fake::start(|_, before| match before {
        0 | 1 => (200, instance(1, "web", "building")),
        2 => (503, refused("unavailable", "starting", None)),
        _ => (200, instance(1, "web", "running")),
    });
    let mut seen = Vec::new();
    let running = client(&server.url)
        .wait_instance(
            web(),
            |i| i.state == InstanceState::Running,
            Duration::from_secs(30),
            |i| seen.push(i.state),
        )
        .await
        .unwrap();
    assert_eq!(running.state, InstanceState::Running);
    assert_eq!(seen, [InstanceState::Building, InstanceState::Running]);
    assert_eq!(server.lines().len(), 4);
}

#[tokio::test]
async fn a_wait_that_takes_too_long_says_what_it_saw() {
    let server = Fake::start(|_, _| {
        let mut stuck = instance(1, "web", "error");
        stuck["fault"] =
            json!({"code": "engine_down", "message": "no docker", "since": "2026-01-02T03:04:05Z"});
        (200, stuck)
    });
    let error = client(&server.url)
        .wait_instance(web(), |_| false, Duration::from_millis(500), |_| {})
        .await
        .unwrap_err();
    assert!(error.to_string().ends_with("last seen: error (engine_down: no docker)"), "{error}");
}

#[tokio::test]
async fn gone_is_an_end_only_where_it_is_waited_for() {
    let server = Fake::start(|_, before| match before {
        0 => (200, instance(1, "web", "deleting")),
        _ => (404, refused("not_found", "no instance", None)),
    });
    let ours = client(&server.url);
    let long = Duration::from_secs(30);
    assert_eq!(ours.wait_instance_gone(web(), |_| false, long, |_| {}).await.unwrap(), None);
    assert!(ours.wait_instance(web(), |_| false, long, |_| {}).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn a_large_upload_goes_on_where_it_was_cut() {
    const LENGTH: u64 = 9 << 20;
    let server = Fake::start(|asked, before| match (asked.line.split(' ').next(), before) {
        (Some("PATCH"), 0) => (503, refused("unavailable", "the store is away", None)),
        (Some("HEAD"), _) => (200, json!({"upload-offset": LENGTH - 5})),
        _ => (200, json!({})),
    });
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let bytes: Vec<u8> = (0..LENGTH as u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    let image: ImageId = id(5).parse().unwrap();
    client(&server.url).upload_file(image, BlobRole::Disk, &path, Box::new(|_, _| {})).await.unwrap();
    let asked = server.asked();
    let seen: Vec<_> =
        asked.iter().map(|a| (a.line.split(' ').next().unwrap_or_default(), a.length)).collect();
    assert_eq!(seen, [("PATCH", Some(LENGTH)), ("HEAD", None), ("PATCH", Some(5))]);
    assert!(asked[2].body == bytes[LENGTH as usize - 5..], "only what was missing");
}

#[tokio::test]
async fn an_upload_streams_the_file_and_tells_its_progress() {
    let server = Fake::start(|_, _| (200, json!({})));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("busybox.tar");
    let bytes: Vec<u8> = (0..3_000_001u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    let steps = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&steps);
    let image: ImageId = id(5).parse().unwrap();
    client(&server.url)
        .upload_file(
            image,
            BlobRole::Archive,
            &path,
            Box::new(move |sent, all| seen.lock().unwrap().push((sent, all))),
        )
        .await
        .unwrap();
    let asked = server.asked();
    assert_eq!(asked[0].line, format!("PUT /v1/images/{}/blobs/archive", id(5)));
    assert_eq!(asked[0].length, Some(3_000_001));
    assert!(asked[0].body == bytes, "the bytes differ");
    let steps = steps.lock().unwrap();
    assert!(steps.len() > 5 && steps.is_sorted(), "{steps:?}");
    assert_eq!(steps.last(), Some(&(3_000_001, 3_000_001)));
}
