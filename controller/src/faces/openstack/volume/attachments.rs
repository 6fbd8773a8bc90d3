//! Attachments as a resource of their own (from 3.27): what compute would hold of a volume. Here they are reservations by
//! clients of this service alone; those of instances are shown beside them and are compute's to end.

use super::input;
use super::view::{Attached, attached};
use super::{said, volume, volume_id};
use crate::faces::openstack::OpenStack;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::body::Body;
use crate::faces::openstack::microversion::Microversion;
use crate::faces::openstack::query::Query;
use crate::faces::openstack::routes::{Call, Need, Routes};
use crate::faces::openstack::words::{self, cinder_time};
use crate::model::{HoldStep, VolumeChange, VolumeRecord};
use crate::ops::identity::Caller;
use crate::ops::{Row, View};
use amphi_api::InstanceId;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use uuid::Uuid;

pub fn routes(routes: Routes) -> Routes {
    routes
        .get("/v3/attachments", Need::Reader, list)
        .get("/v3/attachments/detail", Need::Reader, list_in_detail)
        .post("/v3/attachments", Need::Member, create)
        .get("/v3/attachments/{id}", Need::Reader, show)
        .put("/v3/attachments/{id}", Need::Member, update)
        .delete("/v3/attachments/{id}", Need::Member, delete)
        .action("/v3/attachments/{id}/action", "os-complete", Need::Member, complete)
}

fn known(version: Microversion) -> Result<(), Refusal> {
    if version.from(27) {
        return Ok(());
    }
    Err(Refusal::new(StatusCode::NOT_FOUND, "The resource could not be found."))
}

fn status(step: HoldStep) -> &'static str {
    match step {
        HoldStep::Reserved => "reserved",
        HoldStep::Attaching => "attaching",
        HoldStep::Attached => "attached",
    }
}

fn brief(volume: &VolumeRecord, held: &Attached) -> Value {
    json!({"id": held.id, "status": status(held.step), "instance": held.server, "volume_id": volume.id})
}

fn shown(volume: &VolumeRecord, held: &Attached) -> Value {
    let mut shown = brief(volume, held);
    shown["attached_at"] = match held.step {
        HoldStep::Attached => json!(cinder_time(held.since)),
        _ => Value::Null,
    };
    shown["detached_at"] = Value::Null;
    shown["attach_mode"] = json!(if held.read_only { "ro" } else { "rw" });
    shown["connection_info"] = json!({});
    shown
}

fn found<'a>(
    view: &'a View,
    caller: &Caller,
    id: &str,
) -> Result<(&'a Row<VolumeRecord>, Attached), Refusal> {
    let wanted = words::id(id);
    let rows = view.volumes.iter().filter(|row| row.seen() && caller.may_see(row.project));
    rows.filter_map(|row| Some((row, attached(view, row)?)))
        .find(|(_, held)| Some(held.id) == wanted)
        .ok_or_else(|| Refusal::not_found("volume attachment", id))
}

fn all(
    state: &OpenStack,
    caller: &Caller,
    query: &Query,
    form: fn(&VolumeRecord, &Attached) -> Value,
) -> Result<Vec<Value>, Refusal> {
    let whose = super::filter::whose(caller, query)?;
    let view = state.ops.world().read();
    let rows = view.volumes.iter().filter(|row| row.seen() && whose.is_none_or(|p| row.project == p));
    let fits = |row: &Row<VolumeRecord>, held: &Attached| {
        query.one("volume_id").is_none_or(|id| words::id(id) == Some(row.id.0))
            && query.one("instance_id").is_none_or(|id| words::id(id) == held.server)
            && query.one("status").is_none_or(|word| word == status(held.step))
    };
    let held = rows.filter_map(|row| Some((row, attached(&view, row)?)));
    Ok(held.filter(|(row, held)| fits(row, held)).map(|(row, held)| form(row, &held)).collect())
}

async fn list(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    known(version)?;
    Ok(Json(json!({"attachments": all(&state, &caller, &query, brief)?})))
}

