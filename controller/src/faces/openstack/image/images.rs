//! Images: list, create, show, change, delete, tags, deactivation.

use super::filter::{Filter, listed, sort};
use super::{OpenStack, own, patch, view, visible};
use crate::faces::openstack::Service;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::body::{self, Body};
use crate::faces::openstack::gate::Base;
use crate::faces::openstack::page::{Page, next_url};
use crate::faces::openstack::query::Query;
use crate::faces::openstack::words;
use crate::model::{ImageChange, ImageRecord, ImageTraits, Visibility, change_image};
use crate::ops::identity::Caller;
use amphi_api::validate::BODY_MAX;
use amphi_api::{ImageId, ProjectId};
use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// Glance's `limit_param_default` and `api_limit_max`.
const LIMIT_DEFAULT: usize = 25;
const LIMIT_MAX: usize = 1000;

pub async fn list(
    State(state): State<OpenStack>,
    caller: Caller,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    let page = Page::of(&query, LIMIT_MAX)?;
    let page = Page { limit: Some(page.limit.unwrap_or(LIMIT_DEFAULT)), ..page };
    let filter = Filter::of(&query)?;
    let view = state.ops.world().read();
    let mut found: Vec<&ImageRecord> = Vec::new();
    for row in view.images.iter().filter(|row| !row.closing) {
        if listed(row, &caller, &query)? && filter.fits(row) {
            found.push(row);
        }
    }
    sort(&mut found, &query)?;
    let slice = page.cut(found, LIMIT_MAX, |image| image.id.to_string())?;
    let without_marker = Query(query.0.iter().filter(|(n, _)| n != "marker").cloned().collect());
    let first = form_urlencoded::Serializer::new(String::new()).extend_pairs(&without_marker.0).finish();
    let mut answer = json!({
        "images": slice.items.iter().map(|image| view::image(image)).collect::<Vec<_>>(),
        "first": if first.is_empty() { "/v2/images".into() } else { format!("/v2/images?{first}") },
        "schema": "/v2/schemas/images",
    });
    if let (true, Some(last)) = (slice.more, slice.items.last()) {
        answer["next"] = json!(next_url("", "/v2/images", &query, &last.id.to_string()));
    }
    Ok(Json(answer))
}

pub async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    Body(body): Body<Map<String, Value>>,
) -> Result<(StatusCode, [(HeaderName, String); 2], Json<Value>), Refusal> {
    let project = match body.get("owner").and_then(Value::as_str) {
        Some(owner) if caller.is_admin() => {
            ProjectId(words::id(owner).ok_or_else(|| Refusal::bad(format!("owner: no project {owner}")))?)
        }
        Some(owner) if words::id(owner) != caller.project.map(|p| p.0) => {
            return Err(Refusal::forbidden("You are not permitted to create images owned by others."));
        }
        _ => caller.project()?,
    };
    let id = match body.get("id") {
        None | Some(Value::Null) => None,
        Some(id) => {
            let id = id.as_str().and_then(words::id);
            Some(ImageId(id.ok_or_else(|| Refusal::bad("id: not a UUID"))?))
        }
    };
    let changes = patch::creation(&body)?;
    publicly(&caller, &changes)?;
    // Applied to an image that is not there yet: all of its rules hold, and nothing is made when one does not.
    let now = Timestamp::now();
    let mut draft = ImageRecord {
        id: id.unwrap_or_else(ImageId::new),
        project,
        name: String::new(),
        format: amphi_api::image::ImageFormat::Other,
        cmdline: String::new(),
        blobs: Default::default(),
        layers: Vec::new(),
        traits: ImageTraits { visibility: Visibility::Shared, ..Default::default() },
        export: None,
        closing: false,
        created_at: now,
    };
    for change in &changes {
        change_image(&mut draft, change, now).map_err(crate::ops::OpsError::from)?;
    }
    let id = state.ops.register_image(project, Some(draft.id), &draft.name, draft.traits).await?;
    let shown = own(&state, &caller, &id.to_string())?;
    let methods = (HeaderName::from_static("openstack-image-import-methods"), "glance-direct".to_owned());
    let location = format!("{}{}/v2/images/{id}", base.0, Service::Image.root());
    Ok((StatusCode::CREATED, [(header::LOCATION, location), methods], Json(view::image(&shown))))
}

/// Only admins put images before everybody (glance's policy `publicize_image`).
fn publicly(caller: &Caller, changes: &[ImageChange]) -> Result<(), Refusal> {
    if changes.contains(&ImageChange::Visibility(Visibility::Public)) && !caller.is_admin() {
        return Err(Refusal::forbidden("You are not authorized to complete publicize_image action."));
    }
    Ok(())
}

pub async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    Ok(Json(view::image(visible(&view, &caller, &id)?)))
}

pub async fn update(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !matches!(
        kind.split(';').next().unwrap_or_default().trim(),
        "application/openstack-images-v2.1-json-patch" | "application/openstack-images-v2.0-json-patch"
    ) {
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "The body must be of application/openstack-images-v2.1-json-patch.",
        ));
    }
    let body: Value = body::parse(&body::read(request.into_body(), BODY_MAX).await?)?;
    let row = own(&state, &caller, &id)?;
    let changes = patch::patch(&body, &row.traits)?;
    publicly(&caller, &changes)?;
    state.ops.change_image(row.project, row.id, &changes).await?;
    let shown = own(&state, &caller, &id)?;
    Ok(Json(view::image(&shown)))
}

pub async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let row = own(&state, &caller, &id)?;
    state.ops.delete_image(row.project, row.id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn changed(
    state: &OpenStack,
    caller: &Caller,
    id: &str,
    change: ImageChange,
) -> Result<StatusCode, Refusal> {
    let row = own(state, caller, id)?;
    state.ops.change_image(row.project, row.id, &[change]).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn deactivate(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    changed(&state, &caller, &id, ImageChange::Deactivate).await
}

pub async fn reactivate(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    changed(&state, &caller, &id, ImageChange::Reactivate).await
}

pub async fn add_tag(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, tag)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    changed(&state, &caller, &id, ImageChange::AddTag(patch::bounded("tag", &tag)?)).await
}

pub async fn remove_tag(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, tag)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    changed(&state, &caller, &id, ImageChange::RemoveTag(tag)).await
}
