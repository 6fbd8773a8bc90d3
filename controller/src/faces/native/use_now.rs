//! `/v1/use`: what a project's bodies use now.

use super::Native;
use super::answers::{Failure, ReadRefusals};
use super::extract::Params;
use super::guard::Scope;
use crate::ops::UseQuery;
use amphi_api::InstanceId;
use amphi_api::looking::Usage;
use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UseParams {
    /// Only this instance.
    #[param(value_type = Option<uuid::Uuid>)]
    instance: Option<InstanceId>,
    /// Only what is on this host, by name or id.
    host: Option<String>,
}

/// What members of sets and VMs use now, as their hosts' agents read it. Counters only grow: two answers make a rate.
#[utoipa::path(get, path = "/use", tag = "instances", params(UseParams),
    responses((status = 200, body = Usage), ReadRefusals))]
pub async fn show(
    State(native): State<Native>,
    Scope(scope): Scope,
    Params(params): Params<UseParams>,
) -> Result<Json<Usage>, Failure> {
    let UseParams { instance, host } = params;
    Ok(Json(native.ops.use_now(scope, &UseQuery { instance, host }).await?))
}
