//! `/v3/users`: users, what they are in, and their passwords.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::gate::Base;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::super::words::{hex, keystone_time};
use super::auth::Source;
use super::fields::Fields;
use super::lists::list;
use super::{ROOT, forbidden, groups, id, missing, one, projects, with};
use crate::model::identity::{UserId, UserRecord};
use crate::ops::identity::Caller;
use crate::ops::identity::UserChange;
use amphi_api::ProjectId;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

pub fn routes(routes: Routes) -> Routes {
    routes
        .get("/v3/users", Need::Admin, index)
        .post("/v3/users", Need::Admin, create)
        .get("/v3/users/{id}", Need::Token, show)
        .patch("/v3/users/{id}", Need::Admin, update)
        .delete("/v3/users/{id}", Need::Admin, delete)
        .post("/v3/users/{id}/password", Need::Token, change_password)
        .get("/v3/users/{id}/projects", Need::Token, list_projects)
        .get("/v3/users/{id}/groups", Need::Token, list_groups)
}

pub fn render(base: &Base, user: &UserRecord) -> Value {
    let own = hex(user.id.0);
    let mut value = json!({
        "id": own,
        "name": user.name,
        "domain_id": user.domain.to_string(),
        "enabled": user.enabled,
        "password_expires_at": user.password_expires_at.map(keystone_time),
        "options": user.options,
        "links": {"self": format!("{}{ROOT}/users/{own}", base.0)},
    });
    if let Some(project) = user.default_project {
        value["default_project_id"] = json!(hex(project.0));
    }
    user.extra.iter().for_each(|(name, extra)| value[name] = extra.clone());
    value
}

fn change(body: Value) -> Result<UserChange, Refusal> {
    let mut fields = Fields::of("user", body)?;
    let default_project = match fields.nullable("default_project_id")? {
        None => None,
        Some(None) => Some(None),
        Some(Some(text)) => {
            let parsed: Option<ProjectId> = text.parse().ok();
            Some(Some(parsed.ok_or_else(|| Refusal::field("default_project_id", "is no id"))?))
        }
    };
    Ok(UserChange {
        name: fields.text("name")?,
        domain: fields.id("domain_id")?,
        password: fields.nullable("password")?,
        enabled: fields.flag("enabled")?,
        default_project,
        options: fields.object("options")?,
        extra: {
            // The answer's own words, not the client's.
            fields.0.remove("password_expires_at");
            fields.rest()?
        },
    })
}

/// The user of a path: an administrator may ask for each, others for themselves.
pub fn own_or_admin(caller: &Caller, text: &str) -> Result<UserId, Refusal> {
    let wanted: Option<UserId> = text.parse().ok();
    if !caller.is_admin() && wanted != Some(caller.user) {
        return Err(forbidden());
    }
    wanted.ok_or_else(|| missing("user", text))
}

async fn index(State(state): State<OpenStack>, base: Base, query: Query) -> Result<Json<Value>, Refusal> {
    let items: Vec<Value> = {
        let view = state.ops.world().read();
        view.identity.users.iter().map(|row| render(&base, row)).collect()
    };
    list(&base, "/users", &query, "users", items)
}

async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    Body(body): Body<Value>,
) -> Result<Response, Refusal> {
    let usual = caller.domain.unwrap_or(caller.user_domain);
    let record = state.ops.create_user(usual, &change(body)?).await?;
    Ok(with(201, one("user", render(&base, &record))))
}

async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    Path(text): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let user = own_or_admin(&caller, &text)?;
    let view = state.ops.world().read();
    let row = view.identity.users.get(user).ok_or_else(|| missing("user", &text))?;
    Ok(one("user", render(&base, row)))
}

async fn update(
    State(state): State<OpenStack>,
    base: Base,
    Path(text): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let record = state.ops.update_user(id("user", &text)?, &change(body)?).await?;
    Ok(one("user", render(&base, &record)))
}

async fn delete(State(state): State<OpenStack>, Path(text): Path<String>) -> Result<StatusCode, Refusal> {
    state.ops.delete_user(id("user", &text)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whoever knows the present password may change it, as in keystone.
async fn change_password(
    State(state): State<OpenStack>,
    Source(from): Source,
    Path(text): Path<String>,
    Body(body): Body<Value>,
) -> Result<StatusCode, Refusal> {
    let user: UserId = id("user", &text)?;
    let mut fields = Fields::of("user", body)?;
    let required = |value: Option<String>, name: &str| {
        value.ok_or_else(|| Refusal::bad(format!("Invalid input: '{name}' is a required property")))
    };
    let original = required(fields.text("original_password")?, "original_password")?;
    let fresh = required(fields.text("password")?, "password")?;
    state.ops.change_password(user, original, &fresh, from).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn list_projects(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    query: Query,
    Path(text): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let user = own_or_admin(&caller, &text)?;
    let items: Vec<Value> = {
        let view = state.ops.world().read();
        let identity = &view.identity;
        identity.users.get(user).ok_or_else(|| missing("user", &text))?;
        let rows = identity.projects_of(user).into_iter().filter_map(|id| identity.projects.get(id));
        rows.map(|row| projects::render(&base, row)).collect()
    };
    list(&base, &format!("/users/{text}/projects"), &query, "projects", items)
}

async fn list_groups(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    query: Query,
    Path(text): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let user = own_or_admin(&caller, &text)?;
    let items: Vec<Value> = {
        let view = state.ops.world().read();
        view.identity.users.get(user).ok_or_else(|| missing("user", &text))?;
        view.identity.groups_of(user).map(|row| groups::render(&base, row)).collect()
    };
    list(&base, &format!("/users/{text}/groups"), &query, "groups", items)
}
