//! `/os-hypervisors`: the hosts as nova's compute nodes. Microversions: 2.28 (cpu_info is an object), 2.33 (paging),
//! 2.53 (UUIDs; pattern and servers are parameters), 2.75 (servers are there though empty), 2.88 (no figures: they are
//! placement's).

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::gate::Base;
use super::super::microversion::Microversion;
use super::super::page::Page;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::super::words;
use super::services::is_up;
use super::{PAGE_MAX, next_link};
use crate::model::HostRecord;
use crate::ops::{Row, View};
use amphi_api::HostId;
use amphi_api::host::{EngineName, HostSpec};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::net::IpAddr;

const GIB: u64 = 1 << 30;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .get("/v2.1/os-hypervisors", Need::Admin, list)
        .get("/v2.1/os-hypervisors/detail", Need::Admin, list_detail)
        .get("/v2.1/os-hypervisors/statistics", Need::Admin, statistics)
        .get("/v2.1/os-hypervisors/{id}", Need::Admin, show)
        .get("/v2.1/os-hypervisors/{id}/uptime", Need::Admin, uptime)
        .get("/v2.1/os-hypervisors/{id}/search", Need::Admin, search)
        .get("/v2.1/os-hypervisors/{id}/servers", Need::Admin, servers)
}

/// What a host has, promises and has left.
struct Figures {
    vcpus: u64,
    memory_mib: u64,
    disk_gib: u64,
    vcpus_used: u64,
    memory_used: u64,
    disk_used: u64,
    disk_least: u64,
    instances: u64,
}

fn figures(view: &View, host: &HostRecord, spec: &HostSpec) -> Figures {
    let claims = view.claims_of(host.id);
    Figures {
        vcpus: spec.cpus.into(),
        memory_mib: spec.memory_mib,
        disk_gib: spec.volume_group_bytes / GIB,
        vcpus_used: claims.vcpus.into(),
        // What is kept for the host counts as used, as nova's resource tracker has it.
        memory_used: claims.memory_mib + spec.reserved_memory_mib,
        disk_used: claims.volume_gib,
        disk_least: spec.volume_group_free_bytes / GIB,
        instances: claims.instances.into(),
    }
}

