//! Placement as far as clients ask for it: the hosts as resource providers, read only. What is placed is decided by the
//! scheduler, not here: nobody can claim anything through this face.

mod candidates;
mod providers;
#[cfg(test)]
mod tests;
mod words;

use super::Service;
use super::microversion::range;
use super::routes::{Need, Routes};
use axum::Json;
use serde_json::{Value, json};

pub fn routes() -> Routes {
    let routes = Routes::new(Service::Placement).get("/", Need::Public, versions);
    let routes = providers::routes(routes);
    let routes = candidates::routes(routes);
    words::routes(routes)
}

async fn versions() -> Json<Value> {
    let (oldest, newest) = range(Service::Placement)
        .map_or_else(Default::default, |(oldest, newest)| (oldest.to_string(), newest.to_string()));
    Json(json!({"versions": [{
        "id": "v1.0",
        "status": "CURRENT",
        "min_version": oldest,
        "max_version": newest,
        "links": [{"rel": "self", "href": ""}],
    }]}))
}
