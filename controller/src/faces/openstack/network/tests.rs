//! The face by its routes: answers' forms, whose is what, and that no malformed request is a fault of ours.

use super::super::{OpenStack, router};
use crate::ops::tests::Cloud;
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use std::fmt::Write;
use tower::ServiceExt;

const PASSWORD: &str = "correct horse";

struct Face {
    router: Router,
    cloud: Cloud,
    admin: String,
}

impl Face {
    async fn new() -> Self {
        let cloud = Cloud::new().await;
        cloud.ops.bootstrap_identity(PASSWORD).await.unwrap();
        let router = router(&OpenStack::new(cloud.ops.clone()));
        let mut face = Self { router, cloud, admin: String::new() };
        face.admin = face.login("admin", json!({"name": "admin", "domain": {"id": "default"}})).await;
        face
    }

    async fn send(&self, token: &str, request: &str, body: Value) -> (u16, Option<String>, Value) {
        let (method, path) = request.split_once(' ').unwrap();
        let path = if path.starts_with("/identity") { path.to_owned() } else { format!("/network{path}") };
        let mut builder = Request::builder().method(method).uri(path).header("host", "c:1");
        if !token.is_empty() {
            builder = builder.header("x-auth-token", token);
        }
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let answer = self.router.clone().oneshot(builder.body(body).unwrap()).await.unwrap();
        let (parts, body) = answer.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let value = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
        let subject = parts.headers.get("x-subject-token").map(|t| t.to_str().unwrap().to_owned());
        (parts.status.as_u16(), subject, value)
    }

    async fn ask(&self, token: &str, request: &str, body: Value) -> (u16, Value) {
        let (status, _, body) = self.send(token, request, body).await;
        (status, body)
    }

    async fn login(&self, user: &str, project: Value) -> String {
        let user = json!({"name": user, "domain": {"id": "default"}, "password": PASSWORD});
        let auth = json!({"auth": {"identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": project}}});
        let (status, token, body) = self.send("", "POST /identity/v3/auth/tokens", auth).await;
        assert_eq!(status, 201, "{body}");
        token.unwrap()
    }

    /// A user with a role in a project of its own: the token.
    async fn user(&self, name: &str, role: &str) -> String {
        let make = async |noun: &str, fields: Value| {
            let request = format!("POST /identity/v3/{noun}s");
            let (status, body) = self.ask(&self.admin, &request, json!({ noun: fields })).await;
            assert_eq!(status, 201, "{body}");
            body[noun]["id"].as_str().unwrap().to_owned()
        };
        let user = make("user", json!({"name": name, "password": PASSWORD})).await;
        let project = make("project", json!({"name": name})).await;
        let (_, roles) =
            self.ask(&self.admin, &format!("GET /identity/v3/roles?name={role}"), Value::Null).await;
        let role = roles["roles"][0]["id"].as_str().unwrap();
        let grant = format!("PUT /identity/v3/projects/{project}/users/{user}/roles/{role}");
        assert_eq!(self.ask(&self.admin, &grant, Value::Null).await.0, 204);
        self.login(name, json!({"id": project})).await
    }

    async fn make(&self, token: &str, one: &str, path: &str, fields: Value) -> Value {
        let (status, body) =
            self.ask(token, &format!("POST /v2.0/{path}"), json!({ one: fields.clone() })).await;
        assert_eq!(status, 201, "{path} {fields}: {body}");
        body[one].clone()
    }

    /// An external network, a network behind a router, and a port: their ids, by name.
    async fn furnished(&self, token: &str) -> Value {
        let id = |made: &Value| made["id"].as_str().unwrap().to_owned();
        let world = json!({"name": "world", "router:external": true, "provider:network_type": "flat",
            "provider:physical_network": "lan"});
        let world = id(&self.make(&self.admin, "network", "networks", world).await);
        let range =
            json!({"network_id": world, "cidr": "172.24.4.0/24", "ip_version": 4, "enable_dhcp": false});
        self.make(&self.admin, "subnet", "subnets", range).await;
        let net = id(&self.make(token, "network", "networks", json!({"name": "net"})).await);
        let range = json!({"network_id": net, "cidr": "10.0.0.0/24", "ip_version": "4", "name": "sub"});
        let subnet = id(&self.make(token, "subnet", "subnets", range).await);
        let edge = json!({"name": "edge", "external_gateway_info": {"network_id": world}});
        let router = id(&self.make(token, "router", "routers", edge).await);
        let join = format!("PUT /v2.0/routers/{router}/add_router_interface");
        assert_eq!(self.ask(token, &join, json!({"subnet_id": subnet})).await.0, 200);
        let port = id(&self.make(token, "port", "ports", json!({"network_id": net, "name": "p"})).await);
        json!({"world": world, "net": net, "subnet": subnet, "router": router, "port": port})
    }
}

