//! `/v1/regions`, `/v1/replications`, `/v1/replication-policies`: other controllers, and which images go there.

use super::Native;
use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::extract::{Body, Id};
use amphi_api::ReplicationId;
use amphi_api::replication::{
    Region, RegionChange, RegionCreate, Replication, ReplicationCreate, ReplicationPolicy,
    ReplicationPolicySpec,
};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub struct RegionList {
    regions: Vec<Region>,
}

/// List the regions that are known: other controllers that images go to and come from.
#[utoipa::path(get, path = "/regions", tag = "regions", responses((status = 200, body = RegionList), ReadRefusals))]
pub async fn list(State(native): State<Native>) -> Json<RegionList> {
    Json(RegionList { regions: native.ops.peers() })
}

/// Make a region known. Its token is shown to nobody afterwards.
#[utoipa::path(post, path = "/regions", tag = "regions", request_body = RegionCreate,
    responses((status = 201, body = Region), WriteRefusals))]
pub async fn create(
    State(native): State<Native>,
    Body(request): Body<RegionCreate>,
) -> Result<(StatusCode, Json<Region>), Failure> {
    Ok((StatusCode::CREATED, Json(native.ops.create_peer(&request).await?)))
}

/// Show a region.
#[utoipa::path(get, path = "/regions/{name}", tag = "regions", params(("name" = String, Path)),
    responses((status = 200, body = Region), ReadRefusals))]
pub async fn show(State(native): State<Native>, Path(name): Path<String>) -> Result<Json<Region>, Failure> {
    Ok(Json(native.ops.peer_view(&name)?))
}

/// Change a region; what is not named stays.
#[utoipa::path(patch, path = "/regions/{name}", tag = "regions", params(("name" = String, Path)),
    request_body = RegionChange, responses((status = 200, body = Region), WriteRefusals))]
pub async fn change(
    State(native): State<Native>,
    Path(name): Path<String>,
    Body(request): Body<RegionChange>,
) -> Result<Json<Region>, Failure> {
    Ok(Json(native.ops.change_peer(&name, &request).await?))
}

/// Forget a region. What has gone there stays there.
#[utoipa::path(delete, path = "/regions/{name}", tag = "regions", params(("name" = String, Path)),
    responses((status = 204), WriteRefusals))]
pub async fn delete(State(native): State<Native>, Path(name): Path<String>) -> Result<StatusCode, Failure> {
    native.ops.delete_peer(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Serialize, ToSchema)]
pub struct ReplicationList {
    replications: Vec<Replication>,
}

/// List images that went to regions or came from them, or are on their way.
#[utoipa::path(get, path = "/replications", tag = "regions",
    responses((status = 200, body = ReplicationList), ReadRefusals))]
pub async fn replications(State(native): State<Native>) -> Json<ReplicationList> {
    Json(ReplicationList { replications: native.ops.replications() })
}

/// Have an image brought to a region, or fetched from one. Ordered again, it is tried at once.
#[utoipa::path(post, path = "/replications", tag = "regions", request_body = ReplicationCreate,
    responses((status = 202, body = Replication), WriteRefusals))]
pub async fn replicate(
    State(native): State<Native>,
    Body(request): Body<ReplicationCreate>,
) -> Result<(StatusCode, Json<Replication>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.regions.order(&request).await?)))
}

/// Show how far an image is.
#[utoipa::path(get, path = "/replications/{id}", tag = "regions", params(("id" = Uuid, Path)),
    responses((status = 200, body = Replication), ReadRefusals))]
pub async fn replication(
    State(native): State<Native>,
    Id(id): Id<ReplicationId>,
) -> Result<Json<Replication>, Failure> {
    Ok(Json(native.ops.replication(id)?))
}

/// Call it off, or forget it. One that a policy asks for comes back.
#[utoipa::path(delete, path = "/replications/{id}", tag = "regions", params(("id" = Uuid, Path)),
    responses((status = 204), WriteRefusals))]
pub async fn forget(State(native): State<Native>, Id(id): Id<ReplicationId>) -> Result<StatusCode, Failure> {
    native.ops.forget_replication(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Serialize, ToSchema)]
pub struct PolicyList {
    policies: Vec<ReplicationPolicy>,
}

/// List the policies by which images go to regions by themselves.
#[utoipa::path(get, path = "/replication-policies", tag = "regions",
    responses((status = 200, body = PolicyList), ReadRefusals))]
pub async fn policies(State(native): State<Native>) -> Json<PolicyList> {
    Json(PolicyList { policies: native.ops.replication_policies() })
}

/// Have images go to a region by themselves: those that are here and those that come.
#[utoipa::path(post, path = "/replication-policies", tag = "regions", request_body = ReplicationPolicySpec,
    responses((status = 201, body = ReplicationPolicy), WriteRefusals))]
pub async fn create_policy(
    State(native): State<Native>,
    Body(request): Body<ReplicationPolicySpec>,
) -> Result<(StatusCode, Json<ReplicationPolicy>), Failure> {
    Ok((StatusCode::CREATED, Json(native.ops.create_replication_policy(&request).await?)))
}

/// End a policy. What has gone by it stays where it is.
#[utoipa::path(delete, path = "/replication-policies/{name}", tag = "regions", params(("name" = String, Path)),
    responses((status = 204), WriteRefusals))]
pub async fn delete_policy(
    State(native): State<Native>,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    native.ops.delete_replication_policy(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
