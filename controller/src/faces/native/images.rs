//! `/v1/images` and their blobs.

use super::Native;
use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::extract::{Body, Id, ListParams, Params, id};
use super::guard::Scope;
use crate::ops::{Appended, ByteRange, DIGEST_HEADER};
use amphi_api::conversion::{Conversion, ConvertCreate};
use amphi_api::image::{BlobRole, Image, ImageCreate};
use amphi_api::{ErrorCode, ImageId};
use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::header::CONTENT_RANGE;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::TryStreamExt;
use serde::Serialize;
use utoipa::ToSchema;

/// Where an upload goes on.
const OFFSET: HeaderName = HeaderName::from_static("upload-offset");

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

/// Make another image of this one: a container image of a disk's root file system, or a disk of a container image. A host does
/// it; deleting what comes out calls it off.
#[utoipa::path(post, path = "/images/{id}/convert", tag = "images", params(("id" = Uuid, Path)),
    request_body = ConvertCreate, responses((status = 202, body = Conversion), WriteRefusals))]
pub async fn convert(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<ImageId>,
    Body(request): Body<ConvertCreate>,
) -> Result<(StatusCode, Json<Conversion>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(native.ops.convert_image(scope, id, &request).await?)))
}

/// Show how an image is made of another one, and what was found.
#[utoipa::path(get, path = "/images/{id}/conversion", tag = "images", params(("id" = Uuid, Path)),
    responses((status = 200, body = Conversion), ReadRefusals))]
pub async fn conversion(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<ImageId>,
) -> Result<Json<Conversion>, Failure> {
    Ok(Json(native.ops.conversion(scope, id)?))
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
    let (image, role) = (id(image)?, role_of(&role)?);
    let expected = expected(request.headers());
    let bytes = request.into_body().into_data_stream().map_err(std::io::Error::other);
    Ok(Json(native.ops.put_blob(scope, image, role, Box::pin(bytes), expected).await?))
}

fn role_of(text: &str) -> Result<BlobRole, Failure> {
    serde_json::from_value(text.into())
        .map_err(|_| Failure::new(ErrorCode::NotFound, format!("'{text}' is no kind of blob")))
}

/// A value that is no text is no digest either: it is refused as one.
fn expected(headers: &HeaderMap) -> Option<String> {
    headers.get(DIGEST_HEADER).map(|value| value.to_str().unwrap_or_default().to_owned())
}

/// How many bytes of a blob are here, in `upload-offset`: where an upload goes on.
#[utoipa::path(head, path = "/images/{id}/blobs/{role}", tag = "images",
    params(("id" = Uuid, Path), ("role" = BlobRole, Path)),
    responses((status = 200, description = "See `upload-offset`"), ReadRefusals))]
pub async fn blob_offset(
    State(native): State<Native>,
    Scope(scope): Scope,
    Path((image, role)): Path<(String, String)>,
) -> Result<[(HeaderName, String); 1], Failure> {
    let received = native.ops.blob_received(scope, id(image)?, role_of(&role)?).await?;
    Ok([(OFFSET, received.to_string())])
}

/// Upload a blob in parts. Each goes on where the one before has stopped, or was cut off; with the last byte the blob is the
/// image's. What has come stays for a day, whatever becomes of the line or of the controller.
#[utoipa::path(patch, path = "/images/{id}/blobs/{role}", tag = "images",
    params(("id" = Uuid, Path), ("role" = BlobRole, Path),
        ("content-range" = String, Header, description = "`bytes FIRST-LAST/SIZE` of the whole blob"),
        ("x-amphi-sha256" = Option<String>, Header, description = "Refuse bytes of another SHA-256 digest")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Image), (status = 202, description = "More is awaited: see `upload-offset`"),
        WriteRefusals))]
pub async fn append_blob(
    State(native): State<Native>,
    Scope(scope): Scope,
    Path((image, role)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Failure> {
    let (image, role) = (id(image)?, role_of(&role)?);
    let range = request.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).and_then(range);
    let range = range.ok_or_else(|| {
        let text = "must be there, as bytes FIRST-LAST/SIZE, and SIZE more than LAST";
        Failure::new(ErrorCode::InvalidField, text).at("content-range")
    })?;
    let expected = expected(request.headers());
    let bytes = request.into_body().into_data_stream().map_err(std::io::Error::other);
    let appended =
        native.ops.append_blob(scope, image, role, range, Box::pin(bytes), expected.as_deref()).await?;
    Ok(match appended {
        Appended::More(here) => (StatusCode::ACCEPTED, [(OFFSET, here.to_string())]).into_response(),
        Appended::Whole(image) => Json(*image).into_response(),
    })
}

/// `bytes FIRST-LAST/SIZE` (RFC 9110, section 14.4).
fn range(text: &str) -> Option<ByteRange> {
    let (bounds, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (from, last) = bounds.split_once('-')?;
    let number =
        |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let (from, last, total) = (number(from)?, number(last)?, number(total)?);
    (from <= last && last < total).then_some(ByteRange { from, total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(range("bytes 5-9/10"), Some(ByteRange { from: 5, total: 10 }));
        for bad in [
            "",
            "bytes",
            "bytes 5-4/10",
            "bytes 0-9/9",
            "bytes */10",
            "bytes 0-1/*",
            "bytes +1-2/3",
            "items 0-1/2",
        ] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }
}
