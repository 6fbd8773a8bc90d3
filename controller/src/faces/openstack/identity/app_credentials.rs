//! `/v3/users/{user}/application_credentials`.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::gate::Base;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::super::words::{hex, keystone_time, parse_time};
use super::fields::Fields;
use super::lists::list;
use super::users::own_or_admin;
use super::{ROOT, forbidden, id, missing, one, with};
use crate::model::identity::{AppCredentialId, AppCredentialRecord, UserId};
use crate::ops::identity::Caller;
use crate::ops::identity::{AppCredentialWish, Identity};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

pub fn routes(routes: Routes) -> Routes {
    routes
        .get("/v3/users/{user}/application_credentials", Need::Token, index)
        .post("/v3/users/{user}/application_credentials", Need::Token, create)
        .get("/v3/users/{user}/application_credentials/{id}", Need::Token, show)
        .delete("/v3/users/{user}/application_credentials/{id}", Need::Token, delete)
        .get("/v3/users/{user}/access_rules", Need::Token, access_rules)
}

fn render(identity: &Identity, base: &Base, credential: &AppCredentialRecord) -> Value {
    let roles = credential.roles.iter().filter_map(|id| identity.roles.get(*id));
    let roles: Vec<Value> = roles
        .map(|role| {
            json!({
                "id": role.id.to_string(),
                "name": role.name,
                "domain_id": role.domain.map(|d| d.to_string()),
            })
        })
        .collect();
    let own = format!(
        "{}{ROOT}/users/{}/application_credentials/{}",
        base.0,
        hex(credential.user.0),
        credential.id
    );
    json!({
        "id": credential.id.to_string(),
        "name": credential.name,
        "description": credential.description,
        "project_id": hex(credential.project.0),
        "user_id": hex(credential.user.0),
        "roles": roles,
        "expires_at": credential.expires_at.map(keystone_time),
        "unrestricted": credential.unrestricted,
        "system": null,
        "links": {"self": own},
    })
}

fn wish(body: Value) -> Result<AppCredentialWish, Refusal> {
    let mut fields = Fields::of("application_credential", body)?;
    let required = || Refusal::bad("Invalid input: 'name' is a required property");
    let roles = match fields.0.remove("roles") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(all)) => all
            .iter()
            .map(|role| {
                let text = role.get("id").or_else(|| role.get("name")).and_then(Value::as_str);
                text.map(str::to_owned).ok_or_else(|| Refusal::field("roles", "each needs an id or a name"))
            })
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(Refusal::field("roles", "must be a list")),
    };
    let expires_at = match fields.nullable("expires_at")?.flatten() {
        None => None,
        Some(text) => Some(parse_time(&text).ok_or_else(|| Refusal::field("expires_at", "is no time"))?),
    };
    if fields.0.get("access_rules").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty()) {
        // Ignoring them would give more than was asked for.
        return Err(Refusal::field("access_rules", "are not supported; leave them out"));
    }
    Ok(AppCredentialWish {
        name: fields.text("name")?.ok_or_else(required)?,
        description: fields.nullable("description")?.flatten().unwrap_or_default(),
        secret: fields.nullable("secret")?.flatten(),
        roles,
        expires_at,
        unrestricted: fields.flag("unrestricted")?.unwrap_or(false),
    })
}

async fn index(
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
        identity.app_credentials_of(user).map(|row| render(identity, &base, row)).collect()
    };
    list(&base, &format!("/users/{text}/application_credentials"), &query, "application_credentials", items)
}

/// Only one's own: it hands on what the token may do.
async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    Path(text): Path<String>,
    Body(body): Body<Value>,
) -> Result<Response, Refusal> {
    let user: UserId = id("user", &text)?;
    if user != caller.user {
        return Err(forbidden());
    }
    let (record, secret) = state.ops.create_app_credential(&caller, &wish(body)?).await?;
    let mut value = render(&state.ops.world().read().identity, &base, &record);
    value["secret"] = json!(secret);
    Ok(with(201, one("application_credential", value)))
}

async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    Path((user, text)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    let user = own_or_admin(&caller, &user)?;
    let wanted: AppCredentialId = id("application credential", &text)?;
    let view = state.ops.world().read();
    let row = view.identity.app_credentials.get(wanted).filter(|row| row.user == user);
    let row = row.ok_or_else(|| missing("application credential", &text))?;
    Ok(one("application_credential", render(&view.identity, &base, row)))
}

async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((user, text)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let user = own_or_admin(&caller, &user)?;
    state.ops.delete_app_credential(&caller, user, id("application credential", &text)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// There are none: a credential that asks for them is refused.
async fn access_rules(
    caller: Caller,
    base: Base,
    query: Query,
    Path(text): Path<String>,
) -> Result<Json<Value>, Refusal> {
    own_or_admin(&caller, &text)?;
    list(&base, &format!("/users/{text}/access_rules"), &query, "access_rules", Vec::new())
}
