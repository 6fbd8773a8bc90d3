//! `/v1/replicas`, `/v1/replica-blobs`: what another region's controller says here, and asks for. Administrators', and the role
//! `replicator`'s.

use super::Native;
use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::blobs::{arrived, content, first};
use super::extract::{Body, Id, Params};
use super::images::content_range;
use crate::faces::upload;
use amphi_api::image::Blob;
use amphi_api::replica::{Replica, ReplicaAnswer, ReplicaState};
use amphi_api::{ErrorCode, ImageId, ProjectId};
use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

#[derive(Serialize, ToSchema)]
pub struct ReplicaList {
    replicas: Vec<Replica>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Asked {
    /// An id, or a name of whole images.
    image: String,
    /// With the tags that name it in repositories.
    #[serde(default)]
    tags: bool,
}

/// Images as another region is told of them.
#[utoipa::path(get, path = "/replicas", tag = "replicas", params(Asked),
    responses((status = 200, body = ReplicaList), ReadRefusals))]
pub async fn list(
    State(native): State<Native>,
    Params(asked): Params<Asked>,
) -> Result<Json<ReplicaList>, Failure> {
    Ok(Json(ReplicaList { replicas: native.ops.replicas(&asked.image, asked.tags)? }))
}

/// Tell of an image of another region. It is an image here (200) once nothing is missing; until then (202) the answer says
/// which bytes are, and from which on. Told again, what is said of it changes.
#[utoipa::path(put, path = "/replicas/{id}", tag = "replicas", params(("id" = Uuid, Path)), request_body = Replica,
    responses((status = 200, body = ReplicaAnswer), (status = 202, body = ReplicaAnswer), WriteRefusals))]
pub async fn put(
    State(native): State<Native>,
    Id(id): Id<ImageId>,
    Body(replica): Body<Replica>,
) -> Result<(StatusCode, Json<ReplicaAnswer>), Failure> {
    if replica.id != id {
        return Err(Failure::new(ErrorCode::InvalidField, "must be the id in the path").at("id"));
    }
    let answer = native.ops.take_replica(&replica).await?;
    let status = match answer.state {
        ReplicaState::Waiting => StatusCode::ACCEPTED,
        ReplicaState::Active | ReplicaState::Own => StatusCode::OK,
    };
    Ok((status, Json(answer)))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Whose {
    /// The cloud that the image is from.
    cloud: String,
}

/// The image was deleted where it is from. What is no replica of that cloud stays, and what an instance uses.
#[utoipa::path(delete, path = "/replicas/{id}", tag = "replicas", params(("id" = Uuid, Path), Whose),
    responses((status = 204), WriteRefusals))]
pub async fn delete(
    State(native): State<Native>,
    Id(id): Id<ImageId>,
    Params(whose): Params<Whose>,
) -> Result<StatusCode, Failure> {
    native.ops.delete_replica(id, &whose.cloud).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A blob's bytes for another region, from an offset on where `Range: bytes=FIRST-` says so.
#[utoipa::path(get, path = "/replica-blobs/{sha256}", tag = "replicas",
    params(("sha256" = String, Path), ("range" = Option<String>, Header, description = "`bytes=FIRST-`")),
    responses((status = 200, description = "The bytes", content_type = "application/octet-stream"),
        (status = 206, description = "The bytes from FIRST on"), ReadRefusals))]
pub async fn read(
    State(native): State<Native>,
    Path(sha256): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let from = first(&headers)?;
    let (bytes, size) = native.ops.read_replica_blob(&sha256, from.unwrap_or(0)).await?;
    Ok(content(bytes, from, size))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct For {
    /// The project that is to have the replica.
    project: ProjectId,
}

/// Send bytes of a replica's blob behind those that are here.
#[utoipa::path(patch, path = "/replica-blobs/{sha256}", tag = "replicas",
    params(("sha256" = String, Path), For,
        ("content-range" = String, Header, description = "`bytes FIRST-LAST/SIZE` of the whole blob")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Blob), (status = 202, description = "More is awaited: see `upload-offset`"),
        WriteRefusals))]
pub async fn append(
    State(native): State<Native>,
    Path(sha256): Path<String>,
    Params(whose): Params<For>,
    request: Request,
) -> Result<Response, Failure> {
    let range = content_range(request.headers())?;
    let bytes = upload::bytes_of(request.into_body());
    Ok(arrived(native.ops.take_replica_blob(whose.project, &sha256, range, bytes).await?))
}
