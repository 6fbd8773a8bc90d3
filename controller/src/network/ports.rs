//! A port as a logical switch port: what it may be, who may bind it, and which DHCP answers it gets. Pure.

use super::render::{Rows, Table, owned, row_id};
use super::{PortKind, PortSpec, SubnetSpec, dhcp};
use amphi_api::network::{METADATA_ADDRESS, metadata_mac, metadata_port};
use amphi_api::{NetworkId, SubnetId};
use amphi_ovsdb::{Row, Value};
use std::collections::BTreeMap;
use uuid::Uuid;

/// The port's row, and its own DHCP answers where it has options of its own.
pub fn rows(rows: &mut Rows, port: &PortSpec, subnets: &BTreeMap<SubnetId, &SubnetSpec>) {
    let id = row_id(Table::LogicalSwitchPort, &port.id.to_string());
    let row = match port.kind {
        PortKind::Router => router(port),
        PortKind::Instance => {
            let v4 = answers(rows, port, subnets, 4);
            let v6 = answers(rows, port, subnets, 6);
            guest(port).with("dhcpv4_options", v4).with("dhcpv6_options", v6)
        }
    };
    rows.insert((Table::LogicalSwitchPort, id), row);
}

/// The row of DHCP answers of the port's first address of a family.
fn answers(
    rows: &mut Rows,
    port: &PortSpec,
    subnets: &BTreeMap<SubnetId, &SubnetSpec>,
    version: u8,
) -> Value {
    let of_family = |(subnet, address): &&(SubnetId, std::net::IpAddr)| {
        address.is_ipv4() == (version == 4) && subnets.get(subnet).is_some_and(|s| s.dhcp)
    };
    let Some(subnet) = port.addresses.iter().find(of_family).and_then(|(id, _)| subnets.get(id)) else {
        return Value::empty();
    };
    let own: Vec<(&str, &str)> = port
        .dhcp_options
        .iter()
        .filter(|(v, ..)| *v == version)
        .map(|(_, name, value)| (name.as_str(), value.as_str()))
        .collect();
    if own.is_empty() {
        return Value::set([row_id(Table::DhcpOptions, &subnet.id.to_string())]);
    }
    let what = format!("{}/{version}", port.id);
    let id = row_id(Table::DhcpOptions, &what);
    rows.insert((Table::DhcpOptions, id), dhcp::row(subnet, &own, &what));
    Value::set([id])
}

fn router(port: &PortSpec) -> Row {
    let options = [
        ("router-port", super::router::leg_name(port.id)),
        // Neighbours hear of the addresses that the router translates.
        ("nat-addresses", "router".to_owned()),
    ];
    Row::new()
        .with("name", port.id.to_string())
        .with("type", "router")
        .with("addresses", Value::set(["router".to_owned()]))
        .with("port_security", Value::empty())
        .with("dhcpv4_options", Value::empty())
        .with("dhcpv6_options", Value::empty())
        .with("options", Value::map(options))
        .with("tag", Value::empty())
        .with("enabled", Value::set([port.up]))
        .with("external_ids", owned(port.id))
}

fn guest(port: &PortSpec) -> Row {
    let mut own = port.mac.clone();
    for (_, address) in &port.addresses {
        own.push_str(&format!(" {address}"));
    }
    let mut addresses = vec![own.clone()];
    let mut allowed: Vec<String> = Vec::new();
    if port.open {
        // What comes for a MAC that nobody has is for it.
        addresses.push("unknown".to_owned());
    } else {
        let mut by_mac: BTreeMap<&str, String> = BTreeMap::from([(port.mac.as_str(), own)]);
        for (address, mac) in &port.pairs {
            let mac = mac.as_deref().unwrap_or(&port.mac);
            let entry = by_mac.entry(mac).or_insert_with(|| mac.to_owned());
            let whole = address.prefix_len() == address.max_prefix_len();
            let text = if whole { address.addr().to_string() } else { address.to_string() };
            entry.push_str(&format!(" {text}"));
        }
        allowed = by_mac.into_values().collect();
    }
    // A port without a chassis must not be bound by whoever happens to hold its interface: a name that no chassis has.
    let chassis = port.chassis.clone().unwrap_or_else(|| "amphi-nowhere".to_owned());
    // Of two, the second passes nothing before the guest has come over: QEMU says so by RARP (ovn-nb(5)).
    let waits = chassis.contains(',').then_some(("activation-strategy", "rarp".to_owned()));
    let options = std::iter::once(("requested-chassis", chassis)).chain(waits);
    Row::new()
        .with("name", port.id.to_string())
        .with("type", "")
        .with("addresses", Value::set(addresses))
        .with("port_security", Value::set(allowed))
        .with("options", Value::map(options))
        .with("tag", Value::empty())
        .with("enabled", Value::set([port.up]))
        .with("external_ids", owned(port.id))
}

/// The metadata service's place on a network: a port that each host has to itself, with no address of the network's own.
/// Guests reach it by a route that DHCP tells ([`dhcp`]).
pub fn metadata(network: NetworkId) -> (Uuid, Row) {
    let id = metadata_port(network).to_string();
    let address = format!("{} {METADATA_ADDRESS}", metadata_mac(network));
    let row = Row::new()
        .with("name", id.as_str())
        .with("type", "localport")
        .with("addresses", Value::set([address]))
        .with("port_security", Value::empty())
        .with("dhcpv4_options", Value::empty())
        .with("dhcpv6_options", Value::empty())
        .with("options", Value::map(BTreeMap::<String, String>::new()))
        .with("tag", Value::empty())
        .with("enabled", Value::set([true]))
        .with("external_ids", owned(&id));
    (row_id(Table::LogicalSwitchPort, &id), row)
}
