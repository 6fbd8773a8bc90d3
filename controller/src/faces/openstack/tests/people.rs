//! Users with each role, in two projects, and things that belong to one of them: all made by routes, as a client would.

use super::super::{OpenStack, router};
use crate::ops::tests::Cloud;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tower::ServiceExt;

pub const PASSWORD: &str = "correct horse";

pub struct People {
    router: Router,
    pub cloud: Cloud,
    pub admin: String,
    /// Tokens by who they are for: `reader`, `member`, `admin` in the project `ours`; `stranger`, a member of another;
    /// `nobody`, without a scope.
    pub tokens: BTreeMap<&'static str, String>,
    /// Ids by the segment of a path that stands before them: `servers`, `networks` …
    pub ours: BTreeMap<&'static str, String>,
    /// The project `ours`, as 32 hexadecimal digits.
    pub project: String,
}

pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

impl People {
    pub async fn new() -> Self {
        let cloud = Cloud::new().await;
        cloud.ops.bootstrap_identity(PASSWORD).await.unwrap();
        cloud.host("h1").await;
        let router = router(&OpenStack::new(cloud.ops.clone()));
        let mut people = Self {
            router,
            cloud,
            admin: String::new(),
            tokens: BTreeMap::new(),
            ours: BTreeMap::new(),
            project: String::new(),
        };
        people.admin = people.login("admin", Some("admin")).await;
        let admin = people.admin.clone();
        let ours = people.made(&admin, "/identity/v3/projects", "project", json!({"name": "ours"})).await;
        let theirs = people.made(&admin, "/identity/v3/projects", "project", json!({"name": "theirs"})).await;
        let roles = people.ask(&admin, "GET /identity/v3/roles", Value::Null).await.body;
        let role = |name: &str| {
            let found = roles["roles"].as_array().unwrap().iter().find(|r| r["name"] == name);
            found.unwrap()["id"].as_str().unwrap().to_owned()
        };
        for (name, what, project) in
            [("reader", "reader", &ours), ("member", "member", &ours), ("stranger", "member", &theirs)]
        {
            let fields = json!({"name": name, "password": PASSWORD});
            let user = people.made(&admin, "/identity/v3/users", "user", fields).await;
            let grant = format!("PUT /identity/v3/projects/{project}/users/{user}/roles/{}", role(what));
            assert_eq!(people.ask(&admin, &grant, Value::Null).await.status, 204);
            let scope = if project == &ours { "ours" } else { "theirs" };
            let token = people.login(name, Some(scope)).await;
            people.tokens.insert(name, token);
        }
        let unscoped = people.login("reader", None).await;
        people.tokens.insert("nobody", unscoped.clone());
        people.tokens.insert("admin", admin);
        people.project = ours;
        // The first look of a project makes its group `default`: whoever looks later changes nothing.
        for token in people.tokens.values().filter(|t| **t != unscoped) {
            people.ask(token, "GET /network/v2.0/security-groups", Value::Null).await;
        }
        people.furnish().await;
        people
    }

    async fn login(&self, user: &str, project: Option<&str>) -> String {
        let mut auth = json!({"identity": {"methods": ["password"], "password": {"user": {
            "name": user, "domain": {"id": "default"}, "password": PASSWORD}}}});
        if let Some(project) = project {
            auth["scope"] = json!({"project": {"name": project, "domain": {"id": "default"}}});
        }
        let answer = self.ask("", "POST /identity/v3/auth/tokens", json!({"auth": auth})).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        answer.headers["x-subject-token"].to_str().unwrap().to_owned()
    }

    pub async fn ask(&self, token: &str, request: &str, body: Value) -> Answer {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.send(token, request, "application/json", body).await
    }

    pub async fn send(&self, token: &str, request: &str, kind: &str, body: Vec<u8>) -> Answer {
        let (method, path) = request.split_once(' ').unwrap();
        let mut builder = Request::builder().method(method).uri(path).header("host", "c:1");
        builder =
            builder.header("content-type", kind).header("openstack-api-version", "compute 2.79, volume 3.70");
        if !token.is_empty() {
            builder = builder.header("x-auth-token", token);
        }
        let answer = self.router.clone().oneshot(builder.body(Body::from(body)).unwrap()).await.unwrap();
        let (parts, body) = answer.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        // A download is no JSON.
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// Makes something; its id.
    async fn made(&self, token: &str, path: &str, key: &str, fields: Value) -> String {
        let envelope = if key.is_empty() { fields } else { json!({ key: fields }) };
        let answer = self.ask(token, &format!("POST {path}"), envelope).await;
        assert!(matches!(answer.status, 200..=202), "{path}: {} {}", answer.status, answer.body);
        let made = if key.is_empty() { &answer.body } else { &answer.body[key] };
        let id = made["id"].as_str().or_else(|| made["name"].as_str());
        id.unwrap_or_else(|| panic!("{path}: {}", answer.body)).to_owned()
    }

    /// One of everything that a project can have.
    async fn furnish(&mut self) {
        let member = self.tokens["member"].clone();
        let network = self.made(&member, "/network/v2.0/networks", "network", json!({"name": "n"})).await;
        let subnet = json!({"network_id": network, "cidr": "10.1.0.0/24", "ip_version": 4});
        let subnet = self.made(&member, "/network/v2.0/subnets", "subnet", subnet).await;
        let port = self.made(&member, "/network/v2.0/ports", "port", json!({"network_id": network})).await;
        let router = self.made(&member, "/network/v2.0/routers", "router", json!({"name": "r"})).await;
        let group =
            self.made(&member, "/network/v2.0/security-groups", "security_group", json!({"name": "g"})).await;
        let rule = json!({"security_group_id": group, "direction": "ingress", "protocol": "icmp"});
        let rule =
            self.made(&member, "/network/v2.0/security-group-rules", "security_group_rule", rule).await;
        let image = json!({"name": "i", "disk_format": "raw", "container_format": "bare"});
        let image = self.made(&member, "/image/v2/images", "", image).await;
        self.ours.extend([
            ("networks", network.clone()),
            ("subnets", subnet),
            ("ports", port),
            ("routers", router),
            ("security-groups", group),
            ("security-group-rules", rule),
            ("images", image.clone()),
        ]);
        let disk = json!({"name": "v", "size": 1});
        let volume = self.made(&member, "/volume/v3/volumes", "volume", disk.clone()).await;
        let spare = self.made(&member, "/volume/v3/volumes", "volume", disk).await;
        let hosts: Vec<_> = self.cloud.ops.world().read().hosts.iter().map(|host| host.id).collect();
        for host in &hosts {
            self.cloud.obey(*host).await;
        }
        let of = json!({"volume_id": volume, "name": "s"});
        let snapshot = self.made(&member, "/volume/v3/snapshots", "snapshot", of).await;
        let offer = json!({"volume_id": spare});
        let offer = self.made(&member, "/volume/v3/volume-transfers", "transfer", offer).await;
        self.ours.extend([
            ("volumes", volume),
            ("snapshots", snapshot),
            ("volume-transfers", offer.clone()),
            ("os-volume-transfer", offer),
        ]);
        let bytes = format!("PUT /image/v2/images/{image}/file");
        let put = self.send(&member, &bytes, "application/octet-stream", vec![0; 1 << 20]).await;
        assert_eq!(put.status, 204, "{}", put.body);
    }
}
