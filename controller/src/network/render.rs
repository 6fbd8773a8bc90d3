//! Topology → the rows of OVN's northbound database. Pure; the golden test below is the contract with OVN.
//!
//! Rows have ids of their own making (UUIDv5 of what they stand for), so that references need no look-up and two
//! controllers write the same rows.
//!
//! Security: every port is in the port group `amphi_in`, whose one ACL drops all IP towards it; a security group's
//! ingress rules stand above that. What a port sends is free (group `amphi_free`, stateful, so that answers come back),
//! unless one of its groups has an egress rule: then it is in `amphi_out`, which drops, and only the rules let out.

use super::{GroupSpec, NetworkSpec, PortSpec, Topology};
use amphi_api::network::{Direction, Protocol, RuleSpec};
use amphi_ovsdb::{Row, Value};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// The tables that are projected, in OVN's spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    DhcpOptions,
    LogicalSwitchPort,
    LogicalSwitch,
    Acl,
    PortGroup,
}

impl Table {
    pub const ALL: [Table; 5] =
        [Self::DhcpOptions, Self::LogicalSwitchPort, Self::LogicalSwitch, Self::Acl, Self::PortGroup];

    pub fn name(self) -> &'static str {
        match self {
            Self::DhcpOptions => "DHCP_Options",
            Self::LogicalSwitchPort => "Logical_Switch_Port",
            Self::LogicalSwitch => "Logical_Switch",
            Self::Acl => "ACL",
            Self::PortGroup => "Port_Group",
        }
    }

    /// The columns that are ours to write; every other column belongs to OVN or to nobody.
    pub fn columns(self) -> &'static [&'static str] {
        match self {
            Self::DhcpOptions => &["cidr", "options", "external_ids"],
            Self::LogicalSwitchPort => &[
                "name",
                "addresses",
                "port_security",
                "dhcpv4_options",
                "options",
                "enabled",
                "external_ids",
            ],
            Self::LogicalSwitch => &["name", "ports", "external_ids"],
            Self::Acl => &["direction", "priority", "match", "action", "external_ids"],
            Self::PortGroup => &["name", "ports", "acls", "external_ids"],
        }
    }
}

/// Desired rows by table and row id.
pub type Rows = BTreeMap<(Table, Uuid), Row>;

/// The key in external_ids by which our rows are known.
pub const OWNER: &str = "amphi";

/// Priorities of ACLs: drops below, rules above, DHCP above all.
const DROP: i64 = 1001;
const ALLOW: i64 = 1002;
const DHCP: i64 = 1003;
/// Lease of an address, in seconds: a day, since the address never changes.
const LEASE_SECONDS: u32 = 86_400;

/// A row's id. The name space is a fixed random UUID of this project.
fn row_id(table: Table, what: &str) -> Uuid {
    const SPACE: Uuid = Uuid::from_u128(0x5bd1_a6de_3c07_4f0e_9a3c_7d21_60f5_4e11);
    Uuid::new_v5(&SPACE, format!("{}/{what}", table.name()).as_bytes())
}

fn owned(what: impl std::fmt::Display) -> Value {
    Value::map([(OWNER, what.to_string())])
}

