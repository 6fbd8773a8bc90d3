//! The face by its routes: what it refuses and how, and that what it says of itself is current.

use super::{Native, openapi, router};
use crate::ops::tests::{BLOB_LIMIT, Cloud};
use crate::regions::Regions;
use amphi_api::{ErrorBody, ErrorCode};
use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};
use std::path::PathBuf;
use tower::ServiceExt;

const TOKEN: &str = "a-token-of-some-length";

struct Answer {
    status: StatusCode,
    headers: axum::http::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    fn refusal(&self) -> (u16, ErrorCode, Option<String>) {
        let body: ErrorBody = serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{} has no error body: {e}: {:?}", self.status, self.body));
        assert_eq!(body.error.code.status(), self.status.as_u16());
        assert!(!body.error.message.is_empty());
        (self.status.as_u16(), body.error.code, body.error.field)
    }
}

async fn send(face: &Router, request: Request<Body>) -> Answer {
    let answer = face.clone().oneshot(request).await.unwrap();
    let (parts, body) = answer.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec();
    assert!(parts.headers.contains_key("x-request-id"), "every answer has an id");
    Answer { status: parts.status, headers: parts.headers, body }
}

async fn call(face: &Router, method: &str, path: &str, body: Option<&str>) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("content-type", "application/json");
    send(face, request.body(Body::from(body.unwrap_or_default().to_owned())).unwrap()).await
}

async fn post(face: &Router, path: &str, body: &Value) -> Answer {
    call(face, "POST", path, Some(&body.to_string())).await
}

async fn furnished() -> (Cloud, Router) {
    let (cloud, _, _) = Cloud::furnished().await;
    let face = router(Native { regions: Regions::new(cloud.ops.clone()), ops: cloud.ops.clone() }, TOKEN);
    (cloud, face)
}

fn set(members: Value) -> Value {
    json!({"name": "web", "vcpus": 1, "memory_mib": 128, "networks": [{"network": "net"}],
        "bodies": [{"set": {"members": members}}]})
}

#[tokio::test]
async fn a_create_is_answered_before_it_is_done() {
    let (_cloud, face) = furnished().await;
    let made = post(&face, "/v1/instances", &set(json!([{"index": 0, "image": "busybox"}]))).await;
    assert_eq!(made.status, StatusCode::ACCEPTED);
    let id = made.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(made.json()["state"], "building");
    let path = format!("/v1/instances/{id}");
    assert_eq!(call(&face, "GET", &path, None).await.json(), made.json());
    let list = call(&face, "GET", "/v1/instances?name=web&limit=5", None).await.json();
    assert_eq!(list["instances"][0]["id"], id.as_str());
    assert_eq!(call(&face, "GET", "/v1/ports", None).await.json()["ports"][0]["instance"], id.as_str());
    assert_eq!(call(&face, "POST", &format!("{path}/stop"), None).await.status, StatusCode::ACCEPTED);
    let log = call(&face, "GET", &format!("{path}/console-log?lines=3"), None).await;
    assert_eq!(log.json()["text"], "3 lines of None");
    let gone = call(&face, "DELETE", &format!("{path}?volume=delete"), None).await;
    assert_eq!((gone.status, gone.body.len()), (StatusCode::ACCEPTED, 0));
}

