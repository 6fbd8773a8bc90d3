//! Volumes: list, create, show, change, delete, sum up.

use super::filter::{self, VOLUME};
use super::input::{self, Fields};
use super::view::{Sight, pool};
use super::{said, volume, volume_id};
use crate::faces::openstack::OpenStack;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::body::Body;
use crate::faces::openstack::gate::Base;
use crate::faces::openstack::microversion::Microversion;
use crate::faces::openstack::query::Query;
use crate::faces::openstack::routes::{Need, Routes};
use crate::model::{VolumeChange, VolumeRecord};
use crate::ops::identity::Caller;
use crate::ops::{Row, View, VolumeOrigin, VolumeWish, volume_types};
use amphi_api::{ImageId, ProjectId, SnapshotId, VolumeId};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

pub fn routes(routes: Routes) -> Routes {
    routes
        .get("/v3/volumes", Need::Reader, list)
        .get("/v3/volumes/detail", Need::Reader, list_in_detail)
        .get("/v3/volumes/summary", Need::Reader, summary)
        .post("/v3/volumes", Need::Member, create)
        .get("/v3/volumes/{id}", Need::Reader, show)
        .put("/v3/volumes/{id}", Need::Member, update)
        .delete("/v3/volumes/{id}", Need::Member, delete)
}

fn rows_of<'a>(
    view: &'a View,
    whose: Option<ProjectId>,
) -> Box<dyn Iterator<Item = &'a Row<VolumeRecord>> + 'a> {
    match whose {
        Some(project) => Box::new(view.volumes.of_project(project).filter(|row| row.seen())),
        None => Box::new(view.volumes.iter().filter(|row| row.seen())),
    }
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
    let mut shown: Vec<Map<String, Value>> = Vec::new();
    for row in rows_of(&view, filter::whose(caller, query)?) {
        if let Value::Object(mut map) = sight.volume_in_detail(row) {
            // For filters and orders; taken off below.
            map.insert("host".into(), json!(pool(&view.host_name(row.host).unwrap_or_default())));
            shown.push(map);
        }
    }
    let mut selected = filter::select(&VOLUME, shown, query, version)?;
    for map in &mut selected.rows {
        map.remove("host");
        if !detail {
            map.retain(|key, _| matches!(key.as_str(), "id" | "name" | "links"));
        }
    }
    let rest = if detail { "volumes/detail" } else { "volumes" };
    selected.answer("volumes", rest, base, caller, query, version).map(Json)
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

async fn summary(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    if !version.from(12) {
        return Err(Refusal::not_found("volume", "summary"));
    }
    let view = state.ops.world().read();
    let (mut count, mut gib) = (0u64, 0u64);
    let mut metadata: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for row in rows_of(&view, filter::whose(&caller, &query)?) {
        count += 1;
        gib += row.size_gib;
        for (key, value) in &row.traits.metadata {
            let values = metadata.entry(key).or_default();
            if !values.contains(&value.as_str()) {
                values.push(value);
            }
        }
    }
    let mut summary = json!({"total_size": gib, "total_count": count});
    if version.from(36) {
        summary["metadata"] = json!(metadata);
    }
    Ok(Json(json!({"volume-summary": summary})))
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
    Ok(Json(json!({"volume": sight.volume_in_detail(volume(&view, &caller, &id)?)})))
}

/// What the volume is to begin with; things that the caller cannot see are 404.
fn origin(view: &View, caller: &Caller, fields: &Fields) -> Result<VolumeOrigin, Refusal> {
    let snapshot = input::id(fields, &["snapshot_id"])?;
    let source = input::id(fields, &["source_volid"])?;
    let image = match input::given(fields, &["imageRef", "image_id"]) {
        // Some clients send the image's URL.
        Some((name, value)) => {
            let text = value.as_str().map(|text| text.rsplit('/').next().unwrap_or(text));
            let id = text.and_then(crate::faces::openstack::words::id);
            Some(id.ok_or_else(|| {
                Refusal::field(name, "Invalid image identifier or unable to access requested image.")
            })?)
        }
        None => None,
    };
    for (key, noun) in
        [("consistencygroup_id", "consistencygroup"), ("group_id", "group"), ("backup_id", "backup")]
    {
        if let Some(id) = input::id(fields, &[key])? {
            return Err(Refusal::not_found(noun, id));
        }
    }
    match (snapshot, source, image) {
        (None, None, None) => Ok(VolumeOrigin::Blank),
        (Some(id), None, None) => {
            super::snapshot(view, caller, &id.to_string())?;
            Ok(VolumeOrigin::Snapshot(SnapshotId(id)))
        }
        (None, Some(id), None) => {
            volume(view, caller, &id.to_string())?;
            Ok(VolumeOrigin::Volume(VolumeId(id)))
        }
        (None, None, Some(id)) => Ok(VolumeOrigin::Image(ImageId(id))),
        _ => Err(Refusal::bad("May specify only one of snapshot, imageRef or source volume")),
    }
}

async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    version: Microversion,
    Body(body): Body<Value>,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    let fields = input::fields("volume", body)?;
    let project = caller.project()?;
    if input::flag(&fields, "multiattach")? == Some(true) {
        return Err(Refusal::bad("multiattach: no volume here can be attached to several servers at once"));
    }
    let wish = {
        let view = state.ops.world().read();
        let volume_type = match input::text(&fields, &["volume_type"])?.filter(|text| !text.is_empty()) {
            None => None,
            Some(text) => {
                let kind = volume_types::named(&view, &text).filter(|kind| kind.open_to(project));
                Some(kind.ok_or_else(|| Refusal::not_found("volume type", text))?.id)
            }
        };
        VolumeWish {
            name: input::name(&fields)?.unwrap_or_default(),
            description: input::description(&fields)?,
            metadata: input::items("metadata", fields.get("metadata"))?,
            size_gib: input::size(&fields, "size")?,
            origin: origin(&view, &caller, &fields)?,
            volume_type,
            zone: input::text(&fields, &["availability_zone"])?.filter(|zone| !zone.is_empty()),
            host: None,
            group: None,
            user: Some(caller.user),
            movable: true,
        }
    };
    // cinder, without a size: that of the snapshot or the volume; an image does not say one.
    if wish.size_gib.is_none() && matches!(wish.origin, VolumeOrigin::Blank | VolumeOrigin::Image(_)) {
        return Err(Refusal::field("size", "Invalid volume size provided for create request: None"));
    }
    let id = state.ops.make_volume(project, &wish).await.map_err(said)?;
    let view = state.ops.world().read();
    let sight = Sight { view: &view, caller: &caller, base: &base, version };
    let row = volume(&view, &caller, &id.to_string())?;
    Ok((StatusCode::ACCEPTED, Json(json!({"volume": sight.volume(row)}))))
}

