//! `/v2/NAME/tags/list`.

use super::errors::Failure;
use super::{Call, page};
use axum::Json;
use axum::response::{AppendHeaders, IntoResponse, Response};
use serde_json::json;

pub fn list(call: &Call) -> Result<Response, Failure> {
    let place = &call.place;
    let names = call.registry.ops.tag_names(place.project, &place.name)?;
    let path = format!("/v2/{}/tags/list", place.full);
    let (tags, next) = page::cut(names, &call.query, &path)?;
    Ok((AppendHeaders(next), Json(json!({"name": place.full, "tags": tags}))).into_response())
}
