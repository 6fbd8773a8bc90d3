//! What the service says of itself before anyone has a token.

use crate::faces::openstack::gate::Base;
use axum::Json;
use serde_json::{Value, json};

/// Collections as `GET /v2.0/` lists them: collection and member.
const RESOURCES: [(&str, &str); 12] = [
    ("networks", "network"),
    ("subnets", "subnet"),
    ("ports", "port"),
    ("routers", "router"),
    ("floatingips", "floatingip"),
    ("security-groups", "security-group"),
    ("security-group-rules", "security-group-rule"),
    ("agents", "agent"),
    ("availability_zones", "availability_zone"),
    ("network-ip-availabilities", "network-ip-availability"),
    ("quotas", "quota"),
    ("extensions", "extension"),
];

pub async fn versions(base: Base) -> Json<Value> {
    let href = format!("{}/network/v2.0/", base.0);
    Json(json!({"versions": [{"id": "v2.0", "status": "CURRENT", "links": [{"rel": "self", "href": href}]}]}))
}

pub async fn resources(base: Base) -> Json<Value> {
    let resources = RESOURCES.map(|(collection, name)| {
        let href = format!("{}/network/v2.0/{collection}", base.0);
        json!({"name": name, "collection": collection, "links": [{"rel": "self", "href": href}]})
    });
    Json(json!({ "resources": resources }))
}
