//! `/resource_providers`: each host that has said once what it is, with its inventory and what is promised of it; and
//! `/allocations`: what each instance takes.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::microversion::Microversion;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::super::words::{hex, id};
use super::words::{CLASSES, required, resources, since, traits_of};
use crate::model::{HostRecord, InstanceRecord};
use crate::ops::{Row, View};
use crate::scheduler::Policy;
use amphi_api::{HostId, InstanceId, ProjectId};
use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const GIB: u64 = 1 << 30;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .get("/resource_providers", Need::Admin, list)
        .get("/resource_providers/{id}", Need::Admin, show)
        .get("/resource_providers/{id}/inventories", Need::Admin, inventories)
        .get("/resource_providers/{id}/inventories/{class}", Need::Admin, one_inventory)
        .get("/resource_providers/{id}/usages", Need::Admin, usages)
        .get("/resource_providers/{id}/aggregates", Need::Admin, aggregates)
        .get("/resource_providers/{id}/traits", Need::Admin, traits)
        .get("/resource_providers/{id}/allocations", Need::Admin, allocations)
        .get("/allocations/{id}", Need::Admin, allocations_of)
        .get("/usages", Need::Admin, usages_of_project)
}

/// What a host has of one class.
#[derive(Clone, Copy)]
pub(super) struct Stock {
    total: u64,
    reserved: u64,
    ratio: f64,
    most: u64,
    pub used: u64,
}

impl Stock {
    pub fn capacity(&self) -> u64 {
        (self.total.saturating_sub(self.reserved) as f64 * self.ratio) as u64
    }

    /// Whether so much more fits.
    pub fn fits(&self, more: u64) -> bool {
        more <= self.most && self.used.saturating_add(more) <= self.capacity()
    }

    fn body(&self) -> Value {
        json!({
            "total": self.total,
            "reserved": self.reserved,
            "min_unit": 1,
            "max_unit": self.most,
            "step_size": 1,
            "allocation_ratio": self.ratio,
        })
    }
}

/// A host's stock by class: the figures that the scheduler's filters decide by.
pub(super) fn stock(view: &View, host: &HostRecord, policy: &Policy) -> BTreeMap<&'static str, Stock> {
    let Some(spec) = &host.spec else { return BTreeMap::new() };
    let claims = view.claims_of(host.id);
    let disk = spec.volume_group_bytes / GIB;
    let one = |total: u64, reserved: u64, ratio: f64, used: u64| Stock {
        total,
        reserved,
        ratio,
        most: total,
        used,
    };
    [
        one(spec.cpus.into(), spec.reserved_cpus.into(), policy.cpu_overcommit.into(), claims.vcpus.into()),
        one(
            spec.memory_mib,
            spec.reserved_memory_mib,
            f64::from(policy.memory_overcommit_percent) / 100.0,
            claims.memory_mib,
        ),
        one(disk, 0, 1.0, claims.volume_gib),
    ]
    .into_iter()
    .zip(CLASSES)
    // What a host has none of is no inventory.
    .filter(|(stock, _)| stock.total > 0)
    .map(|(stock, class)| (class, stock))
    .collect()
}

/// Grows with every hello; nobody may write against it.
fn generation(host: &HostRecord) -> u64 {
    host.hellos
}

fn provider(host: &HostRecord, version: Microversion) -> Value {
    let path = format!("/placement/resource_providers/{}", host.id);
    let link = |rel: &str| json!({"rel": rel, "href": format!("{path}/{rel}")});
    let mut links = vec![json!({"rel": "self", "href": path}), link("inventories"), link("usages")];
    if version.from(1) {
        links.push(link("aggregates"));
    }
    if version.from(6) {
        links.push(link("traits"));
    }
    if version.from(11) {
        links.push(link("allocations"));
    }
    let mut body = json!({
        "uuid": host.id.to_string(),
        "name": host.name,
        "generation": generation(host),
        "links": links,
    });
    if version.from(14) {
        body["root_provider_uuid"] = json!(host.id.to_string());
        body["parent_provider_uuid"] = Value::Null;
    }
    body
}

fn known(view: &View) -> impl Iterator<Item = &Row<HostRecord>> {
    view.hosts.iter().filter(|host| host.spec.is_some())
}

fn found<'a>(view: &'a View, text: &str) -> Result<&'a Row<HostRecord>, Refusal> {
    let row = id(text).and_then(|id| view.hosts.get(HostId(id))).filter(|host| host.spec.is_some());
    row.ok_or_else(|| {
        let message = format!(
            "No resource provider with uuid {text} found : No resource provider with uuid {text} found"
        );
        Refusal::new(axum::http::StatusCode::NOT_FOUND, message)
    })
}

async fn list(
    State(state): State<OpenStack>,
    version: Microversion,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let one_of = |name: &str| -> Result<Option<uuid::Uuid>, Refusal> {
        let text = query.one(name);
        let parsed =
            text.map(|text| id(text).ok_or_else(|| Refusal::bad(format!("Invalid uuid value: {text}"))));
        parsed.transpose()
    };
    let (uuid, tree) = (one_of("uuid")?, one_of("in_tree")?);
    let asked = query.one("resources").map(resources).transpose()?.unwrap_or_default();
    let (wanted, barred) = required(query.one("required").unwrap_or_default());
    let kept = known(&view)
        .filter(|host| uuid.is_none_or(|id| host.id.0 == id) && tree.is_none_or(|id| host.id.0 == id))
        .filter(|host| query.one("name").is_none_or(|name| host.name == name))
        .filter(|host| query.all("member_of").all(|groups| member(&view, host.id, groups)))
        .filter(|host| suits(host, &wanted, &barred))
        .filter(|host| {
            let stock = stock(&view, host, state.ops.policy());
            asked.iter().all(|(class, more)| stock.get(class).is_some_and(|stock| stock.fits(*more)))
        });
    Ok(Json(json!({"resource_providers": kept.map(|host| provider(host, version)).collect::<Vec<_>>()})))
}

