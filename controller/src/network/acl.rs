//! Security groups as port groups and ACLs. Pure.
//!
//! Every filtering port is in the port group `amphi_in`, whose ACL drops all IP towards it; a security group's ingress
//! rules stand above that. What a port sends is free (group `amphi_free`, stateful, so that answers come back), unless
//! the port or one of its groups says that rules decide: then it is in `amphi_out`, which drops, and only the rules let
//! out. The addresses of a group's ports are an address set that OVN makes of the port group itself.

use super::render::{Rows, Table, owned, row_id};
use super::{GroupSpec, PortKind, PortSpec, RuleSpec, Topology};
use amphi_api::SecurityGroupId;
use amphi_api::network::{Direction, Family, METADATA_ADDRESS};
use amphi_ovsdb::{Row, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Priorities of ACLs: drops below, rules above, DHCP and neighbour discovery above all.
const DROP: i64 = 1001;
const ALLOW: i64 = 1002;
const NEEDED: i64 = 1003;

/// What IPv6 does not work without.
const NEIGHBOURS: &str = "(nd || nd_ra || nd_rs || mldv1 || mldv2)";

pub fn rows(rows: &mut Rows, topology: &Topology) {
    let confining: BTreeSet<SecurityGroupId> = topology
        .groups
        .iter()
        .filter(|g| !g.free_egress || g.rules.iter().any(|r| r.direction == Direction::Egress))
        .map(|g| g.id)
        .collect();
    let confined =
        |port: &&PortSpec| port.egress_by_rule || port.groups.iter().any(|g| confining.contains(g));
    let filtering = |port: &&PortSpec| port.kind == PortKind::Instance && !port.open;
    let all: Vec<&PortSpec> = topology.ports.iter().filter(filtering).collect();
    let (out, free): (Vec<&PortSpec>, Vec<&PortSpec>) = all.iter().copied().partition(confined);
    let dhcp = "udp.src == 68 && udp.dst == 67";
    let dhcp6 = "udp.src == 546 && udp.dst == 547";
    let fixed = [
        (
            "amphi_in",
            &all,
            vec![
                ("drop", "to-lport", DROP, "outport == @amphi_in && ip".to_owned(), "drop"),
                ("nd", "to-lport", NEEDED, format!("outport == @amphi_in && {NEIGHBOURS}"), "allow"),
            ],
        ),
        (
            "amphi_free",
            &free,
            vec![("allow", "from-lport", ALLOW, "inport == @amphi_free && ip".to_owned(), "allow-related")],
        ),
        (
            "amphi_out",
            &out,
            vec![
                ("drop", "from-lport", DROP, "inport == @amphi_out && ip".to_owned(), "drop"),
                (
                    "dhcp",
                    "from-lport",
                    NEEDED,
                    format!("inport == @amphi_out && ip4 && udp && {dhcp}"),
                    "allow",
                ),
                (
                    "dhcp6",
                    "from-lport",
                    NEEDED,
                    format!("inport == @amphi_out && ip6 && udp && {dhcp6}"),
                    "allow",
                ),
                ("nd", "from-lport", NEEDED, format!("inport == @amphi_out && {NEIGHBOURS}"), "allow"),
            ],
        ),
    ];
    for (name, members, acls) in fixed {
        let acls = acls.into_iter().map(|(what, direction, priority, matches, action)| {
            (format!("{name}/{what}"), acl(direction, priority, &matches, action))
        });
        let probes = all.iter().filter(|_| name == "amphi_in").filter_map(|port| probe_acl(port));
        group(rows, name, name, members, acls.chain(probes));
    }
    let mut members: BTreeMap<SecurityGroupId, Vec<&PortSpec>> = BTreeMap::new();
    for port in &all {
        for id in &port.groups {
            members.entry(*id).or_default().push(port);
        }
    }
    for spec in &topology.groups {
        let acls = spec.rules.iter().map(|rule| (rule.id.to_string(), rule_acl(spec, rule)));
        let members = members.get(&spec.id).map(Vec::as_slice).unwrap_or_default();
        group(rows, &group_name(spec.id), &spec.id.to_string(), members, acls);
    }
}

/// The port's own host asks it whether it works, and no rule of a group has to say so.
fn probe_acl(port: &PortSpec) -> Option<(String, Row)> {
    let ports: Vec<String> = port.probed.iter().map(u16::to_string).collect();
    let to = match ports.as_slice() {
        [] => return None,
        [one] => one.clone(),
        _ => format!("{{{}}}", ports.join(", ")),
    };
    let matches =
        format!("outport == \"{}\" && ip4.src == {METADATA_ADDRESS} && tcp && tcp.dst == {to}", port.id);
    Some((format!("probe/{}", port.id), acl("to-lport", ALLOW, &matches, "allow-related")))
}

/// OVN's names of groups are identifiers.
fn group_name(group: SecurityGroupId) -> String {
    format!("amphi_{}", group.0.simple())
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
    let name = group_name(group.id);
    let (direction, end, peer) = match rule.direction {
        Direction::Ingress => ("to-lport", "outport", "src"),
        Direction::Egress => ("from-lport", "inport", "dst"),
    };
    let (ip, set) = match rule.family {
        Family::Ipv4 => ("ip4", "ip4"),
        Family::Ipv6 => ("ip6", "ip6"),
    };
    let mut matches = format!("{end} == @{name} && {ip}");
    matches.push_str(&traffic(rule));
    if let Some(remote) = rule.remote.filter(|remote| remote.prefix_len() > 0) {
        matches.push_str(&format!(" && {ip}.{peer} == {}", remote.trunc()));
    }
    if let Some(remote) = rule.remote_group {
        matches.push_str(&format!(" && {ip}.{peer} == ${}_{set}", group_name(remote)));
    }
    acl(direction, ALLOW, &matches, if group.stateful { "allow-related" } else { "allow-stateless" })
}

/// Protocol with ports, or ICMP's type and code.
fn traffic(rule: &RuleSpec) -> String {
    let Some(number) = rule.protocol else { return String::new() };
    let ports = |name: &str| match (rule.min, rule.max.or(rule.min)) {
        (Some(min), Some(max)) if min == max => format!(" && {name} && {name}.dst == {min}"),
        (Some(min), Some(max)) => format!(" && {name} && {name}.dst >= {min} && {name}.dst <= {max}"),
        _ => format!(" && {name}"),
    };
    let icmp = |name: &str| {
        let mut text = format!(" && {name}");
        if let Some(kind) = rule.min {
            text.push_str(&format!(" && {name}.type == {kind}"));
        }
        if let Some(code) = rule.max.filter(|_| rule.min.is_some()) {
            text.push_str(&format!(" && {name}.code == {code}"));
        }
        text
    };
    match number {
        1 => icmp("icmp4"),
        58 => icmp("icmp6"),
        6 => ports("tcp"),
        17 => ports("udp"),
        132 => ports("sctp"),
        other => format!(" && ip.proto == {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::RuleId;

    #[test]
    fn a_probe_comes_through_for_its_port_alone() {
        let port =
            |probed: &[u16]| PortSpec { probed: probed.iter().copied().collect(), ..PortSpec::default() };
        assert!(probe_acl(&port(&[])).is_none());
        let matches = |probed: &[u16]| probe_acl(&port(probed)).unwrap().1.str("match").unwrap().to_owned();
        let from = "outport == \"00000000-0000-0000-0000-000000000000\" && ip4.src == 169.254.169.254 && tcp";
        assert_eq!(matches(&[80]), format!("{from} && tcp.dst == 80"));
        assert_eq!(matches(&[443, 80]), format!("{from} && tcp.dst == {{80, 443}}"));
    }

    #[test]
    fn rules_in_ovns_words() {
        let rule = |family, protocol, min, max| RuleSpec {
            id: RuleId::new(),
            direction: Direction::Ingress,
            family,
            protocol,
            min,
            max,
            remote: None,
            remote_group: None,
        };
        let (v4, v6) = (Family::Ipv4, Family::Ipv6);
        let table = [
            (rule(v4, None, None, None), ""),
            (rule(v4, Some(6), Some(1), Some(65535)), " && tcp && tcp.dst >= 1 && tcp.dst <= 65535"),
            (rule(v4, Some(17), Some(53), None), " && udp && udp.dst == 53"),
            (rule(v4, Some(1), Some(8), Some(0)), " && icmp4 && icmp4.type == 8 && icmp4.code == 0"),
            (rule(v6, Some(58), Some(128), None), " && icmp6 && icmp6.type == 128"),
            (rule(v4, Some(47), None, None), " && ip.proto == 47"),
        ];
        for (rule, want) in table {
            assert_eq!(traffic(&rule), want);
        }
        let own = SecurityGroupId(uuid::Uuid::from_u128(7));
        let group = GroupSpec { id: own, free_egress: false, stateful: true, rules: vec![] };
        let from = RuleSpec { remote_group: Some(own), ..rule(v6, None, None, None) };
        let row = rule_acl(&group, &from).to_json().to_string();
        assert!(row.contains("ip6.src == $amphi_00000000000000000000000000000007_ip6"), "{row}");
    }
}
