//! `/v1/images` and their blobs.

use super::Native;
use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::extract::{Body, Id, ListParams, Params, id};
use super::guard::Scope;
use crate::ops::DIGEST_HEADER;
use amphi_api::image::{BlobRole, Image, ImageCreate};
use amphi_api::{ErrorCode, ImageId};
use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use futures_util::TryStreamExt;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub struct ImageList {
    images: Vec<Image>,
}

/// List images.
#[utoipa::path(get, path = "/images", tag = "images", params(ListParams),
    responses((status = 200, body = ImageList), ReadRefusals))]
pub async fn list(
    State(native): State<Native>,
    Scope(scope): Scope,
    Params(params): Params<ListParams>,
) -> Result<Json<ImageList>, Failure> {
    Ok(Json(ImageList { images: native.ops.images(scope, &params.into())? }))
}

/// Make an image; its blobs are uploaded next.
#[utoipa::path(post, path = "/images", tag = "images", request_body = ImageCreate,
    responses((status = 201, body = Image), WriteRefusals))]
pub async fn create(
    State(native): State<Native>,
    Scope(scope): Scope,
    Body(request): Body<ImageCreate>,
) -> Result<(StatusCode, Json<Image>), Failure> {
    Ok((StatusCode::CREATED, Json(native.ops.create_image(scope, &request).await?)))
}

/// Show an image.
#[utoipa::path(get, path = "/images/{id}", tag = "images", params(("id" = Uuid, Path)),
    responses((status = 200, body = Image), ReadRefusals))]
pub async fn show(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<ImageId>,
) -> Result<Json<Image>, Failure> {
    Ok(Json(native.ops.image(scope, id)?))
}

/// Delete an image that no body uses.
#[utoipa::path(delete, path = "/images/{id}", tag = "images", params(("id" = Uuid, Path)),
    responses((status = 204), WriteRefusals))]
pub async fn delete(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<ImageId>,
) -> Result<StatusCode, Failure> {
    native.ops.delete_image(scope, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Upload one blob. The image is active once it has all its format needs.
#[utoipa::path(put, path = "/images/{id}/blobs/{role}", tag = "images",
    params(("id" = Uuid, Path), ("role" = BlobRole, Path),
        ("x-amphi-sha256" = Option<String>, Header, description = "Refuse bytes of another SHA-256 digest")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Image), WriteRefusals))]
pub async fn put_blob(
    State(native): State<Native>,
    Scope(scope): Scope,
    Path((image, role)): Path<(String, String)>,
    request: Request,
) -> Result<Json<Image>, Failure> {
    let image = id(image)?;
    let role: BlobRole = serde_json::from_value(role.clone().into())
        .map_err(|_| Failure::new(ErrorCode::NotFound, format!("'{role}' is no kind of blob")))?;
    // A value that is no text is no digest either: it is refused as one.
    let digest = request.headers().get(DIGEST_HEADER);
    let expected = digest.map(|value| value.to_str().unwrap_or_default().to_owned());
    let bytes = request.into_body().into_data_stream().map_err(std::io::Error::other);
    Ok(Json(native.ops.put_blob(scope, image, role, Box::pin(bytes), expected).await?))
}
