//! `/v1/images` and their blobs.

use super::Native;
use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::blobs;
use super::extract::{Body, Id, Params, id, parse};
use super::guard::Scope;
use crate::faces::upload;
use crate::ops::identity::Caller;
use crate::ops::{Appended, ByteRange, DIGEST_HEADER, ListQuery, MarketQuery};
use amphi_api::conversion::{Conversion, ConvertCreate};
use amphi_api::image::{
    BlobRole, Image, ImageCreate, ImageDetail, ImageEdit, ImageFormat, ImageLimit, ImageUsage, LayerImage,
    MarketImage,
};
use amphi_api::recipe::{self, LITERAL_MAX, Recipe};
use amphi_api::{ErrorCode, ImageId, ProjectId};
use axum::extract::{Path, Request, State};
use axum::http::header::{CONTENT_RANGE, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Where an upload goes on.
pub(super) const OFFSET: HeaderName = HeaderName::from_static("upload-offset");
/// Largest recipe, in bytes: its literal ones as base64, and what names the rest.
const RECIPE_MAX: usize = LITERAL_MAX as usize / 3 * 4 + (2 << 20);

#[derive(Serialize, ToSchema)]
pub struct ImageList {
    images: Vec<Image>,
    /// Of the listed images, each once; where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<LayerImage>>,
}

/// Which of a project's images, and whether with their layers.
#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ImageParams {
    /// Exactly this name.
    name: Option<String>,
    /// 1 to 1,000 entries. Default: all.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// Only what comes after this id.
    marker: Option<String>,
    /// Container images' layers, too, as images with a parent.
    #[serde(default)]
    layers: bool,
}

/// List images.
#[utoipa::path(get, path = "/images", tag = "images", params(ImageParams),
    responses((status = 200, body = ImageList), ReadRefusals))]
pub async fn list(
    State(native): State<Native>,
    Scope(scope): Scope,
    Params(params): Params<ImageParams>,
) -> Result<Json<ImageList>, Failure> {
    let query = ListQuery { name: params.name, limit: params.limit, marker: params.marker };
    let images = native.ops.images(scope, &query)?;
    let layers = params.layers.then(|| native.ops.layers_of(&images));
    Ok(Json(ImageList { images, layers }))
}

#[derive(Serialize, ToSchema)]
pub struct LayerList {
    layers: Vec<LayerImage>,
}

/// A container image's layers, the lowest first, each as an image with a parent.
#[utoipa::path(get, path = "/images/{id}/layers", tag = "images", params(("id" = Uuid, Path)),
    responses((status = 200, body = LayerList), ReadRefusals))]
pub async fn layers(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<ImageId>,
) -> Result<Json<LayerList>, Failure> {
    Ok(Json(LayerList { layers: native.ops.image_layers(scope, id)? }))
}

#[derive(Serialize, ToSchema)]
pub struct Market {
    images: Vec<MarketImage>,
}

/// What is looked for in the market.
#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct MarketParams {
    /// Exactly this name.
    name: Option<String>,
    /// In the name or the description, whatever the case.
    search: Option<String>,
    /// The name or id of the project that offers it.
    owner: Option<String>,
    format: Option<ImageFormat>,
    /// Images of the community, too.
    #[serde(default)]
    community: bool,
    /// 1 to 1,000 entries. Default: all.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// Only what comes after this id.
    marker: Option<ImageId>,
}

/// List images that everybody may start from: public ones, those in public repositories, on request the community's.
#[utoipa::path(get, path = "/market", tag = "images", params(MarketParams),
    responses((status = 200, body = Market), ReadRefusals))]
pub async fn market(
    State(native): State<Native>,
    Params(params): Params<MarketParams>,
) -> Result<Json<Market>, Failure> {
    let MarketParams { name, search, owner, format, community, limit, marker } = params;
    let query = MarketQuery { name, search, owner, format, community, limit, marker };
    Ok(Json(Market { images: native.ops.market(&query)? }))
}

