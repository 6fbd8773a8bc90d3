//! `/v2.0/networks`.

use super::given::{Given, bodies, body, invalid};
use super::listing::{Resource, Shown, made, one, owner, standard};
use super::sight::{find, not_yours, own, reach, told};
use crate::faces::openstack::OpenStack;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::body::Body;
use crate::faces::openstack::query::Query;
use crate::model::NetworkRecord;
use crate::ops::identity::Caller;
use crate::ops::{ProviderWish, Row, View};
use amphi_api::{ProjectId, QosPolicyId};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use jiff::Timestamp;
use serde_json::{Value, json};

/// The one availability zone of networks and routers.
pub const ZONE: &str = "nova";

pub fn show_network(view: &View, caller: &Caller, row: &Row<NetworkRecord>) -> Shown {
    let subnets: Vec<_> = view.subnets_of(row.id).map(|s| s.id).collect();
    let mut shown = standard(
        row,
        row.created_at,
        json!({
            "id": row.id,
            "name": row.name,
            "admin_state_up": row.admin_up,
            "status": if row.admin_up { "ACTIVE" } else { "DOWN" },
            "subnets": subnets,
            "shared": row.shared,
            "router:external": row.external,
            "mtu": row.mtu,
            "port_security_enabled": row.port_security,
            "qos_policy_id": row.qos,
            "availability_zone_hints": [],
            "availability_zones": [ZONE],
            "ipv4_address_scope": null,
            "ipv6_address_scope": null,
            "l2_adjacency": true,
            "vlan_transparent": null,
        }),
    );
    if row.external {
        shown.insert("is_default".into(), json!(row.is_default));
    }
    if caller.is_admin() {
        shown.insert("provider:network_type".into(), json!(row.provider.kind()));
        shown.insert("provider:physical_network".into(), json!(row.provider.physical()));
        shown.insert("provider:segmentation_id".into(), json!(row.provider.segment()));
    }
    owner(&mut shown, row.project);
    shown
}

/// Plain attributes, as far as they are given.
#[derive(Default)]
struct Wanted {
    name: Option<String>,
    description: Option<String>,
    admin_up: Option<bool>,
    shared: Option<bool>,
    external: Option<bool>,
    is_default: Option<bool>,
    port_security: Option<bool>,
    mtu: Option<u32>,
    qos: Option<Option<QosPolicyId>>,
}

impl Wanted {
    fn take(given: &mut Given, caller: &Caller) -> Result<Self, Refusal> {
        for key in ["shared", "router:external", "is_default"] {
            given.admin_only(caller, key, &json!(false))?;
        }
        for key in
            ["provider:network_type", "provider:physical_network", "provider:segmentation_id", "segments"]
        {
            given.admin_only(caller, key, &Value::Null)?;
        }
        // Zones are hints, and there is one.
        given.list("availability_zone_hints")?;
        let mtu = match given.integer("mtu")? {
            None | Some(0) => None,
            Some(mtu) => Some(
                u32::try_from(mtu).map_err(|_| invalid("mtu", &json!(mtu), "is not a number of bytes"))?,
            ),
        };
        Ok(Self {
            name: given.text("name")?,
            description: given.text("description")?,
            admin_up: given.flag("admin_state_up")?,
            shared: given.flag("shared")?,
            external: given.flag("router:external")?,
            is_default: given.flag("is_default")?,
            port_security: given.flag("port_security_enabled")?,
            mtu,
            qos: given.id("qos_policy_id")?.map(|id| id.map(QosPolicyId)),
        })
    }

    fn apply(&self, network: &mut NetworkRecord) {
        let set = |to: &mut bool, from: Option<bool>| *to = from.unwrap_or(*to);
        set(&mut network.admin_up, self.admin_up);
        set(&mut network.shared, self.shared);
        set(&mut network.external, self.external);
        set(&mut network.is_default, self.is_default);
        set(&mut network.port_security, self.port_security);
        network.mtu = self.mtu.unwrap_or(network.mtu);
        network.qos = self.qos.unwrap_or(network.qos);
        if let Some(name) = &self.name {
            network.name.clone_from(name);
        }
        if let Some(description) = &self.description {
            network.notes.description.clone_from(description);
        }
    }
}

