//! `/servers/{id}/os-instance-actions`: also of servers that are gone, from 2.21 on. Further microversions: 2.51 (events
//! for all, hostId), 2.58 (pages), 2.62 (host), 2.66 (changes-before), 2.84 (details).

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::gate::Base;
use super::super::microversion::Microversion;
use super::super::page::Page;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::super::words;
use super::servers::missing;
use super::{PAGE_MAX, next_link};
use crate::model::{ActionEvent, ActionRecord};
use crate::ops::identity::Caller;
use crate::ops::{Row, View};
use amphi_api::InstanceId;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha224};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.get("/v2.1/servers/{id}/os-instance-actions", Need::Reader, list).get(
        "/v2.1/servers/{id}/os-instance-actions/{request}",
        Need::Reader,
        show,
    )
}

/// The newest first.
fn actions<'a>(
    view: &'a View,
    caller: &Caller,
    version: Microversion,
    id: &str,
) -> Result<Vec<&'a Row<ActionRecord>>, Refusal> {
    let instance = words::id(id).map(InstanceId).ok_or_else(|| missing(id))?;
    let mut actions: Vec<_> = view.actions_of(instance).collect();
    actions.reverse();
    let owner = match view.instances.get(instance) {
        Some(row) => Some(row.project),
        None => actions.first().map(|action| action.project).filter(|_| version.from(21)),
    };
    if owner.is_some_and(|project| caller.may_see(project)) { Ok(actions) } else { Err(missing(id)) }
}

fn body(action: &ActionRecord, version: Microversion) -> Value {
    let mut body = json!({
        "action": action.action,
        "instance_uuid": action.instance.to_string(),
        "request_id": action.request,
        "user_id": action.user.map(words::hex).unwrap_or_default(),
        "project_id": words::hex(action.project),
        "start_time": words::cinder_time(action.started_at),
        "message": action.message,
    });
    if version.from(58) {
        body["updated_at"] = words::cinder_time(action.updated_at).into();
    }
    body
}

fn event(
    view: &View,
    action: &ActionRecord,
    event: &ActionEvent,
    version: Microversion,
    admin: bool,
) -> Value {
    let mut body = json!({
        "event": event.event,
        "start_time": words::cinder_time(event.started_at),
        "finish_time": event.finished_at.map(words::cinder_time),
        "result": event.success.map(|well| if well { "Success" } else { "Error" }),
    });
    if admin {
        body["traceback"] = Value::Null;
    }
    if version.from(51) {
        let digest = event.host.map(|host| Sha224::digest(format!("{}{host}", action.project)));
        body["hostId"] = digest.map(hex::encode).unwrap_or_default().into();
    }
    if version.from(62) && admin {
        body["host"] = json!(event.host.and_then(|host| view.host_name(host)));
    }
    if version.from(84) {
        body["details"] = json!(event.details);
    }
    body
}

async fn list(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    base: Base,
    query: Query,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let mut all = actions(&view, &caller, version, &id)?;
    if !version.from(58) {
        let all: Vec<Value> = all.iter().map(|action| body(action, version)).collect();
        return Ok(Json(json!({"instanceActions": all})));
    }
    let time = |name: &str| match query.one(name) {
        None => Ok(None),
        Some(text) => words::parse_time(text)
            .map(Some)
            .ok_or_else(|| Refusal::field(name, format!("'{text}' is not a date-time"))),
    };
    let (since, before) = (time("changes-since")?, time("changes-before")?.filter(|_| version.from(66)));
    all.retain(|action| {
        since.is_none_or(|since| action.updated_at >= since)
            && before.is_none_or(|before| action.updated_at <= before)
    });
    let slice = Page::of(&query, PAGE_MAX)?.cut(all, PAGE_MAX, |action| action.request.clone())?;
    let mut answer = Map::new();
    if slice.more
        && let Some(last) = slice.items.last()
    {
        let path = format!("/servers/{id}/os-instance-actions");
        answer.insert("links".into(), next_link(&base, &path, &query, &last.request));
    }
    let page: Vec<Value> = slice.items.iter().map(|action| body(action, version)).collect();
    answer.insert("instanceActions".into(), page.into());
    Ok(Json(Value::Object(answer)))
}

async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    Path((id, request)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let all = actions(&view, &caller, version, &id)?;
    let action = all.into_iter().find(|action| action.request == request).ok_or_else(|| {
        Refusal::new(
            StatusCode::NOT_FOUND,
            format!("Action for request_id {request} on instance {id} not found"),
        )
    })?;
    let mut answer = body(action, version);
    if caller.is_admin() || version.from(51) {
        let admin = caller.is_admin();
        let events = action.events.iter().map(|e| event(&view, action, e, version, admin));
        answer["events"] = events.collect::<Vec<_>>().into();
    }
    Ok(Json(json!({"instanceAction": answer})))
}