/// How much of the image store the project may have, and has.
#[utoipa::path(get, path = "/image-usage", tag = "images", responses((status = 200, body = ImageUsage), ReadRefusals))]
pub async fn usage(State(native): State<Native>, Scope(scope): Scope) -> Json<ImageUsage> {
    Json(native.ops.image_usage(scope))
}

/// Set how much of the image store a project may have. An administrator's.
#[utoipa::path(put, path = "/projects/{id}/image-usage", tag = "images", params(("id" = Uuid, Path)),
    request_body = ImageLimit, responses((status = 200, body = ImageUsage), WriteRefusals))]
pub async fn limit(
    State(native): State<Native>,
    Id(project): Id<ProjectId>,
    Body(limit): Body<ImageLimit>,
) -> Result<Json<ImageUsage>, Failure> {
    Ok(Json(native.ops.limit_images(project, limit).await?))
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
    responses((status = 200, body = ImageDetail), ReadRefusals))]
pub async fn show(
    State(native): State<Native>,
    Scope(scope): Scope,
    Id(id): Id<ImageId>,
) -> Result<Json<ImageDetail>, Failure> {
    Ok(Json(native.ops.image_detail(scope, id)?))
}

/// Say something else of an image: its name, description, version, who sees it.
#[utoipa::path(patch, path = "/images/{id}", tag = "images", params(("id" = Uuid, Path)), request_body = ImageEdit,
    responses((status = 200, body = ImageDetail), WriteRefusals))]
pub async fn edit(
    State(native): State<Native>,
    Scope(scope): Scope,
    Extension(caller): Extension<Caller>,
    Id(id): Id<ImageId>,
    Body(edit): Body<ImageEdit>,
) -> Result<Json<ImageDetail>, Failure> {
    Ok(Json(native.ops.edit_image(&caller, scope, id, &edit).await?))
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

/// Upload one blob. The image is active once it has all its format needs. A body of the type
/// `application/vnd.amphi.recipe+json` is no blob but says how it is put together of blobs that are here.
#[utoipa::path(put, path = "/images/{id}/blobs/{role}", tag = "images",
    params(("id" = Uuid, Path), ("role" = BlobRole, Path),
        ("x-amphi-sha256" = Option<String>, Header, description = "Refuse bytes of another SHA-256 digest")),
    request_body(content((Vec<u8> = "application/octet-stream"), (Recipe = "application/vnd.amphi.recipe+json"))),
    responses((status = 200, body = Image), WriteRefusals))]
pub async fn put_blob(
    State(native): State<Native>,
    Scope(scope): Scope,
    Path((image, role)): Path<(String, String)>,
    request: Request,
) -> Result<Json<Image>, Failure> {
    let (image, role) = (id(image)?, role_of(&role)?);
    let expected = expected(request.headers());
    let kind = request.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if kind == recipe::MEDIA_TYPE {
        let body = axum::body::to_bytes(request.into_body(), RECIPE_MAX).await;
        let body = body.map_err(|e| Failure::new(ErrorCode::TooLarge, format!("the recipe: {e}")))?;
        let recipe = parse(&body)?;
        return Ok(Json(native.ops.put_recipe(scope, image, role, recipe, expected.as_deref()).await?));
    }
    let bytes = upload::bytes_of(request.into_body());
    Ok(Json(native.ops.put_blob(scope, image, role, bytes, expected).await?))
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
    let range = content_range(request.headers())?;
    let expected = expected(request.headers());
    let bytes = upload::bytes_of(request.into_body());
    let appended = native.ops.append_blob(scope, image, role, range, bytes, expected.as_deref()).await?;
    Ok(match appended {
        Appended::More(here) => blobs::awaited(here),
        Appended::Whole(image) => Json(*image).into_response(),
    })
}

/// Which bytes a body has.
pub(super) fn content_range(headers: &HeaderMap) -> Result<ByteRange, Failure> {
    headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).and_then(range).ok_or_else(|| {
        let text = "must be there, as bytes FIRST-LAST/SIZE, and SIZE more than LAST";
        Failure::new(ErrorCode::InvalidField, text).at("content-range")
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
