//! `/servers`: list, show, create, change, delete; addresses, security groups, diagnostics.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::gate::{Base, RequestId};
use super::super::microversion::Microversion;
use super::super::page::Page;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::super::words;
use super::server_create::{self, Asked};
use super::server_filter::{Filter, sort};
use super::server_view::{Form, Sight, network_name};
use super::{PAGE_MAX, flag, links, next_link, only, optional_text, text};
use crate::model::InstanceRecord;
use crate::ops::identity::Caller;
use crate::ops::servers::{Origin, ServerUpdate};
use crate::ops::{Row, View, VolumeFate};
use amphi_api::{InstanceId, ProjectId};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// About what a server is as text, in bytes.
const SERVER_TEXT: usize = 2048;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .get("/v2.1/servers", Need::Reader, list)
        .get("/v2.1/servers/detail", Need::Reader, detail)
        .post("/v2.1/servers", Need::Member, create)
        .get("/v2.1/servers/{id}", Need::Reader, show)
        .put("/v2.1/servers/{id}", Need::Member, update)
        .delete("/v2.1/servers/{id}", Need::Member, delete)
        .get("/v2.1/servers/{id}/ips", Need::Reader, addresses)
        .get("/v2.1/servers/{id}/ips/{network}", Need::Reader, addresses_of)
        .get("/v2.1/servers/{id}/os-security-groups", Need::Reader, security_groups)
        .get("/v2.1/servers/{id}/os-server-password", Need::Reader, password)
        .delete("/v2.1/servers/{id}/os-server-password", Need::Member, clear_password)
        .get("/v2.1/servers/{id}/diagnostics", Need::Admin, diagnostics)
}

/// A server that the caller may see.
pub(super) fn found<'a>(
    view: &'a View,
    caller: &Caller,
    id: &str,
) -> Result<&'a Row<InstanceRecord>, Refusal> {
    let row = words::id(id).and_then(|id| view.instances.get(InstanceId(id)));
    row.filter(|row| caller.may_see(row.project)).ok_or_else(|| missing(id))
}

pub(super) fn missing(id: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("Instance {id} could not be found."))
}

/// Whoever orders, in the project of the server that it is about.
pub(super) fn origin_of(
    state: &OpenStack,
    caller: &Caller,
    request: &RequestId,
    id: &str,
) -> Result<(Origin, InstanceId), Refusal> {
    let view = state.ops.world().read();
    let row = found(&view, caller, id)?;
    Ok((origin(caller, row.project, request), row.id))
}

pub(super) fn origin(caller: &Caller, project: ProjectId, request: &RequestId) -> Origin {
    Origin { project, user: Some(caller.user), admin: caller.is_admin(), request: request.0.clone() }
}

/// A server as it is after a change.
pub(super) fn shown(
    state: &OpenStack,
    caller: &Caller,
    version: Microversion,
    base: &Base,
    id: InstanceId,
    form: Form,
) -> Result<Value, Refusal> {
    let view = state.ops.world().read();
    let row = view.instances.get(id).ok_or_else(|| missing(&id.to_string()))?;
    let sight = Sight { view: &view, version, admin: caller.is_admin(), base, now: Timestamp::now() };
    Ok(json!(sight.server(row, form)))
}

async fn list(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    base: Base,
    query: Query,
) -> Result<Response, Refusal> {
    page(&state, &caller, version, &base, &query, "/servers", |sight, record, text| {
        write(text, &sight.brief(record));
    })
}

async fn detail(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    base: Base,
    query: Query,
) -> Result<Response, Refusal> {
    page(&state, &caller, version, &base, &query, "/servers/detail", |sight, record, text| {
        write(text, &sight.server(record, Form::Detail));
    })
}

