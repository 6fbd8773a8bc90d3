//! Snapshots: list, create, show, change, delete.

use super::filter::{self, SNAPSHOT};
use super::input;
use super::view::{Sight, pool};
use super::{said, snapshot, snapshot_id, volume_id};
use crate::faces::openstack::OpenStack;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::body::Body;
use crate::faces::openstack::gate::Base;
use crate::faces::openstack::microversion::Microversion;
use crate::faces::openstack::query::Query;
use crate::faces::openstack::routes::{Need, Routes};
use crate::model::SnapshotRecord;
use crate::ops::identity::Caller;
use crate::ops::{Row, SnapshotChange, SnapshotWish};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Map, Value, json};

pub fn routes(routes: Routes) -> Routes {
    routes
        .get("/v3/snapshots", Need::Reader, list)
        .get("/v3/snapshots/detail", Need::Reader, list_in_detail)
        .post("/v3/snapshots", Need::Member, create)
        .get("/v3/snapshots/{id}", Need::Reader, show)
        .put("/v3/snapshots/{id}", Need::Member, update)
        .delete("/v3/snapshots/{id}", Need::Member, delete)
}

fn listed(
    state: &OpenStack,
    caller: &Caller,
    base: &Base,
    version: Microversion,
    query: &Query,
    detail: bool,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let sight = Sight { view: &view, caller, base, version };
    let rows: Box<dyn Iterator<Item = &Row<SnapshotRecord>>> = match filter::whose(caller, query)? {
        Some(project) => Box::new(view.snapshots.of_project(project)),
        None => Box::new(view.snapshots.iter()),
    };
    let mut shown: Vec<Map<String, Value>> = Vec::new();
    for row in rows.filter(|row| super::shown(&view, row)) {
        if let Value::Object(mut map) =
            if detail { sight.snapshot_in_detail(row) } else { sight.snapshot(row) }
        {
            map.insert("host".into(), json!(pool(&view.host_name(row.host).unwrap_or_default())));
            shown.push(map);
        }
    }
    let mut selected = filter::select(&SNAPSHOT, shown, query, version)?;
    for map in &mut selected.rows {
        map.remove("host");
    }
    let rest = if detail { "snapshots/detail" } else { "snapshots" };
    selected.answer("snapshots", rest, base, caller, query, version).map(Json)
}

async fn list(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    version: Microversion,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    listed(&state, &caller, &base, version, &query, false)
}

async fn list_in_detail(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    version: Microversion,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    listed(&state, &caller, &base, version, &query, true)
}

async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    version: Microversion,
    Body(body): Body<Value>,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    let fields = input::fields("snapshot", body)?;
    // No volume named: cinder looks for one whose id is null and does not find it.
    let named = match fields.get("volume_id") {
        Some(Value::String(text)) => text.clone(),
        None => return Err(Refusal::bad("Invalid input: 'volume_id' is a required property")),
        Some(Value::Null) => "None".to_owned(),
        Some(other) => return Err(Refusal::field("volume_id", format!("{other} is not a 'uuid'"))),
    };
    let wish = SnapshotWish {
        name: input::name(&fields)?.unwrap_or_default(),
        description: input::description(&fields)?,
        metadata: input::items("metadata", fields.get("metadata"))?,
        // From 3.66 it need not be said.
        force: input::flag(&fields, "force")?.unwrap_or(version.from(66)),
        user: Some(caller.user),
    };
    let (project, volume) = volume_id(&state, &caller, &named)?;
    let id = state.ops.make_snapshot(project, volume, &wish).await.map_err(said)?;
    let view = state.ops.world().read();
    let sight = Sight { view: &view, caller: &caller, base: &base, version };
    let row = snapshot(&view, &caller, &id.to_string())?;
    Ok((StatusCode::ACCEPTED, Json(json!({"snapshot": sight.snapshot(row)}))))
}

async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    version: Microversion,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let sight = Sight { view: &view, caller: &caller, base: &base, version };
    Ok(Json(json!({"snapshot": sight.snapshot_in_detail(snapshot(&view, &caller, &id)?)})))
}

async fn update(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    version: Microversion,
    Path(id): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let (project, snapshot_id) = snapshot_id(&state, &caller, &id)?;
    let fields = input::fields("snapshot", body)?;
    let has = |names: &[&str]| names.iter().any(|name| fields.contains_key(*name));
    let mut changes = Vec::new();
    if has(&["name", "display_name"]) {
        changes.push(SnapshotChange::Name(input::name(&fields)?.unwrap_or_default()));
    }
    if has(&["description", "display_description"]) {
        changes.push(SnapshotChange::Description(input::description(&fields)?));
    }
    if changes.is_empty() {
        return Err(Refusal::bad("At least one of name and description is required"));
    }
    state.ops.change_snapshot(project, snapshot_id, &changes).await.map_err(said)?;
    let view = state.ops.world().read();
    let sight = Sight { view: &view, caller: &caller, base: &base, version };
    Ok(Json(json!({"snapshot": sight.snapshot(snapshot(&view, &caller, &id)?)})))
}

async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let (project, id) = snapshot_id(&state, &caller, &id)?;
    state.ops.delete_snapshot(project, id).await.map_err(said)?;
    Ok(StatusCode::ACCEPTED)
}
