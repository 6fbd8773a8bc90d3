//! The face by its routes, as a client walks them: a challenge, a pass, the request again. The requirements of the OCI
//! distribution specification 1.1 are rows of tables; each names what it is of.

mod conformance;
mod tenancy;
mod upstreams;

use super::{Registry, router};
use crate::mirror::{Mirror, MirrorConfig};
use crate::model::identity::*;
use crate::ops::identity::{ProjectChange, UserChange};
use crate::ops::tests::Cloud;
use amphi_api::ProjectId;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use tower::ServiceExt;

const PASSWORD: &str = "correct horse";
const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A controller with a registry, two projects and their people: `alice` is a member of `shop`, `rita` a reader there, `eve`
/// a member of `other`.
struct Desk {
    cloud: Cloud,
    face: Router,
    shop: ProjectId,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    /// The specification's error code.
    fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap_or_else(|| panic!("{}", self.json())).to_owned()
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

impl Desk {
    async fn new() -> Self {
        Self::with(&BTreeMap::new()).await
    }

    async fn with(mirrors: &BTreeMap<String, MirrorConfig>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let cloud = Cloud::new().await;
        cloud.ops.bootstrap_identity(PASSWORD).await.unwrap();
        let mirror = Mirror::open(cloud.ops.clone(), mirrors).unwrap();
        let face = router(Registry { ops: cloud.ops.clone(), mirror, public_url: None });
        let mut desk = Self { cloud, face, shop: ProjectId::DEFAULT };
        desk.shop = desk.project("shop").await;
        let other = desk.project("other").await;
        for (name, role, project) in
            [("alice", "member", desk.shop), ("rita", "reader", desk.shop), ("eve", "member", other)]
        {
            desk.user(name, role, project).await;
        }
        desk
    }

    async fn project(&self, name: &str) -> ProjectId {
        let change = ProjectChange { name: Some(name.into()), ..ProjectChange::default() };
        self.cloud.ops.create_project(DomainId::DEFAULT, &change).await.unwrap().id
    }

    async fn user(&self, name: &str, role: &str, project: ProjectId) {
        let password = Some(Some(PASSWORD.into()));
        let change = UserChange { name: Some(name.into()), password, ..UserChange::default() };
        let user = self.cloud.ops.create_user(DomainId::DEFAULT, &change).await.unwrap().id;
        let target = Target::Project(project);
        let grant =
            GrantRecord { actor: Actor::User(user), target, role: RoleId::of(role), inherited: false };
        self.cloud.ops.grant(&grant).await.unwrap();
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let (parts, body) = self.face.clone().oneshot(request).await.unwrap().into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.map(|b| b.to_vec()).unwrap_or_default();
        assert_eq!(parts.headers["docker-distribution-api-version"], "registry/2.0");
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// Sent as it is: `GET /v2/`, with an `Authorization`.
    async fn plain(&self, request: &str, authorization: Option<&str>) -> Answer {
        let (method, path) = request.split_once(' ').unwrap();
        let mut builder = Request::builder().method(method).uri(path).header("host", "127.0.0.1:8774");
        if let Some(text) = authorization {
            builder = builder.header("authorization", text);
        }
        self.send(builder.body(Body::empty()).unwrap()).await
    }

    /// A pass from the token endpoint; an empty name: nobody's.
    async fn pass(&self, who: &str, query: &str) -> Answer {
        let basic = format!("Basic {}", STANDARD.encode(format!("{who}:{PASSWORD}")));
        self.plain(&format!("GET /v2/token?{query}"), (!who.is_empty()).then_some(basic.as_str())).await
    }

    /// As a client does it: the request, the challenge's pass, the request again.
    async fn ask(&self, who: &str, request: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let (method, path) = request.split_once(' ').unwrap();
        let build = |authorization: Option<&str>| {
            let mut builder = Request::builder().method(method).uri(path).header("host", "127.0.0.1:8774");
            for (name, value) in headers {
                builder = builder.header(*name, *value);
            }
            if let Some(text) = authorization {
                builder = builder.header("authorization", text);
            }
            builder.body(Body::from(body.to_vec())).unwrap()
        };
        let first = self.send(build(None)).await;
        if first.status != 401 {
            return first;
        }
        let challenge = first.header("www-authenticate").to_owned();
        let start = "Bearer realm=\"http://127.0.0.1:8774/v2/token\",service=\"amphi\"";
        assert!(challenge.starts_with(start), "{challenge}");
        let mut query = form_urlencoded::Serializer::new("service=amphi".to_owned());
        if let Some(scope) = challenge.split("scope=\"").nth(1) {
            query.append_pair("scope", scope.split('"').next().unwrap());
        }
        // A mount needs what is mounted from, too; clients ask for both.
        if let Some(from) = path.split("from=").nth(1) {
            query.append_pair("scope", &format!("repository:{from}:pull"));
        }
        let pass = self.pass(who, &query.finish()).await;
        assert_eq!(pass.status, 200, "{:?}", String::from_utf8_lossy(&pass.body));
        let token = pass.json()["token"].as_str().unwrap().to_owned();
        self.send(build(Some(&format!("Bearer {token}")))).await
    }

    async fn blob(&self, who: &str, name: &str, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        let put = self.ask(who, &format!("POST /v2/{name}/blobs/uploads/?digest={digest}"), &[], bytes).await;
        assert_eq!(put.status, 201, "{}", String::from_utf8_lossy(&put.body));
        digest
    }

    /// An image of one layer that says `text`, its blobs pushed; the manifest's bytes.
    async fn image(&self, who: &str, name: &str, text: &str) -> Vec<u8> {
        let layer = tar(text);
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]}});
        let config = config.to_string().into_bytes();
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": self.blob(who, name, &config).await, "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": self.blob(who, name, &layer).await, "size": layer.len()}]});
        manifest.to_string().into_bytes()
    }

    async fn put(&self, who: &str, name: &str, reference: &str, manifest: &[u8]) -> Answer {
        let request = format!("PUT /v2/{name}/manifests/{reference}");
        let kind: Value = serde_json::from_slice(manifest).unwrap_or_default();
        let kind = kind["mediaType"].as_str().unwrap_or(OCI).to_owned();
        self.ask(who, &request, &[("content-type", &kind)], manifest).await
    }

    /// Pushes an image and its tag; the manifest's digest.
    async fn push(&self, who: &str, name: &str, tag: &str, text: &str) -> String {
        let manifest = self.image(who, name, text).await;
        let put = self.put(who, name, tag, &manifest).await;
        assert_eq!(put.status, 201, "{}", String::from_utf8_lossy(&put.body));
        assert_eq!(put.header("docker-content-digest"), digest(&manifest));
        digest(&manifest)
    }
}

/// A tar with one file (POSIX.1-1988, ustar).
fn tar(text: &str) -> Vec<u8> {
    let mut head = [0u8; 512];
    let mut field = |at: usize, value: &str| head[at..at + value.len()].copy_from_slice(value.as_bytes());
    field(0, "hello");
    field(100, "0000644");
    field(108, "0000000");
    field(116, "0000000");
    field(124, &format!("{:011o}", text.len()));
    field(136, "00000000000");
    field(148, "        ");
    field(156, "0");
    field(257, "ustar");
    field(263, "00");
    let sum: u32 = head.iter().map(|b| u32::from(*b)).sum();
    head[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut tar = head.to_vec();
    tar.extend(text.as_bytes());
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}