/// Ids, times and MACs replaced, so that the form can be compared.
fn formed(value: &mut Value) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(formed),
        Value::Object(map) => map.iter_mut().for_each(|(key, value)| match value {
            Value::String(text) if key.ends_with("_at") => *text = "TIME".into(),
            Value::String(text) if key == "mac_address" => *text = "MAC".into(),
            Value::Number(_) if key == "provider:segmentation_id" => *value = json!("SEGMENT"),
            value => formed(value),
        }),
        Value::String(text) => {
            let part = |part: &str| uuid::Uuid::try_parse(part).is_ok();
            let parts: Vec<&str> = text.split('/').map(|p| if part(p) { "ID" } else { p }).collect();
            *text = parts.join("/");
        }
        _ => {}
    }
}

#[tokio::test]
async fn forms() {
    let face = Face::new().await;
    let member = face.user("ann", "member").await;
    let made = face.furnished(&member).await;
    let [world, net, port, router] =
        ["world", "net", "port", "router"].map(|key| made[key].as_str().unwrap().to_owned());
    let group = face.make(&member, "security_group", "security-groups", json!({"name": "web"})).await;
    let group = group["id"].as_str().unwrap();
    let policy =
        face.make(&face.admin, "policy", "qos/policies", json!({"name": "slow", "shared": true})).await;
    let policy = policy["id"].as_str().unwrap();
    let v6 = json!({"network_id": net, "cidr": "fd00::/64", "ip_version": 6, "ipv6_ra_mode": "slaac",
        "ipv6_address_mode": "slaac"});
    let requests = [
        (&member, "GET /".to_owned(), Value::Null),
        (&member, format!("GET /v2.0/networks/{net}"), Value::Null),
        (&face.admin, format!("GET /v2.0/networks/{world}"), Value::Null),
        (&member, "POST /v2.0/subnets".to_owned(), json!({ "subnet": v6 })),
        (
            &member,
            format!("PUT /v2.0/ports/{port}"),
            json!({"port": {
            "allowed_address_pairs": [{"ip_address": "10.0.0.128/25"}], "qos_policy_id": policy,
            "extra_dhcp_opts": [{"opt_name": "domain-name", "opt_value": "example.org"}]}}),
        ),
        (&face.admin, format!("GET /v2.0/ports/{port}"), Value::Null),
        (&member, format!("GET /v2.0/routers/{router}"), Value::Null),
        (
            &member,
            "POST /v2.0/floatingips".to_owned(),
            json!({"floatingip": {"floating_network_id": world, "port_id": port}}),
        ),
        (&member, format!("GET /v2.0/security-groups/{group}"), Value::Null),
        (
            &member,
            "POST /v2.0/security-group-rules".to_owned(),
            json!({"security_group_rule": {
            "security_group_id": group, "direction": "ingress", "protocol": "tcp", "port_range_min": 80,
            "port_range_max": "80", "remote_ip_prefix": "10.0.0.1/8"}}),
        ),
        (
            &face.admin,
            format!("POST /v2.0/qos/policies/{policy}/bandwidth_limit_rules"),
            json!({"bandwidth_limit_rule": {"max_kbps": 1000}}),
        ),
        (&member, format!("GET /v2.0/qos/policies/{policy}"), Value::Null),
        (&member, format!("PUT /v2.0/networks/{net}/tags/red"), Value::Null),
        (&member, "GET /v2.0/networks?tags=red&fields=name&limit=1".to_owned(), Value::Null),
        (&member, "GET /v2.0/networks/nonsense".to_owned(), Value::Null),
    ];
    let mut text = String::new();
    for (token, request, body) in requests {
        let (status, mut answer) = face.ask(token, &request, body).await;
        let mut asked = json!(request);
        formed(&mut asked);
        formed(&mut answer);
        let _ = writeln!(text, "{}\n{status} {answer:#}", asked.as_str().unwrap());
    }
    insta::assert_snapshot!(text);
}

