//! `/os-services`: each host's agent as `nova-compute`, and this controller as conductor and scheduler. Microversions:
//! 2.11 (forced down), 2.53 (UUIDs; an update names the service instead of the action).

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::microversion::Microversion;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::super::words;
use super::{flag, optional_text, refuse_unknown, text};
use crate::model::{HostRecord, INTERNAL_ZONE};
use crate::ops::aggregates::{Grouped, HostMark};
use crate::ops::{Ops, View};
use amphi_api::HostId;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use uuid::Uuid;

pub(super) const COMPUTE: &str = "nova-compute";
/// The name under which the controller's own services are shown.
pub(super) const CONTROLLER: &str = "controller";

/// What nova has as processes of their own; here both are the controller.
pub(super) const OWN: [&str; 2] = ["nova-conductor", "nova-scheduler"];

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .get("/v2.1/os-services", Need::Admin, list)
        .put("/v2.1/os-services/{id}", Need::Admin, update)
        .delete("/v2.1/os-services/{id}", Need::Admin, delete)
}

/// Whether a host is up in nova's sense: neither silent nor forced down.
pub(super) fn is_up(host: &HostRecord) -> bool {
    host.is_up() && !host.forced_down
}

/// When a host was last heard of, as far as this controller knows.
pub(super) fn heard_at(ops: &Ops, host: &HostRecord) -> Timestamp {
    ops.heard_at(host.id).unwrap_or(host.state_since)
}

fn of_host(ops: &Ops, host: &HostRecord, zone: &str, version: Microversion) -> Value {
    let mut body = json!({
        "id": if version.from(53) { json!(host.id.to_string()) } else { json!(host.number()) },
        "binary": COMPUTE,
        "host": host.name,
        "zone": zone,
        "status": if host.disabled { "disabled" } else { "enabled" },
        "state": if is_up(host) { "up" } else { "down" },
        "updated_at": words::cinder_time(heard_at(ops, host)),
        "disabled_reason": host.disabled_reason,
    });
    if version.from(11) {
        body["forced_down"] = json!(host.forced_down);
    }
    body
}

/// The controller's own: up, or nobody would answer.
fn own(at: usize, binary: &str, version: Microversion) -> Value {
    let id = Uuid::new_v5(&Uuid::NAMESPACE_DNS, binary.as_bytes());
    let mut body = json!({
        "id": if version.from(53) { json!(id.to_string()) } else { json!(at + 1) },
        "binary": binary,
        "host": CONTROLLER,
        "zone": INTERNAL_ZONE,
        "status": "enabled",
        "state": "up",
        "updated_at": words::cinder_time(Timestamp::now()),
        "disabled_reason": null,
    });
    if version.from(11) {
        body["forced_down"] = json!(false);
    }
    body
}

async fn list(State(state): State<OpenStack>, version: Microversion, query: Query) -> Json<Value> {
    let view = state.ops.world().read();
    let grouped = Grouped::of(&view);
    let own = OWN.iter().enumerate().map(|(at, binary)| own(at, binary, version));
    let hosts = view.hosts.iter().map(|host| of_host(&state.ops, host, grouped.zone(host.id), version));
    let wanted = |service: &Value| {
        ["host", "binary"].iter().all(|key| {
            let asked = query.one(key).filter(|asked| !asked.is_empty());
            asked.is_none_or(|asked| service[key] == asked)
        })
    };
    Json(json!({"services": own.chain(hosts).filter(wanted).collect::<Vec<_>>()}))
}

async fn update(
    State(state): State<OpenStack>,
    version: Microversion,
    Path(id): Path<String>,
    Body(request): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let Value::Object(map) = request else {
        return Err(Refusal::bad("Invalid input: an object is required"));
    };
    if version.from(53) {
        update_service(&state, &id, &map, version).await
    } else {
        update_by_action(&state, &id, &map, version).await
    }
}

fn uuid_of(text: &str) -> Result<Uuid, Refusal> {
    words::id(text).ok_or_else(|| Refusal::bad(format!("Invalid uuid {text}")))
}

