//! `/v3/services`.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::gate::Base;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::fields::Fields;
use super::lists::list;
use super::{ROOT, id, missing, one, with};
use crate::model::identity::ServiceRecord;
use crate::ops::identity::ServiceChange;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

pub fn routes(routes: Routes) -> Routes {
    routes
        .get("/v3/services", Need::Admin, index)
        .post("/v3/services", Need::Admin, create)
        .get("/v3/services/{id}", Need::Admin, show)
        .patch("/v3/services/{id}", Need::Admin, update)
        .delete("/v3/services/{id}", Need::Admin, delete)
}

/// Attributes that nobody has set are left out, as keystone does.
pub fn render(base: &Base, service: &ServiceRecord) -> Value {
    let mut value = json!({
        "id": service.id.to_string(),
        "type": service.kind,
        "enabled": service.enabled,
        "links": {"self": format!("{}{ROOT}/services/{}", base.0, service.id)},
    });
    if let Some(name) = &service.name {
        value["name"] = json!(name);
    }
    if let Some(description) = &service.description {
        value["description"] = json!(description);
    }
    service.extra.iter().for_each(|(name, extra)| value[name] = extra.clone());
    value
}

fn change(body: Value) -> Result<ServiceChange, Refusal> {
    let mut fields = Fields::of("service", body)?;
    Ok(ServiceChange {
        kind: fields.text("type")?,
        name: fields.nullable("name")?.flatten(),
        description: fields.nullable("description")?.flatten(),
        enabled: fields.flag("enabled")?,
        extra: fields.rest()?,
    })
}

async fn index(State(state): State<OpenStack>, base: Base, query: Query) -> Result<Json<Value>, Refusal> {
    let items: Vec<Value> = {
        let view = state.ops.world().read();
        view.identity.services.iter().map(|row| render(&base, row)).collect()
    };
    list(&base, "/services", &query, "services", items)
}

async fn create(
    State(state): State<OpenStack>,
    base: Base,
    Body(body): Body<Value>,
) -> Result<Response, Refusal> {
    let record = state.ops.create_service(&change(body)?).await?;
    Ok(with(201, one("service", render(&base, &record))))
}

async fn show(
    State(state): State<OpenStack>,
    base: Base,
    Path(text): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let row = view.identity.services.get(id("service", &text)?).ok_or_else(|| missing("service", &text))?;
    Ok(one("service", render(&base, row)))
}

async fn update(
    State(state): State<OpenStack>,
    base: Base,
    Path(text): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let record = state.ops.update_service(id("service", &text)?, &change(body)?).await?;
    Ok(one("service", render(&base, &record)))
}

async fn delete(State(state): State<OpenStack>, Path(text): Path<String>) -> Result<StatusCode, Refusal> {
    state.ops.delete_service(id("service", &text)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
