//! `/v1/images/{id}/hosts`: which hosts have an image, and orders and policies that they fetch it beforehand.

use super::Native;
use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::extract::{Body, Id};
use amphi_api::ImageId;
use amphi_api::prepull::{ImageOnHosts, PrepullCreate, PrepullPolicy};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

/// Which hosts have an image, or are getting it.
#[utoipa::path(get, path = "/images/{id}/hosts", tag = "images", params(("id" = Uuid, Path)),
    responses((status = 200, body = ImageOnHosts), ReadRefusals))]
pub async fn show(State(native): State<Native>, Id(id): Id<ImageId>) -> Result<Json<ImageOnHosts>, Failure> {
    Ok(Json(native.ops.image_on_hosts(id)?))
}

/// Have hosts fetch an image, once. It may be evicted afterwards like any other.
#[utoipa::path(post, path = "/images/{id}/hosts", tag = "images", params(("id" = Uuid, Path)),
    request_body = PrepullCreate, responses((status = 202, body = ImageOnHosts), WriteRefusals))]
pub async fn order(
    State(native): State<Native>,
    Id(id): Id<ImageId>,
    Body(order): Body<PrepullCreate>,
) -> Result<(StatusCode, Json<ImageOnHosts>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.prepull_image(id, &order).await?)))
}

/// Call off orders that are not over.
#[utoipa::path(delete, path = "/images/{id}/hosts", tag = "images", params(("id" = Uuid, Path)),
    responses((status = 204), WriteRefusals))]
pub async fn cancel(State(native): State<Native>, Id(id): Id<ImageId>) -> Result<StatusCode, Failure> {
    native.ops.cancel_prepull(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Have hosts keep an image, those that join later too.
#[utoipa::path(put, path = "/images/{id}/hosts/policy", tag = "images", params(("id" = Uuid, Path)),
    request_body = PrepullPolicy, responses((status = 200, body = ImageOnHosts), WriteRefusals))]
pub async fn keep(
    State(native): State<Native>,
    Id(id): Id<ImageId>,
    Body(policy): Body<PrepullPolicy>,
) -> Result<Json<ImageOnHosts>, Failure> {
    Ok(Json(native.ops.set_prepull_policy(id, &policy).await?))
}

/// End the policy. What is there stays, as long as there is room.
#[utoipa::path(delete, path = "/images/{id}/hosts/policy", tag = "images", params(("id" = Uuid, Path)),
    responses((status = 204), WriteRefusals))]
pub async fn release(State(native): State<Native>, Id(id): Id<ImageId>) -> Result<StatusCode, Failure> {
    native.ops.end_prepull_policy(id).await?;
    Ok(StatusCode::NO_CONTENT)
}
