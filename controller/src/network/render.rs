//! Topology → the rows of OVN's northbound database. Pure; the golden test below is the contract with OVN.
//!
//! Rows have ids of their own making (UUIDv5 of what they stand for), so that references need no look-up and two
//! controllers write the same rows.

use super::{LimitSpec, NetworkSpec, PortSpec, Topology, acl, dhcp, ports, router};
use amphi_api::network::Direction;
use amphi_ovsdb::{Row, Value};
use std::collections::BTreeMap;
use uuid::Uuid;

/// The tables that are projected, in OVN's spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    DhcpOptions,
    LogicalSwitchPort,
    Qos,
    LogicalSwitch,
    Acl,
    PortGroup,
    GatewayChassis,
    RouterPort,
    StaticRoute,
    Nat,
    Router,
}

impl Table {
    pub const ALL: [Table; 11] = [
        Self::DhcpOptions,
        Self::LogicalSwitchPort,
        Self::Qos,
        Self::LogicalSwitch,
        Self::Acl,
        Self::PortGroup,
        Self::GatewayChassis,
        Self::RouterPort,
        Self::StaticRoute,
        Self::Nat,
        Self::Router,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::DhcpOptions => "DHCP_Options",
            Self::LogicalSwitchPort => "Logical_Switch_Port",
            Self::Qos => "QoS",
            Self::LogicalSwitch => "Logical_Switch",
            Self::Acl => "ACL",
            Self::PortGroup => "Port_Group",
            Self::GatewayChassis => "Gateway_Chassis",
            Self::RouterPort => "Logical_Router_Port",
            Self::StaticRoute => "Logical_Router_Static_Route",
            Self::Nat => "NAT",
            Self::Router => "Logical_Router",
        }
    }

    /// The columns that are ours to write; every other column belongs to OVN or to nobody.
    pub fn columns(self) -> &'static [&'static str] {
        match self {
            Self::DhcpOptions => &["cidr", "options", "external_ids"],
            Self::LogicalSwitchPort => &[
                "name",
                "type",
                "addresses",
                "port_security",
                "dhcpv4_options",
                "dhcpv6_options",
                "options",
                "tag",
                "enabled",
                "external_ids",
            ],
            Self::Qos => &["priority", "direction", "match", "action", "bandwidth", "external_ids"],
            Self::LogicalSwitch => &["name", "ports", "qos_rules", "other_config", "external_ids"],
            Self::Acl => &["direction", "priority", "match", "action", "external_ids"],
            Self::PortGroup => &["name", "ports", "acls", "external_ids"],
            Self::GatewayChassis => &["name", "chassis_name", "priority", "external_ids"],
            Self::RouterPort => {
                &["name", "mac", "networks", "gateway_chassis", "ipv6_ra_configs", "external_ids"]
            }
            Self::StaticRoute => &["ip_prefix", "nexthop", "external_ids"],
            Self::Nat => &["type", "external_ip", "logical_ip", "external_ids"],
            Self::Router => &["name", "ports", "static_routes", "nat", "enabled", "options", "external_ids"],
        }
    }
}

/// Desired rows by table and row id.
pub type Rows = BTreeMap<(Table, Uuid), Row>;

/// The key in external_ids by which our rows are known.
pub const OWNER: &str = "amphi";

/// A row's id. The name space is a fixed random UUID of this project.
pub(super) fn row_id(table: Table, what: &str) -> Uuid {
    const SPACE: Uuid = Uuid::from_u128(0x5bd1_a6de_3c07_4f0e_9a3c_7d21_60f5_4e11);
    Uuid::new_v5(&SPACE, format!("{}/{what}", table.name()).as_bytes())
}

pub(super) fn owned(what: impl std::fmt::Display) -> Value {
    Value::map([(OWNER, what.to_string())])
}

/// All rows of a topology.
pub fn render(topology: &Topology) -> Rows {
    let mut rows = Rows::new();
    let mut on: BTreeMap<_, Vec<&PortSpec>> = BTreeMap::new();
    for port in &topology.ports {
        on.entry(port.network).or_default().push(port);
    }
    for network in &topology.networks {
        switch(&mut rows, network, on.get(&network.id).map(Vec::as_slice).unwrap_or_default());
    }
    let subnets: BTreeMap<_, _> = topology.subnets.iter().map(|s| (s.id, s)).collect();
    for subnet in topology.subnets.iter().filter(|s| s.dhcp) {
        let what = subnet.id.to_string();
        rows.insert((Table::DhcpOptions, row_id(Table::DhcpOptions, &what)), dhcp::row(subnet, &[], &what));
    }
    for port in &topology.ports {
        ports::rows(&mut rows, port, &subnets);
    }
    acl::rows(&mut rows, topology);
    for spec in &topology.routers {
        router::rows(&mut rows, spec);
    }
    rows
}