/// `9.0.1` as libvirt's number: 9000001.
fn libvirt_number(spec: &HostSpec) -> u64 {
    let engine = spec.engines.iter().find(|engine| engine.name == EngineName::Libvirt);
    let version = engine.map(|engine| engine.version.as_str()).unwrap_or_default();
    let mut parts = version.split('.').map(|part| part.parse::<u64>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    next() * 1_000_000 + next() * 1000 + next()
}

fn brief(host: &HostRecord, version: Microversion) -> Value {
    json!({
        "id": if version.from(53) { json!(host.id.to_string()) } else { json!(host.number()) },
        "hypervisor_hostname": host.name,
        "state": if is_up(host) { "up" } else { "down" },
        "status": if host.disabled { "disabled" } else { "enabled" },
    })
}

fn full(view: &View, host: &HostRecord, version: Microversion) -> Value {
    let mut body = brief(host, version);
    let id = body["id"].clone();
    body["service"] = json!({"id": id, "host": host.name, "disabled_reason": host.disabled_reason});
    let Some(spec) = &host.spec else { return body };
    body["hypervisor_type"] = json!("QEMU");
    body["hypervisor_version"] = json!(libvirt_number(spec));
    let address = spec.address.parse::<IpAddr>().unwrap_or(IpAddr::from([0, 0, 0, 0]));
    body["host_ip"] = json!(address.to_string());
    if version.from(88) {
        body["uptime"] = json!(is_up(host).then(|| uptime_of(host, Timestamp::now())));
        return body;
    }
    // No host tells of its CPU's model.
    body["cpu_info"] = if version.from(28) { json!({}) } else { json!("") };
    let figures = figures(view, host, spec);
    for (key, value) in [
        ("vcpus", figures.vcpus),
        ("vcpus_used", figures.vcpus_used),
        ("memory_mb", figures.memory_mib),
        ("memory_mb_used", figures.memory_used),
        ("free_ram_mb", figures.memory_mib.saturating_sub(figures.memory_used)),
        ("local_gb", figures.disk_gib),
        ("local_gb_used", figures.disk_used),
        ("free_disk_gb", figures.disk_gib.saturating_sub(figures.disk_used)),
        ("disk_available_least", figures.disk_least),
        ("current_workload", 0),
        ("running_vms", figures.instances),
    ] {
        body[key] = json!(value);
    }
    body
}

/// As `uptime` prints it, of the host's link: how long the machine has been up is not known here.
fn uptime_of(host: &HostRecord, now: Timestamp) -> String {
    let minutes = now.duration_since(host.state_since).as_mins().max(0);
    let (days, hours, minutes) = (minutes / 1440, minutes / 60 % 24, minutes % 60);
    let clock = now.to_string();
    let clock = clock.get(11..19).unwrap_or_default();
    format!(" {clock} up {days} days, {hours:2}:{minutes:02}")
}

/// Hosts that have said once what they are.
fn known(view: &View) -> impl Iterator<Item = &Row<HostRecord>> {
    view.hosts.iter().filter(|host| host.spec.is_some())
}

fn with_servers(view: &View, host: HostId, mut body: Value, even_none: bool) -> Value {
    let servers: Vec<_> =
        view.instances_on(host).map(|row| json!({"uuid": row.id.to_string(), "name": row.name})).collect();
    if even_none || !servers.is_empty() {
        body["servers"] = json!(servers);
    }
    body
}

async fn list(
    State(state): State<OpenStack>,
    version: Microversion,
    base: Base,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    listed(&state, version, &base, &query, "/os-hypervisors", |_, host| brief(host, version))
}

async fn list_detail(
    State(state): State<OpenStack>,
    version: Microversion,
    base: Base,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    listed(&state, version, &base, &query, "/os-hypervisors/detail", |view, host| full(view, host, version))
}

fn listed(
    state: &OpenStack,
    version: Microversion,
    base: &Base,
    query: &Query,
    path: &str,
    render: impl Fn(&View, &HostRecord) -> Value,
) -> Result<Json<Value>, Refusal> {
    let pattern = query.one("hypervisor_hostname_pattern").filter(|_| version.from(53));
    let servers = version.from(53) && query.flag("with_servers")?.unwrap_or(false);
    if pattern.is_some() && (query.has("limit") || query.has("marker")) {
        return Err(Refusal::bad(
            "Paging over hypervisors with the hypervisor_hostname_pattern query parameter is not supported.",
        ));
    }
    let view = state.ops.world().read();
    let rows: Vec<_> = known(&view).filter(|host| pattern.is_none_or(|p| host.name.contains(p))).collect();
    if let Some(pattern) = pattern.filter(|_| rows.is_empty()) {
        return Err(unmatched(pattern));
    }
    let page = if version.from(33) { Page::of(query, PAGE_MAX)? } else { Page::default() };
    let id = |host: &HostRecord| match version.from(53) {
        true => host.id.to_string(),
        false => host.number().to_string(),
    };
    let most = if version.from(33) { PAGE_MAX } else { usize::MAX };
    let slice = page.cut(rows, most, |row| id(row))?;
    let shown = slice.items.iter().map(|host| {
        let body = render(&view, host);
        if servers { with_servers(&view, host.id, body, version.from(75)) } else { body }
    });
    let mut answer = json!({"hypervisors": shown.collect::<Vec<_>>()});
    if let Some(last) = slice.items.last().filter(|_| slice.more && version.from(33)) {
        answer["hypervisors_links"] = next_link(base, path, query, &id(last));
    }
    Ok(Json(answer))
}

fn unmatched(pattern: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("No hypervisor matching '{pattern}' could be found."))
}

fn absent(id: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("Hypervisor with ID '{id}' could not be found."))
}

/// The host of an id: a UUID from 2.53 on, a number before. Names are 404: clients look them up in the list.
fn found<'a>(view: &'a View, id: &str, version: Microversion) -> Result<&'a Row<HostRecord>, Refusal> {
    let row = if version.from(53) {
        words::id(id).and_then(|id| view.hosts.get(HostId(id)))
    } else {
        id.parse::<u32>().ok().and_then(|number| view.hosts.iter().find(|h| h.number() == number))
    };
    row.filter(|host| host.spec.is_some()).ok_or_else(|| absent(id))
}

