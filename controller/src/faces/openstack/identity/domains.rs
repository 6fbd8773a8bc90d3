//! `/v3/domains`.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::gate::Base;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::fields::Fields;
use super::lists::list;
use super::{ROOT, id, missing, one, with};
use crate::model::identity::{DomainId, DomainRecord};
use crate::ops::identity::Caller;
use crate::ops::identity::DomainChange;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

pub fn routes(routes: Routes) -> Routes {
    routes
        .get("/v3/domains", Need::Admin, index)
        .post("/v3/domains", Need::Admin, create)
        .get("/v3/domains/{id}", Need::Token, show)
        .patch("/v3/domains/{id}", Need::Admin, update)
        .delete("/v3/domains/{id}", Need::Admin, delete)
}

pub fn render(base: &Base, domain: &DomainRecord) -> Value {
    let mut value = json!({
        "id": domain.id.to_string(),
        "name": domain.name,
        "description": domain.description,
        "enabled": domain.enabled,
        "tags": domain.tags,
        "options": domain.options,
        "links": {"self": format!("{}{ROOT}/domains/{}", base.0, domain.id)},
    });
    domain.extra.iter().for_each(|(name, extra)| value[name] = extra.clone());
    value
}

/// Reads what a body asks for.
pub fn change(body: Value) -> Result<DomainChange, Refusal> {
    let mut fields = Fields::of("domain", body)?;
    Ok(DomainChange {
        id: fields.id("explicit_domain_id")?,
        name: fields.text("name")?,
        description: fields.nullable("description")?.map(Option::unwrap_or_default),
        enabled: fields.flag("enabled")?,
        tags: fields.tags("tags")?,
        options: fields.object("options")?,
        extra: fields.rest()?,
    })
}

async fn index(State(state): State<OpenStack>, base: Base, query: Query) -> Result<Json<Value>, Refusal> {
    let items: Vec<Value> = {
        let view = state.ops.world().read();
        view.identity.domains.iter().map(|row| render(&base, row)).collect()
    };
    list(&base, "/domains", &query, "domains", items)
}

async fn create(
    State(state): State<OpenStack>,
    base: Base,
    Body(body): Body<Value>,
) -> Result<Response, Refusal> {
    let record = state.ops.create_domain(&change(body)?).await?;
    Ok(with(201, one("domain", render(&base, &record))))
}

/// An administrator sees each, others their own.
async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    Path(text): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let wanted: DomainId = id("domain", &text)?;
    if !caller.is_admin() && caller.user_domain != wanted && caller.domain != Some(wanted) {
        return Err(super::forbidden());
    }
    let view = state.ops.world().read();
    let row = view.identity.domains.get(wanted).ok_or_else(|| missing("domain", &text))?;
    Ok(one("domain", render(&base, row)))
}

async fn update(
    State(state): State<OpenStack>,
    base: Base,
    Path(text): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let record = state.ops.update_domain(id("domain", &text)?, &change(body)?).await?;
    Ok(one("domain", render(&base, &record)))
}

async fn delete(State(state): State<OpenStack>, Path(text): Path<String>) -> Result<StatusCode, Refusal> {
    state.ops.delete_domain(id("domain", &text)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
