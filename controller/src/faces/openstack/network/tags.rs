//! `/v2.0/RESOURCE/{id}/tags`, the same for every resource.

use super::sight::{Seen, find, own, reach, told};
use crate::faces::openstack::OpenStack;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::body::Body;
use crate::faces::openstack::routes::{Need, Routes};
use crate::model::network::*;
use crate::ops::identity::Caller;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Longest tag, in characters, and most tags of a thing: neutron's bounds.
const TAG_MAX: usize = 255;
const TAGS_MAX: usize = 50;

macro_rules! tagged {
    ($routes:expr, $($path:literal $record:ty),*) => { $routes $(
        .get(concat!("/v2.0/", $path, "/{id}/tags"), Need::Reader, list::<$record>)
        .put(concat!("/v2.0/", $path, "/{id}/tags"), Need::Member, replace::<$record>)
        .post(concat!("/v2.0/", $path, "/{id}/tags"), Need::Member, extend::<$record>)
        .delete(concat!("/v2.0/", $path, "/{id}/tags"), Need::Member, clear::<$record>)
        .get(concat!("/v2.0/", $path, "/{id}/tags/{tag}"), Need::Reader, has::<$record>)
        .put(concat!("/v2.0/", $path, "/{id}/tags/{tag}"), Need::Member, add_one::<$record>)
        .delete(concat!("/v2.0/", $path, "/{id}/tags/{tag}"), Need::Member, remove::<$record>)
    )* };
}

/// The routes of all resources that have tags.
pub fn add(routes: Routes) -> Routes {
    tagged!(
        routes,
        "networks" NetworkRecord,
        "subnets" SubnetRecord,
        "ports" PortRecord,
        "routers" RouterRecord,
        "floatingips" FloatingIpRecord,
        "security-groups" SecurityGroupRecord
    )
}

fn check(tag: &str) -> Result<(), Refusal> {
    let length = tag.chars().count();
    if length == 0 || length > TAG_MAX || tag.chars().any(char::is_control) {
        return Err(
            Refusal::bad(format!("'{tag}' is no tag: 1 to {TAG_MAX} characters")).kind("InvalidInput")
        );
    }
    Ok(())
}

fn read(sent: Value) -> Result<BTreeSet<String>, Refusal> {
    let list = sent.get("tags").and_then(Value::as_array);
    let list = list.ok_or_else(|| Refusal::bad("Invalid input: 'tags' is required").kind("InvalidInput"))?;
    if list.len() > TAGS_MAX {
        return Err(Refusal::bad(format!("At most {TAGS_MAX} tags")).kind("InvalidInput"));
    }
    let mut tags = BTreeSet::new();
    for tag in list {
        let tag = tag.as_str().ok_or_else(|| Refusal::bad("A tag is a string").kind("InvalidInput"))?;
        check(tag)?;
        tags.insert(tag.to_owned());
    }
    Ok(tags)
}

async fn change<R: Seen + Noted>(
    state: &OpenStack,
    caller: &Caller,
    id: &str,
    edit: impl Fn(&mut BTreeSet<String>) -> bool,
) -> Result<(), Refusal> {
    let id = own::<R>(&state.ops.world().read(), caller, id)?;
    let done = state.ops.edit_tags(reach(caller)?, R::table, id, edit).await.map_err(told::<R>)?;
    if done { Ok(()) } else { Err(Refusal::not_found("tag", "that is asked for").kind("TagNotFound")) }
}

async fn list<R: Seen + Noted>(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    Ok(Json(json!({"tags": find::<R>(&view, &caller, &id)?.notes().tags})))
}

async fn replace<R: Seen + Noted>(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    Body(sent): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let tags = read(sent)?;
    change::<R>(&state, &caller, &id, |present| {
        present.clone_from(&tags);
        true
    })
    .await?;
    Ok(Json(json!({ "tags": tags })))
}

async fn extend<R: Seen + Noted>(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    Body(sent): Body<Value>,
) -> Result<StatusCode, Refusal> {
    let tags = read(sent)?;
    change::<R>(&state, &caller, &id, |present| {
        present.extend(tags.iter().cloned());
        true
    })
    .await?;
    Ok(StatusCode::CREATED)
}

async fn clear<R: Seen + Noted>(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    change::<R>(&state, &caller, &id, |present| {
        present.clear();
        true
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn has<R: Seen + Noted>(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, tag)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let view = state.ops.world().read();
    if find::<R>(&view, &caller, &id)?.notes().tags.contains(&tag) {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Refusal::not_found("tag", tag).kind("TagNotFound"))
}

async fn add_one<R: Seen + Noted>(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, tag)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    check(&tag)?;
    change::<R>(&state, &caller, &id, |present| {
        present.insert(tag.clone());
        true
    })
    .await?;
    Ok(StatusCode::CREATED)
}

async fn remove<R: Seen + Noted>(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, tag)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    change::<R>(&state, &caller, &id, |present| present.remove(&tag)).await?;
    Ok(StatusCode::NO_CONTENT)
}