async fn list_in_detail(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    known(version)?;
    Ok(Json(json!({"attachments": all(&state, &caller, &query, shown)?})))
}

/// What a connector says of itself.
struct Connector {
    host_name: Option<String>,
    device: Option<String>,
}

fn connector(fields: &input::Fields) -> Result<Option<Connector>, Refusal> {
    let Some((_, value)) = input::given(fields, &["connector"]) else { return Ok(None) };
    let inner = input::argument("connector", value.clone())?;
    if inner.is_empty() {
        return Ok(None);
    }
    let (host_name, device) = (input::text(&inner, &["host"])?, input::text(&inner, &["mountpoint"])?);
    Ok(Some(Connector { host_name, device }))
}

async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    known(version)?;
    let fields = input::fields("attachment", body)?;
    let named = input::id(&fields, &["volume_uuid"])?;
    let named = named.ok_or_else(|| Refusal::field("volume_uuid", "is a required property"))?.to_string();
    let server = input::id(&fields, &["instance_uuid"])?.map(InstanceId);
    let read_only = match input::text(&fields, &["mode"])?.as_deref() {
        Some("ro") => true,
        None | Some("rw" | "null") => false,
        Some(other) => return Err(Refusal::field("mode", format!("'{other}' is neither rw nor ro"))),
    };
    let connector = connector(&fields)?;
    let (project, volume_id) = volume_id(&state, &caller, &named)?;
    let id = Uuid::now_v7();
    let mut changes = vec![VolumeChange::Hold { id, server, read_only }];
    changes.extend(connector.map(|Connector { host_name, device }| VolumeChange::Connect {
        id,
        host_name,
        device,
    }));
    state.ops.change_volume(project, volume_id, &changes).await.map_err(said)?;
    let view = state.ops.world().read();
    let row = volume(&view, &caller, &named)?;
    let held = attached(&view, row).ok_or_else(|| Refusal::not_found("volume attachment", id))?;
    Ok(Json(json!({"attachment": shown(row, &held)})))
}

async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    known(version)?;
    let view = state.ops.world().read();
    let (row, held) = found(&view, &caller, &id)?;
    Ok(Json(json!({"attachment": shown(row, &held)})))
}

/// The volume that an attachment is of, if this service may change it.
fn changeable(
    state: &OpenStack,
    caller: &Caller,
    id: &str,
) -> Result<(amphi_api::ProjectId, amphi_api::VolumeId, Uuid), Refusal> {
    let view = state.ops.world().read();
    let (row, held) = found(&view, caller, id)?;
    if row.instance.is_some() {
        return Err(Refusal::conflict(format!(
            "Detach volume from instance {} using the Compute API",
            held.server.unwrap_or_default()
        )));
    }
    Ok((row.project, row.id, held.id))
}

async fn update(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    Path(text): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    known(version)?;
    let (project, volume, id) = changeable(&state, &caller, &text)?;
    let connector = connector(&input::fields("attachment", body)?)?;
    let Connector { host_name, device } =
        connector.ok_or_else(|| Refusal::bad("Must specify 'connector' in the attachment"))?;
    let change = VolumeChange::Connect { id, host_name, device };
    state.ops.change_volume(project, volume, &[change]).await.map_err(said)?;
    let view = state.ops.world().read();
    let (row, held) = found(&view, &caller, &text)?;
    Ok(Json(json!({"attachment": shown(row, &held)})))
}

async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    known(version)?;
    let (project, volume, id) = changeable(&state, &caller, &id)?;
    state.ops.change_volume(project, volume, &[VolumeChange::Detach(Some(id))]).await.map_err(said)?;
    Ok(Json(json!({"attachments": []})))
}

async fn complete(call: Call) -> Result<Response, Refusal> {
    known(call.version)?;
    let (project, volume, id) = changeable(&call.state, &call.caller, &call.id)?;
    call.state.ops.change_volume(project, volume, &[VolumeChange::Complete(id)]).await.map_err(said)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
