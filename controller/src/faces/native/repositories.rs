//! `/v1/repositories` and their tags. Images come and go through the registry face.

use super::Native;
use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::extract::{Body, Id, ListParams, Params, id};
use super::guard::Scope;
use amphi_api::RepositoryId;
use amphi_api::repository::{Repository, RepositoryChange, Tag};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub struct RepositoryList {
    repositories: Vec<Repository>,
}

#[derive(Serialize, ToSchema)]
pub struct TagList {
    tags: Vec<Tag>,
}

/// List repositories.
#[utoipa::path(get, path = "/repositories", tag = "repositories", params(ListParams),
    responses((status = 200, body = RepositoryList), ReadRefusals))]
pub async fn list(
    State(native): State<Native>,
    Scope(scope): Scope,
    Params(params): Params<ListParams>,
) -> Result<Json<RepositoryList>, Failure> {
    Ok(Json(RepositoryList { repositories: native.ops.repositories(scope, &params.into())? }))
}

/// Show a repository and its policy.
#[utoipa::path(get, path = "/repositories/{id}", tag = "repositories", params(("id" = Uuid, Path)),
    responses((status = 200, body = Repository), ReadRefusals))]
pub async fn show(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<RepositoryId>,
) -> Result<Json<Repository>, Failure> {
    Ok(Json(native.ops.repository(scope, id)?))
}

/// Change a repository's policy.
#[utoipa::path(patch, path = "/repositories/{id}", tag = "repositories", params(("id" = Uuid, Path)),
    request_body = RepositoryChange, responses((status = 200, body = Repository), WriteRefusals))]
pub async fn change(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<RepositoryId>,
    Body(request): Body<RepositoryChange>,
) -> Result<Json<Repository>, Failure> {
    Ok(Json(native.ops.change_repository(scope, id, &request).await?))
}

/// Forget a repository that nothing is in.
#[utoipa::path(delete, path = "/repositories/{id}", tag = "repositories", params(("id" = Uuid, Path)),
    responses((status = 204), WriteRefusals))]
pub async fn delete(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<RepositoryId>,
) -> Result<StatusCode, Failure> {
    native.ops.delete_repository(scope, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List a repository's tags.
#[utoipa::path(get, path = "/repositories/{id}/tags", tag = "repositories", params(("id" = Uuid, Path)),
    responses((status = 200, body = TagList), ReadRefusals))]
pub async fn tags(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<RepositoryId>,
) -> Result<Json<TagList>, Failure> {
    Ok(Json(TagList { tags: native.ops.tags(scope, id)? }))
}

/// Take a tag away; the image stays, untagged.
#[utoipa::path(delete, path = "/repositories/{id}/tags/{tag}", tag = "repositories",
    params(("id" = Uuid, Path), ("tag" = String, Path)),
    responses((status = 204), WriteRefusals))]
pub async fn untag(
    State(native): State<Native>,
    Scope(scope): Scope,
    Path((repository, tag)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    native.ops.untag_in(scope, id(repository)?, &tag).await?;
    Ok(StatusCode::NO_CONTENT)
}