/// What neutron refuses, with its statuses and, where clients look at them, its words.
#[tokio::test]
async fn refusals() {
    let face = Face::new().await;
    let (ann, bob, eve) = (
        face.user("ann", "member").await,
        face.user("bob", "member").await,
        face.user("eve", "reader").await,
    );
    let made = face.furnished(&ann).await;
    let [world, net, subnet, port, router] =
        ["world", "net", "subnet", "port", "router"].map(|key| made[key].as_str().unwrap().to_owned());
    let group = face.make(&ann, "security_group", "security-groups", json!({"name": "web"})).await;
    let group = group["id"].as_str().unwrap().to_owned();
    let rule = json!({"security_group_rule": {"security_group_id": group, "direction": "ingress",
        "protocol": "tcp", "port_range_min": 80, "port_range_max": 80}});
    assert_eq!(face.ask(&ann, "POST /v2.0/security-group-rules", rule.clone()).await.0, 201);
    let second = json!({"subnet": {"network_id": net, "cidr": "10.0.0.128/25", "ip_version": 4}});
    let floating = json!({"floatingip": {"floating_network_id": net}});
    let table = [
        // Other people's things are not there; shared ones may be seen and not changed.
        (&bob, format!("GET /v2.0/networks/{net}"), Value::Null, 404, "NetworkNotFound"),
        (&bob, format!("DELETE /v2.0/ports/{port}"), Value::Null, 404, "PortNotFound"),
        (
            &bob,
            format!("PUT /v2.0/routers/{router}"),
            json!({"router": {"name": "x"}}),
            404,
            "RouterNotFound",
        ),
        (
            &bob,
            format!("PUT /v2.0/routers/{router}/add_router_interface"),
            json!({"subnet_id": subnet}),
            404,
            "",
        ),
        (&bob, "POST /v2.0/ports".into(), json!({"port": {"network_id": net}}), 404, "NetworkNotFound"),
        (&bob, "POST /v2.0/ports".into(), json!({"port": {"network_id": world}}), 403, "PolicyNotAuthorized"),
        (&bob, format!("DELETE /v2.0/networks/{world}"), Value::Null, 403, "PolicyNotAuthorized"),
        (&bob, format!("PUT /v2.0/networks/{net}/tags/x"), Value::Null, 404, "NetworkNotFound"),
        (&eve, "POST /v2.0/networks".into(), json!({"network": {}}), 403, ""),
        // What an admin alone may say.
        (
            &ann,
            "POST /v2.0/networks".into(),
            json!({"network": {"shared": true}}),
            403,
            "PolicyNotAuthorized",
        ),
        (&ann, "POST /v2.0/networks".into(), json!({"network": {"provider:network_type": "flat"}}), 403, ""),
        (&ann, format!("PUT /v2.0/ports/{port}"), json!({"port": {"binding:host_id": "h1"}}), 403, ""),
        (
            &ann,
            format!("PUT /v2.0/ports/{port}"),
            json!({"port": {"device_owner": "network:router_gateway"}}),
            400,
            "",
        ),
        (&ann, "GET /v2.0/quotas/0198a1b2c3d47e5f8a9b0c1d2e3f4a5b".into(), Value::Null, 403, ""),
        // What is in use.
        (&ann, format!("DELETE /v2.0/networks/{net}"), Value::Null, 409, "NetworkInUse"),
        (&ann, format!("DELETE /v2.0/subnets/{subnet}"), Value::Null, 409, "SubnetInUse"),
        (&ann, format!("DELETE /v2.0/routers/{router}"), Value::Null, 409, "RouterInUse"),
        (&ann, "POST /v2.0/security-group-rules".into(), rule, 409, "SecurityGroupRuleExists"),
        (&ann, "POST /v2.0/security-groups".into(), json!({"security_group": {"name": "default"}}), 409, ""),
        // What makes no sense.
        (&ann, "POST /v2.0/subnets".into(), second, 400, "overlaps with another subnet"),
        (&ann, "POST /v2.0/floatingips".into(), floating, 400, "not a valid external network"),
        (
            &ann,
            "POST /v2.0/networks".into(),
            json!({"network": {"colour": "red"}}),
            400,
            "Unrecognized attribute",
        ),
        (
            &ann,
            format!("PUT /v2.0/ports/{port}"),
            json!({"port": {"fixed_ips": [{"ip_address": "10.9.0.1"}]}}),
            400,
            "outside",
        ),
        (&ann, "GET /v2.0/networks?limit=-1".into(), Value::Null, 400, "limit"),
        (&ann, "GET /v2.0/networks?marker=nobody".into(), Value::Null, 400, "marker"),
    ];
    for (token, request, body, want, says) in table {
        let (status, answer) = face.ask(token, &request, body.clone()).await;
        assert_eq!(status, want, "{request} {body}: {answer}");
        assert!(answer["NeutronError"].is_object(), "{request}: {answer}");
        assert!(answer.to_string().contains(says), "{request} {body}: {answer}");
    }
    // Nothing of it left anything behind.
    let (_, ports) = face.ask(&ann, &format!("GET /v2.0/ports?network_id={net}"), Value::Null).await;
    assert_eq!(ports["ports"].as_array().unwrap().len(), 2, "{ports}");
}

