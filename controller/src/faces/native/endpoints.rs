//! Where services answer, for load balancers and scrapers.

use super::Native;
use super::answers::{Failure, ReadRefusals};
use super::extract::{Id, Params};
use super::guard::Scope;
use crate::ops::EndpointQuery;
use amphi_api::group::{Endpoints, HttpSdGroup};
use amphi_api::{ErrorCode, InstanceId, ProjectId, ScalingGroupId};
use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use utoipa::{IntoParams, ToSchema};

/// The longest that an answer is held back, in seconds.
const WATCH_MAX: u32 = 60;
const WATCH: u32 = 30;

#[derive(Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// All endpoints, ready or not, with the version to watch.
    #[default]
    Json,
    /// Prometheus' HTTP service discovery: those that are ready.
    HttpSd,
    /// One `ADDRESS:PORT NAME` a line: those that are ready.
    Hosts,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum EndpointsAnswer {
    All(Endpoints),
    /// With `format=http_sd`.
    HttpSd(Vec<HttpSdGroup>),
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EndpointParams {
    #[param(inline)]
    format: Option<Form>,
    /// A version: the answer comes when the endpoints are others, or after `wait_s`.
    watch: Option<String>,
    /// 1 to 60 seconds. Default 30.
    #[param(minimum = 1, maximum = 60)]
    wait_s: Option<u32>,
    /// In the place of the group's ports.
    #[param(minimum = 1, maximum = 65535)]
    port: Option<u16>,
    /// Name or id of the network whose addresses are meant. Default: each instance's first.
    network: Option<String>,
    /// `KEY=VALUE` of the instances' metadata. Only of `/endpoints`, which wants it.
    label: Option<String>,
}

/// The endpoints of a group. `X-Amphi-Version` is what to watch.
#[utoipa::path(get, path = "/groups/{id}/endpoints", tag = "groups", params(("id" = Uuid, Path), EndpointParams),
    responses((status = 200, content((EndpointsAnswer = "application/json"), (String = "text/plain"))), ReadRefusals))]
pub async fn of_group(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<ScalingGroupId>,
    Params(params): Params<EndpointParams>,
) -> Result<Response, Failure> {
    answer(&native, scope, EndpointQuery::Group(id), params).await
}

/// The endpoints of one instance.
#[utoipa::path(get, path = "/instances/{id}/endpoints", tag = "instances", params(("id" = Uuid, Path), EndpointParams),
    responses((status = 200, content((EndpointsAnswer = "application/json"), (String = "text/plain"))), ReadRefusals))]
pub async fn of_instance(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<InstanceId>,
    Params(params): Params<EndpointParams>,
) -> Result<Response, Failure> {
    answer(&native, scope, EndpointQuery::Instance(id), params).await
}

/// The endpoints of all instances that carry a label.
#[utoipa::path(get, path = "/endpoints", tag = "instances", params(EndpointParams),
    responses((status = 200, content((EndpointsAnswer = "application/json"), (String = "text/plain"))), ReadRefusals))]
pub async fn of_label(
    State(native): State<Native>,
    Scope(scope): Scope,
    Params(params): Params<EndpointParams>,
) -> Result<Response, Failure> {
    let label = params.label.as_deref().and_then(|label| label.split_once('='));
    let (key, value) = label.filter(|(key, _)| !key.is_empty()).ok_or_else(|| {
        Failure::new(ErrorCode::InvalidField, "give the label of the instances: label=KEY=VALUE").at("label")
    })?;
    let of = EndpointQuery::Label(key.to_owned(), value.to_owned());
    answer(&native, scope, of, params).await
}

async fn answer(
    native: &Native,
    scope: ProjectId,
    of: EndpointQuery,
    params: EndpointParams,
) -> Result<Response, Failure> {
    let wrong = |field: &str, why: &str| Failure::new(ErrorCode::InvalidField, why).at(field);
    if params.label.is_some() && !matches!(of, EndpointQuery::Label(..)) {
        return Err(wrong("label", "only /endpoints takes it"));
    }
    let wait = params.wait_s.unwrap_or(WATCH);
    if wait == 0 || wait > WATCH_MAX {
        return Err(wrong("wait_s", "must be 1 to 60"));
    }
    if params.port == Some(0) {
        return Err(wrong("port", "must be 1 to 65535"));
    }
    let ports: Vec<u16> = params.port.into_iter().collect();
    let network = params.network.as_deref();
    let found = match &params.watch {
        Some(version) => {
            let patience = Duration::from_secs(wait.into());
            native.ops.follow_endpoints(scope, &of, (&ports, network), version, patience).await?
        }
        None => native.ops.endpoints(scope, &of, &ports, network)?,
    };
    let version = [("x-amphi-version", found.version.clone())];
    Ok(match params.format.unwrap_or_default() {
        Form::Json => (version, Json(EndpointsAnswer::All(found))).into_response(),
        Form::HttpSd => (version, Json(EndpointsAnswer::HttpSd(found.http_sd()))).into_response(),
        Form::Hosts => {
            (version, [(CONTENT_TYPE, "text/plain; charset=utf-8")], found.lines()).into_response()
        }
    })
}
