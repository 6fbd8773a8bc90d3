//! `/servers/{id}/os-volume_attachments`. Microversions: 2.49 (tag), 2.70 (tag shown), 2.79 (delete_on_termination),
//! 2.85 (its change), 2.89 (ids by their own names).

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::gate::RequestId;
use super::super::microversion::Microversion;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::super::words;
use super::server_create as fields;
use super::servers::{found, origin_of};
use super::{PAGE_MAX, flag, only, optional_text, text};
use crate::model::InstanceRecord;
use crate::ops::identity::Caller;
use crate::ops::servers::AttachWish;
use amphi_api::VolumeId;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .get("/v2.1/servers/{id}/os-volume_attachments", Need::Reader, list)
        .post("/v2.1/servers/{id}/os-volume_attachments", Need::Member, attach)
        .get("/v2.1/servers/{id}/os-volume_attachments/{volume}", Need::Reader, show)
        .put("/v2.1/servers/{id}/os-volume_attachments/{volume}", Need::Member, update)
        .delete("/v2.1/servers/{id}/os-volume_attachments/{volume}", Need::Member, detach)
}

/// One volume in a server's hands, whichever place it has.
struct Held {
    volume: VolumeId,
    /// An attachment's own; for the others one made of server and volume.
    id: Uuid,
    device: String,
    tag: Option<String>,
    ends: bool,
}

fn held(row: &InstanceRecord) -> Vec<Held> {
    let fixed = |volume: VolumeId, device: &str, ends| Held {
        volume,
        id: Uuid::new_v5(&row.id.0, volume.0.as_bytes()),
        device: device.into(),
        tag: None,
        ends,
    };
    let root = row.root_volume.map(|id| fixed(id, "vda", row.server.root_ends_with_it));
    let own = row.volume.map(|id| fixed(id, "vdb", row.trash_volume));
    let further = row.attachments.iter().map(|a| Held {
        volume: a.volume,
        id: a.id,
        device: a.device.clone(),
        tag: a.tag.clone(),
        ends: a.delete_on_termination,
    });
    root.into_iter().chain(own).chain(further).collect()
}

fn body(row: &InstanceRecord, held: &Held, version: Microversion, made: bool) -> Value {
    let mut body = json!({
        "volumeId": held.volume.to_string(),
        "serverId": row.id.to_string(),
        "device": format!("/dev/{}", held.device),
    });
    if version.from(89) && !made {
        body["attachment_id"] = held.id.to_string().into();
        body["bdm_uuid"] = Uuid::new_v5(&held.id, b"device").to_string().into();
    } else {
        body["id"] = held.volume.to_string().into();
    }
    if version.from(70) {
        body["tag"] = json!(held.tag);
    }
    if version.from(79) {
        body["delete_on_termination"] = held.ends.into();
    }
    body
}

fn one(row: &InstanceRecord, text: &str) -> Result<Held, Refusal> {
    let id = words::id(text).map(VolumeId);
    let mut all = held(row).into_iter();
    all.find(|held| Some(held.volume) == id).ok_or_else(|| {
        let message = format!("Instance {} is not attached to volume {text}", row.id);
        Refusal::new(StatusCode::NOT_FOUND, message)
    })
}

async fn list(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    query: Query,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let offset = usize::try_from(query.number("offset")?.unwrap_or(0)).unwrap_or(usize::MAX);
    let limit = query.number("limit")?.map_or(PAGE_MAX, |n| usize::try_from(n).unwrap_or(PAGE_MAX));
    let view = state.ops.world().read();
    let row = found(&view, &caller, &id)?;
    let all = held(row);
    let page = all.iter().skip(offset).take(limit.min(PAGE_MAX));
    let all: Vec<Value> = page.map(|held| body(row, held, version, false)).collect();
    Ok(Json(json!({"volumeAttachments": all})))
}

async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    Path((id, volume)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let row = found(&view, &caller, &id)?;
    Ok(Json(json!({"volumeAttachment": body(row, &one(row, &volume)?, version, false)})))
}

async fn attach(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    request: RequestId,
    Path(id): Path<String>,
    Body(asked): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let mut known = vec!["volumeId", "device"];
    known.extend(version.from(49).then_some("tag"));
    known.extend(version.from(79).then_some("delete_on_termination"));
    let map = only(asked, "volumeAttachment", &known)?;
    let given = text(&map, "volumeId")?;
    let volume =
        words::id(given).ok_or_else(|| Refusal::field("volumeId", format!("'{given}' is no uuid")))?;
    let wish = AttachWish {
        volume: Some(VolumeId(volume)),
        device: optional_text(&map, "device")?.map(str::to_owned),
        tag: fields::tag(&map)?,
        delete_on_termination: flag(&map, "delete_on_termination")?.unwrap_or(false),
    };
    let (origin, instance) = origin_of(&state, &caller, &request, &id)?;
    state.ops.attach_volume(&origin, instance, &wish).await?;
    let view = state.ops.world().read();
    let row = found(&view, &caller, &id)?;
    Ok(Json(json!({"volumeAttachment": body(row, &one(row, given)?, version, true)})))
}

/// What is left of nova's: whether the volume ends with the server. One volume in the place of another is not made.
async fn update(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    request: RequestId,
    Path((id, volume)): Path<(String, String)>,
    Body(asked): Body<Value>,
) -> Result<StatusCode, Refusal> {
    let known = ["volumeId", "id", "serverId", "device", "tag", "delete_on_termination"];
    let map = only(asked, "volumeAttachment", &known)?;
    let held = one(found(&state.ops.world().read(), &caller, &id)?, &volume)?;
    let same = words::id(text(&map, "volumeId")?) == Some(held.volume.0);
    if !same {
        return Err(Refusal::bad("A volume is not swapped for another while it is attached; detach it"));
    }
    let ends = flag(&map, "delete_on_termination")?.filter(|_| version.from(85));
    let ends = ends.ok_or_else(|| Refusal::bad("Invalid input: 'delete_on_termination' is required"))?;
    let (origin, instance) = origin_of(&state, &caller, &request, &id)?;
    state.ops.keep_attachment(&origin, instance, held.volume, ends).await?;
    Ok(StatusCode::ACCEPTED)
}

async fn detach(
    State(state): State<OpenStack>,
    caller: Caller,
    request: RequestId,
    Path((id, volume)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let (origin, instance) = origin_of(&state, &caller, &request, &id)?;
    let held = one(found(&state.ops.world().read(), &caller, &id)?, &volume)?;
    state.ops.detach_volume(&origin, instance, held.volume).await?;
    Ok(StatusCode::ACCEPTED)
}
