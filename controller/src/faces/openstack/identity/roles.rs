//! `/v3/roles`, and which role implies which.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::gate::Base;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::fields::Fields;
use super::lists::list;
use super::{ROOT, id, missing, one, with};
use crate::model::identity::{InferenceRecord, RoleId, RoleRecord};
use crate::ops::identity::{Identity, RoleChange};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

pub fn routes(routes: Routes) -> Routes {
    routes
        .get("/v3/roles", Need::Admin, index)
        .post("/v3/roles", Need::Admin, create)
        .get("/v3/roles/{id}", Need::Admin, show)
        .patch("/v3/roles/{id}", Need::Admin, update)
        .delete("/v3/roles/{id}", Need::Admin, delete)
        .get("/v3/roles/{id}/implies", Need::Admin, implied)
        .get("/v3/roles/{id}/implies/{implied}", Need::Admin, check_implied)
        .on(axum::http::Method::HEAD, "/v3/roles/{id}/implies/{implied}", Need::Admin, head_implied)
        .put("/v3/roles/{id}/implies/{implied}", Need::Admin, imply)
        .delete("/v3/roles/{id}/implies/{implied}", Need::Admin, imply_no_more)
        .get("/v3/role_inferences", Need::Admin, inferences)
}

pub fn render(base: &Base, role: &RoleRecord) -> Value {
    let mut value = json!({
        "id": role.id.to_string(),
        "name": role.name,
        "domain_id": role.domain.map(|d| d.to_string()),
        "description": role.description,
        "options": role.options,
        "links": {"self": format!("{}{ROOT}/roles/{}", base.0, role.id)},
    });
    role.extra.iter().for_each(|(name, extra)| value[name] = extra.clone());
    value
}

fn change(body: Value) -> Result<RoleChange, Refusal> {
    let mut fields = Fields::of("role", body)?;
    Ok(RoleChange {
        name: fields.text("name")?,
        domain: fields.id("domain_id")?,
        description: fields.nullable("description")?,
        options: fields.object("options")?,
        extra: fields.rest()?,
    })
}

/// Those of the whole cloud, unless a domain is named.
async fn index(State(state): State<OpenStack>, base: Base, query: Query) -> Result<Json<Value>, Refusal> {
    let of_domain = query.one("domain_id").filter(|text| !text.is_empty()).is_some();
    let items: Vec<Value> = {
        let view = state.ops.world().read();
        let rows = view.identity.roles.iter().filter(|row| row.domain.is_some() == of_domain);
        rows.map(|row| render(&base, row)).collect()
    };
    list(&base, "/roles", &query, "roles", items)
}

async fn create(
    State(state): State<OpenStack>,
    base: Base,
    Body(body): Body<Value>,
) -> Result<Response, Refusal> {
    let record = state.ops.create_role(&change(body)?).await?;
    Ok(with(201, one("role", render(&base, &record))))
}

async fn show(
    State(state): State<OpenStack>,
    base: Base,
    Path(text): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let row = view.identity.roles.get(id("role", &text)?).ok_or_else(|| missing("role", &text))?;
    Ok(one("role", render(&base, row)))
}

async fn update(
    State(state): State<OpenStack>,
    base: Base,
    Path(text): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let record = state.ops.update_role(id("role", &text)?, &change(body)?).await?;
    Ok(one("role", render(&base, &record)))
}

async fn delete(State(state): State<OpenStack>, Path(text): Path<String>) -> Result<StatusCode, Refusal> {
    state.ops.delete_role(id("role", &text)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn brief(base: &Base, role: &RoleRecord) -> Value {
    json!({
        "id": role.id.to_string(),
        "name": role.name,
        "links": {"self": format!("{}{ROOT}/roles/{}", base.0, role.id)},
    })
}

/// One role with all that it implies directly.
fn inference(identity: &Identity, base: &Base, prior: &RoleRecord) -> Value {
    let implied = identity.inferences.iter().filter(|i| i.prior == prior.id);
    let implied: Vec<Value> =
        implied.filter_map(|i| identity.roles.get(i.implied)).map(|row| brief(base, row)).collect();
    json!({"prior_role": brief(base, prior), "implies": implied})
}

async fn implied(
    State(state): State<OpenStack>,
    base: Base,
    Path(text): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let prior = view.identity.roles.get(id("role", &text)?).ok_or_else(|| missing("role", &text))?;
    let own = format!("{}{ROOT}/roles/{text}/implies", base.0);
    Ok(Json(json!({
        "role_inference": inference(&view.identity, &base, prior),
        "links": {"self": own},
    })))
}

async fn inferences(State(state): State<OpenStack>, base: Base) -> Json<Value> {
    let view = state.ops.world().read();
    let identity = &view.identity;
    let prior = identity.roles.iter().filter(|r| identity.inferences.iter().any(|i| i.prior == r.id));
    let all: Vec<Value> = prior.map(|row| inference(identity, &base, row)).collect();
    Json(json!({"role_inferences": all, "links": {"self": format!("{}{ROOT}/role_inferences", base.0)}}))
}

fn both(prior: &str, implied: &str) -> Result<(RoleId, RoleId), Refusal> {
    Ok((id("role", prior)?, id("role", implied)?))
}

fn pair(state: &OpenStack, base: &Base, prior: RoleId, implied: RoleId) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let identity = &view.identity;
    let known = identity.inferences.get(InferenceRecord::id_of(prior, implied));
    let rows = known.and_then(|_| Some((identity.roles.get(prior)?, identity.roles.get(implied)?)));
    let (prior_row, implied_row) = rows.ok_or_else(|| missing("role inference", implied))?;
    Ok(Json(json!({
        "role_inference": {"prior_role": brief(base, prior_row), "implies": brief(base, implied_row)},
        "links": {"self": format!("{}{ROOT}/roles/{prior}/implies/{implied}", base.0)},
    })))
}

async fn check_implied(
    State(state): State<OpenStack>,
    base: Base,
    Path((prior, implied)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    let (prior, implied) = both(&prior, &implied)?;
    pair(&state, &base, prior, implied)
}

async fn head_implied(
    State(state): State<OpenStack>,
    base: Base,
    Path((prior, implied)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let (prior, implied) = both(&prior, &implied)?;
    pair(&state, &base, prior, implied).map(|_| StatusCode::NO_CONTENT)
}

async fn imply(
    State(state): State<OpenStack>,
    base: Base,
    Path((prior, implied)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let (prior, implied) = both(&prior, &implied)?;
    state.ops.add_inference(prior, implied).await?;
    Ok(with(201, pair(&state, &base, prior, implied)?))
}

async fn imply_no_more(
    State(state): State<OpenStack>,
    Path((prior, implied)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let (prior, implied) = both(&prior, &implied)?;
    state.ops.remove_inference(prior, implied).await?;
    Ok(StatusCode::NO_CONTENT)
}
