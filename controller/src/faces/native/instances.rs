//! `/v1/instances`.

use super::Native;
use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::extract::{Body, Id, ListParams, Params};
use super::guard::Scope;
use crate::ops::VolumeFate;
use amphi_api::InstanceId;
use amphi_api::instance::{ConsoleLog, Instance, InstanceCreate};
use amphi_api::resize::InstanceResize;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

#[derive(Serialize, ToSchema)]
pub struct InstanceList {
    instances: Vec<Instance>,
}

/// List instances.
#[utoipa::path(get, path = "/instances", tag = "instances", params(ListParams),
    responses((status = 200, body = InstanceList), ReadRefusals))]
pub async fn list(
    State(native): State<Native>,
    Scope(scope): Scope,
    Params(params): Params<ListParams>,
) -> Result<Json<InstanceList>, Failure> {
    Ok(Json(InstanceList { instances: native.ops.instances(scope, &params.into())? }))
}

/// Order an instance. It is `building` until its body runs.
#[utoipa::path(post, path = "/instances", tag = "instances", request_body = InstanceCreate,
    responses((status = 202, body = Instance), WriteRefusals))]
pub async fn create(
    State(native): State<Native>,
    Scope(scope): Scope,
    Body(request): Body<InstanceCreate>,
) -> Result<(StatusCode, Json<Instance>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.create_instance(scope, &request).await?)))
}

/// Show an instance.
#[utoipa::path(get, path = "/instances/{id}", tag = "instances", params(("id" = Uuid, Path)),
    responses((status = 200, body = Instance), ReadRefusals))]
pub async fn show(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<InstanceId>,
) -> Result<Json<Instance>, Failure> {
    Ok(Json(native.ops.instance(scope, id)?))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteParams {
    /// `delete`: its volume goes to the recycle bin with it. Default: the volume stays.
    #[param(inline)]
    volume: Option<VolumeChoice>,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeChoice {
    Keep,
    Delete,
}

/// Delete an instance. It is `deleting` until its host says that nothing is left.
#[utoipa::path(delete, path = "/instances/{id}", tag = "instances", params(("id" = Uuid, Path), DeleteParams),
    responses((status = 202), WriteRefusals))]
pub async fn delete(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<InstanceId>,
    Params(params): Params<DeleteParams>,
) -> Result<StatusCode, Failure> {
    let fate = match params.volume {
        Some(VolumeChoice::Delete) => VolumeFate::Trash,
        Some(VolumeChoice::Keep) | None => VolumeFate::Keep,
    };
    native.ops.delete_instance(scope, id, fate).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Start the body.
#[utoipa::path(post, path = "/instances/{id}/start", tag = "instances", params(("id" = Uuid, Path)),
    responses((status = 202, body = Instance), WriteRefusals))]
pub async fn start(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<InstanceId>,
) -> Result<(StatusCode, Json<Instance>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.start_instance(scope, id).await?)))
}

/// Stop the body.
#[utoipa::path(post, path = "/instances/{id}/stop", tag = "instances", params(("id" = Uuid, Path)),
    responses((status = 202, body = Instance), WriteRefusals))]
pub async fn stop(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<InstanceId>,
) -> Result<(StatusCode, Json<Instance>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.stop_instance(scope, id).await?)))
}

/// Stop the body and start it again.
#[utoipa::path(post, path = "/instances/{id}/restart", tag = "instances", params(("id" = Uuid, Path)),
    responses((status = 202, body = Instance), WriteRefusals))]
pub async fn restart(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<InstanceId>,
) -> Result<(StatusCode, Json<Instance>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.restart_instance(scope, id).await?)))
}

/// Give the instance another size. What runs takes it on as it is: see `resizing` and `conditions`. Less than what is
/// used is refused with the figures.
#[utoipa::path(post, path = "/instances/{id}/resize", tag = "instances", params(("id" = Uuid, Path)),
    request_body = InstanceResize, responses((status = 202, body = Instance), WriteRefusals))]
pub async fn resize(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<InstanceId>,
    Body(request): Body<InstanceResize>,
) -> Result<(StatusCode, Json<Instance>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.resize_instance(scope, id, &request).await?)))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogParams {
    /// The last so many lines; 1 to 10,000. Default 1,000.
    #[param(minimum = 1, maximum = 10_000)]
    lines: Option<u32>,
    /// A set's member. Default: its first.
    member: Option<String>,
}

/// The last lines of a VM's console, or of a member's output.
#[utoipa::path(get, path = "/instances/{id}/console-log", tag = "instances",
    params(("id" = Uuid, Path), LogParams), responses((status = 200, body = ConsoleLog), ReadRefusals))]
pub async fn console_log(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<InstanceId>,
    Params(params): Params<LogParams>,
) -> Result<Json<ConsoleLog>, Failure> {
    let lines = params.lines.unwrap_or(1000);
    Ok(Json(native.ops.console_log(scope, id, params.member, lines).await?))
}
