//! Volume types, their extra specs, and who may use those that are not public.

use super::input;
use super::limited;
use crate::faces::openstack::OpenStack;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::body::Body;
use crate::faces::openstack::page::Page;
use crate::faces::openstack::query::{Query, boolean};
use crate::faces::openstack::routes::{Call, Need, Routes};
use crate::faces::openstack::words::{self, hex};
use crate::model::VolumeTypeRecord;
use crate::ops::identity::Caller;
use crate::ops::{VolumeTypeChange, VolumeTypeSpec, volume_types};
use amphi_api::{ProjectId, VolumeTypeId};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

const ACTION: &str = "/v3/types/{id}/action";
/// What those who are no admins see of the extra specs (cinder/api/extra_specs.py, `USER_VISIBLE_EXTRA_SPECS`).
const OPEN_SPECS: [&str; 3] = ["RESKEY:availability_zones", "multiattach", "replication_enabled"];

pub fn routes(routes: Routes) -> Routes {
    routes
        .get("/v3/types", Need::Reader, list)
        .post("/v3/types", Need::Admin, create)
        .get("/v3/types/{id}", Need::Reader, show)
        .put("/v3/types/{id}", Need::Admin, update)
        .delete("/v3/types/{id}", Need::Admin, delete)
        .get("/v3/types/{id}/extra_specs", Need::Reader, specs)
        .post("/v3/types/{id}/extra_specs", Need::Admin, add_specs)
        .get("/v3/types/{id}/extra_specs/{key}", Need::Reader, spec)
        .put("/v3/types/{id}/extra_specs/{key}", Need::Admin, set_spec)
        .delete("/v3/types/{id}/extra_specs/{key}", Need::Admin, remove_spec)
        .get("/v3/types/{id}/os-volume-type-access", Need::Admin, access)
        .get("/v3/types/{id}/encryption", Need::Admin, encryption)
        .action(ACTION, "addProjectAccess", Need::Admin, |call| allow(call, true))
        .action(ACTION, "removeProjectAccess", Need::Admin, |call| allow(call, false))
}

fn visible(state: &OpenStack, caller: &Caller, id: &str) -> Result<VolumeTypeRecord, Refusal> {
    let view = state.ops.world().read();
    let found = match words::id(id) {
        Some(id) => volume_types::get(&view, VolumeTypeId(id)),
        None => (id == "default").then(|| volume_types::get(&view, VolumeTypeRecord::DEFAULT)).flatten(),
    };
    found
        .filter(|kind| caller.is_admin() || caller.project.is_some_and(|p| kind.open_to(p)))
        .ok_or_else(|| Refusal::not_found("volume type", id))
}

fn specs_of<'a>(kind: &'a VolumeTypeRecord, caller: &Caller) -> serde_json::Map<String, Value> {
    let seen = |(key, _): &(&'a String, &'a String)| caller.is_admin() || OPEN_SPECS.contains(&key.as_str());
    kind.extra_specs.iter().filter(seen).map(|(k, v)| (k.clone(), json!(v))).collect()
}

fn shown(kind: &VolumeTypeRecord, caller: &Caller) -> Value {
    json!({
        "id": kind.id,
        "name": kind.name,
        "is_public": kind.public,
        "description": kind.description,
        "extra_specs": specs_of(kind, caller),
    })
}

fn shown_with_access(kind: &VolumeTypeRecord, caller: &Caller) -> Value {
    let mut shown = shown(kind, caller);
    shown["os-volume-type-access:is_public"] = json!(kind.public);
    shown
}

fn shown_in_detail(kind: &VolumeTypeRecord, caller: &Caller) -> Value {
    let mut shown = shown_with_access(kind, caller);
    if caller.is_admin() {
        shown["qos_specs_id"] = Value::Null;
    }
    shown
}

async fn list(State(state): State<OpenStack>, caller: Caller, query: Query) -> Result<Json<Value>, Refusal> {
    // An admin sees the public ones, unless `is_public` says otherwise; `none` means all.
    let public = match query.one("is_public").filter(|_| caller.is_admin()) {
        None => Some(true),
        Some(text) if text.eq_ignore_ascii_case("none") => None,
        Some(text) => Some(
            boolean(text).ok_or_else(|| Refusal::field("is_public", format!("'{text}' is not a boolean")))?,
        ),
    };
    let page = Page::of(&query, 1000)?;
    let view = state.ops.world().read();
    let mut kinds = volume_types::all(&view);
    kinds.retain(|kind| {
        let seen = if caller.is_admin() {
            public.is_none_or(|public| kind.public == public)
        } else {
            caller.project.is_some_and(|project| kind.open_to(project))
        };
        seen && query.one("name").is_none_or(|name| kind.name == name)
    });
    kinds.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| b.id.cmp(&a.id)));
    let slice = page.cut(kinds, 1000, |kind| kind.id.to_string())?;
    let kinds: Vec<_> = slice.items.iter().map(|kind| shown_in_detail(kind, &caller)).collect();
    Ok(Json(json!({"volume_types": kinds})))
}