/// A floating IP's life, and everything taken down in order; nothing is left, no key of an address or MAC either.
#[tokio::test]
async fn all_is_taken_down_again() {
    use crate::store::Store;
    let face = Face::new().await;
    let ann = face.user("ann", "member").await;
    let made = face.furnished(&ann).await;
    let [world, net, subnet, port, router] =
        ["world", "net", "subnet", "port", "router"].map(|key| made[key].as_str().unwrap().to_owned());
    let order = json!({"floating_network_id": world, "port_id": port});
    let floating = face.make(&ann, "floatingip", "floatingips", order).await;
    assert_eq!(floating["router_id"], json!(router));
    let ip = floating["id"].as_str().unwrap();
    let part = json!({"subnet_id": subnet});
    let remove = format!("PUT /v2.0/routers/{router}/remove_router_interface");
    assert_eq!(face.ask(&ann, &remove, part.clone()).await.0, 409, "the floating IP needs it");
    assert_eq!(face.ask(&ann, &format!("DELETE /v2.0/ports/{port}"), Value::Null).await.0, 204);
    let (_, seen) = face.ask(&ann, &format!("GET /v2.0/floatingips/{ip}"), Value::Null).await;
    assert_eq!(
        (&seen["floatingip"]["port_id"], &seen["floatingip"]["router_id"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(face.ask(&ann, &remove, part).await.0, 200);
    assert_eq!(face.ask(&ann, &format!("DELETE /v2.0/routers/{router}"), Value::Null).await.0, 204);
    assert_eq!(face.ask(&ann, &format!("DELETE /v2.0/networks/{net}"), Value::Null).await.0, 204);
    assert_eq!(face.ask(&ann, &format!("GET /v2.0/subnets/{subnet}"), Value::Null).await.0, 404);
    // A floating IP that stands for nothing goes with its network.
    assert_eq!(face.ask(&face.admin, &format!("DELETE /v2.0/networks/{world}"), Value::Null).await.0, 204);
    assert_eq!(face.ask(&ann, &format!("GET /v2.0/floatingips/{ip}"), Value::Null).await.0, 404);
    for prefix in
        ["/network/", "/subnet/", "/port/", "/router/", "/floating-ip/", "/address/", "/mac/", "/segment/"]
    {
        let (left, _) = face.cloud.store.range(prefix).await.unwrap();
        assert_eq!(left, [], "{prefix}");
    }
}

/// Every route with bodies that make no sense: refused, never a fault of ours.
#[tokio::test]
async fn nonsense_is_refused() {
    let face = Face::new().await;
    let made = face.furnished(&face.admin).await;
    let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
    let wrong = [
        json!(null),
        json!(-1),
        json!(1e300),
        json!("\u{0}"),
        json!("x".repeat(70_000)),
        json!([]),
        json!({}),
        json!([null]),
        json!([{}]),
        json!({"a": 1}),
        json!(true),
        json!("::/0"),
        json!("255.255.255.255"),
        deep,
    ];
    let attributes = [
        "name",
        "mtu",
        "cidr",
        "ip_version",
        "network_id",
        "subnet_id",
        "port_id",
        "gateway_ip",
        "allocation_pools",
        "fixed_ips",
        "host_routes",
        "dns_nameservers",
        "allowed_address_pairs",
        "extra_dhcp_opts",
        "security_groups",
        "external_gateway_info",
        "routes",
        "floating_network_id",
        "security_group_id",
        "protocol",
        "port_range_min",
        "remote_ip_prefix",
        "tags",
        "max_kbps",
        "provider:segmentation_id",
        "mac_address",
        "ipv6_ra_mode",
        "port",
    ];
    let id = |path: &str| {
        let key = ["subnets", "ports", "routers"].iter().find(|k| path.contains(*k));
        let key = key.map_or("net", |k| k.trim_end_matches('s'));
        made[key].as_str().unwrap().to_owned()
    };
    for route in super::routes().table() {
        let path = route.path.replace("{id}", &id(route.path)).replace("{kind}", "bandwidth_limit_rules");
        let path = path.replace("{tag}", "t").replace("{rule}", "x").replace("{alias}", "x");
        if route.method != "POST" && route.method != "PUT" {
            continue;
        }
        let one = match route.path.split('/').nth(2) {
            Some("security-groups") => "security_group",
            Some("security-group-rules") => "security_group_rule",
            Some("qos") if route.path.contains("kind") => "bandwidth_limit_rule",
            Some("qos") => "policy",
            Some(collection) => collection.trim_end_matches('s'),
            None => continue,
        };
        let request = format!("{} {path}", route.method);
        for value in &wrong {
            let mut bodies = vec![value.clone(), json!({ one: value })];
            let base = json!({"network_id": made["net"], "ip_version": 4, "cidr": "10.77.0.0/24",
                "security_group_id": made["net"], "direction": "ingress"});
            bodies.extend(attributes.iter().map(|name| {
                let mut body = base.clone();
                body[name] = value.clone();
                json!({ one: body })
            }));
            for body in bodies {
                let (status, answer) = face.ask(&face.admin, &request, body.clone()).await;
                assert!(status < 500, "{request} {status} {answer}");
            }
        }
    }
}
