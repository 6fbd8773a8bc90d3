//! `/v2.0/ports`.

use super::given::{Given, bodies, body, cidr, invalid};
use super::listing::{Resource, Shown, made, one, owner, standard};
use super::networks::refuse_stranger;
use super::sight::{find, not_yours, own, reach, told};
use super::subnets::network_id;
use crate::faces::openstack::OpenStack;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::body::Body;
use crate::faces::openstack::query::Query;
use crate::model::network::{AddressPair, DhcpOption, owner as owners};
use crate::model::{NetworkRecord, PortRecord};
use crate::ops::identity::Caller;
use crate::ops::{FixedIpWish, PortChange, Reach, Row, View};
use amphi_api::wire::BodyState;
use amphi_api::{NetworkId, ProjectId, QosPolicyId, SecurityGroupId, SubnetId};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};

/// Owners that only the cloud itself gives.
const OWN: [&str; 4] =
    [owners::ROUTER_INTERFACE, owners::ROUTER_GATEWAY, owners::FLOATING_IP, owners::METADATA];
/// Kinds of device that neutron knows.
const VNIC_TYPES: [&str; 9] = [
    "normal",
    "macvtap",
    "direct",
    "baremetal",
    "direct-physical",
    "virtio-forwarder",
    "smart-nic",
    "vdpa",
    "accelerator-direct",
];

/// Whether frames pass it now.
pub fn status(view: &View, port: &PortRecord) -> &'static str {
    match port.device_owner.as_str() {
        owners::ROUTER_INTERFACE | owners::ROUTER_GATEWAY => "ACTIVE",
        owners::FLOATING_IP => "N/A",
        _ => {
            let instance = port.instance.and_then(|id| view.instances.get(id));
            let state = instance.and_then(|row| row.current()).map(|seen| seen.state);
            let alive = matches!(state, Some(BodyState::Running | BodyState::Paused));
            if alive && port.admin_up { "ACTIVE" } else { "DOWN" }
        }
    }
}

pub fn show_port(view: &View, caller: &Caller, row: &Row<PortRecord>) -> Shown {
    let ips: Vec<_> =
        row.fixed_ips.iter().map(|ip| json!({"subnet_id": ip.subnet, "ip_address": ip.address})).collect();
    let pair = |p: &AddressPair| {
        let whole = p.address.prefix_len() == p.address.max_prefix_len();
        let address = if whole { p.address.addr().to_string() } else { p.address.to_string() };
        json!({"ip_address": address, "mac_address": p.mac.as_ref().unwrap_or(&row.mac)})
    };
    let option = |o: &DhcpOption| json!({"opt_name": o.name, "opt_value": o.value, "ip_version": o.version});
    let mut shown = standard(
        row,
        row.created_at,
        json!({
            "id": row.id,
            "name": row.name,
            "network_id": row.network,
            "mac_address": row.mac,
            "admin_state_up": row.admin_up,
            "status": status(view, row),
            "device_id": row.device_id,
            "device_owner": row.device_owner,
            "fixed_ips": ips,
            "security_groups": row.security_groups,
            "port_security_enabled": row.port_security,
            "allowed_address_pairs": row.allowed_pairs.iter().map(pair).collect::<Vec<_>>(),
            "extra_dhcp_opts": row.dhcp_options.iter().map(option).collect::<Vec<_>>(),
            "qos_policy_id": row.qos,
            "qos_network_policy_id": view.networks.get(row.network).and_then(|n| n.qos),
            "binding:vnic_type": if row.vnic_type.is_empty() { "normal" } else { &row.vnic_type },
        }),
    );
    if caller.is_admin() {
        let instance = row.instance.and_then(|id| view.instances.get(id));
        let host = instance.and_then(|i| view.host_name(i.host?));
        let host = host.unwrap_or_else(|| row.binding_host.clone());
        let bound = !host.is_empty();
        shown.insert("binding:vif_type".into(), json!(if bound { "ovs" } else { "unbound" }));
        let details = if bound { json!({"port_filter": true, "connectivity": "l2"}) } else { json!({}) };
        shown.insert("binding:vif_details".into(), details);
        shown.insert("binding:profile".into(), Value::Object(row.binding_profile.clone()));
        shown.insert("binding:host_id".into(), json!(host));
    }
    owner(&mut shown, row.project);
    shown
}

#[derive(Default)]
struct Wanted {
    change: PortChange,
    name: Option<String>,
    description: Option<String>,
    admin_up: Option<bool>,
    port_security: Option<bool>,
    device_id: Option<String>,
    device_owner: Option<String>,
    pairs: Option<Vec<AddressPair>>,
    options: Option<Vec<DhcpOption>>,
    qos: Option<Option<QosPolicyId>>,
    vnic_type: Option<String>,
    host: Option<String>,
    profile: Option<Map<String, Value>>,
}