/// All rows of a topology.
pub fn render(topology: &Topology) -> Rows {
    let mut rows = Rows::new();
    let restricted: BTreeSet<_> = topology
        .groups
        .iter()
        .filter(|g| g.rules.iter().any(|(_, r)| r.direction == Direction::Egress))
        .map(|g| g.id)
        .collect();
    for network in &topology.networks {
        let ports = topology.ports.iter().filter(|p| p.network == network.id);
        let ports = ports.map(|p| row_id(Table::LogicalSwitchPort, &p.id.to_string()));
        let what = network.id.to_string();
        let row = Row::new()
            .with("name", format!("amphi-{what}"))
            .with("ports", Value::set(ports))
            .with("external_ids", Value::map([(OWNER, what.clone()), ("amphi-name", network.name.clone())]));
        rows.insert((Table::LogicalSwitch, row_id(Table::LogicalSwitch, &what)), row);
        if network.dhcp {
            rows.insert((Table::DhcpOptions, row_id(Table::DhcpOptions, &what)), dhcp(network));
        }
    }
    let with_dhcp: BTreeSet<_> = topology.networks.iter().filter(|n| n.dhcp).map(|n| n.id).collect();
    for port in &topology.ports {
        rows.insert(
            (Table::LogicalSwitchPort, row_id(Table::LogicalSwitchPort, &port.id.to_string())),
            switch_port(port, with_dhcp.contains(&port.network)),
        );
    }
    let confined = |port: &&PortSpec| port.groups.iter().any(|g| restricted.contains(g));
    let all: Vec<&PortSpec> = topology.ports.iter().collect();
    let (out, free): (Vec<&PortSpec>, Vec<&PortSpec>) = all.iter().copied().partition(confined);
    let fixed = [
        ("amphi_in", &all, vec![("drop", "to-lport", DROP, "outport == @amphi_in && ip", "drop")]),
        (
            "amphi_free",
            &free,
            vec![("allow", "from-lport", ALLOW, "inport == @amphi_free && ip", "allow-related")],
        ),
        (
            "amphi_out",
            &out,
            vec![
                ("drop", "from-lport", DROP, "inport == @amphi_out && ip", "drop"),
                (
                    "dhcp",
                    "from-lport",
                    DHCP,
                    "inport == @amphi_out && ip4 && udp && udp.src == 68 && udp.dst == 67",
                    "allow",
                ),
            ],
        ),
    ];
    for (name, members, acls) in fixed {
        let acls = acls.into_iter().map(|(what, direction, priority, matches, action)| {
            (format!("{name}/{what}"), acl(direction, priority, matches, action))
        });
        group(&mut rows, name, name, members, acls);
    }
    for spec in &topology.groups {
        let members: Vec<_> = all.iter().copied().filter(|p| p.groups.contains(&spec.id)).collect();
        let acls = spec.rules.iter().map(|(id, rule)| (id.to_string(), rule_acl(spec, rule)));
        group(&mut rows, &group_name(spec), &spec.id.to_string(), &members, acls);
    }
    rows
}

/// OVN's names of groups are identifiers.
fn group_name(group: &GroupSpec) -> String {
    format!("amphi_{}", group.id.0.simple())
}

fn group(
    rows: &mut Rows,
    name: &str,
    what: &str,
    members: &[&PortSpec],
    acls: impl Iterator<Item = (String, Row)>,
) {
    let mut ids = Vec::new();
    for (acl_of, row) in acls {
        let id = row_id(Table::Acl, &acl_of);
        ids.push(id);
        let mut row = row;
        row.set("external_ids", owned(acl_of));
        rows.insert((Table::Acl, id), row);
    }
    let ports = members.iter().map(|p| row_id(Table::LogicalSwitchPort, &p.id.to_string()));
    let row = Row::new()
        .with("name", name)
        .with("ports", Value::set(ports))
        .with("acls", Value::set(ids))
        .with("external_ids", owned(what));
    rows.insert((Table::PortGroup, row_id(Table::PortGroup, what)), row);
}

fn acl(direction: &str, priority: i64, matches: &str, action: &str) -> Row {
    Row::new()
        .with("direction", direction)
        .with("priority", priority)
        .with("match", matches)
        .with("action", action)
}

fn rule_acl(group: &GroupSpec, rule: &RuleSpec) -> Row {
    let name = group_name(group);
    let (direction, end, peer) = match rule.direction {
        Direction::Ingress => ("to-lport", "outport", "src"),
        Direction::Egress => ("from-lport", "inport", "dst"),
    };
    let mut matches = format!("{end} == @{name} && ip4");
    match rule.protocol {
        Protocol::Any => {}
        Protocol::Icmp => matches.push_str(" && icmp4"),
        Protocol::Tcp => matches.push_str(" && tcp"),
        Protocol::Udp => matches.push_str(" && udp"),
    }
    let protocol = if rule.protocol == Protocol::Udp { "udp" } else { "tcp" };
    match (rule.port_min, rule.port_max) {
        (Some(min), max) if max.unwrap_or(min) == min => {
            matches.push_str(&format!(" && {protocol}.dst == {min}"))
        }
        (Some(min), max) => {
            let max = max.unwrap_or(min);
            matches.push_str(&format!(" && {protocol}.dst >= {min} && {protocol}.dst <= {max}"));
        }
        (None, _) => {}
    }
    if let Some(remote) = rule.remote {
        matches.push_str(&format!(" && ip4.{peer} == {}", remote.trunc()));
    }
    acl(direction, ALLOW, &matches, "allow-related")
}

