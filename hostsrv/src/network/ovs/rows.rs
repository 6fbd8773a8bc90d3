//! The decisions about the switch's rows: what was read in, operations out. No I/O.

use std::collections::BTreeMap;

use amphi_ovsdb::{Condition, Mutation, Operation, Outcome, Row, Value};
use uuid::Uuid;

use super::super::NetworkError;
use super::{Chassis, Plug};

/// An interface on the integration bridge that stands for a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub device: String,
    pub port: Uuid,
    pub mac: Option<String>,
    /// -1 when the device cannot be opened, None while ovs-vswitchd has not looked yet.
    pub ofport: Option<i64>,
    pub error: Option<String>,
    /// ovn-controller has installed the port's flows.
    pub installed: bool,
    pub external_ids: BTreeMap<String, String>,
}

impl Attached {
    pub fn new(device: &str, port: Uuid) -> Attached {
        Attached {
            device: device.to_owned(),
            port,
            mac: None,
            ofport: None,
            error: None,
            installed: false,
            external_ids: BTreeMap::new(),
        }
    }

    /// ovs-vswitchd has looked and found no device.
    pub fn is_dead(&self) -> bool {
        self.ofport.is_some_and(|number| number < 0)
    }
}

/// What `base` reads; further reads follow it.
pub const READS: usize = 2;

const ROOT: &[&str] =
    &["_uuid", "bridges", "external_ids", "ovs_version", "datapath_types", "dpdk_initialized"];
const BRIDGE: &[&str] = &["_uuid", "name", "ports", "datapath_type", "fail_mode"];

pub fn base(bridge: &str) -> [Operation; READS] {
    [
        Operation::select("Open_vSwitch", Vec::new(), ROOT),
        Operation::select("Bridge", vec![Condition::eq("name", bridge)], BRIDGE),
    ]
}

pub fn interfaces() -> [Operation; 2] {
    [
        Operation::select("Port", Vec::new(), &["_uuid", "name", "interfaces"]),
        Operation::select("Interface", Vec::new(), &["_uuid", "name", "external_ids", "ofport", "error"]),
    ]
}

pub fn root(reads: &[Outcome]) -> Option<&Row> {
    reads.first()?.rows.first()
}

pub fn bridge(reads: &[Outcome]) -> Option<&Row> {
    reads.get(1)?.rows.first()
}

/// The row's columns as a guard: they must still be what was read.
fn unchanged(table: &str, row: &Row, columns: &[&str]) -> Option<Operation> {
    let seen = columns.iter().filter_map(|&column| Some((column, row.get(column)?.clone()))).collect();
    Some(Operation::wait_equal(table, vec![Condition::id(row.id()?)], columns, vec![seen]))
}

pub fn ensure_bridge(name: &str, datapath: &str, root: &Row, bridge: Option<&Row>) -> Vec<Operation> {
    let wanted = || Row::new().with("datapath_type", datapath).with("fail_mode", "secure");
    let Some(bridge) = bridge else {
        let row = wanted()
            .with("name", name)
            .with("ports", Value::named("port"))
            .with("other_config", Value::map([("disable-in-band", "true")]));
        let root = root.id().map(Condition::id).into_iter().collect();
        return vec![
            Operation::wait_absent("Bridge", vec![Condition::eq("name", name)]),
            Operation::insert("Interface", Row::new().with("name", name).with("type", "internal"))
                .named("interface"),
            Operation::insert(
                "Port",
                Row::new().with("name", name).with("interfaces", Value::named("interface")),
            )
            .named("port"),
            Operation::insert("Bridge", row).named("bridge"),
            Operation::mutate("Open_vSwitch", root, [Mutation::insert("bridges", Value::named("bridge"))]),
        ];
    };
    if bridge.str("datapath_type") == Some(datapath) && bridge.str("fail_mode") == Some("secure") {
        return Vec::new();
    }
    let guard = unchanged("Bridge", bridge, &["datapath_type", "fail_mode"]);
    guard
        .into_iter()
        .chain([Operation::update("Bridge", vec![Condition::eq("name", name)], wanted())])
        .collect()
}

