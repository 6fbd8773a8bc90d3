//! Metadata of volumes and of snapshots, all at once and item by item.

use super::input::required_items;
use super::{said, snapshot, snapshot_id, volume, volume_id};
use crate::faces::openstack::OpenStack;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::body::Body;
use crate::faces::openstack::routes::{Need, Routes};
use crate::model::VolumeChange;
use crate::ops::SnapshotChange;
use crate::ops::identity::Caller;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub fn routes(routes: Routes) -> Routes {
    routes
        .get("/v3/volumes/{id}/metadata", Need::Reader, of_volume)
        .post("/v3/volumes/{id}/metadata", Need::Member, add_to_volume)
        .put("/v3/volumes/{id}/metadata", Need::Member, replace_of_volume)
        .get("/v3/volumes/{id}/metadata/{key}", Need::Reader, item_of_volume)
        .put("/v3/volumes/{id}/metadata/{key}", Need::Member, set_item_of_volume)
        .delete("/v3/volumes/{id}/metadata/{key}", Need::Member, remove_item_of_volume)
        .get("/v3/snapshots/{id}/metadata", Need::Reader, of_snapshot)
        .post("/v3/snapshots/{id}/metadata", Need::Member, add_to_snapshot)
        .put("/v3/snapshots/{id}/metadata", Need::Member, replace_of_snapshot)
        .get("/v3/snapshots/{id}/metadata/{key}", Need::Reader, item_of_snapshot)
        .put("/v3/snapshots/{id}/metadata/{key}", Need::Member, set_item_of_snapshot)
        .delete("/v3/snapshots/{id}/metadata/{key}", Need::Member, remove_item_of_snapshot)
}

type Items = BTreeMap<String, String>;

fn volume_items(state: &OpenStack, caller: &Caller, id: &str) -> Result<Items, Refusal> {
    let view = state.ops.world().read();
    Ok(volume(&view, caller, id)?.traits.metadata.clone())
}

fn snapshot_items(state: &OpenStack, caller: &Caller, id: &str) -> Result<Items, Refusal> {
    let view = state.ops.world().read();
    Ok(snapshot(&view, caller, id)?.traits.metadata.clone())
}

fn item(items: &Items, key: &str) -> Result<Json<Value>, Refusal> {
    let value = items.get(key).ok_or_else(|| missing(key))?;
    Ok(Json(json!({"meta": {key: value}})))
}

fn missing(key: &str) -> Refusal {
    Refusal::not_found("metadata item", key)
}

/// The one item of the body, which must be that of the path.
fn one(body: &Value, key: &str) -> Result<Items, Refusal> {
    let items = required_items("meta", body)?;
    if items.len() != 1 {
        return Err(Refusal::bad("Request body contains too many items"));
    }
    if !items.contains_key(key) {
        return Err(Refusal::bad("Request body and URI mismatch"));
    }
    Ok(items)
}

async fn change_volume(
    state: &OpenStack,
    caller: &Caller,
    id: &str,
    change: VolumeChange,
) -> Result<Items, Refusal> {
    let (project, volume) = volume_id(state, caller, id)?;
    state.ops.change_volume(project, volume, &[change]).await.map_err(said)?;
    volume_items(state, caller, id)
}

async fn change_snapshot(
    state: &OpenStack,
    caller: &Caller,
    id: &str,
    change: SnapshotChange,
) -> Result<Items, Refusal> {
    let (project, snapshot) = snapshot_id(state, caller, id)?;
    state.ops.change_snapshot(project, snapshot, &[change]).await.map_err(said)?;
    snapshot_items(state, caller, id)
}

async fn of_volume(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    Ok(Json(json!({"metadata": volume_items(&state, &caller, &id)?})))
}

async fn add_to_volume(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let items = required_items("metadata", &body)?;
    let shown = change_volume(&state, &caller, &id, VolumeChange::Metadata(items)).await?;
    Ok(Json(json!({"metadata": shown})))
}

async fn replace_of_volume(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let items = required_items("metadata", &body)?;
    let shown = change_volume(&state, &caller, &id, VolumeChange::AllMetadata(items)).await?;
    Ok(Json(json!({"metadata": shown})))
}

async fn item_of_volume(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    item(&volume_items(&state, &caller, &id)?, &key)
}

async fn set_item_of_volume(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let items = one(&body, &key)?;
    item(&change_volume(&state, &caller, &id, VolumeChange::Metadata(items)).await?, &key)
}

async fn remove_item_of_volume(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    if !volume_items(&state, &caller, &id)?.contains_key(&key) {
        return Err(missing(&key));
    }
    change_volume(&state, &caller, &id, VolumeChange::RemoveMetadata(key)).await?;
    Ok(StatusCode::OK)
}

async fn of_snapshot(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    Ok(Json(json!({"metadata": snapshot_items(&state, &caller, &id)?})))
}

async fn add_to_snapshot(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let items = required_items("metadata", &body)?;
    let shown = change_snapshot(&state, &caller, &id, SnapshotChange::Metadata(items)).await?;
    Ok(Json(json!({"metadata": shown})))
}

async fn replace_of_snapshot(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let items = required_items("metadata", &body)?;
    let shown = change_snapshot(&state, &caller, &id, SnapshotChange::AllMetadata(items)).await?;
    Ok(Json(json!({"metadata": shown})))
}

async fn item_of_snapshot(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    item(&snapshot_items(&state, &caller, &id)?, &key)
}

async fn set_item_of_snapshot(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let items = one(&body, &key)?;
    item(&change_snapshot(&state, &caller, &id, SnapshotChange::Metadata(items)).await?, &key)
}

async fn remove_item_of_snapshot(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    if !snapshot_items(&state, &caller, &id)?.contains_key(&key) {
        return Err(missing(&key));
    }
    change_snapshot(&state, &caller, &id, SnapshotChange::RemoveMetadata(key)).await?;
    Ok(StatusCode::OK)
}
