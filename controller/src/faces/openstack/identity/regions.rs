//! `/v3/regions`.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::gate::Base;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::fields::Fields;
use super::lists::list;
use super::{ROOT, missing, one, with};
use crate::model::identity::{RegionKey, RegionRecord};
use crate::ops::identity::RegionChange;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

pub fn routes(routes: Routes) -> Routes {
    routes
        .get("/v3/regions", Need::Token, index)
        .post("/v3/regions", Need::Admin, create)
        .get("/v3/regions/{id}", Need::Token, show)
        .put("/v3/regions/{id}", Need::Admin, create_named)
        .patch("/v3/regions/{id}", Need::Admin, update)
        .delete("/v3/regions/{id}", Need::Admin, delete)
}

fn render(base: &Base, region: &RegionRecord) -> Value {
    let mut value = json!({
        "id": region.name,
        "description": region.description,
        "parent_region_id": region.parent,
        "links": {"self": format!("{}{ROOT}/regions/{}", base.0, region.name)},
    });
    region.extra.iter().for_each(|(name, extra)| value[name] = extra.clone());
    value
}

fn change(body: Value) -> Result<RegionChange, Refusal> {
    let mut fields = Fields::of("region", body)?;
    Ok(RegionChange {
        name: fields.nullable("id")?.flatten(),
        description: fields.nullable("description")?.map(Option::unwrap_or_default),
        parent: fields.nullable("parent_region_id")?,
        extra: fields.rest()?,
    })
}

async fn index(State(state): State<OpenStack>, base: Base, query: Query) -> Result<Json<Value>, Refusal> {
    let items: Vec<Value> = {
        let view = state.ops.world().read();
        view.identity.regions.iter().map(|row| render(&base, row)).collect()
    };
    list(&base, "/regions", &query, "regions", items)
}

async fn create(
    State(state): State<OpenStack>,
    base: Base,
    Body(body): Body<Value>,
) -> Result<Response, Refusal> {
    let record = state.ops.create_region(&change(body)?).await?;
    Ok(with(201, one("region", render(&base, &record))))
}

async fn create_named(
    State(state): State<OpenStack>,
    base: Base,
    Path(name): Path<String>,
    Body(body): Body<Value>,
) -> Result<Response, Refusal> {
    let mut change = change(body)?;
    if change.name.as_ref().is_some_and(|own| *own != name) {
        return Err(Refusal::bad("The region's id in the body is not the one in the path."));
    }
    change.name = Some(name);
    let record = state.ops.create_region(&change).await?;
    Ok(with(201, one("region", render(&base, &record))))
}

async fn show(
    State(state): State<OpenStack>,
    base: Base,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let row = view.identity.regions.get(RegionKey::of(&name)).ok_or_else(|| missing("region", &name))?;
    Ok(one("region", render(&base, row)))
}

async fn update(
    State(state): State<OpenStack>,
    base: Base,
    Path(name): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let record = state.ops.update_region(&name, &change(body)?).await?;
    Ok(one("region", render(&base, &record)))
}

async fn delete(State(state): State<OpenStack>, Path(name): Path<String>) -> Result<StatusCode, Refusal> {
    state.ops.delete_region(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