async fn show(
    State(state): State<OpenStack>,
    version: Microversion,
    query: Query,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let servers = version.from(53) && query.flag("with_servers")?.unwrap_or(false);
    let view = state.ops.world().read();
    let host = found(&view, &id, version)?;
    let body = full(&view, host, version);
    let body = if servers { with_servers(&view, host.id, body, version.from(75)) } else { body };
    Ok(Json(json!({"hypervisor": body})))
}

async fn uptime(
    State(state): State<OpenStack>,
    version: Microversion,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    gone_from(version, 88)?;
    let view = state.ops.world().read();
    let host = found(&view, &id, version)?;
    if !is_up(host) {
        return Err(Refusal::bad(format!("Compute service of {} is unavailable at this time.", host.name)));
    }
    let mut body = brief(host, version);
    body["uptime"] = json!(uptime_of(host, Timestamp::now()));
    Ok(Json(json!({"hypervisor": body})))
}

/// What a later microversion has no more.
fn gone_from(version: Microversion, minor: u16) -> Result<(), Refusal> {
    match version.from(minor) {
        true => Err(Refusal::new(StatusCode::NOT_FOUND, "The resource could not be found.")),
        false => Ok(()),
    }
}

fn matching<'a>(view: &'a View, pattern: &str) -> Result<Vec<&'a Row<HostRecord>>, Refusal> {
    let rows: Vec<_> = known(view).filter(|host| host.name.contains(pattern)).collect();
    if rows.is_empty() { Err(unmatched(pattern)) } else { Ok(rows) }
}

async fn search(
    State(state): State<OpenStack>,
    version: Microversion,
    Path(pattern): Path<String>,
) -> Result<Json<Value>, Refusal> {
    gone_from(version, 53)?;
    let view = state.ops.world().read();
    let rows = matching(&view, &pattern)?;
    Ok(Json(json!({"hypervisors": rows.iter().map(|host| brief(host, version)).collect::<Vec<_>>()})))
}

async fn servers(
    State(state): State<OpenStack>,
    version: Microversion,
    Path(pattern): Path<String>,
) -> Result<Json<Value>, Refusal> {
    gone_from(version, 53)?;
    let view = state.ops.world().read();
    let rows = matching(&view, &pattern)?;
    let shown = rows.iter().map(|host| with_servers(&view, host.id, brief(host, version), false));
    Ok(Json(json!({"hypervisors": shown.collect::<Vec<_>>()})))
}

/// Sums over the hosts that are enabled.
async fn statistics(State(state): State<OpenStack>, version: Microversion) -> Result<Json<Value>, Refusal> {
    gone_from(version, 88)?;
    let view = state.ops.world().read();
    let mut sums = Figures {
        vcpus: 0,
        memory_mib: 0,
        disk_gib: 0,
        vcpus_used: 0,
        memory_used: 0,
        disk_used: 0,
        disk_least: 0,
        instances: 0,
    };
    let mut count = 0;
    for host in known(&view).filter(|host| !host.disabled) {
        let Some(spec) = &host.spec else { continue };
        let one = figures(&view, host, spec);
        count += 1;
        sums.vcpus += one.vcpus;
        sums.memory_mib += one.memory_mib;
        sums.disk_gib += one.disk_gib;
        sums.vcpus_used += one.vcpus_used;
        sums.memory_used += one.memory_used;
        sums.disk_used += one.disk_used;
        sums.disk_least += one.disk_least;
        sums.instances += one.instances;
    }
    Ok(Json(json!({"hypervisor_statistics": {
        "count": count,
        "vcpus": sums.vcpus,
        "memory_mb": sums.memory_mib,
        "local_gb": sums.disk_gib,
        "vcpus_used": sums.vcpus_used,
        "memory_mb_used": sums.memory_used,
        "local_gb_used": sums.disk_used,
        "free_ram_mb": sums.memory_mib.saturating_sub(sums.memory_used),
        "free_disk_gb": sums.disk_gib.saturating_sub(sums.disk_used),
        "current_workload": 0,
        "running_vms": sums.instances,
        "disk_available_least": sums.disk_least,
    }})))
}
