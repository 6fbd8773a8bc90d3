//! `/flavors`, their access and extra specs. Microversions: 2.7 (no access to public ones), 2.55 (description), 2.61
//! (extra specs shown with the flavor), 2.75 (swap is 0 where it was "").

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::gate::Base;
use super::super::microversion::Microversion;
use super::super::page::{Page, sort_keys};
use super::super::query::{Query, boolean};
use super::super::routes::{Call, Need, Routes};
use super::super::words;
use super::{PAGE_MAX, figure, flag, known_project, links, next_link, only, optional_text, text};
use crate::model::FlavorRecord;
use crate::ops::flavors::{self, FlavorSpec};
use crate::ops::identity::Caller;
use crate::ops::{OpsError, Row};
use amphi_api::ProjectId;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// The rest of what nova sorts by has no place here: it is taken and changes nothing.
const SORT_KEYS: &[&str] = &[
    "created_at",
    "description",
    "disabled",
    "ephemeral_gb",
    "flavorid",
    "id",
    "is_public",
    "memory_mb",
    "name",
    "root_gb",
    "rxtx_factor",
    "swap",
    "updated_at",
    "vcpu_weight",
    "vcpus",
];

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .get("/v2.1/flavors", Need::Reader, list)
        .get("/v2.1/flavors/detail", Need::Reader, list_detail)
        .post("/v2.1/flavors", Need::Admin, create)
        .get("/v2.1/flavors/{id}", Need::Reader, show)
        .put("/v2.1/flavors/{id}", Need::Admin, update)
        .delete("/v2.1/flavors/{id}", Need::Admin, delete)
        .get("/v2.1/flavors/{id}/os-flavor-access", Need::Admin, list_access)
        .action("/v2.1/flavors/{id}/action", "addTenantAccess", Need::Admin, add_access)
        .action("/v2.1/flavors/{id}/action", "removeTenantAccess", Need::Admin, remove_access)
        .get("/v2.1/flavors/{id}/os-extra_specs", Need::Reader, list_specs)
        .post("/v2.1/flavors/{id}/os-extra_specs", Need::Admin, set_specs)
        .get("/v2.1/flavors/{id}/os-extra_specs/{key}", Need::Reader, show_spec)
        .put("/v2.1/flavors/{id}/os-extra_specs/{key}", Need::Admin, set_spec)
        .delete("/v2.1/flavors/{id}/os-extra_specs/{key}", Need::Admin, unset_spec)
}

/// A flavor as clients see it.
fn body(flavor: &FlavorRecord, base: &Base, version: Microversion) -> Value {
    let swap = if flavor.swap_mib == 0 && !version.from(75) { json!("") } else { json!(flavor.swap_mib) };
    let mut body = json!({
        "id": flavor.id,
        "name": flavor.name,
        "ram": flavor.ram_mib,
        "disk": flavor.disk_gib,
        "swap": swap,
        "OS-FLV-EXT-DATA:ephemeral": flavor.ephemeral_gib,
        "OS-FLV-DISABLED:disabled": flavor.disabled,
        "vcpus": flavor.vcpus,
        "os-flavor-access:is_public": flavor.is_public,
        "rxtx_factor": flavor.rxtx_factor,
        "links": links(base, "flavors", &flavor.id),
    });
    if version.from(55) {
        body["description"] = json!(flavor.description);
    }
    if version.from(61) {
        body["extra_specs"] = json!(flavor.extra_specs);
    }
    body
}

fn brief(flavor: &FlavorRecord, base: &Base, version: Microversion) -> Value {
    let mut body = json!({"id": flavor.id, "name": flavor.name, "links": links(base, "flavors", &flavor.id)});
    if version.from(55) {
        body["description"] = json!(flavor.description);
    }
    body
}

async fn list(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    base: Base,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    listed(&state, &caller, version, &base, &query, "/flavors", brief)
}

async fn list_detail(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    base: Base,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    listed(&state, &caller, version, &base, &query, "/flavors/detail", body)
}

