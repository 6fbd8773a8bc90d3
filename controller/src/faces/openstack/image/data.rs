//! An image's bytes: upload, download, and the import of staged ones.

use super::{OpenStack, own, visible};
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::body::Body;
use crate::faces::upload;
use crate::ops::identity::Caller;
use amphi_api::image::{ImageFormat, ImageState};
use axum::Json;
use axum::body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

fn binary(request: &Request) -> Result<(), Refusal> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().unwrap_or_default().trim() != "application/octet-stream" {
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "The bytes must be sent as application/octet-stream.",
        ));
    }
    Ok(())
}

/// Whether an image can take bytes now.
fn takes(row: &crate::model::ImageRecord) -> Result<(), Refusal> {
    let (container, disk) = row.glance_formats();
    if container.is_none() || disk.is_none() {
        return Err(Refusal::bad(
            "Properties disk_format and container_format must be set prior to saving data.",
        ));
    }
    if row.state() == ImageState::Active || row.traits.staged.is_some() {
        return Err(Refusal::conflict("Image status transition is not allowed: it has its bytes already."));
    }
    Ok(())
}

pub async fn upload(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    request: Request,
) -> Result<StatusCode, Refusal> {
    let row = own(&state, &caller, &id)?;
    binary(&request)?;
    takes(&row)?;
    let Some(role) = row.format.roles().first() else {
        return Err(Refusal::conflict("The image's format takes no bytes."));
    };
    let bytes = upload::bytes_of(request.into_body());
    state.ops.put_blob(row.project, row.id, *role, bytes, None).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn download(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let row = {
        let view = state.ops.world().read();
        visible(&view, &caller, &id)?.clone()
    };
    if row.state() != ImageState::Active {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    if row.format == ImageFormat::Oci {
        return Err(Refusal::conflict(
            "The image came by layers and is no file: fetch it from the registry, by 'docker pull' or 'skopeo copy'.",
        ));
    }
    if row.traits.deactivated && !caller.is_admin() {
        return Err(Refusal::forbidden(
            "The requested image has been deactivated. Image data download is forbidden.",
        ));
    }
    let Some(blob) = row.format.roles().first().and_then(|role| row.blobs.get(role)) else {
        return Ok(StatusCode::NO_CONTENT.into_response());
    };
    let (bytes, size) = state.ops.read_blob(&blob.sha256, 0).await?;
    let mut response = body::Body::from_stream(bytes.stream()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    if let Some(md5) = row.traits.md5.as_deref().and_then(|md5| HeaderValue::from_str(md5).ok()) {
        headers.insert(HeaderName::from_static("content-md5"), md5);
    }
    Ok(response)
}

pub async fn stage(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    request: Request,
) -> Result<StatusCode, Refusal> {
    let row = own(&state, &caller, &id)?;
    binary(&request)?;
    takes(&row)?;
    let bytes = upload::bytes_of(request.into_body());
    state.ops.stage_image(row.project, row.id, bytes).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn import(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    Body(body): Body<Value>,
) -> Result<StatusCode, Refusal> {
    let row = own(&state, &caller, &id)?;
    match body.pointer("/method/name").and_then(Value::as_str) {
        Some("glance-direct") => {}
        Some(other) => {
            return Err(Refusal::bad(format!("Import method '{other}' is not enabled; glance-direct is.")));
        }
        None => return Err(Refusal::bad("method.name is a required property.")),
    }
    state.ops.import_staged(row.project, row.id).await?;
    Ok(StatusCode::ACCEPTED)
}

pub async fn import_methods() -> Json<Value> {
    Json(json!({"import-methods": {
        "description": "Import methods available.", "type": "array", "value": ["glance-direct"],
    }}))
}

pub async fn stores() -> Json<Value> {
    Json(json!({"stores": [{"id": "amphi", "default": "true"}]}))
}

/// What glance counts of a project, with its limits (glance/quota/keystone.py's words); of these one is limited here.
pub async fn usage(State(state): State<OpenStack>, caller: Caller) -> Result<Json<Value>, Refusal> {
    let usage = state.ops.image_usage(caller.project()?);
    let used = usage.used_bytes.div_ceil(1 << 20);
    Ok(Json(json!({"usage": {"image_size_total": {"limit": usage.limit_mib, "usage": used}}})))
}
