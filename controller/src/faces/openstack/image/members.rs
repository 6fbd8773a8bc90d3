//! The projects that an image is shared with. The image's project says which; each of them says whether it accepts.

use super::{OpenStack, missing, own, visible};
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::body::Body;
use crate::faces::openstack::words::{self, hex, time};
use crate::model::{ImageChange, ImageMember, ImageRecord, MemberStatus, Visibility};
use crate::ops::identity::Caller;
use amphi_api::ProjectId;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

fn show_member(image: &ImageRecord, project: ProjectId, member: &ImageMember) -> Value {
    json!({
        "member_id": hex(project),
        "image_id": image.id,
        "status": member.status.word(),
        "created_at": time(member.created_at),
        "updated_at": time(member.updated_at),
        "schema": "/v2/schemas/member",
    })
}

/// The image's project sees all members, a member only itself.
fn seen(image: &ImageRecord, caller: &Caller, project: ProjectId) -> bool {
    caller.may_see(image.project) || caller.project == Some(project)
}

fn one(image: &ImageRecord, caller: &Caller, member: &str) -> Result<(ProjectId, Value), Refusal> {
    let project = words::id(member).map(ProjectId).filter(|p| seen(image, caller, *p));
    let found = project.and_then(|p| Some((p, image.traits.members.get(&p)?)));
    let (project, member) = found.ok_or_else(|| {
        Refusal::new(StatusCode::NOT_FOUND, format!("{member} not found in the member list of the image."))
    })?;
    Ok((project, show_member(image, project, member)))
}

pub async fn list(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let image = visible(&view, &caller, &id)?;
    if image.traits.visibility != Visibility::Shared {
        return Err(Refusal::forbidden("Only shared images have members."));
    }
    let members = image.traits.members.iter().filter(|(project, _)| seen(image, &caller, **project));
    let members: Vec<_> = members.map(|(project, member)| show_member(image, *project, member)).collect();
    Ok(Json(json!({"members": members, "schema": "/v2/schemas/members"})))
}

pub async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, member)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    Ok(Json(one(visible(&view, &caller, &id)?, &caller, &member)?.1))
}

pub async fn add(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let text = body.get("member").and_then(Value::as_str);
    let text = text.ok_or_else(|| Refusal::bad("Member to be added not specified"))?;
    let project =
        ProjectId(words::id(text).ok_or_else(|| Refusal::bad(format!("member: no project {text}")))?);
    let row = own(&state, &caller, &id)?;
    if row.traits.visibility != Visibility::Shared {
        return Err(Refusal::forbidden("Only shared images have members."));
    }
    state.ops.change_image(row.project, row.id, &[ImageChange::AddMember(project)]).await?;
    Ok(Json(one(&*own(&state, &caller, &id)?, &caller, text)?.1))
}

pub async fn update(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, member)): Path<(String, String)>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let text = body.get("status").and_then(Value::as_str);
    let text = text.ok_or_else(|| Refusal::bad("Expected a status in the form {\"status\": \"status\"}"))?;
    let status = MemberStatus::parse(text)
        .ok_or_else(|| Refusal::bad(format!("Invalid status: {text}; one of pending, accepted, rejected")))?;
    let row = {
        let view = state.ops.world().read();
        visible(&view, &caller, &id)?.clone()
    };
    let (project, _) = one(&row, &caller, &member)?;
    // Nobody accepts for somebody else.
    if caller.project != Some(project) && !caller.is_admin() {
        return Err(Refusal::forbidden("You are not permitted to modify the status of this member."));
    }
    state.ops.change_image(row.project, row.id, &[ImageChange::MemberStatus(project, status)]).await?;
    let view = state.ops.world().read();
    Ok(Json(one(visible(&view, &caller, &id)?, &caller, &member)?.1))
}

pub async fn remove(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, member)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let row = own(&state, &caller, &id)?;
    let project = words::id(&member).map(ProjectId).ok_or_else(|| missing(&id))?;
    state.ops.change_image(row.project, row.id, &[ImageChange::RemoveMember(project)]).await?;
    Ok(StatusCode::NO_CONTENT)
}