fn listed(
    state: &OpenStack,
    caller: &Caller,
    version: Microversion,
    base: &Base,
    query: &Query,
    path: &str,
    render: fn(&FlavorRecord, &Base, Microversion) -> Value,
) -> Result<Json<Value>, Refusal> {
    let least = |name: &str| match query.one(name) {
        None => Ok(0),
        Some(text) => {
            text.trim().parse::<i64>().map_err(|_| Refusal::bad(format!("Invalid {name} filter [{text}]")))
        }
    };
    let (least_ram, least_disk) = (least("minRam")?, least("minDisk")?);
    let public = match query.one("is_public").filter(|_| caller.is_admin()) {
        None => Some(true),
        Some(text) if text.eq_ignore_ascii_case("none") => None,
        Some(text) => {
            Some(boolean(text).ok_or_else(|| Refusal::bad(format!("Invalid is_public filter [{text}]")))?)
        }
    };
    let mut keys = sort_keys(query)?;
    if let Some((key, _)) = keys.iter().find(|(key, _)| !SORT_KEYS.contains(&key.as_str())) {
        return Err(Refusal::field("sort_key", format!("'{key}' is not one of {SORT_KEYS:?}")));
    }
    keys.truncate(1);
    let view = state.ops.world().read();
    let mine = |flavor: &FlavorRecord| caller.project.is_some_and(|p| flavor.access.contains(&p));
    let mut rows: Vec<&Row<FlavorRecord>> = view
        .flavors
        .iter()
        .filter(|f| match public {
            Some(true) => f.is_public || mine(f),
            Some(false) => !f.is_public,
            None => true,
        })
        .filter(|f| caller.is_admin() || !f.disabled)
        .filter(|f| f.ram_mib as i64 >= least_ram && f.disk_gib as i64 >= least_disk)
        .collect();
    rows.sort_by(|a, b| {
        let order = keys.iter().fold(Ordering::Equal, |order, (key, direction)| {
            order.then_with(|| direction.apply(compare(key, a, b)))
        });
        order.then_with(|| a.id.cmp(&b.id))
    });
    let page = Page::of(query, PAGE_MAX)?;
    let slice = page.cut(rows, PAGE_MAX, |row| row.id.clone())?;
    let mut answer =
        json!({"flavors": slice.items.iter().map(|row| render(row, base, version)).collect::<Vec<_>>()});
    if let Some(last) = slice.items.last().filter(|_| slice.more) {
        answer["flavors_links"] = next_link(base, path, query, &last.id);
    }
    Ok(Json(answer))
}

fn compare(key: &str, a: &FlavorRecord, b: &FlavorRecord) -> Ordering {
    match key {
        "name" => a.name.cmp(&b.name),
        "memory_mb" => a.ram_mib.cmp(&b.ram_mib),
        "vcpus" => a.vcpus.cmp(&b.vcpus),
        "root_gb" => a.disk_gib.cmp(&b.disk_gib),
        "ephemeral_gb" => a.ephemeral_gib.cmp(&b.ephemeral_gib),
        "swap" => a.swap_mib.cmp(&b.swap_mib),
        "rxtx_factor" => a.rxtx_factor.total_cmp(&b.rxtx_factor),
        "is_public" => a.is_public.cmp(&b.is_public),
        "disabled" => a.disabled.cmp(&b.disabled),
        "description" => a.description.cmp(&b.description),
        "created_at" | "id" => a.created_at.cmp(&b.created_at),
        _ => a.id.cmp(&b.id),
    }
}

async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    base: Base,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    Ok(Json(json!({"flavor": body(&visible(&state, &caller, &id)?, &base, version)})))
}

/// The flavor, if the caller may see it.
fn visible(state: &OpenStack, caller: &Caller, id: &str) -> Result<FlavorRecord, Refusal> {
    let view = state.ops.world().read();
    let project = caller.project.unwrap_or(ProjectId(uuid::Uuid::nil()));
    Ok((*flavors::usable(&view, project, caller.is_admin(), id)?.record).clone())
}

async fn create(
    State(state): State<OpenStack>,
    version: Microversion,
    base: Base,
    Body(request): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let known = [
        "name",
        "id",
        "ram",
        "vcpus",
        "disk",
        "OS-FLV-EXT-DATA:ephemeral",
        "swap",
        "rxtx_factor",
        "os-flavor-access:is_public",
        "description",
    ];
    let known = if version.from(55) { &known[..] } else { &known[..known.len() - 1] };
    let spec = spec_of(&only(request, "flavor", known)?)?;
    let record = state.ops.create_flavor(&spec).await?;
    Ok(Json(json!({"flavor": body(&record, &base, version)})))
}

fn spec_of(map: &Map<String, Value>) -> Result<FlavorSpec, Refusal> {
    let needed = |key: &str| {
        figure(map, key)?
            .ok_or_else(|| Refusal::bad(format!("Invalid input: '{key}' is a required property")))
    };
    let id = match map.get("id") {
        None | Some(Value::Null) => None,
        Some(Value::String(id)) => Some(id.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        Some(_) => return Err(Refusal::field("id", "it must be a string or a number")),
    };
    let factor = match map.get("rxtx_factor") {
        None => Some(1.0),
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.parse().ok(),
        Some(_) => None,
    };
    let vcpus = u32::try_from(needed("vcpus")?);
    Ok(FlavorSpec {
        id,
        name: text(map, "name")?.to_owned(),
        vcpus: vcpus.map_err(|_| Refusal::field("vcpus", "it is too large"))?,
        ram_mib: needed("ram")?,
        disk_gib: needed("disk")?,
        ephemeral_gib: figure(map, "OS-FLV-EXT-DATA:ephemeral")?.unwrap_or(0),
        swap_mib: figure(map, "swap")?.unwrap_or(0),
        rxtx_factor: factor.ok_or_else(|| Refusal::field("rxtx_factor", "it must be a number"))?,
        is_public: flag(map, "os-flavor-access:is_public")?.unwrap_or(true),
        description: optional_text(map, "description")?.map(str::to_owned),
    })
}

async fn update(
    State(state): State<OpenStack>,
    version: Microversion,
    base: Base,
    Path(id): Path<String>,
    Body(request): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    if !version.from(55) {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "The resource could not be found."));
    }
    let map = only(request, "flavor", &["description"])?;
    if !map.contains_key("description") {
        return Err(Refusal::bad("Invalid input: 'description' is a required property"));
    }
    let description = optional_text(&map, "description")?.map(str::to_owned);
    let record = state.ops.describe_flavor(&id, description).await?;
    Ok(Json(json!({"flavor": body(&record, &base, version)})))
}

