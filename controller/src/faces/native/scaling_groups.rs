//! `/v1/groups`: so many instances of one template.

use super::Native;
use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::extract::{Body, Id, ListParams, Params};
use super::guard::Scope;
use amphi_api::ScalingGroupId;
use amphi_api::group::{
    Group, GroupChange, GroupCreate, GroupScale, GroupUpdate, MetricPost, RolloutOrder, ScalingExplained,
};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub struct GroupList {
    groups: Vec<Group>,
}

/// List groups.
#[utoipa::path(get, path = "/groups", tag = "groups", params(ListParams),
    responses((status = 200, body = GroupList), ReadRefusals))]
pub async fn list(
    State(native): State<Native>,
    Scope(scope): Scope,
    Params(params): Params<ListParams>,
) -> Result<Json<GroupList>, Failure> {
    Ok(Json(GroupList { groups: native.ops.scaling_groups(scope, &params.into())? }))
}

/// Make a group. Its instances are made one after the other; `trouble` says what keeps them from it.
#[utoipa::path(post, path = "/groups", tag = "groups", request_body = GroupCreate,
    responses((status = 202, body = Group), WriteRefusals))]
pub async fn create(
    State(native): State<Native>,
    Scope(scope): Scope,
    Body(request): Body<GroupCreate>,
) -> Result<(StatusCode, Json<Group>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.create_scaling_group(scope, &request).await?)))
}

/// Show a group with its members.
#[utoipa::path(get, path = "/groups/{id}", tag = "groups", params(("id" = Uuid, Path)),
    responses((status = 200, body = Group), ReadRefusals))]
pub async fn show(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<ScalingGroupId>,
) -> Result<Json<Group>, Failure> {
    Ok(Json(native.ops.scaling_group(scope, id)?))
}

/// Change a group's policies.
#[utoipa::path(patch, path = "/groups/{id}", tag = "groups", params(("id" = Uuid, Path)), request_body = GroupChange,
    responses((status = 200, body = Group), WriteRefusals))]
pub async fn change(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<ScalingGroupId>,
    Body(change): Body<GroupChange>,
) -> Result<Json<Group>, Failure> {
    Ok(Json(native.ops.change_scaling_group(scope, id, &change).await?))
}

/// Delete a group: its instances first, their volumes to the recycle bin. It is `deleting` until nothing is left.
#[utoipa::path(delete, path = "/groups/{id}", tag = "groups", params(("id" = Uuid, Path)),
    responses((status = 202), WriteRefusals))]
pub async fn delete(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<ScalingGroupId>,
) -> Result<StatusCode, Failure> {
    native.ops.delete_scaling_group(scope, id).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Have another number of instances.
#[utoipa::path(post, path = "/groups/{id}/scale", tag = "groups", params(("id" = Uuid, Path)),
    request_body = GroupScale, responses((status = 202, body = Group), WriteRefusals))]
pub async fn scale(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<ScalingGroupId>,
    Body(order): Body<GroupScale>,
) -> Result<(StatusCode, Json<Group>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.scale_group(scope, id, &order).await?)))
}

/// Say how many the group's policy would have now, and why. Nothing is done.
#[utoipa::path(get, path = "/groups/{id}/scale", tag = "groups", params(("id" = Uuid, Path)),
    responses((status = 200, body = ScalingExplained), ReadRefusals))]
pub async fn explain(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<ScalingGroupId>,
) -> Result<Json<ScalingExplained>, Failure> {
    Ok(Json(native.ops.explain_scaling(scope, id)?))
}

/// Exchange members for those of another template, all or a share.
#[utoipa::path(post, path = "/groups/{id}/update", tag = "groups", params(("id" = Uuid, Path)),
    request_body = GroupUpdate, responses((status = 202, body = Group), WriteRefusals))]
pub async fn update(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<ScalingGroupId>,
    Body(order): Body<GroupUpdate>,
) -> Result<(StatusCode, Json<Group>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.roll_out_group(scope, id, &order).await?)))
}

/// Pause an update, go on with it, have it for more members, or go back to the revision before.
#[utoipa::path(post, path = "/groups/{id}/rollout", tag = "groups", params(("id" = Uuid, Path)),
    request_body = RolloutOrder, responses((status = 202, body = Group), WriteRefusals))]
pub async fn order_rollout(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<ScalingGroupId>,
    Body(order): Body<RolloutOrder>,
) -> Result<(StatusCode, Json<Group>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.order_rollout(scope, id, &order).await?)))
}

/// Tell the group a number by which it may scale. Kept in memory until the next one comes.
#[utoipa::path(post, path = "/groups/{id}/metrics", tag = "groups", params(("id" = Uuid, Path)),
    request_body = MetricPost, responses((status = 204), WriteRefusals))]
pub async fn post_metric(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<ScalingGroupId>,
    Body(post): Body<MetricPost>,
) -> Result<StatusCode, Failure> {
    native.ops.post_metric(scope, id, &post)?;
    Ok(StatusCode::NO_CONTENT)
}