impl Wanted {
    fn take(given: &mut Given, caller: &Caller, network: &NetworkRecord) -> Result<Self, Refusal> {
        given.admin_only(caller, "binding:host_id", &json!(""))?;
        given.admin_only(caller, "binding:profile", &json!({}))?;
        let fixed_ips = match given.objects("fixed_ips")? {
            None => None,
            Some(list) => Some(list.into_iter().map(fixed_ip).collect::<Result<Vec<_>, _>>()?),
        };
        let mac = match given.text("mac_address")?.filter(|mac| !mac.is_empty()) {
            None => None,
            Some(text) => Some(mac(&text)?),
        };
        let pairs = match given.objects("allowed_address_pairs")? {
            None => None,
            Some(list) => Some(list.into_iter().map(pair).collect::<Result<Vec<_>, _>>()?),
        };
        let options = match given.objects("extra_dhcp_opts")? {
            None => None,
            Some(list) => Some(list.into_iter().map(option).collect::<Result<Vec<_>, _>>()?),
        };
        let port_security = given.flag("port_security_enabled")?;
        let chosen = fixed_ips.as_ref().is_some_and(|ips| ips.iter().any(|ip| ip.address.is_some()));
        if mac.is_some() || chosen || port_security.is_some() || pairs.as_ref().is_some_and(|p| !p.is_empty())
        {
            refuse_stranger(caller, network, "addresses and port security to be chosen")?;
        }
        let device_owner = given.text("device_owner")?;
        if let Some(owner) = &device_owner {
            if OWN.contains(&owner.as_str()) {
                return Err(
                    Refusal::bad(format!("device_owner {owner} is the cloud's own")).kind("InvalidInput")
                );
            }
            if owner.starts_with("network:") && !caller.is_admin() {
                return Err(not_yours("attribute device_owner to be set"));
            }
        }
        let vnic_type = given.text("binding:vnic_type")?;
        if let Some(kind) = vnic_type.as_ref().filter(|kind| !VNIC_TYPES.contains(&kind.as_str())) {
            return Err(invalid("binding:vnic_type", &json!(kind), &format!("is not in {VNIC_TYPES:?}")));
        }
        let profile = match given.take("binding:profile") {
            None => None,
            Some(Value::Null) => Some(Map::new()),
            Some(Value::Object(map)) => Some(map),
            Some(other) => return Err(invalid("binding:profile", &other, "is not a dictionary")),
        };
        for shown in ["binding:vif_type", "binding:vif_details"] {
            if given.has(shown) {
                return Err(Refusal::bad(format!("Attribute '{shown}' is read-only")));
            }
        }
        Ok(Self {
            change: PortChange {
                fixed_ips,
                mac,
                groups: given
                    .ids("security_groups")?
                    .map(|ids| ids.into_iter().map(SecurityGroupId).collect()),
            },
            name: given.text("name")?,
            description: given.text("description")?,
            admin_up: given.flag("admin_state_up")?,
            port_security,
            device_id: given.text("device_id")?,
            device_owner,
            pairs,
            options,
            qos: given.id("qos_policy_id")?.map(|id| id.map(QosPolicyId)),
            vnic_type,
            host: given.text("binding:host_id")?,
            profile,
        })
    }

    fn apply(&self, port: &mut PortRecord) {
        fn set<T: Clone>(to: &mut T, from: &Option<T>) {
            if let Some(from) = from {
                to.clone_from(from);
            }
        }
        set(&mut port.name, &self.name);
        set(&mut port.notes.description, &self.description);
        set(&mut port.admin_up, &self.admin_up);
        set(&mut port.port_security, &self.port_security);
        set(&mut port.device_id, &self.device_id);
        set(&mut port.device_owner, &self.device_owner);
        set(&mut port.allowed_pairs, &self.pairs);
        set(&mut port.qos, &self.qos);
        set(&mut port.vnic_type, &self.vnic_type);
        set(&mut port.binding_host, &self.host);
        set(&mut port.binding_profile, &self.profile);
        if let Some(options) = &self.options {
            // As neutron has it: an option without a value goes, others are put in place.
            for option in options {
                port.dhcp_options.retain(|o| (o.version, &o.name) != (option.version, &option.name));
                if !option.value.is_empty() {
                    port.dhcp_options.push(option.clone());
                }
            }
        }
    }
}

fn fixed_ip(mut given: Given) -> Result<FixedIpWish, Refusal> {
    let subnet = given.id("subnet_id")?.flatten().map(SubnetId);
    let address = given.address("ip_address")?.flatten();
    given.end()?;
    Ok(FixedIpWish { subnet, address })
}

/// Lower case with colons; no group address, not all zeros.
fn mac(text: &str) -> Result<String, Refusal> {
    let mac = text.trim().to_ascii_lowercase().replace('-', ":");
    let wrong = || invalid("mac_address", &json!(text), "is not a valid MAC address");
    let parts: Vec<u8> = mac
        .split(':')
        .map(|part| Some(part).filter(|p| p.len() == 2).and_then(|p| u8::from_str_radix(p, 16).ok()))
        .collect::<Option<_>>()
        .ok_or_else(wrong)?;
    // The lowest bit of the first byte marks a group address (IEEE 802).
    if parts.len() != 6 || parts[0] & 1 == 1 || parts.iter().all(|b| *b == 0) {
        return Err(wrong());
    }
    Ok(mac)
}