fn page(
    state: &OpenStack,
    caller: &Caller,
    version: Microversion,
    base: &Base,
    query: &Query,
    path: &str,
    show: impl Fn(&Sight, &InstanceRecord, &mut Vec<u8>),
) -> Result<Response, Refusal> {
    let admin = caller.is_admin();
    let asked = Page::of(query, PAGE_MAX)?;
    let filter = Filter::of(query, version, admin)?;
    let all = all_tenants(query)?;
    if all && !admin {
        return Err(Refusal::forbidden(
            "Policy doesn't allow os_compute_api:servers:index:get_all_tenants to be performed.",
        ));
    }
    let view = state.ops.world().read();
    let sight = Sight { view: &view, version, admin, base, now: Timestamp::now() };
    let rows: Vec<&Row<InstanceRecord>> = if all {
        view.instances.iter().collect()
    } else {
        view.instances.of_project(caller.project()?).collect()
    };
    let mut records: Vec<&InstanceRecord> =
        rows.into_iter().map(|row| &*row.record).filter(|record| filter.keeps(&sight, record)).collect();
    sort(query, &sight, &mut records, admin)?;
    let slice = asked.cut(records, PAGE_MAX, |record| record.id.to_string())?;
    let last = slice.items.last().filter(|_| slice.more);
    let next = last.map(|last| next_link(base, path, query, &last.id.to_string()));
    let mut text = Vec::with_capacity(slice.items.len() * SERVER_TEXT + 64);
    text.push(b'{');
    if let Some(next) = next {
        text.extend_from_slice(b"\"servers_links\":");
        write(&mut text, &next);
        text.push(b',');
    }
    text.extend_from_slice(b"\"servers\":[");
    for (at, record) in slice.items.iter().enumerate() {
        if at > 0 {
            text.push(b',');
        }
        show(&sight, record, &mut text);
    }
    text.extend_from_slice(b"]}");
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

/// Writing values with plain keys into memory cannot fail.
fn write(text: &mut Vec<u8>, value: &impl Serialize) {
    drop(serde_json::to_writer(text, value));
}

/// Given without a value, it means yes.
fn all_tenants(query: &Query) -> Result<bool, Refusal> {
    match query.one("all_tenants").or_else(|| query.one("all_projects")) {
        None => Ok(false),
        Some("") => Ok(true),
        Some(text) => super::super::query::boolean(text)
            .ok_or_else(|| Refusal::bad(format!("Invalid value for all_tenants: {text}"))),
    }
}

async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    base: Base,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let row = found(&view, &caller, &id)?;
    let sight = Sight { view: &view, version, admin: caller.is_admin(), base: &base, now: Timestamp::now() };
    Ok(Json(json!({"server": sight.server(row, Form::Show)})))
}

async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    base: Base,
    request: RequestId,
    Body(body): Body<Value>,
) -> Result<Response, Refusal> {
    let project = caller.project()?;
    let Asked { wish, admin_pass, reservation_only } = {
        let view = state.ops.world().read();
        server_create::read(&view, &caller, project, version, body)?
    };
    let origin = origin(&caller, project, &request);
    let made = state.ops.create_server(&origin, &wish).await?;
    if reservation_only {
        return Ok((StatusCode::ACCEPTED, Json(json!({"reservation_id": made.reservation}))).into_response());
    }
    let first = made.servers.first().ok_or_else(|| Refusal::bad("nothing was asked for"))?;
    let id = first.to_string();
    let groups = if wish.security_groups.is_empty() { vec!["default".into()] } else { wish.security_groups };
    let groups: Vec<Value> = groups.into_iter().map(|name| json!({"name": name})).collect();
    let location = format!("{}/compute/v2.1/servers/{id}", base.0);
    let answer = json!({"server": {
        "links": links(&base, "servers", &id),
        "id": id,
        "OS-DCF:diskConfig": if wish.manual_disk { "MANUAL" } else { "AUTO" },
        "security_groups": groups,
        "adminPass": admin_pass,
    }});
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(answer)).into_response())
}

