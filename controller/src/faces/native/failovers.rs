//! `/v1/failovers`: what became of hosts that were taken for dead; and what an instance says of that beforehand.

use super::Native;
use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::extract::{Body, Id, Params};
use super::guard::Scope;
use amphi_api::failover::{Failover, FailoverChange};
use amphi_api::instance::Instance;
use amphi_api::{FailoverId, HostId, InstanceId};
use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

#[derive(Serialize, ToSchema)]
pub struct FailoverList {
    failovers: Vec<Failover>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FailoverParams {
    /// Only those of this host.
    #[param(value_type = Option<uuid::Uuid>)]
    host: Option<HostId>,
}

/// List failovers, the newest first.
#[utoipa::path(get, path = "/failovers", tag = "failovers", params(FailoverParams),
    responses((status = 200, body = FailoverList), ReadRefusals))]
pub async fn list(
    State(native): State<Native>,
    Params(params): Params<FailoverParams>,
) -> Result<Json<FailoverList>, Failure> {
    Ok(Json(FailoverList { failovers: native.ops.failovers(params.host) }))
}

/// Show a failover.
#[utoipa::path(get, path = "/failovers/{id}", tag = "failovers", params(("id" = Uuid, Path)),
    responses((status = 200, body = Failover), ReadRefusals))]
pub async fn show(State(native): State<Native>, Id(id): Id<FailoverId>) -> Result<Json<Failover>, Failure> {
    Ok(Json(native.ops.failover(id)?))
}

/// Change what may happen to an instance when its host is lost. All of it: what is not named is the default.
#[utoipa::path(put, path = "/instances/{id}/failover", tag = "instances", params(("id" = Uuid, Path)),
    request_body = FailoverChange, responses((status = 200, body = Instance), WriteRefusals))]
pub async fn change(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<InstanceId>,
    Body(change): Body<FailoverChange>,
) -> Result<Json<Instance>, Failure> {
    Ok(Json(native.ops.change_failover(scope, id, &change).await?))
}