/// Rows: the body's text, the status, the field.
#[tokio::test]
async fn malformed_bodies_name_their_field_and_make_nothing() {
    let (cloud, face) = furnished().await;
    let member = json!({"index": 0, "image": "busybox"});
    let changed = |key: &str, value: Value| {
        let mut body = set(json!([member]));
        body[key] = value;
        body.to_string()
    };
    let table: Vec<(String, u16, &str)> = vec![
        (String::new(), 400, ""),
        ("{".into(), 400, ""),
        ("[]".into(), 400, ""),
        ("{}".into(), 400, "name"),
        (format!("{} {{}}", set(json!([member]))), 400, ""),
        (changed("colour", json!(1)), 400, "colour"),
        (changed("vcpus", json!("x")), 400, "vcpus"),
        (changed("vcpus", json!(-1)), 400, "vcpus"),
        (changed("memory_mib", json!(1e30)), 400, "memory_mib"),
        (changed("bodies", json!([{"container": {}}])), 400, "bodies[0]"),
        (
            changed("networks", json!([{"network": "net", "address": "10.1.0.300"}])),
            400,
            "networks[0].address",
        ),
        (changed("volume", json!({"size_gib": 1, "x": 1})), 400, "volume.x"),
        (changed("failover", json!("sometimes")), 400, "failover"),
        (set(json!([member, {"image": "busybox"}])).to_string(), 400, "bodies[0].set.members[1].index"),
        (
            set(json!([{"index": 0, "image": "busybox", "x": 1}])).to_string(),
            400,
            "bodies[0].set.members[0].x",
        ),
        (
            set(json!([{"index": 0, "image": "busybox", "options": {"cpu": "all"}}])).to_string(),
            400,
            "bodies[0].set.members[0].options.cpu",
        ),
        (changed("user_data", json!("x".repeat(1 << 20))), 413, ""),
    ];
    for (body, status, field) in table {
        let short: String = body.chars().take(300).collect();
        let (got, _, named) = call(&face, "POST", "/v1/instances", Some(&body)).await.refusal();
        assert_eq!((got, named.as_deref().unwrap_or_default()), (status, field), "{short}");
        cloud.assert_empty();
    }
}

#[tokio::test]
async fn every_refusal_has_the_same_body() {
    let (_cloud, face) = furnished().await;
    let nobody = "/v1/instances/00000000-0000-0000-0000-000000000000";
    let table = [
        ("GET", "/v1/nothing", 404),
        ("GET", "/", 404),
        ("PATCH", "/v1/instances", 405),
        ("DELETE", "/v1/whoami", 405),
        ("GET", nobody, 404),
        ("GET", "/v1/instances/x", 404),
        ("GET", "/v1/instances/%ff", 404),
        ("DELETE", nobody, 404),
        ("POST", "/v1/hosts/x/evacuate", 404),
        ("GET", "/v1/instances?limit=many", 400),
        ("GET", "/v1/instances?limit=0", 400),
        ("GET", "/v1/instances?marker=x", 400),
        ("GET", "/v1/instances?sort=name", 400),
        ("DELETE", "/v1/security-groups/x/rules/y", 404),
        ("PUT", "/v1/images/x/blobs/disk", 404),
    ];
    for (method, path, status) in table {
        let (got, ..) = call(&face, method, path, None).await.refusal();
        assert_eq!(got, status, "{method} {path}");
    }
    let request = Request::post("/v1/networks").header("authorization", format!("Bearer {TOKEN}"));
    let plain = send(&face, request.body(Body::from("{}")).unwrap()).await;
    assert_eq!(plain.refusal().1, ErrorCode::UnsupportedMediaType);
}

