//! The image service, as glance's API v2 has it.

mod data;
mod filter;
mod images;
mod members;
mod patch;
mod schemas;
mod view;

use super::OpenStack;
use super::Service;
use super::answers::Refusal;
use super::gate::Base;
use super::routes::{Need, Routes};
use super::words;
use crate::model::ImageRecord;
use crate::ops::identity::Caller;
use crate::ops::{Row, View};
use amphi_api::ImageId;
use axum::Json;
use axum::http::StatusCode;
use serde_json::{Value, json};

pub(super) fn routes() -> Routes {
    Routes::new(Service::Image)
        .get("/", Need::Public, versions)
        .get("/versions", Need::Public, versions_ok)
        .get("/v2/images", Need::Reader, images::list)
        .post("/v2/images", Need::Member, images::create)
        .get("/v2/images/{id}", Need::Reader, images::show)
        .patch("/v2/images/{id}", Need::Member, images::update)
        .delete("/v2/images/{id}", Need::Member, images::delete)
        .post("/v2/images/{id}/actions/deactivate", Need::Member, images::deactivate)
        .post("/v2/images/{id}/actions/reactivate", Need::Member, images::reactivate)
        .put("/v2/images/{id}/tags/{tag}", Need::Member, images::add_tag)
        .delete("/v2/images/{id}/tags/{tag}", Need::Member, images::remove_tag)
        .put("/v2/images/{id}/file", Need::Member, data::upload)
        .get("/v2/images/{id}/file", Need::Reader, data::download)
        .put("/v2/images/{id}/stage", Need::Member, data::stage)
        .post("/v2/images/{id}/import", Need::Member, data::import)
        .get("/v2/images/{id}/members", Need::Reader, members::list)
        .post("/v2/images/{id}/members", Need::Member, members::add)
        .get("/v2/images/{id}/members/{member}", Need::Reader, members::show)
        .put("/v2/images/{id}/members/{member}", Need::Member, members::update)
        .delete("/v2/images/{id}/members/{member}", Need::Member, members::remove)
        .get("/v2/info/import", Need::Reader, data::import_methods)
        .get("/v2/info/stores", Need::Reader, data::stores)
        .get("/v2/info/usage", Need::Reader, data::usage)
        .get("/v2/schemas/{name}", Need::Reader, schemas::show)
}

fn document(base: &Base) -> Value {
    let version = |id: &str, status: &str| {
        let href = format!("{}{}/v2/", base.0, Service::Image.root());
        json!({"id": id, "status": status, "links": [{"rel": "self", "href": href}]})
    };
    // Nothing of the later ones is behind another path: clients read from the newest what they may send.
    let older =
        ["v2.7", "v2.6", "v2.5", "v2.4", "v2.3", "v2.2", "v2.1", "v2.0"].map(|id| version(id, "SUPPORTED"));
    let mut versions = vec![version("v2.9", "CURRENT")];
    versions.extend(older);
    json!({"versions": versions})
}

async fn versions(base: Base) -> (StatusCode, Json<Value>) {
    (StatusCode::MULTIPLE_CHOICES, Json(document(&base)))
}

async fn versions_ok(base: Base) -> Json<Value> {
    Json(document(&base))
}

/// An image that the caller may see.
fn visible<'a>(view: &'a View, caller: &Caller, id: &str) -> Result<&'a Row<ImageRecord>, Refusal> {
    let found = words::id(id).and_then(|id| view.images.get(ImageId(id))).filter(|row| !row.closing);
    let sees = |row: &&Row<ImageRecord>| caller.is_admin() || caller.project.is_some_and(|p| row.open_to(p));
    found.filter(sees).ok_or_else(|| missing(id))
}

/// An image that the caller may change: one of its own project, or any for an admin. One that the caller only sees
/// is refused in other words than one that it does not.
fn own(state: &OpenStack, caller: &Caller, id: &str) -> Result<Row<ImageRecord>, Refusal> {
    let view = state.ops.world().read();
    let row = visible(&view, caller, id)?;
    if caller.may_see(row.project) {
        Ok(row.clone())
    } else {
        Err(Refusal::forbidden("You are not permitted to modify this image."))
    }
}

fn missing(id: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("No image found with ID {id}"))
}
