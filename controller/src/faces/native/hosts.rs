//! `/v1/hosts`, `/v1/join-tokens`.

use super::Native;
use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::extract::{Body, Id, Params};
use amphi_api::HostId;
use amphi_api::host::{Evacuation, Host, JoinToken, JoinTokenCreate};
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

/// Permit a host to join, once.
#[utoipa::path(post, path = "/join-tokens", tag = "hosts", request_body = JoinTokenCreate,
    responses((status = 201, body = JoinToken), WriteRefusals))]
pub async fn create_join_token(
    State(native): State<Native>,
    Body(request): Body<JoinTokenCreate>,
) -> Result<(StatusCode, Json<JoinToken>), Failure> {
    Ok((StatusCode::CREATED, Json(native.ops.create_join_token(&request).await?)))
}
