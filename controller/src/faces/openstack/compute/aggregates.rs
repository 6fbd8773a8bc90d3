//! `/os-aggregates`. Microversion 2.41 shows the UUID. An id that is no number is 404 here, where nova says 400: clients
//! look names up by asking for them as ids first.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::microversion::Microversion;
use super::super::routes::{Call, Need, Routes};
use super::super::words;
use super::{only, refuse_unknown, text};
use crate::model::{AggregateId, AggregateRecord};
use crate::ops::View;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .get("/v2.1/os-aggregates", Need::Admin, list)
        .post("/v2.1/os-aggregates", Need::Admin, create)
        .get("/v2.1/os-aggregates/{id}", Need::Admin, show)
        .put("/v2.1/os-aggregates/{id}", Need::Admin, update)
        .delete("/v2.1/os-aggregates/{id}", Need::Admin, delete)
        .action("/v2.1/os-aggregates/{id}/action", "add_host", Need::Admin, add_host)
        .action("/v2.1/os-aggregates/{id}/action", "remove_host", Need::Admin, remove_host)
        .action("/v2.1/os-aggregates/{id}/action", "set_metadata", Need::Admin, set_metadata)
}

fn body(view: &View, aggregate: &AggregateRecord, version: Microversion) -> Value {
    let hosts: Vec<_> = aggregate.hosts.iter().filter_map(|host| view.host_name(*host)).collect();
    let mut body = json!({
        "id": aggregate.id.0,
        "name": aggregate.name,
        "availability_zone": aggregate.zone,
        "created_at": words::cinder_time(aggregate.created_at),
        "updated_at": aggregate.updated_at.map(words::cinder_time),
        "deleted_at": null,
        "deleted": false,
        "hosts": hosts,
        "metadata": aggregate.shown_metadata(),
    });
    if version.from(41) {
        body["uuid"] = json!(aggregate.uuid.to_string());
    }
    body
}

fn id_of(text: &str) -> Result<AggregateId, Refusal> {
    text.parse().map_err(|_| Refusal::not_found("aggregate", text))
}

fn answer(state: &OpenStack, record: &AggregateRecord, version: Microversion) -> Json<Value> {
    let view = state.ops.world().read();
    Json(json!({"aggregate": body(&view, record, version)}))
}

async fn list(State(state): State<OpenStack>, version: Microversion) -> Json<Value> {
    let view = state.ops.world().read();
    let all: Vec<_> = view.aggregates.iter().map(|row| body(&view, row, version)).collect();
    Json(json!({"aggregates": all}))
}

/// A name or a zone: text that nova takes the spaces off.
fn trimmed(map: &Map<String, Value>, key: &str) -> Result<Option<String>, Refusal> {
    match map.get(key) {
        None => Ok(None),
        Some(Value::Null) if key == "availability_zone" => Ok(None),
        Some(_) => text(map, key).map(|text| Some(text.trim().to_owned())),
    }
}

async fn create(
    State(state): State<OpenStack>,
    version: Microversion,
    Body(request): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let map = only(request, "aggregate", &["name", "availability_zone"])?;
    let name = text(&map, "name")?.trim().to_owned();
    let zone = trimmed(&map, "availability_zone")?;
    let record = state.ops.create_aggregate(&name, zone.as_deref()).await?;
    let Json(mut answer) = answer(&state, &record, version);
    // nova's create alone leaves these out.
    if let Some(body) = answer["aggregate"].as_object_mut() {
        body.remove("hosts");
        body.remove("metadata");
    }
    Ok(Json(answer))
}

async fn show(
    State(state): State<OpenStack>,
    version: Microversion,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let row = view.aggregates.get(id_of(&id)?).ok_or_else(|| Refusal::not_found("aggregate", &id))?;
    Ok(Json(json!({"aggregate": body(&view, row, version)})))
}

async fn update(
    State(state): State<OpenStack>,
    version: Microversion,
    Path(id): Path<String>,
    Body(request): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let map = only(request, "aggregate", &["name", "availability_zone"])?;
    if map.is_empty() {
        return Err(Refusal::bad("Invalid input: a name or an availability_zone is required"));
    }
    let (name, zone) = (trimmed(&map, "name")?, trimmed(&map, "availability_zone")?);
    let record = state.ops.update_aggregate(id_of(&id)?, name.as_deref(), zone.as_deref()).await?;
    Ok(answer(&state, &record, version))
}

async fn delete(State(state): State<OpenStack>, Path(id): Path<String>) -> Result<StatusCode, Refusal> {
    state.ops.delete_aggregate(id_of(&id)?).await?;
    Ok(StatusCode::OK)
}

fn argument<'a>(call: &'a Call, key: &str) -> Result<&'a Map<String, Value>, Refusal> {
    match &call.argument {
        Value::Object(map) => refuse_unknown(map, &[key]).map(|()| map),
        _ => Err(Refusal::bad(format!("Invalid input: '{key}' is a required property"))),
    }
}

async fn add_host(call: Call) -> Result<Response, Refusal> {
    let host = text(argument(&call, "host")?, "host")?;
    let record = call.state.ops.add_aggregate_host(id_of(&call.id)?, host).await?;
    Ok(answer(&call.state, &record, call.version).into_response())
}

async fn remove_host(call: Call) -> Result<Response, Refusal> {
    let host = text(argument(&call, "host")?, "host")?;
    let record = call.state.ops.remove_aggregate_host(id_of(&call.id)?, host).await?;
    Ok(answer(&call.state, &record, call.version).into_response())
}

async fn set_metadata(call: Call) -> Result<Response, Refusal> {
    let Some(Value::Object(metadata)) = argument(&call, "metadata")?.get("metadata") else {
        return Err(Refusal::bad("Invalid input: 'metadata' must be an object"));
    };
    let change = |(key, value): (&String, &Value)| match value {
        Value::String(text) => Ok((key.clone(), Some(text.clone()))),
        Value::Null => Ok((key.clone(), None)),
        _ => Err(Refusal::field(format!("metadata.{key}"), "it must be a string or null")),
    };
    let changes = metadata.iter().map(change).collect::<Result<_, _>>()?;
    let record = call.state.ops.set_aggregate_metadata(id_of(&call.id)?, &changes).await?;
    Ok(answer(&call.state, &record, call.version).into_response())
}
