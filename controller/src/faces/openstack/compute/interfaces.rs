//! `/servers/{id}/os-interface`.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::gate::RequestId;
use super::super::microversion::Microversion;
use super::super::routes::{Need, Routes};
use super::super::words;
use super::server_create as fields;
use super::servers::{found, origin_of};
use super::{only, optional_text, refuse_unknown};
use crate::model::{InstanceRecord, PortRecord};
use crate::ops::View;
use crate::ops::identity::Caller;
use crate::ops::servers::NicWish;
use amphi_api::{NetworkId, PortId};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .get("/v2.1/servers/{id}/os-interface", Need::Reader, list)
        .post("/v2.1/servers/{id}/os-interface", Need::Member, attach)
        .get("/v2.1/servers/{id}/os-interface/{port}", Need::Reader, show)
        .delete("/v2.1/servers/{id}/os-interface/{port}", Need::Member, detach)
}

fn body(row: &InstanceRecord, port: &PortRecord, version: Microversion) -> Value {
    let ips =
        port.fixed_ips.iter().map(|ip| json!({"subnet_id": ip.subnet.to_string(), "ip_address": ip.address}));
    // A stopped body's port is down, as neutron's agents would find it.
    let up = row.power.wants_body() && port.admin_up;
    let mut body = json!({
        "port_state": if up { "ACTIVE" } else { "DOWN" },
        "fixed_ips": ips.collect::<Vec<_>>(),
        "port_id": port.id.to_string(),
        "net_id": port.network.to_string(),
        "mac_addr": port.mac,
    });
    if version.from(70) {
        body["tag"] = json!(row.server.port_tags.get(&port.id));
    }
    body
}

fn port_of<'a>(view: &'a View, row: &InstanceRecord, text: &str) -> Result<&'a PortRecord, Refusal> {
    let id = words::id(text).map(PortId).filter(|id| row.ports.contains(id));
    let port = id.and_then(|id| view.ports.get(id)).map(|row| &*row.record);
    port.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, format!("Port id {text} could not be found.")))
}

async fn list(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let row = found(&view, &caller, &id)?;
    let ports = row.ports.iter().filter_map(|id| view.ports.get(*id)).map(|port| body(row, port, version));
    Ok(Json(json!({"interfaceAttachments": ports.collect::<Vec<_>>()})))
}

async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    Path((id, port)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let row = found(&view, &caller, &id)?;
    Ok(Json(json!({"interfaceAttachment": body(row, port_of(&view, row, &port)?, version)})))
}

async fn attach(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    request: RequestId,
    Path(id): Path<String>,
    Body(asked): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let map = match asked {
        Value::Null => Default::default(),
        Value::Object(outer) if outer.is_empty() => Default::default(),
        other => only(other, "interfaceAttachment", &["net_id", "port_id", "fixed_ips", "tag"])?,
    };
    let id_of = |key: &str| match optional_text(&map, key)? {
        None => Ok(None),
        Some(text) => words::id(text).map(Some).ok_or_else(|| Refusal::field(key, "it is no uuid")),
    };
    let fixed_ip = match map.get("fixed_ips") {
        None | Some(Value::Null) => None,
        Some(Value::Array(list)) => match list.as_slice() {
            [Value::Object(one)] => {
                refuse_unknown(one, &["ip_address"])?;
                fields::ip(one, "ip_address")?
            }
            _ => return Err(Refusal::field("fixed_ips", "a list of one object")),
        },
        Some(_) => return Err(Refusal::field("fixed_ips", "a list of one object")),
    };
    let wish = NicWish {
        network: id_of("net_id")?.map(NetworkId),
        port: id_of("port_id")?.map(PortId),
        fixed_ip,
        tag: fields::tag(&map)?,
    };
    if wish.network.is_some() && wish.port.is_some() {
        return Err(Refusal::bad("Must not input both network_id and port_id"));
    }
    if wish.fixed_ip.is_some() && wish.network.is_none() {
        return Err(Refusal::bad("Must input network_id when request IP address"));
    }
    let (origin, instance) = origin_of(&state, &caller, &request, &id)?;
    let port = state.ops.attach_interface(&origin, instance, &wish).await?;
    let view = state.ops.world().read();
    let row = found(&view, &caller, &id)?;
    Ok(Json(json!({"interfaceAttachment": body(row, port_of(&view, row, &port.to_string())?, version)})))
}

async fn detach(
    State(state): State<OpenStack>,
    caller: Caller,
    request: RequestId,
    Path((id, port)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let (origin, instance) = origin_of(&state, &caller, &request, &id)?;
    let port = {
        let view = state.ops.world().read();
        port_of(&view, found(&view, &caller, &id)?, &port)?.id
    };
    state.ops.detach_interface(&origin, instance, port).await?;
    Ok(StatusCode::ACCEPTED)
}
