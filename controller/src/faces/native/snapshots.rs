//! `/v1/snapshots`, and those of a volume.

use super::Native;
use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::extract::{Body, Id, ListParams, Params};
use super::guard::Scope;
use amphi_api::volume::{Snapshot, SnapshotCreate};
use amphi_api::{SnapshotId, VolumeId};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub struct SnapshotList {
    snapshots: Vec<Snapshot>,
}

/// List snapshots.
#[utoipa::path(get, path = "/snapshots", tag = "snapshots", params(ListParams),
    responses((status = 200, body = SnapshotList), ReadRefusals))]
pub async fn list(
    State(native): State<Native>,
    Scope(scope): Scope,
    Params(params): Params<ListParams>,
) -> Result<Json<SnapshotList>, Failure> {
    Ok(Json(SnapshotList { snapshots: native.ops.snapshots(scope, None, &params.into())? }))
}

/// Show a snapshot.
#[utoipa::path(get, path = "/snapshots/{id}", tag = "snapshots", params(("id" = Uuid, Path)),
    responses((status = 200, body = Snapshot), ReadRefusals))]
pub async fn show(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<SnapshotId>,
) -> Result<Json<Snapshot>, Failure> {
    Ok(Json(native.ops.snapshot(scope, id)?))
}

/// Delete a snapshot.
#[utoipa::path(delete, path = "/snapshots/{id}", tag = "snapshots", params(("id" = Uuid, Path)),
    responses((status = 202), WriteRefusals))]
pub async fn delete(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<SnapshotId>,
) -> Result<StatusCode, Failure> {
    native.ops.delete_snapshot(scope, id).await?;
    Ok(StatusCode::ACCEPTED)
}

/// List the snapshots of a volume.
#[utoipa::path(get, path = "/volumes/{id}/snapshots", tag = "snapshots", params(("id" = Uuid, Path), ListParams),
    responses((status = 200, body = SnapshotList), ReadRefusals))]
pub async fn list_of_volume(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<VolumeId>,
    Params(params): Params<ListParams>,
) -> Result<Json<SnapshotList>, Failure> {
    Ok(Json(SnapshotList { snapshots: native.ops.snapshots(scope, Some(id), &params.into())? }))
}

/// Take a snapshot of a volume, while it is used too.
#[utoipa::path(post, path = "/volumes/{id}/snapshots", tag = "snapshots", params(("id" = Uuid, Path)), request_body = SnapshotCreate,
    responses((status = 202, body = Snapshot), WriteRefusals))]
pub async fn create(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<VolumeId>,
    Body(request): Body<SnapshotCreate>,
) -> Result<(StatusCode, Json<Snapshot>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.create_snapshot(scope, id, &request).await?)))
}
