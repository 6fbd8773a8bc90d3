//! `/v2.0/floatingips`.

use super::given::{Given, bodies, body, invalid};
use super::listing::{Resource, Shown, made, one, owner, standard};
use super::ports::status;
use super::sight::{find, own, reach, told};
use super::subnets::network_id;
use crate::faces::openstack::OpenStack;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::body::Body;
use crate::faces::openstack::query::Query;
use crate::model::FloatingIpRecord;
use crate::ops::floating_ips::{FloatingIpWish, TargetWish};
use crate::ops::identity::Caller;
use crate::ops::{Reach, Row, View};
use amphi_api::{FloatingIpId, PortId, ProjectId, SubnetId};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use std::net::IpAddr;

pub fn show_floating_ip(view: &View, _: &Caller, row: &Row<FloatingIpRecord>) -> Shown {
    let port = row.target.and_then(|target| view.ports.get(target.port));
    let details = port.map(|port| {
        json!({
            "name": port.name,
            "network_id": port.network,
            "mac_address": port.mac,
            "admin_state_up": port.admin_up,
            "status": status(view, port),
            "device_id": port.device_id,
            "device_owner": port.device_owner,
        })
    });
    let mut shown = standard(
        row,
        row.created_at,
        json!({
            "id": row.id,
            "floating_ip_address": row.address,
            "floating_network_id": row.network,
            "router_id": row.target.map(|t| t.router),
            "port_id": row.target.map(|t| t.port),
            "fixed_ip_address": row.target.map(|t| t.address),
            "status": if row.target.is_some() { "ACTIVE" } else { "DOWN" },
            "port_details": details,
            "qos_policy_id": null,
            "dns_domain": "",
            "dns_name": "",
        }),
    );
    owner(&mut shown, row.project);
    shown
}

/// The port that is asked for: outer none, nothing is said of it.
fn target(given: &mut Given) -> Result<Option<Option<TargetWish>>, Refusal> {
    let address = given.address("fixed_ip_address")?.flatten();
    if let Some(address) = address.filter(|address| !address.is_ipv4()) {
        return Err(invalid("fixed_ip_address", &json!(address), "is not an IPv4 address"));
    }
    match given.id("port_id")? {
        None if address.is_some() => Err(Refusal::bad(
            "Bad floatingip request: fixed_ip_address cannot be specified without a port_id",
        )),
        None => Ok(None),
        Some(None) => Ok(Some(None)),
        Some(Some(port)) => Ok(Some(Some(TargetWish { port: PortId(port), address }))),
    }
}

fn read(mut given: Given, caller: &Caller) -> Result<(ProjectId, FloatingIpWish), Refusal> {
    let project = given.project(caller)?;
    given.admin_only(caller, "floating_ip_address", &Value::Null)?;
    let network = network_id(&mut given, "floating_network_id")?;
    let address = given.address("floating_ip_address")?.flatten();
    if let Some(address) = address.filter(|address: &IpAddr| !address.is_ipv4()) {
        return Err(invalid("floating_ip_address", &json!(address), "is not an IPv4 address"));
    }
    let subnet = given.id("subnet_id")?.flatten().map(SubnetId);
    let target = target(&mut given)?.flatten();
    let description = given.text("description")?.unwrap_or_default();
    for key in ["qos_policy_id", "dns_name", "dns_domain", "distributed"] {
        if given.has(key) && given.text(key)?.is_some_and(|text| !text.is_empty()) {
            return Err(Refusal::bad(format!("Unrecognized attribute(s) '{key}'")));
        }
        given.take(key);
    }
    given.end()?;
    Ok((project, FloatingIpWish { network, subnet, address, target, description }))
}

pub async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    Body(sent): Body<Value>,
) -> Result<Response, Refusal> {
    let (given, bulk) = bodies("floatingip", "floatingips", sent)?;
    let orders: Vec<_> = given.into_iter().map(|g| read(g, &caller)).collect::<Result<_, _>>()?;
    let mut ids: Vec<FloatingIpId> = Vec::new();
    for (project, wish) in orders {
        let reach = Reach { project, admin: caller.is_admin() };
        match state.ops.create_floating_ip(reach, &wish).await {
            Ok(id) => ids.push(id),
            Err(error) => {
                // All or none.
                for id in ids {
                    let _ = state.ops.delete_floating_ip(reach, id).await;
                }
                return Err(told::<FloatingIpRecord>(error));
            }
        }
    }
    let view = state.ops.world().read();
    let rows = ids.iter().filter_map(|id| view.floating_ips.get(*id));
    let shown = rows.map(|row| show_floating_ip(&view, &caller, row)).collect();
    Ok(made("floatingip", "floatingips", bulk, shown))
}

impl Resource for FloatingIpRecord {
    const ONE: &'static str = "floatingip";
    const MANY: &'static str = "floatingips";
    const PATH: &'static str = "/network/v2.0/floatingips";
    fn shown(view: &View, caller: &Caller, row: &Row<Self>) -> Shown {
        show_floating_ip(view, caller, row)
    }
}

pub async fn update(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    Body(sent): Body<Value>,
) -> Result<Response, Refusal> {
    let mut given = body("floatingip", sent)?;
    let id = own::<FloatingIpRecord>(&state.ops.world().read(), &caller, &id)?;
    let description = given.text("description")?;
    let target = target(&mut given)?;
    given.end()?;
    let edit = |ip: &mut FloatingIpRecord| {
        if let Some(description) = &description {
            ip.notes.description.clone_from(description);
        }
    };
    let changed = state.ops.update_floating_ip(reach(&caller)?, id, target, edit).await;
    changed.map_err(told::<FloatingIpRecord>)?;
    let view = state.ops.world().read();
    let row = find::<FloatingIpRecord>(&view, &caller, &id.to_string())?;
    Ok(one("floatingip", StatusCode::OK, &Query::default(), show_floating_ip(&view, &caller, row)))
}

pub async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let id = own::<FloatingIpRecord>(&state.ops.world().read(), &caller, &id)?;
    state.ops.delete_floating_ip(reach(&caller)?, id).await.map_err(told::<FloatingIpRecord>)?;
    Ok(StatusCode::NO_CONTENT)
}