async fn update(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    base: Base,
    request: RequestId,
    Path(id): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let mut known = vec!["name", "OS-DCF:diskConfig", "accessIPv4", "accessIPv6"];
    known.extend(version.from(19).then_some("description"));
    known.extend(version.from(90).then_some("hostname"));
    let map = only(body, "server", &known)?;
    if map.is_empty() {
        return Err(Refusal::bad(
            "Invalid input for field/attribute server. Value: {}. {} does not have enough properties",
        ));
    }
    let name = optional_text(&map, "name")?.map(server_create::name).transpose()?;
    let update = ServerUpdate {
        name,
        description: match map.get("description") {
            None => None,
            Some(Value::Null) => Some(None),
            Some(_) => Some(Some(server_create::description(text(&map, "description")?)?)),
        },
        hostname: optional_text(&map, "hostname")?.map(server_create::hostname).transpose()?,
        manual_disk: server_create::disk_config(&map)?,
        access_v4: server_create::access(&map, "accessIPv4")?,
        access_v6: server_create::access(&map, "accessIPv6")?,
    };
    let (origin, instance) = origin_of(&state, &caller, &request, &id)?;
    state.ops.update_server(&origin, instance, &update).await?;
    Ok(Json(json!({"server": shown(&state, &caller, version, &base, instance, Form::Update)?})))
}

async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    request: RequestId,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let (origin, instance) = origin_of(&state, &caller, &request, &id)?;
    state.ops.delete_server(&origin, instance, VolumeFate::Keep).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn addresses(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    base: Base,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let row = found(&view, &caller, &id)?;
    let sight = Sight { view: &view, version, admin: false, base: &base, now: Timestamp::now() };
    Ok(Json(json!({"addresses": sight.addresses(row, false)})))
}

async fn addresses_of(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    base: Base,
    Path((id, network)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let row = found(&view, &caller, &id)?;
    let sight = Sight { view: &view, version, admin: false, base: &base, now: Timestamp::now() };
    let on = row.ports.iter().filter_map(|id| view.ports.get(*id));
    if !on.into_iter().any(|port| network_name(&view, port.network) == network) {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "Instance is not a member of specified network"));
    }
    let all = sight.addresses(row, false);
    Ok(Json(json!({ network.as_str(): all[network.as_str()] })))
}

async fn security_groups(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let row = found(&view, &caller, &id)?;
    let groups = row.security_groups.iter().filter_map(|id| view.groups.get(*id)).map(|group| {
        json!({
            "id": group.id.to_string(), "name": group.name, "tenant_id": words::hex(group.project),
            "description": group.notes.description, "rules": [],
        })
    });
    Ok(Json(json!({"security_groups": groups.collect::<Vec<_>>()})))
}

/// Nothing sets a password: whoever logs in has a key.
async fn password(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    found(&state.ops.world().read(), &caller, &id)?;
    Ok(Json(json!({"password": ""})))
}

async fn clear_password(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    found(&state.ops.world().read(), &caller, &id)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn diagnostics(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let row = found(&view, &caller, &id)?;
    if !version.from(48) {
        return Ok(Json(json!({"memory": row.memory_mib * 1024})));
    }
    let state = match crate::model::server_state(row, true, Timestamp::now()).power {
        1 => "running",
        3 => "paused",
        4 => "shutdown",
        _ => "pending",
    };
    let ports: Vec<_> = row.ports.iter().filter_map(|id| view.ports.get(*id)).collect();
    let nics: Vec<Value> = ports
        .iter()
        .map(|port| {
            let mut nic = json!({"mac_address": port.mac});
            for key in ["octets", "errors", "drop", "packets", "rate"] {
                nic[format!("rx_{key}")] = Value::Null;
                nic[format!("tx_{key}")] = Value::Null;
            }
            nic
        })
        .collect();
    let disks = usize::from(row.root_volume.is_some()) + row.volumes().count();
    Ok(Json(json!({
        "state": state, "driver": "libvirt", "hypervisor": Value::Null, "hypervisor_os": "linux",
        "uptime": Value::Null, "config_drive": row.server.config_drive, "num_cpus": row.vcpus,
        "num_nics": ports.len(), "num_disks": disks,
        "memory_details": {"maximum": row.memory_mib, "used": Value::Null},
        "cpu_details": [], "nic_details": nics, "disk_details": [],
    })))
}

/// Whether a text field that may be anything truthy is so.
pub(super) fn truthy(map: &Map<String, Value>, key: &str) -> Result<bool, Refusal> {
    match map.get(key) {
        Some(Value::String(text)) if text.is_empty() => Ok(false),
        Some(Value::Null) => Ok(false),
        _ => Ok(flag(map, key)?.unwrap_or(false)),
    }
}