fn pair(mut given: Given) -> Result<AddressPair, Refusal> {
    let address = given.take("ip_address").ok_or_else(|| {
        Refusal::bad(
            "Invalid input for allowed_address_pairs. Reason: AllowedAddressPair must contain ip_address.",
        )
    })?;
    let address = cidr("allowed_address_pairs", &address)?;
    let mac = match given.text("mac_address")?.filter(|mac| !mac.is_empty()) {
        None => None,
        Some(text) => Some(mac(&text)?),
    };
    given.end()?;
    Ok(AddressPair { address, mac })
}

fn option(mut given: Given) -> Result<DhcpOption, Refusal> {
    let name = given.text("opt_name")?.filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| Refusal::bad("Invalid input for extra_dhcp_opts: opt_name is missing"))?;
    let value = given.text("opt_value")?.unwrap_or_default();
    let version = match given.integer("ip_version")? {
        None | Some(4) => 4,
        Some(6) => 6,
        Some(other) => return Err(invalid("ip_version", &json!(other), "is not in [4, 6]")),
    };
    given.end()?;
    Ok(DhcpOption { name, value, version })
}

struct Order {
    network: NetworkId,
    project: ProjectId,
    wanted: Wanted,
}

fn read(view: &View, caller: &Caller, mut given: Given) -> Result<Order, Refusal> {
    let project = given.project(caller)?;
    let id = network_id(&mut given, "network_id")?;
    let network = find::<NetworkRecord>(view, caller, &id.to_string())?;
    if network.external && !network.shared && !caller.may_see(network.project) {
        return Err(not_yours("to create a port on an external network"));
    }
    let wanted = Wanted::take(&mut given, caller, &network.record)?;
    given.end()?;
    Ok(Order { network: id, project, wanted })
}

pub async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    Body(sent): Body<Value>,
) -> Result<Response, Refusal> {
    let (given, bulk) = bodies("port", "ports", sent)?;
    let orders: Vec<Order> = {
        let view = state.ops.world().read();
        given.into_iter().map(|g| read(&view, &caller, g)).collect::<Result<_, _>>()?
    };
    let admin = caller.is_admin();
    let mut ids = Vec::new();
    for order in &orders {
        let reach = Reach { project: order.project, admin };
        let made = state
            .ops
            .create_port(reach, order.network, &order.wanted.change, |port| order.wanted.apply(port))
            .await;
        match made {
            Ok(id) => ids.push(id),
            Err(error) => {
                // All or none.
                for id in ids {
                    let _ = state.ops.delete_port(reach, id).await;
                }
                return Err(told::<PortRecord>(error));
            }
        }
    }
    let view = state.ops.world().read();
    let rows = ids.iter().filter_map(|id| view.ports.get(*id));
    Ok(made("port", "ports", bulk, rows.map(|row| show_port(&view, &caller, row)).collect()))
}

impl Resource for PortRecord {
    const ONE: &'static str = "port";
    const MANY: &'static str = "ports";
    const PATH: &'static str = "/network/v2.0/ports";
    fn shown(view: &View, caller: &Caller, row: &Row<Self>) -> Shown {
        show_port(view, caller, row)
    }
}

pub async fn update(
    State(state): State<OpenStack>,
    caller: Caller,
    query: Query,
    Path(id): Path<String>,
    Body(sent): Body<Value>,
) -> Result<Response, Refusal> {
    let mut given = body("port", sent)?;
    let (id, wanted) = {
        let view = state.ops.world().read();
        let id = own::<PortRecord>(&view, &caller, &id)?;
        let row = find::<PortRecord>(&view, &caller, &id.to_string())?;
        let network =
            view.networks.get(row.network).ok_or_else(|| Refusal::not_found("network", row.network))?;
        let wanted = Wanted::take(&mut given, &caller, &network.record)?;
        given.end()?;
        let moved = |wanted: &Option<String>, present: &String| wanted.as_ref().is_some_and(|w| w != present);
        let held = row.instance.is_some() || OWN.contains(&row.device_owner.as_str());
        if held
            && (moved(&wanted.device_id, &row.device_id) || moved(&wanted.device_owner, &row.device_owner))
        {
            return Err(Refusal::conflict(format!("Port {id} is in use by device {}.", row.device_id))
                .kind("PortInUse"));
        }
        (id, wanted)
    };
    let changed = state.ops.update_port(reach(&caller)?, id, &wanted.change, |port| wanted.apply(port)).await;
    changed.map_err(told::<PortRecord>)?;
    let view = state.ops.world().read();
    let row = find::<PortRecord>(&view, &caller, &id.to_string())?;
    Ok(one("port", StatusCode::OK, &query, show_port(&view, &caller, row)))
}

pub async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let id = {
        let view = state.ops.world().read();
        own::<PortRecord>(&view, &caller, &id)?
    };
    state.ops.delete_port(reach(&caller)?, id).await.map_err(told::<PortRecord>)?;
    Ok(StatusCode::NO_CONTENT)
}