#[tokio::test]
async fn without_the_token_nothing() {
    let (_cloud, face) = furnished().await;
    for value in ["", "Bearer", "Bearer ", "Bearer wrong", "Basic YTpi", TOKEN] {
        let request = Request::get("/v1/hosts").header("authorization", value).body(Body::empty()).unwrap();
        let answer = send(&face, request).await;
        assert_eq!(answer.refusal().1, ErrorCode::Unauthenticated, "{value:?}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
    }
    for open in ["/healthz", "/v1/openapi.json"] {
        let answer = send(&face, Request::get(open).body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, StatusCode::OK, "{open}");
    }
    let request = Request::get("/v1/whoami")
        .header("authorization", format!("bearer {TOKEN}"))
        .header("x-request-id", "mine-1");
    let answer = send(&face, request.body(Body::empty()).unwrap()).await;
    assert_eq!(
        (answer.status, &answer.headers["x-request-id"]),
        (StatusCode::OK, &"mine-1".parse().unwrap())
    );
}

/// A user's token is worth what its role says, in its project alone.
#[tokio::test]
async fn users_of_two_projects_do_not_see_each_other() {
    use crate::model::identity::{Actor, DomainId, GrantRecord, RoleId, Target};
    use crate::ops::identity::{
        DomainRef, Login, ProjectChange, ProjectRef, Proof, ScopeWish, UserChange, UserRef,
    };
    let (cloud, face) = furnished().await;
    let ops = &cloud.ops;
    ops.bootstrap_identity("admin's").await.unwrap();
    let token = async |name: &str, role: &str, project: amphi_api::ProjectId| {
        let change = UserChange {
            name: Some(name.into()),
            password: Some(Some("secret".into())),
            ..UserChange::default()
        };
        let user = ops.create_user(DomainId::DEFAULT, &change).await.unwrap().id;
        let (actor, target) = (Actor::User(user), Target::Project(project));
        let grant = GrantRecord { actor, target, role: RoleId::of(role), inherited: false };
        ops.grant(&grant).await.unwrap();
        let user = UserRef::Named { name: name.into(), domain: DomainRef::Id("default".into()) };
        let proofs = vec![Proof::Password { user, password: "secret".into() }];
        let scope = ScopeWish::Project(ProjectRef::Id(project.to_string()));
        ops.login(&Login { proofs, scope, from: None }).await.unwrap().0
    };
    let project = async |name: &str| {
        let change = ProjectChange { name: Some(name.into()), ..ProjectChange::default() };
        ops.create_project(DomainId::DEFAULT, &change).await.unwrap().id
    };
    let (one, two) = (project("one").await, project("two").await);
    let mine = token("mine", "member", one).await;
    let reader = token("reader", "reader", one).await;
    let other = token("other", "member", two).await;
    let admin = token("admin2", "admin", two).await;
    let ask = async |token: &str, method: &str, path: &str, body: &str| {
        let request = Request::builder().method(method).uri(path).header("x-auth-token", token);
        let request = request.header("content-type", "application/json");
        send(&face, request.body(Body::from(body.to_owned())).unwrap()).await
    };
    let network = r#"{"name": "n", "subnet": {"cidr": "10.7.0.0/24"}}"#;
    assert_eq!(ask(&reader, "POST", "/v1/networks", network).await.refusal().1, ErrorCode::Forbidden);
    let made = ask(&mine, "POST", "/v1/networks", network).await;
    assert_eq!(made.status, StatusCode::CREATED);
    assert_eq!(made.json()["project"], one.to_string());
    let path = format!("/v1/networks/{}", made.json()["id"].as_str().unwrap());
    assert_eq!(ask(&reader, "GET", &path, "").await.status, StatusCode::OK);
    for stranger in [&other, &admin] {
        assert_eq!(ask(stranger, "GET", &path, "").await.refusal().0, 404);
        assert_eq!(ask(stranger, "DELETE", &path, "").await.refusal().0, 404);
        assert_eq!(ask(stranger, "GET", "/v1/networks", "").await.json()["networks"], json!([]));
    }
    assert_eq!(call(&face, "GET", &path, None).await.refusal().0, 404, "nor does the default project");
    assert_eq!(ask(&mine, "GET", "/v1/hosts", "").await.refusal().1, ErrorCode::Forbidden);
    assert_eq!(ask(&admin, "GET", "/v1/hosts", "").await.status, StatusCode::OK);
    let whoami = ask(&mine, "GET", "/v1/whoami", "").await.json();
    assert_eq!(whoami, json!({"project": one, "role": "member"}));
    assert_eq!(ask("nonsense", "GET", "/v1/whoami", "").await.refusal().1, ErrorCode::Unauthenticated);
    assert_eq!(ask(&mine, "DELETE", &path, "").await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_panic_is_a_500_that_tells_nothing() {
    let boom = Router::new()
        .route(
            "/boom",
            axum::routing::get(|| async {
                if TOKEN.len() > 1 {
                    panic!("the secret {TOKEN}")
                }
            }),
        )
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(super::guard::panicked))
        .layer(axum::middleware::from_fn(super::guard::identify));
    let answer = send(&boom, Request::get("/boom").body(Body::empty()).unwrap()).await;
    assert_eq!(answer.refusal().1, ErrorCode::Internal);
    assert!(!String::from_utf8_lossy(&answer.body).contains(TOKEN));
}

#[tokio::test]
async fn blobs_by_role_and_digest() {
    let (cloud, face) = furnished().await;
    let image = json!({"name": "kernel", "format": "kernel-initramfs", "cmdline": "quiet"});
    let made = post(&face, "/v1/images", &image).await;
    assert_eq!((made.status, made.json()["state"].clone()), (StatusCode::CREATED, json!("queued")));
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let put = async |role: &str, bytes: &str, digest: Option<&str>| {
        let mut request = Request::put(format!("/v1/images/{id}/blobs/{role}"))
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("content-type", "application/octet-stream");
        if let Some(digest) = digest {
            request = request.header("x-amphi-sha256", digest);
        }
        send(&face, request.body(Body::from(bytes.to_owned())).unwrap()).await
    };
    // SHA-256 of "hello", as sha256sum prints it.
    let hello = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    assert_eq!(put("disk", "x", None).await.refusal(), (400, ErrorCode::InvalidField, Some("role".into())));
    assert_eq!(put("floppy", "x", None).await.refusal().0, 404);
    for digest in ["short", &"0".repeat(64)] {
        let refusal = put("kernel", "hello", Some(digest)).await.refusal();
        assert_eq!(refusal, (400, ErrorCode::InvalidField, Some("x-amphi-sha256".into())), "{digest}");
    }
    let kernel = put("kernel", "hello", Some(hello)).await;
    assert_eq!((kernel.status, kernel.json()["state"].clone()), (StatusCode::OK, json!("queued")));
    assert_eq!(kernel.json()["blobs"]["kernel"], json!({"sha256": hello, "size": 5}));
    assert_eq!(put("kernel", "hello", None).await.status, StatusCode::OK, "the same again is no harm");
    assert_eq!(put("kernel", "other", None).await.refusal().1, ErrorCode::Conflict);
    // More than an ordinary body may have.
    let initramfs = put("initramfs", &"i".repeat(3 << 20), None).await;
    assert_eq!(initramfs.json()["state"], "active");
    assert_eq!(call(&face, "DELETE", &format!("/v1/images/{id}"), None).await.status, StatusCode::NO_CONTENT);
    drop(cloud);
}

async fn raw_image(face: &Router) -> String {
    let made = post(face, "/v1/images", &json!({"name": "disk", "format": "raw"})).await;
    made.json()["id"].as_str().unwrap_or_else(|| panic!("{}", made.json())).to_owned()
}

async fn put_disk(face: &Router, image: &str, body: Body) -> Answer {
    let request = Request::put(format!("/v1/images/{image}/blobs/disk"))
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("content-type", "application/octet-stream");
    send(face, request.body(body).unwrap()).await
}

#[tokio::test]
async fn a_blob_in_parts_goes_on_where_it_stopped() {
    let (cloud, face) = furnished().await;
    let image = raw_image(&face).await;
    let path = format!("/v1/images/{image}/blobs/disk");
    let append = async |range: &str, bytes: &'static str, digest: Option<&str>| {
        let mut request = Request::patch(&path)
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("content-range", range);
        if let Some(digest) = digest {
            request = request.header("x-amphi-sha256", digest);
        }
        send(&face, request.body(Body::from(bytes)).unwrap()).await
    };
    let offset = async || {
        let answer = call(&face, "HEAD", &path, None).await;
        (answer.status, answer.headers["upload-offset"].to_str().unwrap().to_owned())
    };
    assert_eq!(offset().await, (StatusCode::OK, "0".into()));
    assert_eq!(append("bytes 0-1/5", "he", None).await.status, StatusCode::ACCEPTED);
    assert_eq!(offset().await, (StatusCode::OK, "2".into()));
    assert_eq!(append("bytes 1-4/5", "ello", None).await.refusal().1, ErrorCode::Conflict, "not there");
    let field = Some("content-range".to_owned());
    assert_eq!(append("bytes 2-5/5", "llo", None).await.refusal(), (400, ErrorCode::InvalidField, field));
    let limit = format!("bytes 2-4/{}", BLOB_LIMIT + 1);
    assert_eq!(append(&limit, "llo", None).await.refusal().1, ErrorCode::TooLarge);
    // A controller that was killed goes on, too.
    let ops = cloud.another().await.ops.clone();
    let face = router(Native { regions: Regions::new(ops.clone()), ops }, TOKEN);
    let request = Request::patch(&path)
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("content-range", "bytes 2-4/5")
        .header("x-amphi-sha256", "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
    let whole = send(&face, request.body(Body::from("llo")).unwrap()).await;
    assert_eq!((whole.status, whole.json()["state"].clone()), (StatusCode::OK, json!("active")));
    assert_eq!(offset().await, (StatusCode::OK, "5".into()));
    assert_eq!(files(&cloud, "uploads"), 0);
    let wrong = raw_image(&face).await;
    let request = Request::patch(format!("/v1/images/{wrong}/blobs/disk"))
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("content-range", "bytes 0-4/5")
        .header("x-amphi-sha256", "0".repeat(64));
    let field = Some("x-amphi-sha256".to_owned());
    let refused = send(&face, request.body(Body::from("hello")).unwrap()).await;
    assert_eq!(refused.refusal(), (400, ErrorCode::InvalidField, field));
    assert_eq!(files(&cloud, "uploads"), 0);
}

fn files(cloud: &Cloud, below: &str) -> usize {
    std::fs::read_dir(cloud.dir.path().join("images").join(below)).unwrap().count()
}

#[tokio::test]
async fn a_blob_over_the_limit_is_refused_and_nothing_is_kept() {
    let (cloud, face) = furnished().await;
    let image = raw_image(&face).await;
    // In parts, so that nobody can know the size before.
    let parts = |bytes: u64| {
        let parts = (0..bytes.div_ceil(1 << 20)).map(move |at| {
            let left = (bytes - (at << 20)).min(1 << 20);
            Ok::<_, std::io::Error>(vec![7u8; left as usize])
        });
        Body::from_stream(futures_util::stream::iter(parts))
    };
    let refused = put_disk(&face, &image, parts(BLOB_LIMIT + 1)).await;
    assert_eq!(refused.refusal(), (413, ErrorCode::TooLarge, None));
    assert!(refused.json()["error"]["message"].as_str().unwrap().contains("8388608 bytes"));
    assert_eq!((files(&cloud, "uploads"), files(&cloud, "blobs")), (0, 0));
    let path = format!("/v1/images/{image}");
    assert_eq!(call(&face, "GET", &path, None).await.json()["state"], "queued");
    let taken = put_disk(&face, &image, parts(BLOB_LIMIT)).await;
    assert_eq!((taken.status, taken.json()["state"].clone()), (StatusCode::OK, json!("active")));
}

/// A small file system over the image store, for this thread and those it starts from now on. Needs root.
#[tokio::test]
async fn a_full_disk_is_told_and_nothing_is_kept() {
    let run = |words: &[&str]| {
        let output = std::process::Command::new(words[0]).args(&words[1..]).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("a mount namespace: needs root");
    run(&["mount", "--make-rprivate", "/"]);
    let (cloud, face) = furnished().await;
    let images = cloud.dir.path().join("images");
    let at = images.to_str().unwrap();
    run(&["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", at]);
    for dir in ["uploads", "blobs"] {
        std::fs::create_dir(images.join(dir)).unwrap();
    }
    let image = raw_image(&face).await;
    let full = put_disk(&face, &image, Body::from(vec![7u8; 3 << 20])).await;
    assert_eq!(full.refusal(), (507, ErrorCode::StorageFull, None));
    assert!(full.json()["error"]["message"].as_str().unwrap().contains("no space is left"));
    assert_eq!((files(&cloud, "uploads"), files(&cloud, "blobs")), (0, 0));
    let small = put_disk(&face, &image, Body::from(vec![7u8; 100 << 10])).await;
    assert_eq!((small.status, small.json()["state"].clone()), (StatusCode::OK, json!("active")));
    run(&["umount", "--lazy", at]);
}

#[tokio::test]
async fn a_set_is_checked_without_making_anything() {
    let (_cloud, face) = furnished().await;
    let good = json!({"members": [{"index": 4, "image": "x"}, {"index": 2, "image": "x"}]});
    let answer = post(&face, "/v1/sets/check", &good).await;
    assert_eq!(
        answer.json()["members"][0],
        json!({"name": "member-2", "index": 2, "image": "x",
        "options": {"cpu": 50, "mem": 50}})
    );
    let bad = json!({"members": [{"index": 4, "image": "x"}, {"index": 4, "image": "x"}]});
    let refusal = post(&face, "/v1/sets/check", &bad).await.refusal();
    assert_eq!(refusal, (400, ErrorCode::InvalidField, Some("members[1].index".into())));
}

#[tokio::test]
async fn groups_and_rules() {
    let (_cloud, face) = furnished().await;
    let group = json!({"name": "g", "rules": [{"protocol": "icmp"}]});
    let made = post(&face, "/v1/security-groups", &group).await;
    assert_eq!(made.status, StatusCode::CREATED);
    let path = format!("/v1/security-groups/{}", made.json()["id"].as_str().unwrap());
    let rule = json!({"protocol": "tcp", "port_min": 80});
    let added = post(&face, &format!("{path}/rules"), &rule).await;
    assert_eq!(added.status, StatusCode::CREATED);
    assert_eq!(post(&face, &format!("{path}/rules"), &rule).await.refusal().1, ErrorCode::Conflict);
    let bad = post(&face, &format!("{path}/rules"), &json!({"protocol": "icmp", "port_min": 80})).await;
    assert_eq!(bad.refusal().2.as_deref(), Some("port_min"));
    let one = format!("{path}/rules/{}", added.json()["id"].as_str().unwrap());
    assert_eq!(call(&face, "DELETE", &one, None).await.status, StatusCode::NO_CONTENT);
    assert_eq!(call(&face, "DELETE", &one, None).await.refusal().0, 404);
    assert_eq!(call(&face, "GET", &path, None).await.json()["rules"].as_array().unwrap().len(), 1);
    assert_eq!(call(&face, "DELETE", &path, None).await.status, StatusCode::NO_CONTENT);
}

/// The checked-in schemas say what the code says. `UPDATE_SCHEMAS=1` writes them anew.
#[test]
fn schemas_are_current() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../schemas");
    let pretty = |value: &Value| format!("{}\n", serde_json::to_string_pretty(value).unwrap());
    let schema = |s: schemars::Schema| pretty(s.as_value());
    let document: Value = serde_json::from_str(&openapi().to_json().unwrap()).unwrap();
    let generated = [
        ("set.schema.json", schema(schemars::schema_for!(amphi_api::set::SetSpec))),
        ("instance.schema.json", schema(schemars::schema_for!(amphi_api::instance::InstanceCreate))),
        ("host.schema.json", schema(schemars::schema_for!(amphi_api::host::HostSpec))),
        ("openapi.json", pretty(&document)),
    ];
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        std::fs::create_dir_all(&dir).unwrap();
        for (name, text) in &generated {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }
    for (name, text) in generated {
        let there = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        assert!(
            there == text,
            "schemas/{name} is stale; run UPDATE_SCHEMAS=1 cargo nextest run -p amphi-controller schemas"
        );
    }
}

/// Every route says what it answers, what refusals look like, and whether it wants a body; every name that is referred
/// to is defined.
#[test]
fn the_description_is_complete() {
    let document: Value = serde_json::from_str(&openapi().to_json().unwrap()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut routes = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, route) in methods.as_object().unwrap() {
            routes += 1;
            let responses = route["responses"].as_object().unwrap();
            let good = |status: &String| status.starts_with('2') || status == "101";
            assert!(responses.keys().any(good), "{method} {path}");
            for (status, response) in responses.iter().filter(|(status, _)| status.as_str() >= "400") {
                let schema = &response["content"]["application/json"]["schema"]["$ref"];
                assert_eq!(schema, "#/components/schemas/ErrorBody", "{method} {path} {status}");
            }
            assert!(route["summary"].is_string(), "{method} {path} has no summary");
        }
    }
    assert!(routes >= 45, "{routes} routes");
    let text = document.to_string();
    for part in text.split("\"#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(document["components"]["schemas"][name].is_object(), "{name} is referred to and not defined");
    }
}
