//! `/v1/instances/ID/rollout` and `/revisions`: a set's description, changed while it runs.

use super::Native;
use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::extract::{self, Body, Id};
use super::guard::Scope;
use crate::ops::identity::Caller;
use crate::ops::servers::Origin;
use amphi_api::InstanceId;
use amphi_api::instance::Instance;
use amphi_api::rollout::{Revision, Rollout, RolloutUndo, SetUpdate};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub struct RevisionList {
    revisions: Vec<Revision>,
}

fn origin(caller: &Caller) -> Result<Origin, Failure> {
    let own = Origin::native(caller.project()?);
    Ok(Origin { user: Some(caller.user), admin: caller.is_admin(), ..own })
}

/// Change a set's description: members whose containers differ are replaced, one after another, and the former ones come
/// back when one of them fails.
#[utoipa::path(post, path = "/instances/{id}/rollout", tag = "instances", params(("id" = Uuid, Path)), request_body = SetUpdate,
    responses((status = 202, body = Rollout), WriteRefusals))]
pub async fn update(
    State(native): State<Native>,
    Extension(caller): Extension<Caller>,
    Id(id): Id<InstanceId>,
    Body(request): Body<SetUpdate>,
) -> Result<(StatusCode, Json<Rollout>), Failure> {
    let rollout = native.ops.update_set(&origin(&caller)?, id, &request).await?;
    Ok((StatusCode::ACCEPTED, Json(rollout)))
}

/// How far the update of a set is, or how the last one ended.
#[utoipa::path(get, path = "/instances/{id}/rollout", tag = "instances", params(("id" = Uuid, Path)),
    responses((status = 200, body = Rollout), ReadRefusals))]
pub async fn show(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<InstanceId>,
) -> Result<Json<Rollout>, Failure> {
    Ok(Json(native.ops.rollout(scope, id)?))
}

/// Begin no further member.
#[utoipa::path(post, path = "/instances/{id}/rollout/pause", tag = "instances", params(("id" = Uuid, Path)),
    responses((status = 202, body = Rollout), WriteRefusals))]
pub async fn pause(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<InstanceId>,
) -> Result<(StatusCode, Json<Rollout>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.pause_rollout(scope, id, true).await?)))
}

/// Go on with an update that is paused.
#[utoipa::path(post, path = "/instances/{id}/rollout/resume", tag = "instances", params(("id" = Uuid, Path)),
    responses((status = 202, body = Rollout), WriteRefusals))]
pub async fn resume(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<InstanceId>,
) -> Result<(StatusCode, Json<Rollout>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.pause_rollout(scope, id, false).await?)))
}

/// Roll back the update under way, or go back to an earlier description.
#[utoipa::path(post, path = "/instances/{id}/rollout/undo", tag = "instances", params(("id" = Uuid, Path)), request_body = RolloutUndo,
    responses((status = 202, body = Rollout), WriteRefusals))]
pub async fn undo(
    State(native): State<Native>,
    Extension(caller): Extension<Caller>,
    Id(id): Id<InstanceId>,
    Body(request): Body<RolloutUndo>,
) -> Result<(StatusCode, Json<Rollout>), Failure> {
    let rollout = native.ops.undo_rollout(&origin(&caller)?, id, request).await?;
    Ok((StatusCode::ACCEPTED, Json(rollout)))
}

/// The descriptions that a set had, the newest first.
#[utoipa::path(get, path = "/instances/{id}/revisions", tag = "instances", params(("id" = Uuid, Path)),
    responses((status = 200, body = RevisionList), ReadRefusals))]
pub async fn revisions(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<InstanceId>,
) -> Result<Json<RevisionList>, Failure> {
    Ok(Json(RevisionList { revisions: native.ops.revisions(scope, id)? }))
}

/// One of them, with the description.
#[utoipa::path(get, path = "/instances/{id}/revisions/{number}", tag = "instances",
    params(("id" = Uuid, Path), ("number" = u64, Path)),
    responses((status = 200, body = Revision), ReadRefusals))]
pub async fn revision(
    State(native): State<Native>,
    Scope(scope): Scope,
    Path((id, number)): Path<(String, String)>,
) -> Result<Json<Revision>, Failure> {
    Ok(Json(native.ops.revision(scope, extract::id(id)?, extract::id(number)?)?))
}

/// End one member of a set and start it again.
#[utoipa::path(post, path = "/instances/{id}/members/{member}/restart", tag = "instances",
    params(("id" = Uuid, Path), ("member" = String, Path)),
    responses((status = 202, body = Instance), WriteRefusals))]
pub async fn restart_member(
    State(native): State<Native>,
    Scope(scope): Scope,
    Path((id, member)): Path<(String, String)>,
) -> Result<(StatusCode, Json<Instance>), Failure> {
    let instance = native.ops.restart_member(scope, extract::id(id)?, &member).await?;
    Ok((StatusCode::ACCEPTED, Json(instance)))
}
