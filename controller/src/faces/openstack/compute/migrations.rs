//! `/os-migrations` and `/servers/{id}/migrations`. Microversions: 2.23 (kind and links), 2.59 (uuid, pages), 2.66
//! (changes-before), 2.80 (user and project).

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::gate::Base;
use super::super::microversion::Microversion;
use super::super::page::Page;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::super::words;
use super::servers::found;
use super::{PAGE_MAX, next_link};
use crate::model::{MigrationKind, MigrationRecord};
use crate::ops::View;
use crate::ops::identity::Caller;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Map, Value, json};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .get("/v2.1/os-migrations", Need::Admin, list)
        .get("/v2.1/servers/{id}/migrations", Need::Admin, of_server)
        .get("/v2.1/servers/{id}/migrations/{migration}", Need::Admin, one_of_server)
        .delete("/v2.1/servers/{id}/migrations/{migration}", Need::Admin, abort)
}

fn body(view: &View, migration: &MigrationRecord, version: Microversion) -> Value {
    let name = |host: Option<amphi_api::HostId>| host.and_then(|host| view.host_name(host));
    let (from, to) = (name(migration.from), name(migration.to));
    let number = |flavor: &Option<String>| flavor.as_ref().and_then(|id| id.parse::<i64>().ok());
    let mut body = json!({
        "id": migration.number(),
        "status": migration.status,
        "instance_uuid": migration.instance.to_string(),
        "source_node": from, "source_compute": from,
        "dest_node": to, "dest_compute": to, "dest_host": Value::Null,
        "old_instance_type_id": number(&migration.old_flavor),
        "new_instance_type_id": number(&migration.new_flavor),
        "created_at": words::cinder_time(migration.created_at),
        "updated_at": words::cinder_time(migration.updated_at),
    });
    if version.from(23) {
        body["migration_type"] = migration.kind.word().into();
    }
    if version.from(59) {
        body["uuid"] = migration.id.to_string().into();
    }
    if version.from(80) {
        body["user_id"] = migration.user.map(words::hex).into();
        body["project_id"] = words::hex(migration.project).into();
    }
    body
}

async fn list(
    State(state): State<OpenStack>,
    version: Microversion,
    base: Base,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let is = |name: &str, value: &str| query.one(name).is_none_or(|asked| asked == value);
    let time = |name: &str| match query.one(name) {
        None => Ok(None),
        Some(text) => words::parse_time(text)
            .map(Some)
            .ok_or_else(|| Refusal::field(name, format!("'{text}' is not a date-time"))),
    };
    let (since, before) = (time("changes-since")?, time("changes-before")?);
    let host = |id: Option<amphi_api::HostId>| id.and_then(|id| view.host_name(id)).unwrap_or_default();
    let mut rows: Vec<_> = view
        .migrations
        .iter()
        .filter(|m| {
            is("status", &m.status)
                && is("instance_uuid", &m.instance.to_string())
                && is("migration_type", m.kind.word())
                && is("source_compute", &host(m.from))
                && query.one("host").is_none_or(|name| host(m.from) == name || host(m.to) == name)
                && since.is_none_or(|since| m.updated_at >= since)
                && before.is_none_or(|before| m.updated_at <= before)
        })
        .collect();
    rows.reverse();
    let slice = if version.from(59) {
        Page::of(&query, PAGE_MAX)?.cut(rows, PAGE_MAX, |m| m.id.to_string())?
    } else {
        Page::of(&Query::default(), PAGE_MAX)?.cut(rows, PAGE_MAX, |m| m.id.to_string())?
    };
    let mut answer = Map::new();
    if slice.more
        && version.from(59)
        && let Some(last) = slice.items.last()
    {
        let link = next_link(&base, "/os-migrations", &query, &last.id.to_string());
        answer.insert("migrations_links".into(), link);
    }
    let page: Vec<Value> = slice.items.iter().map(|m| body(&view, m, version)).collect();
    answer.insert("migrations".into(), page.into());
    Ok(Json(Value::Object(answer)))
}

/// Live migrations that are under way are shown below their server, alone.
async fn of_server(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    if !version.from(23) {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "The resource could not be found."));
    }
    let view = state.ops.world().read();
    let instance = found(&view, &caller, &id)?.id;
    let open = view.migrations.iter().filter(|m| m.instance == instance && is_open(m));
    let all: Vec<Value> = open.map(|m| progress(&view, m, version)).collect();
    Ok(Json(json!({"migrations": all})))
}

async fn one_of_server(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    Path((id, migration)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let one = under_way(&view, found(&view, &caller, &id)?.id, &migration)?;
    Ok(Json(json!({"migration": progress(&view, one, version)})))
}

/// Calls a live migration off (2.24).
async fn abort(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    Path((id, migration)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    if !version.from(24) {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "The resource could not be found."));
    }
    let (project, exchange) = {
        let view = state.ops.world().read();
        let one = under_way(&view, found(&view, &caller, &id)?.id, &migration)?;
        (one.project, amphi_api::ExchangeId(one.id))
    };
    state.ops.cancel_exchange(project, exchange).await.map_err(super::actions::refused)?;
    Ok(StatusCode::ACCEPTED)
}

fn is_open(migration: &MigrationRecord) -> bool {
    migration.kind == MigrationKind::LiveMigration
        && matches!(migration.status.as_str(), "preparing" | "running")
}

fn under_way<'a>(
    view: &'a View,
    instance: amphi_api::InstanceId,
    asked: &str,
) -> Result<&'a MigrationRecord, Refusal> {
    let named = |m: &MigrationRecord| m.number().to_string() == asked || m.id.to_string() == asked;
    let mut open = view.migrations.iter().filter(|m| m.instance == instance && is_open(m));
    open.find(|m| named(m)).map(|row| &*row.record).ok_or_else(|| {
        let message = format!("In-progress live migration with ID {asked} could not be found.");
        Refusal::new(StatusCode::NOT_FOUND, message)
    })
}

/// As below its server: without kind and links, with how far it is, which nobody counts here.
fn progress(view: &View, migration: &MigrationRecord, version: Microversion) -> Value {
    let mut body = body(view, migration, version);
    if let Some(map) = body.as_object_mut() {
        for key in ["instance_uuid", "old_instance_type_id", "new_instance_type_id", "migration_type"] {
            map.remove(key);
        }
        map.insert("server_uuid".into(), migration.instance.to_string().into());
        for what in ["memory", "disk"] {
            for part in ["total", "processed", "remaining"] {
                map.insert(format!("{what}_{part}_bytes"), Value::Null);
            }
        }
    }
    body
}
