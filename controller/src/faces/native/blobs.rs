//! `/v1/blobs`: bytes by their digest, before an image names them and after.

use super::Native;
use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::extract::Body;
use super::guard::Scope;
use super::images::{OFFSET, content_range};
use crate::faces::upload;
use crate::images::BlobRead;
use amphi_api::ErrorCode;
use amphi_api::image::{Blob, BlobsKnown, BlobsWanted};
use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};

/// Which blobs need not be sent: those that the project sees. They stay for it for a day.
#[utoipa::path(post, path = "/blobs/known", tag = "images", request_body = BlobsWanted,
    responses((status = 200, body = BlobsKnown), WriteRefusals))]
pub async fn known(
    State(native): State<Native>,
    Scope(scope): Scope,
    Body(wanted): Body<BlobsWanted>,
) -> Result<Json<BlobsKnown>, Failure> {
    Ok(Json(BlobsKnown { blobs: native.ops.known_blobs(scope, &wanted).await? }))
}

/// How many bytes of a blob are here, in `upload-offset`: where an upload goes on. All of them where the project sees it.
#[utoipa::path(head, path = "/blobs/{sha256}", tag = "images", params(("sha256" = String, Path)),
    responses((status = 200, description = "See `upload-offset`"), ReadRefusals))]
pub async fn offset(
    State(native): State<Native>,
    Scope(scope): Scope,
    Path(sha256): Path<String>,
) -> Result<[(HeaderName, String); 1], Failure> {
    Ok([(OFFSET, native.ops.lone_blob_received(scope, &sha256).await?.to_string())])
}

/// A blob's bytes, from an offset on where `Range: bytes=FIRST-` says so.
#[utoipa::path(get, path = "/blobs/{sha256}", tag = "images",
    params(("sha256" = String, Path), ("range" = Option<String>, Header, description = "`bytes=FIRST-`")),
    responses((status = 200, description = "The bytes", content_type = "application/octet-stream"),
        (status = 206, description = "The bytes from FIRST on"), ReadRefusals))]
pub async fn read(
    State(native): State<Native>,
    Scope(scope): Scope,
    Path(sha256): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let from = first(&headers)?;
    let (bytes, size) = native.ops.read_lone_blob(scope, &sha256, from.unwrap_or(0)).await?;
    Ok(content(bytes, from, size))
}

/// The first byte that is asked for, where one is named.
pub(super) fn first(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    let Some(value) = headers.get(RANGE) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let first = text.strip_prefix("bytes=").and_then(|rest| rest.strip_suffix('-'));
    let first = first.and_then(|first| first.parse::<u64>().ok());
    first.map(Some).ok_or_else(|| Failure::new(ErrorCode::InvalidField, "must be bytes=FIRST-").at("range"))
}

/// A blob's bytes from one on, with what says which they are.
pub(super) fn content(bytes: BlobRead, from: Option<u64>, size: u64) -> Response {
    let first = from.unwrap_or(0);
    let mut headers = vec![
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (CONTENT_LENGTH, (size - first).to_string()),
    ];
    if from.is_some_and(|first| first < size) {
        headers.push((CONTENT_RANGE, format!("bytes {first}-{}/{size}", size - 1)));
    }
    let status = if from.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let mut response = (status, axum::body::Body::from_stream(bytes.stream())).into_response();
    for (name, value) in headers {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// Upload a blob that an image's recipe or manifest names afterwards, in parts, each of which goes on where the one before has
/// stopped. Without such a name it stays for a day.
#[utoipa::path(patch, path = "/blobs/{sha256}", tag = "images",
    params(("sha256" = String, Path),
        ("content-range" = String, Header, description = "`bytes FIRST-LAST/SIZE` of the whole blob")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Blob), (status = 202, description = "More is awaited: see `upload-offset`"),
        WriteRefusals))]
pub async fn append(
    State(native): State<Native>,
    Scope(scope): Scope,
    Path(sha256): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let range = content_range(request.headers())?;
    let bytes = upload::bytes_of(request.into_body());
    Ok(arrived(native.ops.append_lone_blob(scope, &sha256, range, bytes).await?))
}

/// The blob, or how many of its bytes are here.
pub(super) fn arrived(outcome: Result<Blob, u64>) -> Response {
    outcome.map_or_else(awaited, |blob| Json(blob).into_response())
}

/// So many bytes are here, and more are awaited.
pub(super) fn awaited(here: u64) -> Response {
    (StatusCode::ACCEPTED, [(OFFSET, here.to_string())]).into_response()
}