async fn delete(State(state): State<OpenStack>, Path(id): Path<String>) -> Result<StatusCode, Refusal> {
    state.ops.delete_flavor(&id).await?;
    Ok(StatusCode::ACCEPTED)
}

fn access_body(flavor: &FlavorRecord) -> Value {
    let entry = |project: &ProjectId| json!({"flavor_id": flavor.id, "tenant_id": words::hex(project.0)});
    json!({"flavor_access": flavor.access.iter().map(entry).collect::<Vec<_>>()})
}

async fn list_access(State(state): State<OpenStack>, Path(id): Path<String>) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let row = flavors::get(&view, &id)?;
    if row.is_public {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "Access list not available for public flavors."));
    }
    Ok(Json(access_body(row)))
}

fn tenant(call: &Call) -> Result<String, Refusal> {
    let Value::Object(map) = &call.argument else {
        return Err(Refusal::bad("Invalid input: 'tenant' is a required property"));
    };
    super::refuse_unknown(map, &["tenant"])?;
    Ok(text(map, "tenant")?.to_owned())
}

async fn add_access(call: Call) -> Result<Response, Refusal> {
    let tenant = tenant(&call)?;
    let project = {
        let view = call.state.ops.world().read();
        let project = known_project(&view, &call.caller, &tenant)?;
        if flavors::get(&view, &call.id)?.is_public && call.version.from(7) {
            return Err(Refusal::conflict("Can not add access to a public flavor."));
        }
        project
    };
    let record = call.state.ops.add_flavor_access(&call.id, project).await?;
    Ok(Json(access_body(&record)).into_response())
}

/// Of a project that is gone, too.
async fn remove_access(call: Call) -> Result<Response, Refusal> {
    let tenant = tenant(&call)?;
    let project = words::id(&tenant).map(ProjectId).ok_or_else(|| Refusal::not_found("project", &tenant))?;
    let record = call.state.ops.remove_flavor_access(&call.id, project).await?;
    Ok(Json(access_body(&record)).into_response())
}

async fn list_specs(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    Ok(Json(json!({"extra_specs": visible(&state, &caller, &id)?.extra_specs})))
}

async fn set_specs(
    State(state): State<OpenStack>,
    Path(id): Path<String>,
    Body(request): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let Value::Object(mut outer) = request else {
        return Err(Refusal::bad("Invalid input: 'extra_specs' is a required property"));
    };
    let specs = match outer.remove("extra_specs") {
        Some(Value::Object(map)) if outer.is_empty() => specs_of(map)?,
        _ => return Err(Refusal::bad("Invalid input: one object 'extra_specs' is required")),
    };
    state.ops.set_flavor_specs(&id, &specs).await?;
    Ok(Json(json!({"extra_specs": specs})))
}

/// Values may be numbers; they are kept as text.
fn specs_of(map: Map<String, Value>) -> Result<BTreeMap<String, String>, Refusal> {
    let text = |(key, value): (String, Value)| match value {
        Value::String(text) => Ok((key, text)),
        Value::Number(number) => Ok((key, number.to_string())),
        _ => Err(Refusal::field(format!("extra_specs.{key}"), "it must be a string or a number")),
    };
    map.into_iter().map(text).collect()
}

async fn show_spec(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    let flavor = visible(&state, &caller, &id)?;
    match flavor.extra_specs.get(&key) {
        Some(value) => Ok(Json(json!({ key: value }))),
        None => Err(absent(&id, &key)),
    }
}

fn absent(id: &str, key: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("Flavor {id} has no extra specs with key {key}."))
}

async fn set_spec(
    State(state): State<OpenStack>,
    Path((id, key)): Path<(String, String)>,
    Body(request): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let Value::Object(map) = request else {
        return Err(Refusal::bad("Invalid input: an object with one key is required"));
    };
    let specs = specs_of(map)?;
    if specs.len() != 1 || !specs.contains_key(&key) {
        return Err(Refusal::bad("Request body and URI mismatch: the body must have the URI's key alone"));
    }
    state.ops.set_flavor_specs(&id, &specs).await?;
    Ok(Json(json!(specs)))
}

async fn unset_spec(
    State(state): State<OpenStack>,
    Path((id, key)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    match state.ops.unset_flavor_spec(&id, &key).await {
        Ok(_) => Ok(StatusCode::OK),
        Err(OpsError::NotFound { noun: "extra spec", .. }) => Err(absent(&id, &key)),
        Err(error) => Err(error.into()),
    }
}
