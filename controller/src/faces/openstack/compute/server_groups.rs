//! `/os-server-groups`. Microversions: 2.13 (project and user), 2.15 (soft policies), 2.64 (one policy, with rules).

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::microversion::Microversion;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::super::words;
use super::{PAGE_MAX, figure, only, refuse_unknown, text};
use crate::model::{GroupPolicy, ServerGroupRecord};
use crate::ops::identity::Caller;
use crate::ops::server_groups::{self, ServerGroupSpec};
use crate::ops::{OpsError, Row, View};
use amphi_api::ServerGroupId;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Map, Value, json};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .get("/v2.1/os-server-groups", Need::Reader, list)
        .post("/v2.1/os-server-groups", Need::Member, create)
        .get("/v2.1/os-server-groups/{id}", Need::Reader, show)
        .delete("/v2.1/os-server-groups/{id}", Need::Member, delete)
}

fn body(view: &View, group: &ServerGroupRecord, version: Microversion) -> Value {
    let members: Vec<_> = server_groups::members(view, group).map(|id| id.to_string()).collect();
    let mut body = json!({"id": group.id.to_string(), "name": group.name, "members": members});
    if version.from(13) {
        body["project_id"] = json!(words::hex(group.project.0));
        body["user_id"] = json!(words::hex(group.user.0));
    }
    if version.from(64) {
        body["policy"] = json!(group.policy.word());
        body["rules"] = match group.max_server_per_host {
            Some(most) => json!({"max_server_per_host": most}),
            None => json!({}),
        };
    } else {
        body["policies"] = json!([group.policy.word()]);
        body["metadata"] = json!({});
    }
    body
}

async fn list(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    let offset = query.number("offset")?.unwrap_or(0) as usize;
    let limit = query.number("limit")?.map_or(PAGE_MAX, |n| (n as usize).min(PAGE_MAX));
    let view = state.ops.world().read();
    let rows: Vec<&Row<ServerGroupRecord>> = if query.has("all_projects") && caller.is_admin() {
        view.server_groups.iter().collect()
    } else {
        view.server_groups.of_project(caller.project()?).collect()
    };
    let page = rows.into_iter().skip(offset).take(limit);
    Ok(Json(json!({"server_groups": page.map(|row| body(&view, row, version)).collect::<Vec<_>>()})))
}

async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    Body(request): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let known: &[&str] = if version.from(64) { &["name", "policy", "rules"] } else { &["name", "policies"] };
    let spec = spec_of(&only(request, "server_group", known)?, version)?;
    let made = state.ops.create_server_group(caller.project()?, caller.user, &spec).await;
    let record = match made {
        // nova's own words for this limit.
        Err(OpsError::Quota(_)) => {
            return Err(Refusal::forbidden("Quota exceeded, too many server groups."));
        }
        made => made?,
    };
    let view = state.ops.world().read();
    Ok(Json(json!({"server_group": body(&view, &record, version)})))
}

fn spec_of(map: &Map<String, Value>, version: Microversion) -> Result<ServerGroupSpec, Refusal> {
    let name = text(map, "name")?.trim();
    amphi_api::validate::name("name", name)?;
    let word = if version.from(64) {
        text(map, "policy")?
    } else {
        match map.get("policies").map(|value| value.as_array().map(Vec::as_slice)) {
            Some(Some([Value::String(word)])) => word,
            None => return Err(Refusal::bad("Invalid input: 'policies' is a required property")),
            _ => return Err(Refusal::field("policies", "it must be a list of one policy")),
        }
    };
    let soft =
        |policy: &GroupPolicy| matches!(policy, GroupPolicy::SoftAffinity | GroupPolicy::SoftAntiAffinity);
    let policy = GroupPolicy::from_word(word).filter(|policy| version.from(15) || !soft(policy));
    let policy = policy.ok_or_else(|| Refusal::field("policy", format!("'{word}' is no policy")))?;
    let max_server_per_host = match map.get("rules") {
        None => None,
        Some(Value::Object(rules)) => {
            refuse_unknown(rules, &["max_server_per_host"])?;
            let most = figure(rules, "max_server_per_host")?.map(u32::try_from).transpose();
            most.map_err(|_| Refusal::field("max_server_per_host", "it is too large"))?
        }
        Some(_) => return Err(Refusal::field("rules", "it must be an object")),
    };
    Ok(ServerGroupSpec { name: name.to_owned(), policy, max_server_per_host })
}

/// The group of this id, if the caller may see it.
fn found<'a>(view: &'a View, caller: &Caller, id: &str) -> Result<&'a Row<ServerGroupRecord>, Refusal> {
    let row = words::id(id).and_then(|id| view.server_groups.get(ServerGroupId(id)));
    row.filter(|row| caller.may_see(row.project)).ok_or_else(|| {
        Refusal::new(StatusCode::NOT_FOUND, format!("Instance group {id} could not be found."))
    })
}

async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let row = found(&view, &caller, &id)?;
    Ok(Json(json!({"server_group": body(&view, row, version)})))
}

async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let (scope, id) = {
        let view = state.ops.world().read();
        let row = found(&view, &caller, &id)?;
        (row.project, row.id)
    };
    state.ops.delete_server_group(scope, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
