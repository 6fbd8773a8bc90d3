//! `/v2.0/routers` and what joins and parts them.

use super::given::{Given, bodies, body};
use super::listing::{Resource, Shown, made, one, owner, standard};
use super::networks::ZONE;
use super::sight::{find, own, reach, told};
use super::subnets::{network_id, route};
use crate::faces::openstack::OpenStack;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::body::Body;
use crate::faces::openstack::query::Query;
use crate::faces::openstack::words::hex;
use crate::model::RouterRecord;
use crate::model::network::HostRoute;
use crate::ops::identity::Caller;
use crate::ops::routers::{GatewayWish, Leg, LegTaken, RouterChange};
use crate::ops::{FixedIpWish, Reach, Row, View};
use amphi_api::{PortId, ProjectId, RouterId, SubnetId};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

pub fn show_router(view: &View, caller: &Caller, row: &Row<RouterRecord>) -> Shown {
    let gateway = row.gateway.as_ref().map(|gateway| {
        let ips = view.ports.get(gateway.port).map(|port| port.fixed_ips.clone()).unwrap_or_default();
        let ips: Vec<_> =
            ips.iter().map(|ip| json!({"subnet_id": ip.subnet, "ip_address": ip.address})).collect();
        json!({"network_id": gateway.network, "enable_snat": gateway.snat, "external_fixed_ips": ips})
    });
    let routes: Vec<_> =
        row.routes.iter().map(|r| json!({"destination": r.destination, "nexthop": r.nexthop})).collect();
    let mut shown = standard(
        row,
        row.created_at,
        json!({
            "id": row.id,
            "name": row.name,
            "admin_state_up": row.admin_up,
            "status": "ACTIVE",
            "external_gateway_info": gateway,
            "routes": routes,
            "availability_zone_hints": [],
            "availability_zones": [ZONE],
            "flavor_id": null,
        }),
    );
    if caller.is_admin() {
        shown.insert("distributed".into(), json!(false));
        shown.insert("ha".into(), json!(true));
    }
    owner(&mut shown, row.project);
    shown
}

#[derive(Default)]
struct Wanted {
    name: Option<String>,
    description: Option<String>,
    admin_up: Option<bool>,
    change: RouterChange,
}

impl Wanted {
    fn take(given: &mut Given, caller: &Caller) -> Result<Self, Refusal> {
        // Every router's way out is carried by the first live host of several; there is no other kind.
        for key in ["distributed", "ha"] {
            let wish = given.flag(key)?;
            if wish.is_some() && !caller.is_admin() {
                return Err(super::sight::not_yours(&format!("attribute {key} to be set")));
            }
        }
        given.list("availability_zone_hints")?;
        given.take("flavor_id");
        let gateway = match given.take("external_gateway_info") {
            None => None,
            Some(Value::Null) => Some(None),
            Some(Value::Object(map)) if map.is_empty() => Some(None),
            Some(Value::Object(map)) => Some(Some(gateway(Given::of(map), caller)?)),
            Some(other) => {
                return Err(super::given::invalid("external_gateway_info", &other, "is not a dictionary"));
            }
        };
        let routes = match given.objects("routes")? {
            None => None,
            Some(list) => Some(list.into_iter().map(|r| route("routes", r)).collect::<Result<_, _>>()?),
        };
        Ok(Self {
            name: given.text("name")?,
            description: given.text("description")?,
            admin_up: given.flag("admin_state_up")?,
            change: RouterChange { gateway, routes },
        })
    }

    fn apply(&self, router: &mut RouterRecord) {
        if let Some(name) = &self.name {
            router.name.clone_from(name);
        }
        if let Some(description) = &self.description {
            router.notes.description.clone_from(description);
        }
        router.admin_up = self.admin_up.unwrap_or(router.admin_up);
    }
}

fn gateway(mut given: Given, caller: &Caller) -> Result<GatewayWish, Refusal> {
    given.admin_only(caller, "enable_snat", &json!(true))?;
    given.admin_only(caller, "external_fixed_ips", &json!([]))?;
    let network = network_id(&mut given, "network_id")?;
    let snat = given.flag("enable_snat")?;
    let fixed_ips = match given.objects("external_fixed_ips")? {
        None => None,
        Some(list) if list.is_empty() => None,
        Some(list) => Some(
            list.into_iter()
                .map(|mut ip| {
                    let wish = FixedIpWish {
                        subnet: ip.id("subnet_id")?.flatten().map(SubnetId),
                        address: ip.address("ip_address")?.flatten(),
                    };
                    ip.end().map(|()| wish)
                })
                .collect::<Result<Vec<_>, Refusal>>()?,
        ),
    };
    given.take("qos_policy_id");
    given.end()?;
    Ok(GatewayWish { network, snat, fixed_ips })
}

fn read(mut given: Given, caller: &Caller) -> Result<(ProjectId, Wanted), Refusal> {
    let project = given.project(caller)?;
    let wanted = Wanted::take(&mut given, caller)?;
    given.end()?;
    Ok((project, wanted))
}

