//! `/v3/groups`, and who is in them.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::gate::Base;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::fields::Fields;
use super::lists::list;
use super::{ROOT, id, missing, one, users, with};
use crate::model::identity::{GroupId, GroupRecord, MembershipRecord, UserId};
use crate::ops::identity::Caller;
use crate::ops::identity::GroupChange;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

pub fn routes(routes: Routes) -> Routes {
    routes
        .get("/v3/groups", Need::Admin, index)
        .post("/v3/groups", Need::Admin, create)
        .get("/v3/groups/{id}", Need::Admin, show)
        .patch("/v3/groups/{id}", Need::Admin, update)
        .delete("/v3/groups/{id}", Need::Admin, delete)
        .get("/v3/groups/{id}/users", Need::Admin, list_users)
        .get("/v3/groups/{id}/users/{user}", Need::Admin, check_user)
        .put("/v3/groups/{id}/users/{user}", Need::Admin, add_user)
        .delete("/v3/groups/{id}/users/{user}", Need::Admin, remove_user)
}

pub fn render(base: &Base, group: &GroupRecord) -> Value {
    let mut value = json!({
        "id": group.id.to_string(),
        "name": group.name,
        "domain_id": group.domain.to_string(),
        "description": group.description,
        "links": {"self": format!("{}{ROOT}/groups/{}", base.0, group.id)},
    });
    group.extra.iter().for_each(|(name, extra)| value[name] = extra.clone());
    value
}

fn change(body: Value) -> Result<GroupChange, Refusal> {
    let mut fields = Fields::of("group", body)?;
    Ok(GroupChange {
        name: fields.text("name")?,
        domain: fields.id("domain_id")?,
        description: fields.nullable("description")?.map(Option::unwrap_or_default),
        extra: fields.rest()?,
    })
}

async fn index(State(state): State<OpenStack>, base: Base, query: Query) -> Result<Json<Value>, Refusal> {
    let items: Vec<Value> = {
        let view = state.ops.world().read();
        view.identity.groups.iter().map(|row| render(&base, row)).collect()
    };
    list(&base, "/groups", &query, "groups", items)
}

async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    Body(body): Body<Value>,
) -> Result<Response, Refusal> {
    let usual = caller.domain.unwrap_or(caller.user_domain);
    let record = state.ops.create_identity_group(usual, &change(body)?).await?;
    Ok(with(201, one("group", render(&base, &record))))
}

async fn show(
    State(state): State<OpenStack>,
    base: Base,
    Path(text): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let row = view.identity.groups.get(id("group", &text)?).ok_or_else(|| missing("group", &text))?;
    Ok(one("group", render(&base, row)))
}

async fn update(
    State(state): State<OpenStack>,
    base: Base,
    Path(text): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let record = state.ops.update_identity_group(id("group", &text)?, &change(body)?).await?;
    Ok(one("group", render(&base, &record)))
}

async fn delete(State(state): State<OpenStack>, Path(text): Path<String>) -> Result<StatusCode, Refusal> {
    state.ops.delete_identity_group(id("group", &text)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn list_users(
    State(state): State<OpenStack>,
    base: Base,
    query: Query,
    Path(text): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let group: GroupId = id("group", &text)?;
    let items: Vec<Value> = {
        let view = state.ops.world().read();
        view.identity.groups.get(group).ok_or_else(|| missing("group", &text))?;
        view.identity.users_in(group).map(|row| users::render(&base, row)).collect()
    };
    list(&base, &format!("/groups/{text}/users"), &query, "users", items)
}

fn both(group: &str, user: &str) -> Result<(GroupId, UserId), Refusal> {
    Ok((id("group", group)?, id("user", user)?))
}

async fn check_user(
    State(state): State<OpenStack>,
    Path((group, user)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let (group_id, user_id) = both(&group, &user)?;
    let view = state.ops.world().read();
    let found = view.identity.memberships.get(MembershipRecord::id_of(user_id, group_id));
    found.map(|_| StatusCode::NO_CONTENT).ok_or_else(|| missing("user in group", user))
}

async fn add_user(
    State(state): State<OpenStack>,
    Path((group, user)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let (group, user) = both(&group, &user)?;
    state.ops.add_to_group(group, user).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove_user(
    State(state): State<OpenStack>,
    Path((group, user)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let (group, user) = both(&group, &user)?;
    state.ops.remove_from_group(group, user).await?;
    Ok(StatusCode::NO_CONTENT)
}