async fn update_service(
    state: &OpenStack,
    id: &str,
    map: &Map<String, Value>,
    version: Microversion,
) -> Result<Json<Value>, Refusal> {
    refuse_unknown(map, &["status", "disabled_reason", "forced_down"])?;
    let uuid = uuid_of(id)?;
    if OWN.iter().any(|binary| Uuid::new_v5(&Uuid::NAMESPACE_DNS, binary.as_bytes()) == uuid) {
        return Err(Refusal::bad("Only nova-compute services can be updated."));
    }
    let host = HostId(uuid);
    let reason = reason_of(map)?;
    let disabled = match map.get("status").map(|value| value.as_str()) {
        None => None,
        Some(Some("enabled")) if reason.is_some() => {
            return Err(Refusal::bad("Specifying 'disabled_reason' with status 'enabled' is invalid."));
        }
        Some(Some("enabled")) => Some((false, None)),
        Some(Some("disabled")) => Some((true, reason)),
        Some(_) => return Err(Refusal::field("status", "it is neither 'enabled' nor 'disabled'")),
    };
    let mark = HostMark { disabled, forced_down: flag(map, "forced_down")?, ..HostMark::default() };
    if mark == HostMark::default() {
        return Err(Refusal::bad(
            "No updates were requested. Fields 'status' or 'forced_down' should be specified.",
        ));
    }
    if state.ops.world().read().hosts.get(host).is_none() {
        return Err(Refusal::not_found("service", id));
    }
    state.ops.mark_host(host, &mark).await?;
    let view = state.ops.world().read();
    let row = view.hosts.get(host).ok_or_else(|| Refusal::not_found("service", id))?;
    let zone = crate::ops::aggregates::zone_of(&view, host);
    Ok(Json(json!({"service": of_host(&state.ops, row, &zone, version)})))
}

/// 1 to 255 characters.
fn reason_of(map: &Map<String, Value>) -> Result<Option<String>, Refusal> {
    let reason = optional_text(map, "disabled_reason")?;
    if reason.is_some_and(|reason| reason.is_empty() || reason.chars().count() > 255) {
        return Err(Refusal::field("disabled_reason", "1 to 255 characters"));
    }
    Ok(reason.map(str::to_owned))
}

fn host_of(view: &View, name: &str) -> Result<HostId, Refusal> {
    let row = view.host_named(name);
    row.map(|row| row.id).ok_or_else(|| {
        Refusal::new(StatusCode::NOT_FOUND, format!("Host '{name}' is not mapped to any cell"))
    })
}

async fn update_by_action(
    state: &OpenStack,
    action: &str,
    map: &Map<String, Value>,
    version: Microversion,
) -> Result<Json<Value>, Refusal> {
    refuse_unknown(map, &["host", "binary", "disabled_reason", "forced_down"])?;
    let known = ["enable", "disable", "disable-log-reason"].contains(&action)
        || (action == "force-down" && version.from(11));
    if !known {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "Unknown action"));
    }
    let (name, binary) = (text(map, "host")?, text(map, "binary")?);
    if binary != COMPUTE {
        return Err(Refusal::bad(format!(
            "Updating a {binary} service is not supported. Only nova-compute services can be updated."
        )));
    }
    let host = host_of(&state.ops.world().read(), name)?;
    let mut answer = json!({"host": name, "binary": binary});
    let mark = match action {
        "force-down" => {
            let down = flag(map, "forced_down")?.ok_or_else(|| Refusal::bad("Missing forced_down field"))?;
            answer["forced_down"] = json!(down);
            HostMark { forced_down: Some(down), ..HostMark::default() }
        }
        "enable" => {
            answer["status"] = json!("enabled");
            HostMark { disabled: Some((false, None)), ..HostMark::default() }
        }
        _ => {
            let reason = match action {
                "disable" => None,
                _ => Some(reason_of(map)?.ok_or_else(|| Refusal::bad("Missing disabled reason field"))?),
            };
            answer["status"] = json!("disabled");
            if let Some(reason) = &reason {
                answer["disabled_reason"] = json!(reason);
            }
            HostMark { disabled: Some((true, reason)), ..HostMark::default() }
        }
    };
    state.ops.mark_host(host, &mark).await?;
    Ok(Json(json!({"service": answer})))
}

/// Forgets a host that is silent and empty.
async fn delete(
    State(state): State<OpenStack>,
    version: Microversion,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let host = if version.from(53) {
        HostId(uuid_of(&id)?)
    } else {
        let number: u32 = id.parse().map_err(|_| Refusal::field("id", "it must be an integer"))?;
        let view = state.ops.world().read();
        let row = view.hosts.iter().find(|host| host.number() == number);
        row.map(|row| row.id).ok_or_else(|| Refusal::not_found("service", &id))?
    };
    state.ops.delete_host(host).await?;
    Ok(StatusCode::NO_CONTENT)
}
