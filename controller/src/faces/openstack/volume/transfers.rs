//! Offers of volumes to other projects; under two names, the newer one from 3.55.

use super::input;
use super::{links, said, volume_id};
use crate::faces::openstack::OpenStack;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::body::Body;
use crate::faces::openstack::gate::Base;
use crate::faces::openstack::microversion::Microversion;
use crate::faces::openstack::query::Query;
use crate::faces::openstack::routes::{Need, Routes};
use crate::faces::openstack::words::{self, cinder_time, hex};
use crate::model::VolumeTransferRecord;
use crate::ops::Row;
use crate::ops::identity::Caller;
use amphi_api::VolumeTransferId;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

pub fn routes(routes: Routes) -> Routes {
    routes
        .get("/v3/os-volume-transfer", Need::Reader, list)
        .get("/v3/os-volume-transfer/detail", Need::Reader, list_in_detail)
        .post("/v3/os-volume-transfer", Need::Member, create)
        .get("/v3/os-volume-transfer/{id}", Need::Reader, show)
        .delete("/v3/os-volume-transfer/{id}", Need::Member, delete)
        .post("/v3/os-volume-transfer/{id}/accept", Need::Member, accept)
        .get("/v3/volume-transfers", Need::Reader, list)
        .get("/v3/volume-transfers/detail", Need::Reader, list_in_detail)
        .post("/v3/volume-transfers", Need::Member, create)
        .get("/v3/volume-transfers/{id}", Need::Reader, show)
        .delete("/v3/volume-transfers/{id}", Need::Member, delete)
        .post("/v3/volume-transfers/{id}/accept", Need::Member, accept)
}

fn found(state: &OpenStack, caller: &Caller, id: &str) -> Result<Row<VolumeTransferRecord>, Refusal> {
    let view = state.ops.world().read();
    let row = words::id(id).and_then(|id| view.volume_transfers.get(VolumeTransferId(id)));
    let row = row.filter(|row| caller.may_see(row.project));
    row.cloned().ok_or_else(|| Refusal::not_found("transfer", id))
}

fn brief(record: &VolumeTransferRecord, base: &Base, caller: &Caller) -> Value {
    json!({
        "id": record.id,
        "name": record.name,
        "volume_id": record.volume,
        "links": links(base, caller, &format!("os-volume-transfer/{}", record.id)),
    })
}

fn shown(record: &VolumeTransferRecord, base: &Base, caller: &Caller, version: Microversion) -> Value {
    let mut shown = brief(record, base, caller);
    shown["created_at"] = json!(cinder_time(record.created_at));
    if version.from(55) {
        shown["no_snapshots"] = json!(record.no_snapshots);
    }
    if version.from(57) {
        shown["source_project_id"] = json!(hex(record.project));
        shown["destination_project_id"] = Value::Null;
        shown["accepted"] = json!(false);
    }
    shown
}

fn rows(
    state: &OpenStack,
    caller: &Caller,
    query: &Query,
) -> Result<Vec<Row<VolumeTransferRecord>>, Refusal> {
    let whose = super::filter::whose(caller, query)?;
    let view = state.ops.world().read();
    let mine = |row: &&Row<VolumeTransferRecord>| whose.is_none_or(|project| row.project == project);
    Ok(view.volume_transfers.iter().filter(mine).cloned().collect())
}

async fn list(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    let rows = rows(&state, &caller, &query)?;
    Ok(Json(json!({"transfers": rows.iter().map(|row| brief(row, &base, &caller)).collect::<Vec<_>>()})))
}

async fn list_in_detail(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    version: Microversion,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    let rows = rows(&state, &caller, &query)?;
    let all: Vec<_> = rows.iter().map(|row| shown(row, &base, &caller, version)).collect();
    Ok(Json(json!({"transfers": all})))
}

async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    version: Microversion,
    Body(body): Body<Value>,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    let fields = input::fields("transfer", body)?;
    let volume = input::id(&fields, &["volume_id"])?;
    let volume = volume.ok_or_else(|| Refusal::field("volume_id", "is a required property"))?;
    let (project, volume) = volume_id(&state, &caller, &volume.to_string())?;
    let name = input::text(&fields, &["name"])?.unwrap_or_default();
    let no_snapshots = input::flag(&fields, "no_snapshots")?.unwrap_or(false);
    let (record, key) =
        state.ops.offer_volume(project, volume, name.trim(), no_snapshots).await.map_err(said)?;
    let mut answer = shown(&record, &base, &caller, version);
    answer["auth_key"] = json!(key);
    Ok((StatusCode::ACCEPTED, Json(json!({"transfer": answer}))))
}

async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    version: Microversion,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let row = found(&state, &caller, &id)?;
    Ok(Json(json!({"transfer": shown(&row, &base, &caller, version)})))
}

async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let row = found(&state, &caller, &id)?;
    state.ops.withdraw_volume(row.project, row.id).await.map_err(said)?;
    Ok(StatusCode::ACCEPTED)
}

/// By whoever has the key: the offer itself need not be visible.
async fn accept(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
    Body(body): Body<Value>,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    let fields = input::fields("accept", body)?;
    let key = input::text(&fields, &["auth_key"])?;
    let key = key.ok_or_else(|| Refusal::field("auth_key", "is a required property"))?;
    let transfer = words::id(&id).map(VolumeTransferId).ok_or_else(|| Refusal::not_found("transfer", &id))?;
    let project = caller.project()?;
    let record = state.ops.accept_volume(project, Some(caller.user), transfer, &key).await.map_err(said)?;
    Ok((StatusCode::ACCEPTED, Json(json!({"transfer": brief(&record, &base, &caller)}))))
}