fn dhcp(network: &NetworkSpec) -> Row {
    let mut options = vec![
        ("server_id", network.gateway.to_string()),
        ("server_mac", server_mac(network)),
        ("lease_time", LEASE_SECONDS.to_string()),
        ("router", network.gateway.to_string()),
        ("mtu", network.mtu.to_string()),
    ];
    let dns: Vec<String> = network.dns.iter().map(ToString::to_string).collect();
    match dns.as_slice() {
        [] => {}
        [one] => options.push(("dns_server", one.clone())),
        many => options.push(("dns_server", format!("{{{}}}", many.join(", ")))),
    }
    Row::new()
        .with("cidr", network.subnet.to_string())
        .with("options", Value::map(options))
        .with("external_ids", owned(network.id))
}

/// The address that DHCP answers come from: locally administered, made of the network's id.
fn server_mac(network: &NetworkSpec) -> String {
    let b = row_id(Table::DhcpOptions, &network.id.to_string()).into_bytes();
    format!("0a:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", b[0], b[1], b[2], b[3], b[4])
}

fn switch_port(port: &PortSpec, dhcp: bool) -> Row {
    let address = format!("{} {}", port.mac, port.address);
    let dhcp = if dhcp {
        Value::set([row_id(Table::DhcpOptions, &port.network.to_string())])
    } else {
        Value::empty()
    };
    // A port without a chassis must not be bound by whoever happens to hold its interface: a name that no chassis has.
    let chassis = port.chassis.clone().unwrap_or_else(|| "amphi-nowhere".to_owned());
    Row::new()
        .with("name", port.id.to_string())
        .with("addresses", Value::set([address.clone()]))
        .with("port_security", Value::set([address]))
        .with("dhcpv4_options", dhcp)
        .with("options", Value::map([("requested-chassis", chassis)]))
        .with("enabled", Value::set([true]))
        .with("external_ids", owned(port.id))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use amphi_api::{NetworkId, PortId, RuleId, SecurityGroupId};

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    /// One network, a web server that answers ping and port 80, and a client that may only speak to it.
    pub fn sample() -> Topology {
        let rule = |direction, protocol, port, remote: Option<&str>| RuleSpec {
            direction,
            protocol,
            port_min: port,
            port_max: None,
            remote: remote.map(|r| r.parse().unwrap()),
        };
        let web = SecurityGroupId(id(0x30));
        let client = SecurityGroupId(id(0x31));
        let port = |n, mac: &str, address: &str, chassis: Option<&str>, group| PortSpec {
            id: PortId(id(n)),
            network: NetworkId(id(0x10)),
            mac: mac.into(),
            address: address.parse().unwrap(),
            chassis: chassis.map(str::to_owned),
            groups: vec![group],
        };
        Topology {
            networks: vec![NetworkSpec {
                id: NetworkId(id(0x10)),
                name: "blue \"net\"".into(),
                subnet: "10.1.0.0/24".parse().unwrap(),
                gateway: "10.1.0.1".parse().unwrap(),
                dns: vec!["10.1.0.2".parse().unwrap(), "10.1.0.3".parse().unwrap()],
                dhcp: true,
                mtu: 1442,
            }],
            ports: vec![
                port(0x20, "fa:16:3e:00:00:01", "10.1.0.5", Some("h1"), web),
                port(0x21, "fa:16:3e:00:00:02", "10.1.0.6", None, client),
            ],
            groups: vec![
                GroupSpec {
                    id: web,
                    rules: vec![
                        (RuleId(id(0x40)), rule(Direction::Ingress, Protocol::Icmp, None, None)),
                        (
                            RuleId(id(0x41)),
                            rule(Direction::Ingress, Protocol::Tcp, Some(80), Some("10.0.0.0/8")),
                        ),
                    ],
                },
                GroupSpec {
                    id: client,
                    rules: vec![(RuleId(id(0x42)), rule(Direction::Egress, Protocol::Udp, Some(53), None))],
                },
            ],
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
        assert_eq!(render(&turned), render(&sample()));
    }
}