pub async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    Body(sent): Body<Value>,
) -> Result<Response, Refusal> {
    let (given, bulk) = bodies("router", "routers", sent)?;
    let orders: Vec<_> = given.into_iter().map(|g| read(g, &caller)).collect::<Result<_, _>>()?;
    let mut ids: Vec<RouterId> = Vec::new();
    for (project, wanted) in orders {
        let reach = Reach { project, admin: caller.is_admin() };
        let mut record = RouterRecord::new(project, String::new(), Timestamp::now());
        wanted.apply(&mut record);
        match state.ops.put_router(reach, &record, &wanted.change).await {
            Ok(()) => ids.push(record.id),
            Err(error) => {
                // All or none.
                for id in ids {
                    let _ = state.ops.delete_router(reach, id).await;
                }
                return Err(told::<RouterRecord>(error));
            }
        }
    }
    let view = state.ops.world().read();
    let rows = ids.iter().filter_map(|id| view.routers.get(*id));
    Ok(made("router", "routers", bulk, rows.map(|row| show_router(&view, &caller, row)).collect()))
}

impl Resource for RouterRecord {
    const ONE: &'static str = "router";
    const MANY: &'static str = "routers";
    const PATH: &'static str = "/network/v2.0/routers";
    fn shown(view: &View, caller: &Caller, row: &Row<Self>) -> Shown {
        show_router(view, caller, row)
    }
}

pub async fn update(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    Body(sent): Body<Value>,
) -> Result<Response, Refusal> {
    let mut given = body("router", sent)?;
    let id = owned(&state, &caller, &id)?;
    let wanted = Wanted::take(&mut given, &caller)?;
    given.end()?;
    change(&state, &caller, id, &wanted.change, |router| wanted.apply(router)).await
}

pub async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let id = owned(&state, &caller, &id)?;
    state.ops.delete_router(reach(&caller)?, id).await.map_err(told::<RouterRecord>)?;
    Ok(StatusCode::NO_CONTENT)
}

fn owned(state: &OpenStack, caller: &Caller, id: &str) -> Result<RouterId, Refusal> {
    own::<RouterRecord>(&state.ops.world().read(), caller, id)
}

async fn change(
    state: &OpenStack,
    caller: &Caller,
    id: RouterId,
    change: &RouterChange,
    edit: impl Fn(&mut RouterRecord),
) -> Result<Response, Refusal> {
    state.ops.update_router(reach(caller)?, id, change, edit).await.map_err(told::<RouterRecord>)?;
    let view = state.ops.world().read();
    let row = find::<RouterRecord>(&view, caller, &id.to_string())?;
    Ok(one("router", StatusCode::OK, &Query::default(), show_router(&view, caller, row)))
}

pub async fn add_interface(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    Body(sent): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let id = owned(&state, &caller, &id)?;
    let leg = leg(sent)?;
    if let Leg::Both(..) = leg {
        return Err(Refusal::bad("Cannot specify both subnet-id and port-id"));
    }
    let taken = state.ops.add_leg(reach(&caller)?, id, leg).await.map_err(told::<RouterRecord>)?;
    Ok(joined(id, &taken))
}

pub async fn remove_interface(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    Body(sent): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let id = owned(&state, &caller, &id)?;
    let taken = state.ops.remove_leg(reach(&caller)?, id, leg(sent)?).await.map_err(told::<RouterRecord>)?;
    Ok(joined(id, &taken))
}

fn leg(sent: Value) -> Result<Leg, Refusal> {
    let map = match sent {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    let mut given = Given::of(map);
    let subnet = given.id("subnet_id")?.flatten().map(SubnetId);
    let port = given.id("port_id")?.flatten().map(PortId);
    match (subnet, port) {
        (Some(subnet), None) => Ok(Leg::Subnet(subnet)),
        (None, Some(port)) => Ok(Leg::Port(port)),
        (Some(subnet), Some(port)) => Ok(Leg::Both(port, subnet)),
        (None, None) => Err(Refusal::bad("Either subnet_id or port_id must be specified")),
    }
}

fn joined(router: RouterId, leg: &LegTaken) -> Json<Value> {
    Json(json!({
        "id": router,
        "port_id": leg.port,
        "network_id": leg.network,
        "subnet_id": leg.subnets.first(),
        "subnet_ids": leg.subnets,
        "tenant_id": hex(leg.project.0),
        "project_id": hex(leg.project.0),
    }))
}

pub async fn add_routes(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    Body(sent): Body<Value>,
) -> Result<Response, Refusal> {
    reroute(state, caller, id, sent, |present, sent| {
        let new = sent.iter().filter(|route| !present.contains(route));
        present.iter().chain(new).copied().collect()
    })
    .await
}

pub async fn remove_routes(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    Body(sent): Body<Value>,
) -> Result<Response, Refusal> {
    reroute(state, caller, id, sent, |present, sent| {
        present.iter().filter(|route| !sent.contains(route)).copied().collect()
    })
    .await
}

async fn reroute(
    state: OpenStack,
    caller: Caller,
    id: String,
    sent: Value,
    next: fn(&[HostRoute], &[HostRoute]) -> Vec<HostRoute>,
) -> Result<Response, Refusal> {
    let id = owned(&state, &caller, &id)?;
    let mut given = body("router", sent)?;
    let sent = given.objects("routes")?.unwrap_or_default();
    let sent: Vec<HostRoute> = sent.into_iter().map(|r| route("routes", r)).collect::<Result<_, _>>()?;
    let routes = {
        let view = state.ops.world().read();
        next(&find::<RouterRecord>(&view, &caller, &id.to_string())?.routes, &sent)
    };
    let wanted = RouterChange { routes: Some(routes), gateway: None };
    change(&state, &caller, id, &wanted, |_| ()).await
}