/// The names in `ovn-bridge-mappings`: `lan:br-ex,dmz:br-dmz`.
pub fn physical_networks(mappings: Option<&str>) -> Vec<String> {
    let pairs = mappings.unwrap_or_default().split(',').filter_map(|pair| pair.split_once(':'));
    pairs.map(|(name, _)| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

pub fn ensure_chassis(root: &Row, bridge: &str, chassis: &Chassis) -> Vec<Operation> {
    let wanted: BTreeMap<String, String> = [
        ("system-id", chassis.name.clone()),
        ("ovn-remote", chassis.remote.clone()),
        ("ovn-encap-type", "geneve".to_owned()),
        ("ovn-encap-ip", chassis.encap_ip.to_string()),
        ("ovn-bridge", bridge.to_owned()),
        ("ovn-bridge-datapath-type", chassis.datapath.as_str().to_owned()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect();
    let Some(put) = put_missing("Open_vSwitch", root, wanted) else { return Vec::new() };
    unchanged("Open_vSwitch", root, &["external_ids"]).into_iter().chain([put]).collect()
}

/// Sets the external_ids that are not as wanted; None when all are.
fn put_missing(table: &str, row: &Row, wanted: BTreeMap<String, String>) -> Option<Operation> {
    let missing: BTreeMap<String, String> = wanted
        .into_iter()
        .filter(|(key, value)| row.entry("external_ids", key) != Some(value.as_str()))
        .collect();
    if missing.is_empty() {
        return None;
    }
    let this = row.id().map(Condition::id).into_iter().collect();
    Some(Operation::mutate(table, this, Mutation::put("external_ids", missing)))
}

pub fn plug(
    name: &str,
    bridge: &Row,
    reads: &[Outcome],
    plug: &Plug,
) -> Result<Vec<Operation>, NetworkError> {
    let mut operations = vec![same_holders(reads, plug.port)];
    for other in
        attached(bridge, reads).into_iter().filter(|a| a.port == plug.port && a.device != plug.device)
    {
        if !other.is_dead() {
            return Err(NetworkError::Occupied { port: plug.port, device: other.device });
        }
        operations.extend(port_of(bridge, reads, &other.device).map(|port| remove_port(name, port)));
    }
    let mut ids = plug.labels.clone();
    ids.insert("iface-id".to_owned(), plug.port.to_string());
    ids.insert("attached-mac".to_owned(), plug.mac.clone());
    ids.insert("iface-status".to_owned(), "active".to_owned());
    let present = reads[1].rows.iter().find(|row| row.str("name") == Some(plug.device.as_str()));
    match (present, port_of(bridge, reads, &plug.device)) {
        (Some(interface), Some(_)) => match put_missing("Interface", interface, ids) {
            Some(put) => operations.push(put),
            None if operations.len() == 1 => operations.clear(),
            None => {}
        },
        (Some(_), None) => {
            return Err(NetworkError::Elsewhere { device: plug.device.clone(), bridge: name.to_owned() });
        }
        (None, _) => {
            let interface = Row::new().with("name", plug.device.as_str()).with("external_ids", ids);
            let port =
                Row::new().with("name", plug.device.as_str()).with("interfaces", Value::named("interface"));
            operations.extend([
                Operation::wait_absent("Interface", vec![Condition::eq("name", plug.device.as_str())]),
                Operation::insert("Interface", interface).named("interface"),
                Operation::insert("Port", port).named("port"),
                Operation::mutate(
                    "Bridge",
                    vec![Condition::eq("name", name)],
                    [Mutation::insert("ports", Value::named("port"))],
                ),
            ]);
        }
    }
    Ok(operations)
}

/// A guard: the interfaces that carry this port's id are still those that were read.
fn same_holders(reads: &[Outcome], port: Uuid) -> Operation {
    let port = port.to_string();
    let holders =
        reads[1].rows.iter().filter(|row| row.entry("external_ids", "iface-id") == Some(port.as_str()));
    let holders = holders.filter_map(|row| Some(Row::new().with("_uuid", row.id()?))).collect();
    let carries = Condition::includes("external_ids", Value::map([("iface-id", port.as_str())]));
    Operation::wait_equal("Interface", vec![carries], &["_uuid"], holders)
}

/// Port and interface are no root rows: they go when the bridge no longer names them.
pub fn remove_port(bridge: &str, port: Uuid) -> Operation {
    Operation::mutate("Bridge", vec![Condition::eq("name", bridge)], [Mutation::delete("ports", port)])
}

/// The bridge's port that holds a device.
pub fn port_of(bridge: &Row, reads: &[Outcome], device: &str) -> Option<Uuid> {
    let interface = reads[1].rows.iter().find(|row| row.str("name") == Some(device))?.id()?;
    let port = reads[0].rows.iter().find(|row| row.uuids("interfaces").contains(&interface))?.id()?;
    bridge.uuids("ports").contains(&port).then_some(port)
}

pub fn attached(bridge: &Row, reads: &[Outcome]) -> Vec<Attached> {
    let on_bridge = bridge.uuids("ports");
    let ports = reads[0].rows.iter().filter(|port| port.id().is_some_and(|id| on_bridge.contains(&id)));
    let members: Vec<Uuid> = ports.flat_map(|port| port.uuids("interfaces")).collect();
    let interfaces = reads[1].rows.iter().filter(|row| row.id().is_some_and(|id| members.contains(&id)));
    let mut found: Vec<Attached> = interfaces.filter_map(read_attached).collect();
    found.sort_by(|a, b| a.device.cmp(&b.device));
    found
}

fn read_attached(row: &Row) -> Option<Attached> {
    Some(Attached {
        device: row.str("name")?.to_owned(),
        port: row.entry("external_ids", "iface-id")?.parse().ok()?,
        mac: row.entry("external_ids", "attached-mac").map(str::to_owned),
        ofport: row.integer("ofport"),
        error: row.str("error").map(str::to_owned),
        installed: row.entry("external_ids", "ovn-installed") == Some("true"),
        external_ids: row.entries("external_ids"),
    })
}

#[cfg(test)]
mod tests;
