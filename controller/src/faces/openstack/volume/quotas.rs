//! Limits: of a project, of everybody by default, and what is used of them. Each volume type has three of its own.

use super::input;
use crate::faces::openstack::OpenStack;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::body::Body;
use crate::faces::openstack::microversion::Microversion;
use crate::faces::openstack::query::Query;
use crate::faces::openstack::routes::{Need, Routes};
use crate::faces::openstack::words::{self, hex};
use crate::model::*;
use crate::ops::identity::Caller;
use crate::ops::{View, quotas, volume_types};
use amphi_api::ProjectId;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

pub fn routes(routes: Routes) -> Routes {
    routes
        .get("/v3/os-quota-sets/{id}", Need::Reader, show)
        .get("/v3/os-quota-sets/{id}/defaults", Need::Reader, defaults)
        .put("/v3/os-quota-sets/{id}", Need::Admin, update)
        .delete("/v3/os-quota-sets/{id}", Need::Admin, reset)
        .get("/v3/os-quota-class-sets/{id}", Need::Admin, show_class)
        .put("/v3/os-quota-class-sets/{id}", Need::Admin, update_class)
        .get("/v3/limits", Need::Reader, limits)
}

/// A resource's word, with how much of it a project has.
fn resources(view: &View, project: ProjectId) -> Vec<(String, u64)> {
    let own = Resource::of(QuotaService::Volume)
        .map(|resource| (resource.word().to_owned(), quotas::used(view, project, None, resource)));
    let mut found: Vec<_> = own.collect();
    for kind in volume_types::all(view) {
        let (count, gib) = volume_types::used(view, project, kind.id);
        let of_type = |row: &&crate::ops::Row<SnapshotRecord>| {
            let volume = view.volumes.get(row.volume);
            volume.and_then(|v| v.traits.volume_type).unwrap_or(VolumeTypeRecord::DEFAULT) == kind.id
        };
        let snapshots = view.snapshots.of_project(project).filter(of_type).count() as u64;
        found.push((format!("volumes_{}", kind.name), count));
        found.push((format!("gigabytes_{}", kind.name), gib));
        found.push((format!("snapshots_{}", kind.name), snapshots));
    }
    found
}

fn limits_of(view: &View, project: ProjectId) -> Map<String, Value> {
    let limit = |(word, _): (String, u64)| {
        let limit = quotas::limit(view, project, None, &word);
        (word, json!(limit))
    };
    resources(view, project).into_iter().map(limit).collect()
}

fn default_limits(view: &View) -> Map<String, Value> {
    let limit = |(word, _): (String, u64)| {
        let limit = quotas::default_limit(view, &word);
        (word, json!(limit))
    };
    resources(view, ProjectId::DEFAULT).into_iter().map(limit).collect()
}

fn project(caller: &Caller, id: &str) -> Result<ProjectId, Refusal> {
    let found = words::id(id).map(ProjectId);
    if !caller.is_admin() && found.is_none_or(|project| caller.project != Some(project)) {
        return Err(Refusal::forbidden("Policy doesn't allow volume_extension:quotas:show to be performed."));
    }
    found.ok_or_else(|| Refusal::not_found("project", id))
}

fn with_id(mut limits: Map<String, Value>, id: &str) -> Map<String, Value> {
    limits.insert("id".into(), json!(id));
    limits
}

async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    let project = project(&caller, &id)?;
    let usage = query.flag("usage")?.unwrap_or(false);
    let view = state.ops.world().read();
    let set = if usage {
        let one = |(word, used): (String, u64)| {
            let limit = quotas::limit(&view, project, None, &word);
            (word, json!({"limit": limit, "in_use": used, "reserved": 0}))
        };
        resources(&view, project).into_iter().map(one).collect()
    } else {
        limits_of(&view, project)
    };
    Ok(Json(json!({"quota_set": with_id(set, &hex(project))})))
}

async fn defaults(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let project = project(&caller, &id)?;
    let view = state.ops.world().read();
    Ok(Json(json!({"quota_set": with_id(default_limits(&view), &hex(project))})))
}

/// The limits that a body sets; keys of no resource are refused.
fn wanted(view: &View, key: &str, body: Value) -> Result<BTreeMap<String, i64>, Refusal> {
    let fields = input::fields(key, body)?;
    let known: Vec<String> = resources(view, ProjectId::DEFAULT).into_iter().map(|(word, _)| word).collect();
    let mut limits = BTreeMap::new();
    for (word, value) in fields {
        if matches!(
            word.as_str(),
            "tenant_id" | "project_id" | "id" | "force" | "skip_validation" | "class_name"
        ) {
            continue;
        }
        if !known.contains(&word) {
            return Err(Refusal::bad(format!("Bad key(s) in quota set: {word}")));
        }
        limits.insert(word.clone(), input::integer(&word, &value)?);
    }
    Ok(limits)
}

async fn update(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    query: Query,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let project = project(&caller, &id)?;
    let skip = query.flag("skip_validation")?.unwrap_or(true);
    let limits = {
        let view = state.ops.world().read();
        wanted(&view, "quota_set", body)?
    };
    state.ops.set_quotas(QuotaKey::Project(project), &limits, skip).await?;
    let view = state.ops.world().read();
    Ok(Json(json!({"quota_set": limits_of(&view, project)})))
}

/// Whether a limit is of this service.
fn mine(word: &str) -> bool {
    Resource::from_word(QuotaService::Volume, word).is_some()
        || ["volumes_", "gigabytes_", "snapshots_"].iter().any(|prefix| word.starts_with(prefix))
}

async fn reset(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let project = project(&caller, &id)?;
    state.ops.reset_quotas(QuotaKey::Project(project), mine).await?;
    Ok(StatusCode::OK)
}

async fn show_class(State(state): State<OpenStack>, Path(id): Path<String>) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    Ok(Json(json!({"quota_class_set": with_id(default_limits(&view), &id)})))
}

async fn update_class(
    State(state): State<OpenStack>,
    Path(id): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    if id != "default" {
        return Err(Refusal::bad("There is one quota class: default"));
    }
    let limits = {
        let view = state.ops.world().read();
        wanted(&view, "quota_class_set", body)?
    };
    state.ops.set_quotas(QuotaKey::Default, &limits, true).await?;
    let view = state.ops.world().read();
    Ok(Json(json!({"quota_class_set": default_limits(&view)})))
}

async fn limits(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    let named = query.one("project_id").or(query.one("tenant_id"));
    let project = match named.filter(|_| version.from(39) && caller.is_admin()) {
        Some(text) => ProjectId(words::id(text).ok_or_else(|| Refusal::not_found("project", text))?),
        None => caller.project()?,
    };
    let view = state.ops.world().read();
    let limit = |resource: Resource| quotas::limit(&view, project, None, resource.word());
    let used = |resource: Resource| quotas::used(&view, project, None, resource);
    Ok(Json(json!({"limits": {"rate": [], "absolute": {
        "maxTotalVolumes": limit(Resource::Volumes),
        "maxTotalSnapshots": limit(Resource::Snapshots),
        "maxTotalVolumeGigabytes": limit(Resource::Gigabytes),
        "maxTotalBackups": limit(Resource::Backups),
        "maxTotalBackupGigabytes": limit(Resource::BackupGigabytes),
        "totalVolumesUsed": used(Resource::Volumes),
        "totalSnapshotsUsed": used(Resource::Snapshots),
        "totalGigabytesUsed": used(Resource::Gigabytes),
        "totalBackupsUsed": used(Resource::Backups),
        "totalBackupGigabytesUsed": used(Resource::BackupGigabytes),
    }}})))
}
