//! Discovery: which versions there are. The first thing that every client asks, without a token.

use super::super::gate::Base;
use super::super::routes::{Need, Routes};
use super::{ROOT, with};
use axum::Json;
use axum::response::Response;
use serde_json::{Value, json};

pub fn routes(routes: Routes) -> Routes {
    routes.get("/", Need::Public, versions).get("/v3", Need::Public, version).get(
        "/v3/",
        Need::Public,
        version,
    )
}

fn v3(base: &Base) -> Value {
    json!({
        "id": "v3.14",
        "status": "stable",
        "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": format!("{}{ROOT}/", base.0)}],
        "media-types": [{
            "base": "application/json",
            "type": "application/vnd.openstack.identity-v3+json",
        }],
    })
}

async fn versions(base: Base) -> Response {
    with(300, Json(json!({"versions": {"values": [v3(&base)]}})))
}

async fn version(base: Base) -> Json<Value> {
    Json(json!({"version": v3(&base)}))
}
