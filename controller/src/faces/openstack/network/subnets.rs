//! `/v2.0/subnets`.

use super::given::{Given, address, bodies, body, cidr, invalid};
use super::listing::{Resource, Shown, made, one, owner, standard};
use super::sight::{absent, find, own, reach, told};
use crate::faces::openstack::OpenStack;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::body::Body;
use crate::faces::openstack::query::Query;
use crate::model::network::{HostRoute, Pool, default_pools};
use crate::model::{NetworkRecord, SubnetRecord};
use crate::ops::identity::Caller;
use crate::ops::{Row, View};
use amphi_api::NetworkId;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use ipnet::IpNet;
use serde_json::{Value, json};
use std::net::IpAddr;

pub fn show_subnet(_: &View, _: &Caller, row: &Row<SubnetRecord>) -> Shown {
    let pools: Vec<_> = row.pools.iter().map(|p| json!({"start": p.start, "end": p.end})).collect();
    let routes: Vec<_> =
        row.routes.iter().map(|r| json!({"destination": r.destination, "nexthop": r.nexthop})).collect();
    let mut shown = standard(
        row,
        row.created_at,
        json!({
            "id": row.id,
            "name": row.name,
            "network_id": row.network,
            "ip_version": if row.is_v4() { 4 } else { 6 },
            "cidr": row.cidr,
            "gateway_ip": row.gateway,
            "enable_dhcp": row.dhcp,
            "allocation_pools": pools,
            "dns_nameservers": row.dns,
            "host_routes": routes,
            "ipv6_ra_mode": row.ra_mode,
            "ipv6_address_mode": row.address_mode,
            "subnetpool_id": null,
            "segment_id": null,
            "service_types": [],
        }),
    );
    owner(&mut shown, row.project);
    shown
}

/// Attributes that may also be changed.
#[derive(Default)]
struct Wanted {
    name: Option<String>,
    description: Option<String>,
    dhcp: Option<bool>,
    gateway: Option<Option<IpAddr>>,
    pools: Option<Vec<Pool>>,
    dns: Option<Vec<IpAddr>>,
    routes: Option<Vec<HostRoute>>,
}

impl Wanted {
    fn take(given: &mut Given) -> Result<Self, Refusal> {
        let pools = match given.objects("allocation_pools")? {
            None => None,
            Some(list) => Some(list.into_iter().map(pool).collect::<Result<_, _>>()?),
        };
        let routes = match given.objects("host_routes")? {
            None => None,
            Some(list) => {
                Some(list.into_iter().map(|one| route("host_routes", one)).collect::<Result<_, _>>()?)
            }
        };
        let dns = match given.list("dns_nameservers")? {
            None => None,
            Some(list) => {
                Some(list.iter().map(|one| address("dns_nameservers", one)).collect::<Result<_, _>>()?)
            }
        };
        if given.list("service_types")?.is_some_and(|list| !list.is_empty()) {
            return Err(Refusal::bad("service_types are not there"));
        }
        Ok(Self {
            name: given.text("name")?,
            description: given.text("description")?,
            dhcp: given.flag("enable_dhcp")?,
            gateway: given.address("gateway_ip")?,
            pools,
            dns,
            routes,
        })
    }

    fn apply(&self, subnet: &mut SubnetRecord) {
        if let Some(name) = &self.name {
            subnet.name.clone_from(name);
        }
        if let Some(description) = &self.description {
            subnet.notes.description.clone_from(description);
        }
        subnet.dhcp = self.dhcp.unwrap_or(subnet.dhcp);
        subnet.gateway = self.gateway.unwrap_or(subnet.gateway);
        if let Some(pools) = &self.pools {
            subnet.pools.clone_from(pools);
            subnet.pools.sort_by_key(|pool| pool.start);
        }
        if let Some(dns) = &self.dns {
            subnet.dns.clone_from(dns);
        }
        if let Some(routes) = &self.routes {
            subnet.routes.clone_from(routes);
        }
    }
}

fn pool(mut given: Given) -> Result<Pool, Refusal> {
    let mut end = |key: &str| {
        given.address(key)?.flatten().ok_or_else(|| invalid(key, &Value::Null, "is missing in a pool"))
    };
    let pool = Pool { start: end("start")?, end: end("end")? };
    given.end()?;
    if pool.start.is_ipv4() != pool.end.is_ipv4() {
        return Err(Refusal::bad("The start and end of an allocation pool must be of one family"));
    }
    Ok(pool)
}

pub fn route(key: &str, mut given: Given) -> Result<HostRoute, Refusal> {
    let missing = || Refusal::bad(format!("Invalid input for {key}: a route has destination and nexthop"));
    let destination = cidr(key, &given.take("destination").ok_or_else(missing)?)?;
    let nexthop = given.address("nexthop")?.flatten().ok_or_else(missing)?;
    given.end()?;
    Ok(HostRoute { destination, nexthop })
}

fn mode(given: &mut Given, key: &str) -> Result<Option<String>, Refusal> {
    match given.text(key)?.filter(|mode| !mode.is_empty()) {
        None => Ok(None),
        Some(mode) if matches!(mode.as_str(), "slaac" | "dhcpv6-stateful" | "dhcpv6-stateless") => {
            Ok(Some(mode))
        }
        Some(other) => Err(invalid(key, &json!(other), "is not in slaac, dhcpv6-stateful, dhcpv6-stateless")),
    }
}