/// The switch, the physical network's port on it, and the limits of its ports.
fn switch(rows: &mut Rows, network: &NetworkSpec, on: &[&PortSpec]) {
    let what = network.id.to_string();
    let mut ids: Vec<Uuid> = on.iter().map(|p| row_id(Table::LogicalSwitchPort, &p.id.to_string())).collect();
    if let Some((physical, tag)) = &network.physical {
        let name = format!("localnet-{what}");
        let id = row_id(Table::LogicalSwitchPort, &name);
        let row = Row::new()
            .with("name", name.as_str())
            .with("type", "localnet")
            .with("addresses", Value::set(["unknown".to_owned()]))
            .with("options", Value::map([("network_name", physical.clone())]))
            .with("tag", Value::set(tag.map(i64::from)))
            .with("external_ids", owned(&name));
        rows.insert((Table::LogicalSwitchPort, id), row);
        ids.push(id);
    }
    if network.metadata {
        let (id, row) = ports::metadata(network.id);
        rows.insert((Table::LogicalSwitchPort, id), row);
        ids.push(id);
    }
    let mut limits = Vec::new();
    for port in on {
        for limit in &port.limits {
            let what = format!("{}/{}", port.id, limit.id);
            let id = row_id(Table::Qos, &what);
            rows.insert((Table::Qos, id), qos(port, limit, &what));
            limits.push(id);
        }
    }
    let config = network.tunnel_key.map(|key| ("requested-tnl-key", key.to_string()));
    let row = Row::new()
        .with("name", format!("amphi-{what}"))
        .with("ports", Value::set(ids))
        .with("qos_rules", Value::set(limits))
        .with("other_config", Value::map(config))
        .with("external_ids", Value::map([(OWNER, what.clone()), ("amphi-name", network.name.clone())]));
    rows.insert((Table::LogicalSwitch, row_id(Table::LogicalSwitch, &what)), row);
}

/// Above every ACL's priority there is nothing to order: one limit per port and direction.
const QOS_PRIORITY: i64 = 2002;