async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let fields = input::fields("volume_type", body)?;
    let name = input::text(&fields, &["name"])?;
    let spec = VolumeTypeSpec {
        name: name.ok_or_else(|| Refusal::field("name", "is a required property"))?.trim().to_owned(),
        description: input::description(&fields)?,
        public: input::flag(&fields, "os-volume-type-access:is_public")?.unwrap_or(true),
        extra_specs: input::items("extra_specs", fields.get("extra_specs"))?,
    };
    let kind = state.ops.create_volume_type(&spec).await.map_err(limited)?;
    Ok(Json(json!({"volume_type": shown_with_access(&kind, &caller)})))
}

async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let kind = visible(&state, &caller, &id)?;
    Ok(Json(json!({"volume_type": shown_in_detail(&kind, &caller)})))
}

async fn update(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let kind = visible(&state, &caller, &id)?;
    let fields = input::fields("volume_type", body)?;
    let mut changes = Vec::new();
    if let Some(name) = input::text(&fields, &["name"])? {
        changes.push(VolumeTypeChange::Name(name.trim().to_owned()));
    }
    if fields.contains_key("description") {
        changes.push(VolumeTypeChange::Description(input::description(&fields)?));
    }
    if let Some(public) = input::flag(&fields, "is_public")? {
        changes.push(VolumeTypeChange::Public(public));
    }
    if changes.is_empty() {
        return Err(Refusal::bad(
            "Specify volume type name, description, is_public or a combination thereof.",
        ));
    }
    let kind = state.ops.change_volume_type(kind.id, &changes).await.map_err(limited)?;
    Ok(Json(json!({"volume_type": shown(&kind, &caller)})))
}

async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let kind = visible(&state, &caller, &id)?;
    state.ops.delete_volume_type(kind.id).await.map_err(limited)?;
    Ok(StatusCode::ACCEPTED)
}

async fn specs(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let kind = visible(&state, &caller, &id)?;
    Ok(Json(json!({"extra_specs": specs_of(&kind, &caller)})))
}

async fn add_specs(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let kind = visible(&state, &caller, &id)?;
    let specs = input::required_items("extra_specs", &body)?;
    let changes = [VolumeTypeChange::ExtraSpecs(specs.clone())];
    state.ops.change_volume_type(kind.id, &changes).await.map_err(limited)?;
    Ok(Json(json!({"extra_specs": specs})))
}

fn spec_missing(key: &str) -> Refusal {
    Refusal::not_found("extra spec", key)
}

async fn spec(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    let specs = specs_of(&visible(&state, &caller, &id)?, &caller);
    let value = specs.get(&key).ok_or_else(|| spec_missing(&key))?;
    Ok(Json(json!({key: value})))
}

async fn set_spec(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let kind = visible(&state, &caller, &id)?;
    let specs = input::items("extra_specs", Some(&body))?;
    if specs.len() != 1 || !specs.contains_key(&key) {
        return Err(Refusal::bad("Request body and URI mismatch"));
    }
    state
        .ops
        .change_volume_type(kind.id, &[VolumeTypeChange::ExtraSpecs(specs.clone())])
        .await
        .map_err(limited)?;
    Ok(Json(json!(specs)))
}

async fn remove_spec(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let kind = visible(&state, &caller, &id)?;
    if !kind.extra_specs.contains_key(&key) {
        return Err(spec_missing(&key));
    }
    let changes = [VolumeTypeChange::RemoveExtraSpec(key)];
    state.ops.change_volume_type(kind.id, &changes).await.map_err(limited)?;
    Ok(StatusCode::ACCEPTED)
}

async fn access(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let kind = visible(&state, &caller, &id)?;
    if kind.public {
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "Access list not available for public volume types.",
        ));
    }
    let projects = kind.projects.iter().map(|p| json!({"volume_type_id": kind.id, "project_id": hex(*p)}));
    Ok(Json(json!({"volume_type_access": projects.collect::<Vec<_>>()})))
}

/// No type has any: the hosts' disks are encrypted by their operators or not at all.
async fn encryption(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    visible(&state, &caller, &id)?;
    Ok(Json(json!({})))
}

async fn allow(call: Call, allowed: bool) -> Result<Response, Refusal> {
    let kind = visible(&call.state, &call.caller, &call.id)?;
    let fields = input::argument("project", call.argument.clone())?;
    let text = input::text(&fields, &["project"])?.ok_or_else(|| Refusal::field("project", "is missing"))?;
    let project =
        ProjectId(words::id(&text).ok_or_else(|| Refusal::bad(format!("Project id {text} is invalid.")))?);
    let change = if allowed { VolumeTypeChange::Admit(project) } else { VolumeTypeChange::Dismiss(project) };
    call.state.ops.change_volume_type(kind.id, &[change]).await.map_err(limited)?;
    Ok(StatusCode::ACCEPTED.into_response())
}
