//! `/v2.0/quotas`: neutron's resources only.

use super::given::body;
use super::sight::not_yours;
use crate::faces::openstack::OpenStack;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::body::Body;
use crate::faces::openstack::words;
use crate::model::{QuotaKey, QuotaService, Resource};
use crate::ops::identity::Caller;
use crate::ops::{View, quotas};
use amphi_api::ProjectId;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const SERVICE: QuotaService = QuotaService::Network;

/// The project of a path, which the caller may see.
fn project(caller: &Caller, text: &str) -> Result<ProjectId, Refusal> {
    let id = words::id(text).map(ProjectId);
    match id {
        Some(id) if caller.may_see(id) => Ok(id),
        // Whatever the id says, nothing is said of other people's projects.
        _ if !caller.is_admin() => Err(not_yours("get_quota")),
        Some(id) => Ok(id),
        None => Err(Refusal::not_found("project", text)),
    }
}

fn limits(view: &View, project: ProjectId) -> Map<String, Value> {
    let all = quotas::all(view, SERVICE, project, None);
    all.into_iter().map(|(resource, quota)| (resource.word().to_owned(), json!(quota.limit))).collect()
}

pub async fn list(State(state): State<OpenStack>, caller: Caller) -> Json<Value> {
    let view = state.ops.world().read();
    let of = |key: QuotaKey| match key {
        QuotaKey::Project(project) if caller.may_see(project) => Some(project),
        _ => None,
    };
    let rows = view
        .quotas
        .iter()
        .filter(|row| row.limits.keys().any(|word| Resource::from_word(SERVICE, word).is_some()));
    let shown = rows.filter_map(|row| of(row.of)).map(|project| {
        let mut shown = limits(&view, project);
        shown.insert("project_id".into(), json!(words::hex(project.0)));
        shown.insert("tenant_id".into(), json!(words::hex(project.0)));
        shown
    });
    Json(json!({"quotas": shown.collect::<Vec<_>>()}))
}

pub async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    if id == "tenant" || id == "project" {
        let project = words::hex(caller.project()?.0);
        return Ok(Json(json!({ id: {"tenant_id": project, "project_id": project} })));
    }
    let project = project(&caller, &id)?;
    Ok(Json(json!({"quota": limits(&state.ops.world().read(), project)})))
}

pub async fn defaults(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    project(&caller, &id)?;
    let view = state.ops.world().read();
    let defaults = Resource::of(SERVICE)
        .map(|resource| (resource.word().to_owned(), json!(quotas::default_limit(&view, resource.word()))));
    Ok(Json(json!({"quota": defaults.collect::<Map<_, _>>()})))
}

pub async fn details(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let project = project(&caller, &id)?;
    let view = state.ops.world().read();
    let details = quotas::all(&view, SERVICE, project, None).into_iter().map(|(resource, quota)| {
        let detail = json!({"limit": quota.limit, "used": quota.used, "reserved": 0});
        (resource.word().to_owned(), detail)
    });
    Ok(Json(json!({"quota": details.collect::<Map<_, _>>()})))
}

pub async fn update(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    Body(sent): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let project = project(&caller, &id)?;
    let mut given = body("quota", sent)?;
    let check = given.flag("check_limit")?.unwrap_or(false);
    let force = given.flag("force")?.unwrap_or(false);
    for key in ["tenant_id", "project_id"] {
        given.take(key);
    }
    let mut wanted = BTreeMap::new();
    for resource in Resource::of(SERVICE) {
        if let Some(limit) = given.integer(resource.word())? {
            wanted.insert(resource.word().to_owned(), limit);
        }
    }
    given.end()?;
    // Neutron takes a limit below what is there unless it is asked to look.
    state.ops.set_quotas(QuotaKey::Project(project), &wanted, force || !check).await?;
    Ok(Json(json!({"quota": limits(&state.ops.world().read(), project)})))
}

pub async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let project = project(&caller, &id)?;
    let mine = |word: &str| Resource::from_word(SERVICE, word).is_some();
    state.ops.reset_quotas(QuotaKey::Project(project), mine).await?;
    Ok(StatusCode::NO_CONTENT)
}
