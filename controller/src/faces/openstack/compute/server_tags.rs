//! `/servers/{id}/tags`, from 2.26 on.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::gate::{Base, RequestId};
use super::super::microversion::Microversion;
use super::super::routes::{Need, Routes};
use super::server_create as fields;
use super::servers::{found, origin_of};
use crate::ops::identity::Caller;
use crate::ops::servers::TagEdit;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .get("/v2.1/servers/{id}/tags", Need::Reader, list)
        .put("/v2.1/servers/{id}/tags", Need::Member, replace)
        .delete("/v2.1/servers/{id}/tags", Need::Member, clear)
        .get("/v2.1/servers/{id}/tags/{tag}", Need::Reader, check)
        .put("/v2.1/servers/{id}/tags/{tag}", Need::Member, add)
        .delete("/v2.1/servers/{id}/tags/{tag}", Need::Member, delete)
}

/// Before 2.26 there is nothing here.
fn since(version: Microversion) -> Result<(), Refusal> {
    let absent = || Refusal::new(StatusCode::NOT_FOUND, "The resource could not be found.");
    if version.from(26) { Ok(()) } else { Err(absent()) }
}

async fn list(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    since(version)?;
    let view = state.ops.world().read();
    Ok(Json(json!({"tags": found(&view, &caller, &id)?.server.tags})))
}

async fn edit(
    state: &OpenStack,
    caller: &Caller,
    request: &RequestId,
    id: &str,
    edit: TagEdit,
) -> Result<(), Refusal> {
    let (origin, instance) = origin_of(state, caller, request, id)?;
    Ok(state.ops.edit_server_tags(&origin, instance, &edit).await?)
}

async fn replace(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    request: RequestId,
    Path(id): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    since(version)?;
    let Value::Object(outer) = body else { return Err(Refusal::bad("Invalid input: 'tags' is required")) };
    let tags =
        outer.get("tags").ok_or_else(|| Refusal::bad("Invalid input: 'tags' is a required property"))?;
    let tags = fields::tags(Some(tags))?;
    edit(&state, &caller, &request, &id, TagEdit::Replace(tags.clone())).await?;
    Ok(Json(json!({"tags": tags})))
}

async fn clear(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    request: RequestId,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    since(version)?;
    edit(&state, &caller, &request, &id, TagEdit::Clear).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn check(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    Path((id, tag)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    since(version)?;
    let view = state.ops.world().read();
    let there = found(&view, &caller, &id)?.server.tags.contains(&tag);
    let absent = || Refusal::new(StatusCode::NOT_FOUND, format!("Server {id} has no tag '{tag}'"));
    if there { Ok(StatusCode::NO_CONTENT) } else { Err(absent()) }
}

async fn add(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    base: Base,
    request: RequestId,
    Path((id, tag)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    since(version)?;
    fields::check_tag(&tag)?;
    let had = found(&state.ops.world().read(), &caller, &id)?.server.tags.contains(&tag);
    edit(&state, &caller, &request, &id, TagEdit::Add(tag.clone())).await?;
    if had {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let path = format!("/compute/v2.1/servers/{id}/tags/{}", super::escaped(&tag));
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("{}{path}", base.0))]).into_response())
}

async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    request: RequestId,
    Path((id, tag)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    since(version)?;
    edit(&state, &caller, &request, &id, TagEdit::Delete(tag)).await?;
    Ok(StatusCode::NO_CONTENT)
}