fn qos(port: &PortSpec, limit: &LimitSpec, what: &str) -> Row {
    let (direction, end) = match limit.direction {
        Direction::Egress => ("from-lport", "inport"),
        Direction::Ingress => ("to-lport", "outport"),
    };
    let mut bandwidth: Vec<(&str, i64)> = Vec::new();
    if let Some((rate, burst)) = limit.bandwidth {
        bandwidth.push(("rate", i64::from(rate)));
        if burst > 0 {
            bandwidth.push(("burst", i64::from(burst)));
        }
    }
    Row::new()
        .with("priority", QOS_PRIORITY)
        .with("direction", direction)
        .with("match", format!("{end} == \"{}\"", port.id))
        .with("action", Value::map(limit.dscp.map(|mark| ("dscp", i64::from(mark)))))
        .with("bandwidth", Value::map(bandwidth))
        .with("external_ids", owned(what))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::*;
    use super::*;

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    /// One network of both families, a web server that answers ping and port 80, and a client that may only speak to
    /// it, over a router to the world, with a floating IP and a limit.
    pub fn sample() -> Topology {
        let rule = |n, direction, protocol, port, remote: Option<&str>| RuleSpec {
            id: RuleId(id(n)),
            direction,
            family: Family::Ipv4,
            protocol,
            min: port,
            max: None,
            remote: remote.map(|r| r.parse().unwrap()),
            remote_group: None,
        };
        let (net, world) = (NetworkId(id(0x10)), NetworkId(id(0x11)));
        let (v4, v6, outer) = (SubnetId(id(0x18)), SubnetId(id(0x19)), SubnetId(id(0x1a)));
        let web = SecurityGroupId(id(0x30));
        let client = SecurityGroupId(id(0x31));
        let port = |n, mac: &str, addresses: &[(SubnetId, &str)], chassis: Option<&str>, group| PortSpec {
            id: PortId(id(n)),
            network: net,
            mac: mac.into(),
            addresses: addresses.iter().map(|(s, a)| (*s, a.parse().unwrap())).collect(),
            chassis: chassis.map(str::to_owned),
            groups: vec![group],
            up: true,
            ..PortSpec::default()
        };
        let leg = |n, network, subnet, address: &str| PortSpec {
            id: PortId(id(n)),
            network,
            mac: format!("fa:16:3e:00:00:{n:02x}"),
            addresses: vec![(subnet, address.parse().unwrap())],
            up: true,
            kind: PortKind::Router,
            ..PortSpec::default()
        };
        let mut first =
            port(0x20, "fa:16:3e:00:00:01", &[(v4, "10.1.0.5"), (v6, "fd00::5")], Some("h1"), web);
        first.pairs = vec![("10.1.0.128/25".parse().unwrap(), None)];
        first.dhcp_options = vec![(4, "domain_name".into(), "\"example.org\"".into())];
        first.limits = vec![LimitSpec {
            id: QosRuleId(id(0x50)),
            direction: Direction::Egress,
            bandwidth: Some((1000, 100)),
            dscp: None,
        }];
        Topology {
            networks: vec![
                NetworkSpec {
                    id: net,
                    name: "blue \"net\"".into(),
                    tunnel_key: Some(77),
                    physical: None,
                    metadata: true,
                },
                NetworkSpec {
                    id: world,
                    name: "world".into(),
                    tunnel_key: None,
                    physical: Some(("lan".into(), Some(12))),
                    metadata: false,
                },
            ],
            subnets: vec![
                SubnetSpec {
                    id: v4,
                    cidr: "10.1.0.0/24".parse().unwrap(),
                    gateway: Some("10.1.0.1".parse().unwrap()),
                    dns: vec!["10.1.0.2".parse().unwrap(), "10.1.0.3".parse().unwrap()],
                    routes: vec![("10.9.0.0/16".parse().unwrap(), "10.1.0.9".parse().unwrap())],
                    dhcp: true,
                    stateless: false,
                    mtu: 1442,
                },
                SubnetSpec {
                    id: v6,
                    cidr: "fd00::/64".parse().unwrap(),
                    gateway: Some("fd00::1".parse().unwrap()),
                    dns: vec![],
                    routes: vec![],
                    dhcp: true,
                    stateless: false,
                    mtu: 1442,
                },
            ],
            ports: vec![
                first,
                port(0x21, "fa:16:3e:00:00:02", &[(v4, "10.1.0.6")], None, client),
                leg(0x22, net, v4, "10.1.0.1"),
                leg(0x23, world, outer, "172.24.4.2"),
            ],
            groups: vec![
                GroupSpec {
                    id: web,
                    free_egress: true,
                    stateful: true,
                    rules: vec![
                        rule(0x40, Direction::Ingress, Some(1), None, None),
                        rule(0x41, Direction::Ingress, Some(6), Some(80), Some("10.0.0.0/8")),
                    ],
                },
                GroupSpec {
                    id: client,
                    free_egress: true,
                    stateful: true,
                    rules: vec![rule(0x42, Direction::Egress, Some(17), Some(53), None)],
                },
            ],
            routers: vec![RouterSpec {
                id: RouterId(id(0x60)),
                name: "edge".into(),
                up: true,
                legs: vec![
                    LegSpec {
                        port: PortId(id(0x22)),
                        mac: "fa:16:3e:00:00:22".into(),
                        addresses: vec!["10.1.0.1/24".parse().unwrap(), "fd00::1/64".parse().unwrap()],
                        chassis: vec![],
                        advertise: Some("slaac".into()),
                        mtu: 1442,
                    },
                    LegSpec {
                        port: PortId(id(0x23)),
                        mac: "fa:16:3e:00:00:23".into(),
                        addresses: vec!["172.24.4.2/24".parse().unwrap()],
                        chassis: vec!["h2".into(), "h1".into()],
                        advertise: None,
                        mtu: 1500,
                    },
                ],
                routes: vec![("0.0.0.0/0".parse().unwrap(), "172.24.4.1".parse().unwrap())],
                snat: vec![("10.1.0.0/24".parse().unwrap(), "172.24.4.2".parse().unwrap())],
                floating: vec![FloatingSpec {
                    id: FloatingIpId(id(0x70)),
                    outside: "172.24.4.9".parse().unwrap(),
                    inside: "10.1.0.5".parse().unwrap(),
                }],
            }],
        }
    }

    #[test]
    fn rows_are_as_written_down() {
        let lines: Vec<String> = render(&sample())
            .iter()
            .map(|((table, id), row)| format!("{} {id} {}", table.name(), row.to_json()))
            .collect();
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn the_same_topology_in_another_order_is_the_same_rows() {
        let mut turned = sample();
        turned.ports.reverse();
        turned.groups.reverse();
        turned.subnets.reverse();
        assert_eq!(render(&turned), render(&sample()));
    }
}
