//! `/v1/networks`, `/v1/ports`.

use super::Native;
use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::extract::{Body, Id, ListParams, Params};
use super::guard::Scope;
use amphi_api::network::{Network, NetworkCreate, Port};
use amphi_api::{NetworkId, PortId};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub struct NetworkList {
    networks: Vec<Network>,
}

/// List networks.
#[utoipa::path(get, path = "/networks", tag = "networks", params(ListParams),
    responses((status = 200, body = NetworkList), ReadRefusals))]
pub async fn list(
    State(native): State<Native>,
    Scope(scope): Scope,
    Params(params): Params<ListParams>,
) -> Result<Json<NetworkList>, Failure> {
    Ok(Json(NetworkList { networks: native.ops.networks(scope, &params.into())? }))
}

/// Make a network.
#[utoipa::path(post, path = "/networks", tag = "networks", request_body = NetworkCreate,
    responses((status = 201, body = Network), WriteRefusals))]
pub async fn create(
    State(native): State<Native>,
    Scope(scope): Scope,
    Body(request): Body<NetworkCreate>,
) -> Result<(StatusCode, Json<Network>), Failure> {
    Ok((StatusCode::CREATED, Json(native.ops.create_network(scope, &request).await?)))
}

/// Show a network.
#[utoipa::path(get, path = "/networks/{id}", tag = "networks", params(("id" = Uuid, Path)),
    responses((status = 200, body = Network), ReadRefusals))]
pub async fn show(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<NetworkId>,
) -> Result<Json<Network>, Failure> {
    Ok(Json(native.ops.network(scope, id)?))
}

/// Delete a network without ports.
#[utoipa::path(delete, path = "/networks/{id}", tag = "networks", params(("id" = Uuid, Path)),
    responses((status = 204), WriteRefusals))]
pub async fn delete(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<NetworkId>,
) -> Result<StatusCode, Failure> {
    native.ops.delete_network(scope, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Serialize, ToSchema)]
pub struct PortList {
    ports: Vec<Port>,
}

/// List ports.
#[utoipa::path(get, path = "/ports", tag = "ports", params(ListParams),
    responses((status = 200, body = PortList), ReadRefusals))]
pub async fn list_ports(
    State(native): State<Native>,
    Scope(scope): Scope,
    Params(params): Params<ListParams>,
) -> Result<Json<PortList>, Failure> {
    Ok(Json(PortList { ports: native.ops.ports(scope, None, &params.into())? }))
}

/// Show a port.
#[utoipa::path(get, path = "/ports/{id}", tag = "ports", params(("id" = Uuid, Path)),
    responses((status = 200, body = Port), ReadRefusals))]
pub async fn show_port(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<PortId>,
) -> Result<Json<Port>, Failure> {
    Ok(Json(native.ops.port(scope, id)?))
}
