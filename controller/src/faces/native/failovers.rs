//! `/v1/failovers`: what became of hosts that were taken for dead.

use super::Native;
use super::answers::{Failure, ReadRefusals};
use super::extract::{Id, Params};
use amphi_api::failover::Failover;
use amphi_api::{FailoverId, HostId};
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
