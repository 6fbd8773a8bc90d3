//! `/v1/volumes`, `/v1/recycle-bin`.

use super::Native;
use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::extract::{Body, Id, ListParams, Params};
use super::guard::Scope;
use amphi_api::VolumeId;
use amphi_api::volume::{Volume, VolumeCreate, VolumeExtend};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub struct VolumeList {
    volumes: Vec<Volume>,
}

/// List volumes.
#[utoipa::path(get, path = "/volumes", tag = "volumes", params(ListParams),
    responses((status = 200, body = VolumeList), ReadRefusals))]
pub async fn list(
    State(native): State<Native>,
    Scope(scope): Scope,
    Params(params): Params<ListParams>,
) -> Result<Json<VolumeList>, Failure> {
    Ok(Json(VolumeList { volumes: native.ops.volumes(scope, &params.into())? }))
}

/// Order a volume. It is `creating` until its host has made it.
#[utoipa::path(post, path = "/volumes", tag = "volumes", request_body = VolumeCreate,
    responses((status = 202, body = Volume), WriteRefusals))]
pub async fn create(
    State(native): State<Native>,
    Scope(scope): Scope,
    Body(request): Body<VolumeCreate>,
) -> Result<(StatusCode, Json<Volume>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.create_volume(scope, &request).await?)))
}

/// Show a volume, in the recycle bin or not.
#[utoipa::path(get, path = "/volumes/{id}", tag = "volumes", params(("id" = Uuid, Path)),
    responses((status = 200, body = Volume), ReadRefusals))]
pub async fn show(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<VolumeId>,
) -> Result<Json<Volume>, Failure> {
    Ok(Json(native.ops.volume(scope, id)?))
}

/// Put a volume into the recycle bin, where its bytes stay.
#[utoipa::path(delete, path = "/volumes/{id}", tag = "volumes", params(("id" = Uuid, Path)),
    responses((status = 202), WriteRefusals))]
pub async fn delete(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<VolumeId>,
) -> Result<StatusCode, Failure> {
    native.ops.trash_volume(scope, id).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Make a volume larger, while it is used too.
#[utoipa::path(post, path = "/volumes/{id}/extend", tag = "volumes", params(("id" = Uuid, Path)), request_body = VolumeExtend,
    responses((status = 202, body = Volume), WriteRefusals))]
pub async fn extend(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<VolumeId>,
    Body(request): Body<VolumeExtend>,
) -> Result<(StatusCode, Json<Volume>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.extend_volume(scope, id, &request).await?)))
}

/// List the recycle bin.
#[utoipa::path(get, path = "/recycle-bin", tag = "recycle-bin", params(ListParams),
    responses((status = 200, body = VolumeList), ReadRefusals))]
pub async fn bin(
    State(native): State<Native>,
    Scope(scope): Scope,
    Params(params): Params<ListParams>,
) -> Result<Json<VolumeList>, Failure> {
    Ok(Json(VolumeList { volumes: native.ops.recycle_bin(scope, &params.into())? }))
}

/// Take a volume out of the recycle bin, with its bytes. It is `restoring` until its host has done so.
#[utoipa::path(post, path = "/recycle-bin/{id}/restore", tag = "recycle-bin", params(("id" = Uuid, Path)),
    responses((status = 202, body = Volume), WriteRefusals))]
pub async fn restore(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<VolumeId>,
) -> Result<(StatusCode, Json<Volume>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.restore_volume(scope, id).await?)))
}

/// Destroy a volume of the recycle bin for good.
#[utoipa::path(delete, path = "/recycle-bin/{id}", tag = "recycle-bin", params(("id" = Uuid, Path)),
    responses((status = 202), WriteRefusals))]
pub async fn purge(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<VolumeId>,
) -> Result<StatusCode, Failure> {
    native.ops.purge_volume(scope, id).await?;
    Ok(StatusCode::ACCEPTED)
}
