//! `/servers/{id}/metadata`.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::gate::RequestId;
use super::super::routes::{Need, Routes};
use super::only;
use super::server_create as fields;
use super::servers::{found, origin_of};
use crate::ops::identity::Caller;
use crate::ops::servers::MetadataEdit;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .get("/v2.1/servers/{id}/metadata", Need::Reader, list)
        .post("/v2.1/servers/{id}/metadata", Need::Member, merge)
        .put("/v2.1/servers/{id}/metadata", Need::Member, replace)
        .get("/v2.1/servers/{id}/metadata/{key}", Need::Reader, show)
        .put("/v2.1/servers/{id}/metadata/{key}", Need::Member, set)
        .delete("/v2.1/servers/{id}/metadata/{key}", Need::Member, delete)
}

fn read(body: Value) -> Result<BTreeMap<String, String>, Refusal> {
    match body {
        Value::Object(mut outer)
            if outer.len() == 1 && outer.get("metadata").is_some_and(Value::is_object) =>
        {
            fields::metadata(outer.remove("metadata").as_ref())
        }
        _ => Err(Refusal::bad("Malformed request body: 'metadata' is a required property, and an object")),
    }
}

async fn list(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    Ok(Json(json!({"metadata": found(&view, &caller, &id)?.metadata})))
}

async fn edit(
    state: &OpenStack,
    caller: &Caller,
    request: &RequestId,
    id: &str,
    edit: MetadataEdit,
) -> Result<BTreeMap<String, String>, Refusal> {
    let (origin, instance) = origin_of(state, caller, request, id)?;
    state.ops.edit_server_metadata(&origin, instance, &edit).await?;
    let view = state.ops.world().read();
    Ok(found(&view, caller, id)?.metadata.clone())
}

async fn merge(
    State(state): State<OpenStack>,
    caller: Caller,
    request: RequestId,
    Path(id): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let all = edit(&state, &caller, &request, &id, MetadataEdit::Merge(read(body)?)).await?;
    Ok(Json(json!({"metadata": all})))
}

async fn replace(
    State(state): State<OpenStack>,
    caller: Caller,
    request: RequestId,
    Path(id): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let all = edit(&state, &caller, &request, &id, MetadataEdit::Replace(read(body)?)).await?;
    Ok(Json(json!({"metadata": all})))
}

async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let value = found(&view, &caller, &id)?.metadata.get(&key).cloned();
    let value = value.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "Metadata item was not found"))?;
    Ok(Json(json!({"meta": {key: value}})))
}

async fn set(
    State(state): State<OpenStack>,
    caller: Caller,
    request: RequestId,
    Path((id, key)): Path<(String, String)>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let meta = only(body, "meta", &[key.as_str()]).map_err(|refusal| {
        match refusal.message.contains("unexpected") {
            true => Refusal::bad("Request body and URI mismatch"),
            false => refusal,
        }
    })?;
    let value = meta.get(&key).ok_or_else(|| Refusal::bad("Request body and URI mismatch"))?;
    let (key, value) = fields::item(&key, value)?;
    let one = BTreeMap::from([(key.clone(), value.clone())]);
    edit(&state, &caller, &request, &id, MetadataEdit::Merge(one)).await?;
    Ok(Json(json!({"meta": {key: value}})))
}

async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    request: RequestId,
    Path((id, key)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    edit(&state, &caller, &request, &id, MetadataEdit::Delete(key)).await?;
    Ok(StatusCode::NO_CONTENT)
}
