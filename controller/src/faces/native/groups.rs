//! `/v1/security-groups` and their rules.

use super::Native;
use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::extract::{Body, Id, ListParams, Params, id};
use super::guard::Scope;
use amphi_api::SecurityGroupId;
use amphi_api::network::{Rule, RuleSpec, SecurityGroup, SecurityGroupCreate};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub struct SecurityGroupList {
    security_groups: Vec<SecurityGroup>,
}

/// List security groups.
#[utoipa::path(get, path = "/security-groups", tag = "security-groups", params(ListParams),
    responses((status = 200, body = SecurityGroupList), ReadRefusals))]
pub async fn list(
    State(native): State<Native>,
    Scope(scope): Scope,
    Params(params): Params<ListParams>,
) -> Result<Json<SecurityGroupList>, Failure> {
    Ok(Json(SecurityGroupList { security_groups: native.ops.groups(scope, &params.into())? }))
}

/// Make a security group.
#[utoipa::path(post, path = "/security-groups", tag = "security-groups", request_body = SecurityGroupCreate,
    responses((status = 201, body = SecurityGroup), WriteRefusals))]
pub async fn create(
    State(native): State<Native>,
    Scope(scope): Scope,
    Body(request): Body<SecurityGroupCreate>,
) -> Result<(StatusCode, Json<SecurityGroup>), Failure> {
    Ok((StatusCode::CREATED, Json(native.ops.create_group(scope, &request).await?)))
}

/// Show a security group.
#[utoipa::path(get, path = "/security-groups/{id}", tag = "security-groups", params(("id" = Uuid, Path)),
    responses((status = 200, body = SecurityGroup), ReadRefusals))]
pub async fn show(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<SecurityGroupId>,
) -> Result<Json<SecurityGroup>, Failure> {
    Ok(Json(native.ops.group(scope, id)?))
}

/// Delete a security group that nothing uses.
#[utoipa::path(delete, path = "/security-groups/{id}", tag = "security-groups", params(("id" = Uuid, Path)),
    responses((status = 204), WriteRefusals))]
pub async fn delete(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<SecurityGroupId>,
) -> Result<StatusCode, Failure> {
    native.ops.delete_group(scope, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Let one more thing through.
#[utoipa::path(post, path = "/security-groups/{id}/rules", tag = "security-groups", params(("id" = Uuid, Path)), request_body = RuleSpec,
    responses((status = 201, body = Rule), WriteRefusals))]
pub async fn add_rule(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<SecurityGroupId>,
    Body(request): Body<RuleSpec>,
) -> Result<(StatusCode, Json<Rule>), Failure> {
    Ok((StatusCode::CREATED, Json(native.ops.add_rule(scope, id, &request).await?)))
}

/// Remove a rule.
#[utoipa::path(delete, path = "/security-groups/{id}/rules/{rule}", tag = "security-groups",
    params(("id" = Uuid, Path), ("rule" = Uuid, Path)), responses((status = 204), WriteRefusals))]
pub async fn remove_rule(
    State(native): State<Native>,
    Scope(scope): Scope,
    Path((group, rule)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    native.ops.remove_rule(scope, id(group)?, id(rule)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