/// Whether the host's traits are as they must be.
pub(super) fn suits(host: &HostRecord, wanted: &[String], barred: &[String]) -> bool {
    let traits = traits_of(host.spec.as_ref(), host.disabled);
    wanted.iter().all(|name| traits.contains(name.as_str()))
        && !barred.iter().any(|name| traits.contains(name.as_str()))
}

/// Whether the host is in one of the aggregates: `UUID` or `in:UUID,UUID`.
pub(super) fn member(view: &View, host: HostId, groups: &str) -> bool {
    let groups = groups.strip_prefix("in:").unwrap_or(groups);
    groups
        .split(',')
        .filter_map(id)
        .any(|group| view.aggregates.iter().any(|row| row.uuid == group && row.hosts.contains(&host)))
}

async fn show(
    State(state): State<OpenStack>,
    version: Microversion,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    Ok(Json(provider(found(&view, &id)?, version)))
}

async fn inventories(State(state): State<OpenStack>, Path(id): Path<String>) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let host = found(&view, &id)?;
    let all: Map<String, Value> = stock(&view, host, state.ops.policy())
        .into_iter()
        .map(|(class, stock)| (class.to_owned(), stock.body()))
        .collect();
    Ok(Json(json!({"inventories": all, "resource_provider_generation": generation(host)})))
}

async fn one_inventory(
    State(state): State<OpenStack>,
    Path((id, class)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let host = found(&view, &id)?;
    let stock = stock(&view, host, state.ops.policy());
    let one = stock.get(class.as_str()).ok_or_else(|| Refusal::not_found("inventory of class", &class))?;
    let mut body = one.body();
    body["resource_provider_generation"] = json!(generation(host));
    Ok(Json(body))
}

async fn usages(State(state): State<OpenStack>, Path(id): Path<String>) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let host = found(&view, &id)?;
    let used: BTreeMap<_, _> = stock(&view, host, state.ops.policy())
        .into_iter()
        .map(|(class, stock)| (class, stock.used))
        .collect();
    Ok(Json(json!({"usages": used, "resource_provider_generation": generation(host)})))
}

async fn aggregates(
    State(state): State<OpenStack>,
    version: Microversion,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    since(version, 1)?;
    let view = state.ops.world().read();
    let host = found(&view, &id)?;
    let mine = view.aggregates.iter().filter(|row| row.hosts.contains(&host.id));
    let mut body = json!({"aggregates": mine.map(|row| row.uuid.to_string()).collect::<Vec<_>>()});
    if version.from(19) {
        body["resource_provider_generation"] = json!(generation(host));
    }
    Ok(Json(body))
}

async fn traits(
    State(state): State<OpenStack>,
    version: Microversion,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    since(version, 6)?;
    let view = state.ops.world().read();
    let host = found(&view, &id)?;
    let traits = traits_of(host.spec.as_ref(), host.disabled);
    Ok(Json(json!({"traits": traits, "resource_provider_generation": generation(host)})))
}

fn taken(instance: &InstanceRecord) -> Value {
    json!({"VCPU": instance.vcpus, "MEMORY_MB": instance.memory_mib})
}

async fn allocations(State(state): State<OpenStack>, Path(id): Path<String>) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let host = found(&view, &id)?;
    let all: Map<String, Value> = view
        .instances_on(host.id)
        .map(|row| (row.id.to_string(), json!({"resources": taken(row)})))
        .collect();
    Ok(Json(json!({"allocations": all, "resource_provider_generation": generation(host)})))
}

/// Of a consumer that takes nothing: an empty answer, as placement has it.
async fn allocations_of(
    State(state): State<OpenStack>,
    version: Microversion,
    Path(text): Path<String>,
) -> Json<Value> {
    let view = state.ops.world().read();
    let row = id(&text).and_then(|id| view.instances.get(InstanceId(id)));
    let host = row.and_then(|row| row.host).and_then(|host| view.hosts.get(host));
    let (Some(row), Some(host)) = (row, host) else { return Json(json!({"allocations": {}})) };
    let one = json!({"generation": generation(host), "resources": taken(row)});
    let mut body = json!({"allocations": { host.id.to_string(): one }});
    if version.from(12) {
        body["project_id"] = json!(hex(row.project.0));
        body["user_id"] = json!(hex(uuid::Uuid::nil()));
    }
    if version.from(28) {
        body["consumer_generation"] = json!(row.epoch);
    }
    if version.from(38) {
        body["consumer_type"] = json!("INSTANCE");
    }
    Json(body)
}

async fn usages_of_project(
    State(state): State<OpenStack>,
    version: Microversion,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    since(version, 9)?;
    let text = query.one("project_id").ok_or_else(|| {
        Refusal::bad("Invalid query string parameters: 'project_id' is a required property")
    })?;
    let view = state.ops.world().read();
    let project = id(text).map(ProjectId);
    let sums = project.map(|project| view.sums_of(project)).unwrap_or_default();
    let count = project.map_or(0, |project| view.instances.count_of(project));
    let mut usages = json!({"VCPU": sums.vcpus, "MEMORY_MB": sums.ram_mib});
    if version.from(38) {
        usages["consumer_count"] = json!(count);
        usages = json!({ "INSTANCE": usages });
    }
    Ok(Json(json!({"usages": if count == 0 { json!({}) } else { usages }})))
}
