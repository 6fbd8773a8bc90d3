//! `/v1/placements`: what placement thinks of every host.

use super::Native;
use super::answers::{Failure, WriteRefusals};
use super::extract::Body;
use super::guard::Scope;
use amphi_api::placement::{PlacementAsk, PlacementExplained, RebalanceAsk, RebalancePlan};
use axum::Json;
use axum::extract::State;

/// Plan moves that level the hosts' load. Nothing moves by this: order each as a move.
#[utoipa::path(post, path = "/placements/rebalance", tag = "placements", request_body = RebalanceAsk,
    responses((status = 200, body = RebalancePlan), WriteRefusals))]
pub async fn rebalance(
    State(native): State<Native>,
    Body(ask): Body<RebalanceAsk>,
) -> Result<Json<RebalancePlan>, Failure> {
    Ok(Json(native.ops.plan_rebalance(ask.most)?))
}

/// Say for every host why it is chosen or not. Nothing is claimed.
#[utoipa::path(post, path = "/placements/explain", tag = "placements", request_body = PlacementAsk,
    responses((status = 200, body = PlacementExplained), WriteRefusals))]
pub async fn explain(
    State(native): State<Native>,
    Scope(scope): Scope,
    Body(ask): Body<PlacementAsk>,
) -> Result<Json<PlacementExplained>, Failure> {
    Ok(Json(native.ops.explain_placement(scope, &ask)?))
}
