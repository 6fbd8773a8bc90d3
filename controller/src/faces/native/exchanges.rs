//! `/v1/exchanges`, and those of an instance.

use super::Native;
use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::extract::{Body, Id, ListParams, Params};
use super::guard::Scope;
use amphi_api::instance::{Exchange, ExchangeCreate, MoveCreate};
use amphi_api::{ExchangeId, InstanceId};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub struct ExchangeList {
    exchanges: Vec<Exchange>,
}

/// List exchanges.
#[utoipa::path(get, path = "/exchanges", tag = "exchanges", params(ListParams),
    responses((status = 200, body = ExchangeList), ReadRefusals))]
pub async fn list(
    State(native): State<Native>,
    Scope(scope): Scope,
    Params(params): Params<ListParams>,
) -> Result<Json<ExchangeList>, Failure> {
    Ok(Json(ExchangeList { exchanges: native.ops.exchanges(scope, None, &params.into())? }))
}

/// Show an exchange.
#[utoipa::path(get, path = "/exchanges/{id}", tag = "exchanges", params(("id" = Uuid, Path)),
    responses((status = 200, body = Exchange), ReadRefusals))]
pub async fn show(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<ExchangeId>,
) -> Result<Json<Exchange>, Failure> {
    Ok(Json(native.ops.exchange(scope, id)?))
}

/// List the exchanges of an instance.
#[utoipa::path(get, path = "/instances/{id}/exchanges", tag = "exchanges", params(("id" = Uuid, Path), ListParams),
    responses((status = 200, body = ExchangeList), ReadRefusals))]
pub async fn list_of_instance(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<InstanceId>,
    Params(params): Params<ListParams>,
) -> Result<Json<ExchangeList>, Failure> {
    Ok(Json(ExchangeList { exchanges: native.ops.exchanges(scope, Some(id), &params.into())? }))
}

/// Give the instance its other kind of body.
#[utoipa::path(post, path = "/instances/{id}/exchanges", tag = "exchanges", params(("id" = Uuid, Path)), request_body = ExchangeCreate,
    responses((status = 202, body = Exchange), WriteRefusals))]
pub async fn create(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<InstanceId>,
    Body(request): Body<ExchangeCreate>,
) -> Result<(StatusCode, Json<Exchange>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.create_exchange(scope, id, &request).await?)))
}

/// Call an exchange or a move off: it ends as failed, with the old body where it was.
#[utoipa::path(post, path = "/exchanges/{id}/cancel", tag = "exchanges", params(("id" = Uuid, Path)),
    responses((status = 202, body = Exchange), WriteRefusals))]
pub async fn cancel(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<ExchangeId>,
) -> Result<(StatusCode, Json<Exchange>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.cancel_exchange(scope, id).await?)))
}

/// Move the instance to another host, as either kind of body.
#[utoipa::path(post, path = "/instances/{id}/moves", tag = "exchanges", params(("id" = Uuid, Path)), request_body = MoveCreate,
    responses((status = 202, body = Exchange), WriteRefusals))]
pub async fn create_move(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<InstanceId>,
    Body(request): Body<MoveCreate>,
) -> Result<(StatusCode, Json<Exchange>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.create_move(scope, id, &request).await?)))
}
