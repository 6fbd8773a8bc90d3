//! What admins see of the hosts and of how full the networks are: `/v2.0/agents`, availability zones, addresses.

use super::listing::{Shown, answer};
use super::networks::ZONE;
use super::sight::find;
use crate::faces::openstack::OpenStack;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::gate::Base;
use crate::faces::openstack::query::Query;
use crate::faces::openstack::words;
use crate::model::{HostRecord, NetworkRecord};
use crate::ops::View;
use crate::ops::identity::Caller;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::{Value, json};

fn agent(state: &OpenStack, host: &HostRecord) -> Shown {
    let networks = host.spec.as_ref().map(|spec| spec.physical_networks.clone()).unwrap_or_default();
    let heard = state.ops.heard_at(host.id).unwrap_or(host.joined_at);
    let shown = json!({
        "id": host.id,
        "agent_type": "OVN Controller agent",
        "binary": "ovn-controller",
        "topic": "n/a",
        "host": host.name,
        "admin_state_up": true,
        "alive": host.is_up(),
        "availability_zone": ZONE,
        "configurations": {"physical-networks": networks},
        "description": "",
        "created_at": words::time(host.joined_at),
        "started_at": words::time(host.joined_at),
        "heartbeat_timestamp": words::time(heard),
        "resources_synced": null,
    });
    shown.as_object().cloned().unwrap_or_default()
}

pub async fn list(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    query: Query,
) -> Result<Response, Refusal> {
    let shown = match caller.is_admin() {
        true => state.ops.world().read().hosts.iter().map(|host| agent(&state, host)).collect(),
        false => Vec::new(),
    };
    answer("agents", "/network/v2.0/agents", &base, &query, shown)
}

pub async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let host = words::id(&id).and_then(|id| view.hosts.get(amphi_api::HostId(id)));
    let host = host.filter(|_| caller.is_admin());
    let host = host.ok_or_else(|| Refusal::not_found("agent", &id).kind("AgentNotFound"))?;
    Ok(Json(json!({"agent": agent(&state, host)})))
}

pub async fn zones(base: Base, query: Query) -> Result<Response, Refusal> {
    let zones = ["network", "router"].map(|resource| {
        let zone = json!({"name": ZONE, "resource": resource, "state": "available"});
        zone.as_object().cloned().unwrap_or_default()
    });
    answer("availability_zones", "/network/v2.0/availability_zones", &base, &query, zones.to_vec())
}

pub async fn providers() -> Json<Value> {
    Json(json!({"service_providers": []}))
}

fn fullness(view: &View, network: &NetworkRecord) -> Shown {
    let (mut total, mut used) = (0_u128, 0_u128);
    let subnets: Vec<Value> = view
        .subnets_of(network.id)
        .map(|subnet| {
            let size = subnet.pools.iter().fold(0_u128, |sum, pool| sum.saturating_add(pool.len()));
            let taken = view.ports_on(network.id).flat_map(|port| &port.fixed_ips);
            let taken = taken.filter(|ip| ip.subnet == subnet.id).count() as u128;
            total = total.saturating_add(size);
            used += taken;
            json!({
                "subnet_id": subnet.id,
                "subnet_name": subnet.name,
                "cidr": subnet.cidr,
                "ip_version": if subnet.is_v4() { 4 } else { 6 },
                // Beyond what JSON's readers take for an integer nobody counts.
                "total_ips": u64::try_from(size).unwrap_or(u64::MAX),
                "used_ips": u64::try_from(taken).unwrap_or(u64::MAX),
            })
        })
        .collect();
    let shown = json!({
        "id": network.id,
        "network_id": network.id,
        "network_name": network.name,
        "tenant_id": words::hex(network.project.0),
        "project_id": words::hex(network.project.0),
        "total_ips": u64::try_from(total).unwrap_or(u64::MAX),
        "used_ips": u64::try_from(used).unwrap_or(u64::MAX),
        "subnet_ip_availability": subnets,
    });
    let mut shown = shown.as_object().cloned().unwrap_or_default();
    shown.remove("id");
    shown
}

pub async fn availabilities(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    query: Query,
) -> Result<Response, Refusal> {
    let shown = {
        let view = state.ops.world().read();
        let rows = view.networks.iter().filter(|_| caller.is_admin());
        rows.map(|row| fullness(&view, row)).collect()
    };
    let path = "/network/v2.0/network-ip-availabilities";
    answer("network_ip_availabilities", path, &base, &query, shown)
}

pub async fn availability(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    if !caller.is_admin() {
        return Err(super::sight::absent::<NetworkRecord>(&id));
    }
    let row = find::<NetworkRecord>(&view, &caller, &id)?;
    Ok(Json(json!({"network_ip_availability": fullness(&view, row)})))
}
