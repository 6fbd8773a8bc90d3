//! The short form of a security group's rule: `icmp`, `tcp:80`, `udp:1000-2000`, `tcp:22@10.0.0.0/8`, `any@10.1.0.7`.

use amphi_api::network::{Direction, Family, Protocol, RuleSpec};
use ipnet::IpNet;
use std::net::IpAddr;

/// PROTOCOL[:PORT[-PORT]][@NETWORK]; the direction is the caller's.
pub fn parse(text: &str, direction: Direction) -> Result<RuleSpec, String> {
    let (rest, remote) = match text.split_once('@') {
        Some((rest, remote)) => (rest, Some(network(remote)?)),
        None => (text, None),
    };
    let (protocol, ports) = match rest.split_once(':') {
        Some((protocol, ports)) => (protocol, Some(ports)),
        None => (rest, None),
    };
    let protocol = match protocol {
        "any" => Protocol::Any,
        "icmp" => Protocol::Icmp,
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => return Err(format!("'{other}' is no protocol: any, icmp, tcp or udp")),
    };
    let (port_min, port_max) = match ports.map(|p| p.split_once('-').unwrap_or((p, p))) {
        Some((min, max)) => (Some(port(min)?), Some(port(max)?)),
        None => (None, None),
    };
    let family = remote.map_or(Family::Ipv4, |remote| Family::of(remote.addr()));
    let rule = RuleSpec { direction, family, protocol, port_min, port_max, remote, ..RuleSpec::default() };
    rule.check().map_err(|e| e.message)?;
    Ok(rule)
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("'{text}' is no port: 1 to 65535"))
}

fn network(text: &str) -> Result<IpNet, String> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    net.map_err(|_| format!("'{text}' is no network: 10.0.0.0/8"))
}

/// For clap: a rule for what comes in.
pub fn ingress(text: &str) -> Result<RuleSpec, String> {
    parse(text, Direction::Ingress)
}

/// For clap: a rule for what goes out.
pub fn egress(text: &str) -> Result<RuleSpec, String> {
    parse(text, Direction::Egress)
}

/// The short form of a rule; the direction is not part of it.
pub fn short(rule: &RuleSpec) -> String {
    let mut text = match rule.number {
        Some(number) => number.to_string(),
        None => crate::table::word(rule.protocol),
    };
    if rule.family == Family::Ipv6 && rule.remote.is_none() {
        text += "6";
    }
    match (rule.port_min, rule.port_max) {
        (Some(min), Some(max)) if min != max => text += &format!(":{min}-{max}"),
        (Some(min), _) => text += &format!(":{min}"),
        _ => {}
    }
    if let Some(remote) = rule.remote {
        text += &format!("@{remote}");
    }
    if let Some(group) = rule.remote_group {
        text += &format!("@{group}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for text in ["icmp", "any", "tcp", "tcp:80", "udp:1000-2000", "tcp:22@10.0.0.0/8", "any@10.1.0.7/32"]
        {
            assert_eq!(parse(text, Direction::Ingress).map(|r| short(&r)).as_deref(), Ok(text));
        }
        assert_eq!(
            parse("tcp:80-80@10.1.0.7", Direction::Egress).map(|r| short(&r)).as_deref(),
            Ok("tcp:80@10.1.0.7/32")
        );
    }

    #[test]
    fn refusals() {
        for (text, says) in [
            ("sctp", "no protocol"),
            ("tcp:http", "no port"),
            ("tcp:70000", "no port"),
            ("tcp:", "no port"),
            ("tcp:0", "1 to 65535"),
            ("tcp:90-80", "below port_min"),
            ("icmp:8", "only tcp and udp"),
            ("tcp@nowhere", "no network"),
            ("tcp@::/x", "no network"),
        ] {
            let error = parse(text, Direction::Ingress).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
