//! `/v1/instances/{id}/debug`: a set to be looked into, beside the instance or instead of its members.

use super::Native;
use super::answers::{Failure, WriteRefusals};
use super::extract::{Body, Id};
use super::guard::Scope;
use crate::ops::servers::Origin;
use amphi_api::InstanceId;
use amphi_api::instance::Instance;
use amphi_api::looking::{DebugCreate, Debugging};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

/// Order a debug twin: the set without probes and hooks, one member's command another.
///
/// Beside the instance, with an address and an empty volume of its own; or instead of its members, which wait and come back
/// when it is ended.
#[utoipa::path(post, path = "/instances/{id}/debug", tag = "instances", params(("id" = Uuid, Path)),
    request_body = DebugCreate, responses((status = 202, body = Debugging), WriteRefusals))]
pub async fn create(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<InstanceId>,
    Body(request): Body<DebugCreate>,
) -> Result<(StatusCode, Json<Debugging>), Failure> {
    let made = native.ops.debug_instance(&Origin::native(scope), id, &request).await?;
    Ok((StatusCode::ACCEPTED, Json(made)))
}

/// Give an instance its own members back.
#[utoipa::path(delete, path = "/instances/{id}/debug", tag = "instances", params(("id" = Uuid, Path)),
    responses((status = 202, body = Instance), WriteRefusals))]
pub async fn end(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<InstanceId>,
) -> Result<(StatusCode, Json<Instance>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.end_debug(&Origin::native(scope), id).await?)))
}