fn read(view: &View, caller: &Caller, mut given: Given) -> Result<SubnetRecord, Refusal> {
    let project = given.project(caller)?;
    let id = given.id("network_id")?.flatten().ok_or_else(|| {
        Refusal::bad("Failed to parse request. Required attribute 'network_id' not specified")
    })?;
    let network = find::<NetworkRecord>(view, caller, &id.to_string())?;
    if !caller.may_see(network.project) {
        return Err(absent::<NetworkRecord>(&id.to_string()));
    }
    let version = given.integer("ip_version")?;
    if given.has("subnetpool_id")
        || given.has("prefixlen")
        || given.flag("use_default_subnetpool")?.unwrap_or(false)
    {
        return Err(Refusal::bad("Subnet pools are not there").kind("BadRequest"));
    }
    for key in ["subnetpool_id", "prefixlen", "segment_id"] {
        given.take(key);
    }
    let text = given.take("cidr").filter(|value| !value.is_null()).ok_or_else(|| {
        Refusal::bad("Bad subnets request: a subnetpool must be specified in the absence of a cidr.")
            .kind("BadRequest")
    })?;
    let cidr: IpNet = text
        .as_str()
        .and_then(|text| text.trim().parse().ok())
        .ok_or_else(|| invalid("cidr", &text, "is not a valid IP subnet"))?;
    let v4 = matches!(cidr, IpNet::V4(_));
    match version {
        None => {
            return Err(Refusal::bad(
                "Failed to parse request. Required attribute 'ip_version' not specified",
            ));
        }
        Some(4) if v4 => {}
        Some(6) if !v4 => {}
        Some(4 | 6) => {
            return Err(invalid("cidr", &text, "does not match the ip_version"));
        }
        Some(other) => return Err(invalid("ip_version", &json!(other), "is not in [4, 6]")),
    }
    let (ra, addresses) = (mode(&mut given, "ipv6_ra_mode")?, mode(&mut given, "ipv6_address_mode")?);
    let wanted = Wanted::take(&mut given)?;
    given.end()?;
    let gateway = wanted.gateway.unwrap_or_else(|| default_gateway(cidr));
    let mut record = SubnetRecord::new(&network.record, String::new(), cidr, gateway);
    record.project = if caller.is_admin() { network.project } else { project };
    (record.ra_mode, record.address_mode) = (ra, addresses);
    wanted.apply(&mut record);
    record.gateway = gateway;
    if wanted.pools.is_none() {
        record.pools = default_pools(cidr, gateway);
    }
    Ok(record)
}

/// The first address after the network's own.
fn default_gateway(cidr: IpNet) -> Option<IpAddr> {
    match cidr {
        IpNet::V4(net) => {
            let first = u32::from(net.network()).checked_add(u32::from(net.prefix_len() < 31))?;
            Some(std::net::Ipv4Addr::from(first).into())
        }
        IpNet::V6(net) => {
            let first = u128::from(net.network()).checked_add(u128::from(net.prefix_len() < 127))?;
            Some(std::net::Ipv6Addr::from(first).into())
        }
    }
}

pub async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    Body(sent): Body<Value>,
) -> Result<Response, Refusal> {
    let (given, bulk) = bodies("subnet", "subnets", sent)?;
    let records: Vec<SubnetRecord> = {
        let view = state.ops.world().read();
        given.into_iter().map(|g| read(&view, &caller, g)).collect::<Result<_, _>>()?
    };
    state.ops.put_subnets(reach(&caller)?, &records).await.map_err(told::<SubnetRecord>)?;
    let view = state.ops.world().read();
    let rows = records.iter().filter_map(|record| view.subnets.get(record.id));
    Ok(made("subnet", "subnets", bulk, rows.map(|row| show_subnet(&view, &caller, row)).collect()))
}

impl Resource for SubnetRecord {
    const ONE: &'static str = "subnet";
    const MANY: &'static str = "subnets";
    const PATH: &'static str = "/network/v2.0/subnets";
    fn shown(view: &View, caller: &Caller, row: &Row<Self>) -> Shown {
        show_subnet(view, caller, row)
    }
}

pub async fn update(
    State(state): State<OpenStack>,
    caller: Caller,
    query: Query,
    Path(id): Path<String>,
    Body(sent): Body<Value>,
) -> Result<Response, Refusal> {
    let mut given = body("subnet", sent)?;
    let id = {
        let view = state.ops.world().read();
        own::<SubnetRecord>(&view, &caller, &id)?
    };
    let wanted = Wanted::take(&mut given)?;
    given.end()?;
    state
        .ops
        .update_subnet(reach(&caller)?, id, |subnet| wanted.apply(subnet))
        .await
        .map_err(told::<SubnetRecord>)?;
    let view = state.ops.world().read();
    let row = find::<SubnetRecord>(&view, &caller, &id.to_string())?;
    Ok(one("subnet", StatusCode::OK, &query, show_subnet(&view, &caller, row)))
}

pub async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let id = {
        let view = state.ops.world().read();
        own::<SubnetRecord>(&view, &caller, &id)?
    };
    state.ops.delete_subnet(reach(&caller)?, id).await.map_err(told::<SubnetRecord>)?;
    Ok(StatusCode::NO_CONTENT)
}

/// For other resources' bodies.
pub fn network_id(given: &mut Given, key: &str) -> Result<NetworkId, Refusal> {
    let id = given.id(key)?.flatten();
    id.map(NetworkId).ok_or_else(|| {
        Refusal::bad(format!("Failed to parse request. Required attribute '{key}' not specified"))
    })
}
