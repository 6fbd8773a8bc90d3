//! `/os-quota-sets` and `/os-quota-class-sets`. Microversions 2.36 and 2.57 leave out what is other services'; 2.50 has
//! server groups in the classes too.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::microversion::Microversion;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::super::words;
use super::{flag, known_project, only, seen_project};
use crate::model::{QuotaKey, QuotaService, Resource};
use crate::ops::identity::Caller;
use crate::ops::quotas;
use crate::ops::{OpsError, View};
use amphi_api::{ProjectId, UserId};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The one class that limits anything.
const CLASS: &str = "default";

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .get("/v2.1/os-quota-sets/{id}", Need::Reader, show)
        .get("/v2.1/os-quota-sets/{id}/detail", Need::Reader, detail)
        .get("/v2.1/os-quota-sets/{id}/defaults", Need::Reader, defaults)
        .put("/v2.1/os-quota-sets/{id}", Need::Admin, update)
        .delete("/v2.1/os-quota-sets/{id}", Need::Admin, delete)
        .get("/v2.1/os-quota-class-sets/{id}", Need::Admin, show_class)
        .put("/v2.1/os-quota-class-sets/{id}", Need::Admin, update_class)
}

/// Whether a microversion shows and sets a resource no more.
pub(super) fn hidden(resource: Resource, version: Microversion) -> bool {
    use Resource::*;
    match resource {
        FixedIps | NovaFloatingIps | NovaSecurityGroups | NovaSecurityGroupRules => version.from(36),
        InjectedFiles | InjectedFileContentBytes | InjectedFilePathBytes => version.from(57),
        _ => false,
    }
}

fn shown(version: Microversion) -> impl Iterator<Item = Resource> {
    Resource::of(QuotaService::Compute).filter(move |resource| !hidden(*resource, version))
}

/// The user whose limits are meant; one that is none has no limits of his own.
fn user_of(query: &Query) -> Option<UserId> {
    query
        .one("user_id")
        .filter(|text| !text.is_empty())
        .map(|text| UserId(words::id(text).unwrap_or_default()))
}

fn body(
    view: &View,
    project: ProjectId,
    user: Option<UserId>,
    version: Microversion,
    render: fn(quotas::Quota) -> Value,
) -> Map<String, Value> {
    let all = quotas::all(view, QuotaService::Compute, project, user).into_iter();
    let kept = all.filter(|(resource, _)| !hidden(*resource, version));
    kept.map(|(resource, quota)| (resource.word().to_owned(), render(quota))).collect()
}

fn limit(quota: quotas::Quota) -> Value {
    json!(quota.limit)
}

fn usage(quota: quotas::Quota) -> Value {
    json!({"limit": quota.limit, "in_use": quota.used, "reserved": 0})
}

fn with_id(mut body: Map<String, Value>, id: &str) -> Json<Value> {
    body.insert("id".into(), json!(id));
    Json(json!({"quota_set": body}))
}

async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    query: Query,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    set(&state, &caller, version, &query, &id, limit)
}

async fn detail(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    query: Query,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    set(&state, &caller, version, &query, &id, usage)
}

fn set(
    state: &OpenStack,
    caller: &Caller,
    version: Microversion,
    query: &Query,
    id: &str,
    render: fn(quotas::Quota) -> Value,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let project =
        if caller.is_admin() { known_project(&view, caller, id)? } else { seen_project(caller, id)? };
    Ok(with_id(body(&view, project, user_of(query), version, render), id))
}

async fn defaults(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    known_project(&view, &caller, &id)?;
    let limits = shown(version)
        .map(|resource| (resource.word().to_owned(), json!(quotas::default_limit(&view, resource.word()))));
    Ok(with_id(limits.collect(), &id))
}

/// The limits in a body, each -1 to 2^31 - 1, also as text.
fn limits_of(map: &Map<String, Value>) -> Result<BTreeMap<String, i64>, Refusal> {
    let mut limits = BTreeMap::new();
    for (word, value) in map.iter().filter(|(word, _)| *word != "force") {
        let number = match value {
            Value::Number(number) => number.as_i64(),
            Value::String(digits) => digits.parse().ok(),
            _ => None,
        };
        let number = number.ok_or_else(|| Refusal::field(word, "it must be an integer"))?;
        limits.insert(word.clone(), number);
    }
    Ok(limits)
}

async fn update(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    query: Query,
    Path(id): Path<String>,
    Body(request): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let words: Vec<_> = shown(version).map(Resource::word).chain(["force"]).collect();
    let map = only(request, "quota_set", &words)?;
    let (limits, force) = (limits_of(&map)?, flag(&map, "force")?.unwrap_or(false));
    let project = known_project(&state.ops.world().read(), &caller, &id)?;
    let user = user_of(&query);
    let of = user.map_or(QuotaKey::Project(project), |user| QuotaKey::User(project, user));
    state.ops.set_quotas(of, &limits, force).await?;
    let view = state.ops.world().read();
    Ok(Json(json!({"quota_set": body(&view, project, user, version, limit)})))
}

async fn delete(
    State(state): State<OpenStack>,
    query: Query,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    // Of a project that is gone, too: what nobody has needs no deletion.
    if let Some(project) = words::id(&id).map(ProjectId) {
        let of = user_of(&query).map_or(QuotaKey::Project(project), |user| QuotaKey::User(project, user));
        let mine = |word: &str| Resource::from_word(QuotaService::Compute, word).is_some();
        state.ops.reset_quotas(of, mine).await?;
    }
    Ok(StatusCode::ACCEPTED)
}

fn in_class(resource: Resource, version: Microversion) -> bool {
    let grouped = matches!(resource, Resource::ServerGroups | Resource::ServerGroupMembers);
    !grouped || version.from(50)
}

fn class_body(view: &View, version: Microversion) -> Map<String, Value> {
    shown(version)
        .filter(|resource| in_class(*resource, version))
        .map(|resource| (resource.word().to_owned(), json!(quotas::default_limit(view, resource.word()))))
        .collect()
}

/// A class of any name is shown: with the defaults, which it has too.
async fn show_class(
    State(state): State<OpenStack>,
    version: Microversion,
    Path(id): Path<String>,
) -> Json<Value> {
    let mut body = class_body(&state.ops.world().read(), version);
    body.insert("id".into(), json!(id));
    Json(json!({"quota_class_set": body}))
}

async fn update_class(
    State(state): State<OpenStack>,
    version: Microversion,
    Path(id): Path<String>,
    Body(request): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let words: Vec<_> =
        shown(version).filter(|resource| in_class(*resource, version)).map(Resource::word).collect();
    let map = only(request, "quota_class_set", &words)?;
    if id != CLASS {
        return Err(OpsError::NotFound { noun: "quota class", id }.into());
    }
    state.ops.set_quotas(QuotaKey::Default, &limits_of(&map)?, true).await?;
    Ok(Json(json!({"quota_class_set": class_body(&state.ops.world().read(), version)})))
}