fn provider(given: &mut Given) -> Result<ProviderWish, Refusal> {
    if given.has("segments") {
        return Err(Refusal::bad("Networks of several segments are not there"));
    }
    given.take("segments");
    let text = |text: Option<String>| text.filter(|t| !t.is_empty());
    let segment = match given.integer("provider:segmentation_id")? {
        None => None,
        Some(n) => Some(
            u32::try_from(n)
                .map_err(|_| invalid("provider:segmentation_id", &json!(n), "is out of range"))?,
        ),
    };
    Ok(ProviderWish {
        kind: text(given.text("provider:network_type")?),
        physical: text(given.text("provider:physical_network")?),
        segment,
    })
}

struct Order {
    project: ProjectId,
    wanted: Wanted,
    provider: ProviderWish,
}

fn read(mut given: Given, caller: &Caller) -> Result<Order, Refusal> {
    let project = given.project(caller)?;
    let wanted = Wanted::take(&mut given, caller)?;
    let provider = provider(&mut given)?;
    given.end()?;
    Ok(Order { project, wanted, provider })
}

pub async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    Body(sent): Body<Value>,
) -> Result<Response, Refusal> {
    let (given, bulk) = bodies("network", "networks", sent)?;
    let orders: Vec<Order> = given.into_iter().map(|g| read(g, &caller)).collect::<Result<_, _>>()?;
    let reach = reach(&caller)?;
    let mut ids = Vec::new();
    for order in orders {
        let mut record = NetworkRecord::new(order.project, String::new(), Timestamp::now());
        order.wanted.apply(&mut record);
        match state.ops.put_network(reach, &record, &order.provider, None).await {
            Ok(()) => ids.push(record.id),
            Err(error) => {
                // All or none.
                for id in ids {
                    let _ = state.ops.delete_network_of(reach, id).await;
                }
                return Err(told::<NetworkRecord>(error));
            }
        }
    }
    let view = state.ops.world().read();
    let shown = ids.iter().filter_map(|id| view.networks.get(*id));
    Ok(made("network", "networks", bulk, shown.map(|row| show_network(&view, &caller, row)).collect()))
}

impl Resource for NetworkRecord {
    const ONE: &'static str = "network";
    const MANY: &'static str = "networks";
    const PATH: &'static str = "/network/v2.0/networks";
    fn shown(view: &View, caller: &Caller, row: &Row<Self>) -> Shown {
        show_network(view, caller, row)
    }
}

pub async fn update(
    State(state): State<OpenStack>,
    caller: Caller,
    query: Query,
    Path(id): Path<String>,
    Body(sent): Body<Value>,
) -> Result<Response, Refusal> {
    let mut given = body("network", sent)?;
    let id = {
        let view = state.ops.world().read();
        own::<NetworkRecord>(&view, &caller, &id)?
    };
    let wanted = Wanted::take(&mut given, &caller)?;
    let moved = provider(&mut given)?;
    given.end()?;
    if moved != ProviderWish::default() {
        return Err(Refusal::bad("Plugin does not support updating provider attributes").kind("InvalidInput"));
    }
    state
        .ops
        .update_network(reach(&caller)?, id, |network| wanted.apply(network))
        .await
        .map_err(told::<NetworkRecord>)?;
    let view = state.ops.world().read();
    let row = find::<NetworkRecord>(&view, &caller, &id.to_string())?;
    Ok(one("network", StatusCode::OK, &query, show_network(&view, &caller, row)))
}

pub async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let id = {
        let view = state.ops.world().read();
        own::<NetworkRecord>(&view, &caller, &id)?
    };
    state.ops.delete_network_of(reach(&caller)?, id).await.map_err(told::<NetworkRecord>)?;
    Ok(StatusCode::NO_CONTENT)
}

/// What only a network's owner may choose of a port.
pub fn refuse_stranger(caller: &Caller, network: &NetworkRecord, what: &str) -> Result<(), Refusal> {
    if caller.may_see(network.project) {
        Ok(())
    } else {
        Err(not_yours(&format!("{what} on a network of another project")))
    }
}
