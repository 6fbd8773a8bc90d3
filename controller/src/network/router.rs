//! Routers: logical routers, their legs, routes and translations. Pure.
//!
//! A leg with chassis is the way out: OVN lets the first chassis that lives carry it. Translation happens there.

use super::render::{OWNER, Rows, Table, owned, row_id};
use super::{LegSpec, RouterSpec};
use amphi_api::PortId;
use amphi_ovsdb::{Row, Value};
use uuid::Uuid;

/// The router's end of a port.
pub fn leg_name(port: PortId) -> String {
    format!("lrp-{port}")
}

pub fn rows(rows: &mut Rows, spec: &RouterSpec) {
    let what = spec.id.to_string();
    let legs: Vec<Uuid> = spec.legs.iter().map(|one| leg(rows, one)).collect();
    let mut put = |table: Table, what: String, row: Row| {
        let id = row_id(table, &what);
        rows.insert((table, id), row.with("external_ids", owned(what)));
        id
    };
    let mut routes = Vec::new();
    for (to, via) in &spec.routes {
        let row = Row::new().with("ip_prefix", to.to_string()).with("nexthop", via.to_string());
        routes.push(put(Table::StaticRoute, format!("{what}/{to}/{via}"), row));
    }
    let nat = |kind: &str, outside: String, inside: String| {
        Row::new().with("type", kind).with("external_ip", outside).with("logical_ip", inside)
    };
    let mut nats = Vec::new();
    for (inside, outside) in &spec.snat {
        let row = nat("snat", outside.to_string(), inside.to_string());
        nats.push(put(Table::Nat, format!("{what}/{inside}"), row));
    }
    for floating in &spec.floating {
        let row = nat("dnat_and_snat", floating.outside.to_string(), floating.inside.to_string());
        nats.push(put(Table::Nat, floating.id.to_string(), row));
    }
    // Without these every router learns, and every host holds, each neighbour of the outer network.
    let options = [("always_learn_from_arp_request", "false"), ("dynamic_neigh_routers", "true")];
    let row = Row::new()
        .with("name", format!("amphi-{what}"))
        .with("ports", Value::set(legs))
        .with("static_routes", Value::set(routes))
        .with("nat", Value::set(nats))
        .with("enabled", Value::set([spec.up]))
        .with("options", Value::map(options))
        .with("external_ids", Value::map([(OWNER, what.clone()), ("amphi-name", spec.name.clone())]));
    rows.insert((Table::Router, row_id(Table::Router, &what)), row);
}

fn leg(rows: &mut Rows, leg: &LegSpec) -> Uuid {
    let name = leg_name(leg.port);
    let mut chassis = Vec::new();
    for (at, one) in leg.chassis.iter().enumerate() {
        let place = format!("{name}_{one}");
        let id = row_id(Table::GatewayChassis, &place);
        let row = Row::new()
            .with("name", place.as_str())
            .with("chassis_name", one.as_str())
            .with("priority", (leg.chassis.len() - at) as i64)
            .with("external_ids", owned(&place));
        rows.insert((Table::GatewayChassis, id), row);
        chassis.push(id);
    }
    let mut advertise: Vec<(&str, String)> = Vec::new();
    if let Some(mode) = &leg.advertise {
        advertise.push(("address_mode", mode.clone()));
        advertise.push(("send_periodic", "true".to_owned()));
        advertise.push(("mtu", leg.mtu.to_string()));
    }
    let id = row_id(Table::RouterPort, &name);
    let row = Row::new()
        .with("name", name.as_str())
        .with("mac", leg.mac.as_str())
        .with("networks", Value::set(leg.addresses.iter().map(ToString::to_string)))
        .with("gateway_chassis", Value::set(chassis))
        .with("ipv6_ra_configs", Value::map(advertise))
        .with("external_ids", owned(&name));
    rows.insert((Table::RouterPort, id), row);
    id
}
