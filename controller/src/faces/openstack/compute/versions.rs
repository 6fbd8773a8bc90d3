//! Discovery: `/compute` and what it links to. Clients drop microversions where anything here is missing.

use super::super::Service;
use super::super::gate::Base;
use super::super::microversion::range;
use super::super::routes::{Need, Routes};
use axum::Json;
use serde_json::{Value, json};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .get("/", Need::Public, list)
        .get("/v2", Need::Public, show_old)
        .get("/v2/", Need::Public, show_old)
        .get("/v2.1", Need::Public, show)
        .get("/v2.1/", Need::Public, show)
}

async fn list(base: Base) -> Json<Value> {
    Json(json!({"versions": [old(&base), current(&base)]}))
}

async fn show(base: Base) -> Json<Value> {
    Json(json!({"version": detailed(current(&base), "2.1")}))
}

async fn show_old(base: Base) -> Json<Value> {
    Json(json!({"version": detailed(old(&base), "2")}))
}

/// nova lists v2.0 first, without microversions; its clients look for both.
fn old(base: &Base) -> Value {
    json!({
        "id": "v2.0",
        "status": "SUPPORTED",
        "version": "",
        "min_version": "",
        "updated": "2011-01-21T11:33:21Z",
        "links": [{"rel": "self", "href": format!("{}/compute/v2/", base.0)}],
    })
}

fn current(base: &Base) -> Value {
    let (oldest, newest) = range(Service::Compute)
        .map_or_else(Default::default, |(oldest, newest)| (oldest.to_string(), newest.to_string()));
    json!({
        "id": "v2.1",
        "status": "CURRENT",
        "version": newest,
        "min_version": oldest,
        "updated": "2013-07-23T11:33:21Z",
        "links": [{"rel": "self", "href": format!("{}/compute/v2.1/", base.0)}],
    })
}

fn detailed(mut version: Value, number: &str) -> Value {
    let describedby =
        json!({"rel": "describedby", "type": "text/html", "href": "http://docs.openstack.org/"});
    if let Some(links) = version["links"].as_array_mut() {
        links.push(describedby);
    }
    let kind = format!("application/vnd.openstack.compute+json;version={number}");
    version["media-types"] = json!([{"base": "application/json", "type": kind}]);
    version
}
