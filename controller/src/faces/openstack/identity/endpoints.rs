//! `/v3/endpoints`.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::gate::Base;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::fields::Fields;
use super::lists::list;
use super::{ROOT, id, missing, one, token_body, with};
use crate::model::identity::{EndpointRecord, Interface};
use crate::ops::identity::EndpointChange;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

pub fn routes(routes: Routes) -> Routes {
    routes
        .get("/v3/endpoints", Need::Admin, index)
        .post("/v3/endpoints", Need::Admin, create)
        .get("/v3/endpoints/{id}", Need::Admin, show)
        .patch("/v3/endpoints/{id}", Need::Admin, update)
        .delete("/v3/endpoints/{id}", Need::Admin, delete)
}

fn render(base: &Base, endpoint: &EndpointRecord) -> Value {
    let mut value = json!({
        "id": endpoint.id.to_string(),
        "service_id": endpoint.service.to_string(),
        "interface": token_body::interface(endpoint.interface),
        "url": endpoint.url.replace("$(base)s", &base.0),
        "region": endpoint.region,
        "region_id": endpoint.region,
        "enabled": endpoint.enabled,
        "links": {"self": format!("{}{ROOT}/endpoints/{}", base.0, endpoint.id)},
    });
    if let Some(name) = &endpoint.name {
        value["name"] = json!(name);
    }
    endpoint.extra.iter().for_each(|(name, extra)| value[name] = extra.clone());
    value
}

fn change(body: Value) -> Result<EndpointChange, Refusal> {
    let mut fields = Fields::of("endpoint", body)?;
    let interface = match fields.text("interface")?.as_deref() {
        None => None,
        Some("public") => Some(Interface::Public),
        Some("internal") => Some(Interface::Internal),
        Some("admin") => Some(Interface::Admin),
        Some(_) => return Err(Refusal::field("interface", "must be one of public, internal, admin")),
    };
    // `region` is the older name of `region_id`.
    let (old, new) = (fields.nullable("region")?, fields.nullable("region_id")?);
    Ok(EndpointChange {
        service: fields.id("service_id")?,
        interface,
        url: fields.text("url")?,
        region: new.or(old),
        name: fields.nullable("name")?.flatten(),
        enabled: fields.flag("enabled")?,
        extra: fields.rest()?,
    })
}

async fn index(State(state): State<OpenStack>, base: Base, query: Query) -> Result<Json<Value>, Refusal> {
    let items: Vec<Value> = {
        let view = state.ops.world().read();
        let identity = &view.identity;
        let rows = identity.endpoints.iter().filter(|e| identity.services.get(e.service).is_some());
        rows.map(|row| render(&base, row)).collect()
    };
    list(&base, "/endpoints", &query, "endpoints", items)
}

async fn create(
    State(state): State<OpenStack>,
    base: Base,
    Body(body): Body<Value>,
) -> Result<Response, Refusal> {
    let record = state.ops.create_endpoint(&change(body)?).await?;
    Ok(with(201, one("endpoint", render(&base, &record))))
}

async fn show(
    State(state): State<OpenStack>,
    base: Base,
    Path(text): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let row =
        view.identity.endpoints.get(id("endpoint", &text)?).ok_or_else(|| missing("endpoint", &text))?;
    Ok(one("endpoint", render(&base, row)))
}

async fn update(
    State(state): State<OpenStack>,
    base: Base,
    Path(text): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let record = state.ops.update_endpoint(id("endpoint", &text)?, &change(body)?).await?;
    Ok(one("endpoint", render(&base, &record)))
}

async fn delete(State(state): State<OpenStack>, Path(text): Path<String>) -> Result<StatusCode, Refusal> {
    state.ops.delete_endpoint(id("endpoint", &text)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
