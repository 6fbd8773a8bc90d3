//! `/v1/hosts`, `/v1/join-tokens`.

use super::Native;
use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::extract::{Body, Id, Params};
use crate::ops::aggregates::HostMark;
use amphi_api::HostId;
use amphi_api::host::{Evacuation, Host, HostChange, JoinToken, JoinTokenCreate, MaintenanceCreate};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

#[derive(Serialize, ToSchema)]
pub struct HostList {
    hosts: Vec<Host>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct HostParams {
    /// Exactly this name.
    name: Option<String>,
}

/// List hosts.
#[utoipa::path(get, path = "/hosts", tag = "hosts", params(HostParams),
    responses((status = 200, body = HostList), ReadRefusals))]
pub async fn list(
    State(native): State<Native>,
    Params(params): Params<HostParams>,
) -> Result<Json<HostList>, Failure> {
    Ok(Json(HostList { hosts: native.ops.hosts(params.name.as_deref()) }))
}

/// Show a host.
#[utoipa::path(get, path = "/hosts/{id}", tag = "hosts", params(("id" = Uuid, Path)),
    responses((status = 200, body = Host), ReadRefusals))]
pub async fn show(State(native): State<Native>, Id(id): Id<HostId>) -> Result<Json<Host>, Failure> {
    Ok(Json(native.ops.host(id)?))
}

/// Change what an operator says of a host.
#[utoipa::path(patch, path = "/hosts/{id}", tag = "hosts", params(("id" = Uuid, Path)), request_body = HostChange,
    responses((status = 200, body = Host), WriteRefusals))]
pub async fn change(
    State(native): State<Native>,
    Id(id): Id<HostId>,
    Body(change): Body<HostChange>,
) -> Result<Json<Host>, Failure> {
    let mark = HostMark { best_effort: change.best_effort, ..HostMark::default() };
    native.ops.mark_host(id, &mark).await?;
    Ok(Json(native.ops.host(id)?))
}

/// Forget a host that is not connected and holds nothing.
#[utoipa::path(delete, path = "/hosts/{id}", tag = "hosts", params(("id" = Uuid, Path)),
    responses((status = 204), WriteRefusals))]
pub async fn delete(State(native): State<Native>, Id(id): Id<HostId>) -> Result<StatusCode, Failure> {
    native.ops.delete_host(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Bring up a dead host's instances on other hosts. Refused while the host is connected.
#[utoipa::path(post, path = "/hosts/{id}/evacuate", tag = "hosts", params(("id" = Uuid, Path)),
    responses((status = 200, body = Evacuation), WriteRefusals))]
pub async fn evacuate(State(native): State<Native>, Id(id): Id<HostId>) -> Result<Json<Evacuation>, Failure> {
    Ok(Json(native.ops.evacuate(id).await?))
}

/// Empty a host: it takes nothing new, and its instances move elsewhere, so many at a time.
#[utoipa::path(post, path = "/hosts/{id}/maintenance", tag = "hosts", params(("id" = Uuid, Path)), request_body = MaintenanceCreate,
    responses((status = 202, body = Host), WriteRefusals))]
pub async fn begin_maintenance(
    State(native): State<Native>,
    Id(id): Id<HostId>,
    Body(request): Body<MaintenanceCreate>,
) -> Result<(StatusCode, Json<Host>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.begin_maintenance(id, &request).await?)))
}

/// End a host's maintenance. Moves that have not begun to leave are called off.
#[utoipa::path(delete, path = "/hosts/{id}/maintenance", tag = "hosts", params(("id" = Uuid, Path)),
    responses((status = 204), WriteRefusals))]
pub async fn end_maintenance(
    State(native): State<Native>,
    Id(id): Id<HostId>,
) -> Result<StatusCode, Failure> {
    native.ops.end_maintenance(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Permit a host to join, once.
#[utoipa::path(post, path = "/join-tokens", tag = "hosts", request_body = JoinTokenCreate,
    responses((status = 201, body = JoinToken), WriteRefusals))]
pub async fn create_join_token(
    State(native): State<Native>,
    Body(request): Body<JoinTokenCreate>,
) -> Result<(StatusCode, Json<JoinToken>), Failure> {
    Ok((StatusCode::CREATED, Json(native.ops.create_join_token(&request).await?)))
}