async fn update(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    version: Microversion,
    Path(id): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let (project, volume_id) = volume_id(&state, &caller, &id)?;
    let fields = input::fields("volume", body)?;
    let has = |names: &[&str]| names.iter().any(|name| fields.contains_key(*name));
    let mut changes = Vec::new();
    if has(&["name", "display_name"]) {
        changes.push(VolumeChange::Name(input::name(&fields)?.unwrap_or_default()));
    }
    if has(&["description", "display_description"]) {
        changes.push(VolumeChange::Description(input::description(&fields)?));
    }
    if has(&["metadata"]) {
        changes.push(VolumeChange::AllMetadata(input::items("metadata", fields.get("metadata"))?));
    }
    if changes.is_empty() {
        return Err(Refusal::bad("At least one of name, description and metadata is required"));
    }
    state.ops.change_volume(project, volume_id, &changes).await.map_err(said)?;
    let view = state.ops.world().read();
    let sight = Sight { view: &view, caller: &caller, base: &base, version };
    Ok(Json(json!({"volume": sight.volume(volume(&view, &caller, &id)?)})))
}

async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode, Refusal> {
    let (project, id) = volume_id(&state, &caller, &id)?;
    let cascade = query.flag("cascade")?.unwrap_or(false);
    if query.flag("force")?.unwrap_or(false) {
        if !caller.is_admin() {
            return Err(Refusal::forbidden("Policy doesn't allow volume:force_delete to be performed."));
        }
        state.ops.change_volume(project, id, &[VolumeChange::ForceDetach]).await.map_err(said)?;
    }
    state.ops.delete_volume(project, id, cascade).await.map_err(said)?;
    Ok(StatusCode::ACCEPTED)
}
