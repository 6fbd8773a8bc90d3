//! `/v2.0/security-group-rules`.

use super::given::{Given, bodies, cidr, invalid};
use super::listing::{Shown, answer, made, one, owner};
use super::sight::{absent, find, reach, told, visible};
use crate::faces::openstack::OpenStack;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::body::Body;
use crate::faces::openstack::gate::Base;
use crate::faces::openstack::query::Query;
use crate::faces::openstack::words;
use crate::model::network::{ANY_PROTOCOL, protocol_number};
use crate::model::{RuleRecord, SecurityGroupRecord};
use crate::ops::identity::Caller;
use crate::ops::{Row, View};
use amphi_api::network::{Direction, Family};
use amphi_api::{RuleId, SecurityGroupId};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Value, json};

pub fn show_rule(group: &SecurityGroupRecord, rule: &RuleRecord) -> Shown {
    let at = words::time(rule.created_at.unwrap_or(group.created_at));
    let shown = json!({
        "id": rule.id,
        "security_group_id": group.id,
        "direction": match rule.direction { Direction::Ingress => "ingress", Direction::Egress => "egress" },
        "ethertype": match rule.family { Family::Ipv4 => "IPv4", Family::Ipv6 => "IPv6" },
        "protocol": Some(&rule.protocol).filter(|p| *p != ANY_PROTOCOL),
        "port_range_min": rule.port_min,
        "port_range_max": rule.port_max,
        "remote_ip_prefix": rule.remote,
        "normalized_cidr": rule.remote.map(|net| net.trunc()),
        "remote_group_id": rule.remote_group,
        "remote_address_group_id": null,
        "description": rule.description,
        "tags": [],
        "created_at": at,
        "updated_at": at,
        "revision_number": 0,
    });
    let Value::Object(mut shown) = shown else { return Shown::new() };
    owner(&mut shown, group.project);
    shown
}

fn rules_of<'a>(
    view: &'a View,
    caller: &'a Caller,
) -> impl Iterator<Item = (&'a Row<SecurityGroupRecord>, &'a RuleRecord)> {
    let groups = view.groups.iter().filter(|group| visible(view, caller, &*group.record));
    groups.flat_map(|group| group.rules.iter().map(move |rule| (group, rule)))
}

fn bad(kind: &'static str, message: String) -> Refusal {
    Refusal::bad(message).kind(kind)
}

fn read(view: &View, caller: &Caller, mut given: Given) -> Result<(SecurityGroupId, RuleRecord), Refusal> {
    given.project(caller)?;
    let group = match given.take("security_group_id") {
        Some(Value::String(id)) => find::<SecurityGroupRecord>(view, caller, &id)?.id,
        _ => {
            return Err(Refusal::bad(
                "Failed to parse request. Required attribute 'security_group_id' not specified",
            ));
        }
    };
    let direction = match given.text("direction")?.map(|d| d.to_ascii_lowercase()).as_deref() {
        Some("ingress") => Direction::Ingress,
        Some("egress") => Direction::Egress,
        other => return Err(invalid("direction", &json!(other), "is not in ['ingress', 'egress']")),
    };
    let family = match given.text("ethertype")?.map(|e| e.to_ascii_lowercase()).as_deref() {
        None | Some("" | "ipv4") => Family::Ipv4,
        Some("ipv6") => Family::Ipv6,
        Some(other) => {
            return Err(bad(
                "SecurityGroupRuleInvalidEtherType",
                format!(
                    "Security group rule for ethertype '{other}' not supported. Allowed values are ['IPv4', 'IPv6']."
                ),
            ));
        }
    };
    let protocol = protocol(given.take("protocol"), family)?;
    let min = port(given.take("port_range_min"))?;
    let max = port(given.take("port_range_max"))?;
    let (min, max) = ports(protocol_number(&protocol, family), &protocol, min, max)?;
    let remote = match given.take("remote_ip_prefix") {
        None | Some(Value::Null) => None,
        Some(value) => Some(cidr("remote_ip_prefix", &value)?),
    };
    let remote_group = match given.take("remote_group_id") {
        None | Some(Value::Null) => None,
        Some(Value::String(id)) => Some(find::<SecurityGroupRecord>(view, caller, &id)?.id),
        Some(other) => return Err(absent::<SecurityGroupRecord>(&other.to_string())),
    };
    if remote.is_some() && remote_group.is_some() {
        return Err(bad(
            "SecurityGroupMultipleRemoteEntites",
            "Only one of remote_ip_prefix or remote_group_id may be provided.".into(),
        ));
    }
    if remote.is_some_and(|net| matches!(net, IpNet::V4(_)) != (family == Family::Ipv4)) {
        return Err(bad(
            "SecurityGroupRuleParameterConflict",
            "Conflicting value ethertype for CIDR remote_ip_prefix".into(),
        ));
    }
    if given.has("remote_address_group_id") {
        return Err(Refusal::bad("Address groups are not there"));
    }
    given.take("remote_address_group_id");
    let description = given.text("description")?.unwrap_or_default();
    given.end()?;
    let rule = RuleRecord {
        protocol,
        port_min: min,
        port_max: max,
        remote,
        remote_group,
        description,
        ..RuleRecord::new(direction, family, Timestamp::now())
    };
    Ok((group, rule))
}

fn protocol(given: Option<Value>, family: Family) -> Result<String, Refusal> {
    let text = match given {
        None | Some(Value::Null) => return Ok(ANY_PROTOCOL.into()),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::String(text)) => text.trim().to_ascii_lowercase(),
        Some(other) => other.to_string(),
    };
    if matches!(text.as_str(), "" | "any" | "-1") {
        return Ok(ANY_PROTOCOL.into());
    }
    let Some(number) = protocol_number(&text, family) else {
        return Err(bad(
            "SecurityGroupRuleInvalidProtocol",
            format!(
                "Security group rule protocol {text} not supported. Only protocol values and integer representations [0 to 255] are supported."
            ),
        ));
    };
    let v6_only = text.starts_with("ipv6-") || text == "icmpv6" || number == 58 && text == "58";
    if v6_only && family == Family::Ipv4 {
        return Err(bad(
            "SecurityGroupEthertypeConflictWithProtocol",
            format!("Invalid ethertype IPv4 for protocol {text}."),
        ));
    }
    Ok(text)
}

/// Neutron's `convert_validate_port_value`.
fn port(given: Option<Value>) -> Result<Option<i64>, Refusal> {
    let wrong = |value: &Value| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        bad("SecurityGroupInvalidPortValue", format!("Invalid value for port {text}"))
    };
    match given {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let number = value.as_i64().or_else(|| value.as_str()?.trim().parse().ok());
            number.filter(|n| (0..=65_535).contains(n)).map(Some).ok_or_else(|| wrong(&value))
        }
    }
}

type Range = (Option<u16>, Option<u16>);

fn ports(number: Option<u8>, protocol: &str, min: Option<i64>, max: Option<i64>) -> Result<Range, Refusal> {
    let narrow = |n: Option<i64>| n.and_then(|n| u16::try_from(n).ok());
    let range = (narrow(min), narrow(max));
    if min.is_none() && max.is_none() {
        return Ok(range);
    }
    match number {
        // TCP, UDP, DCCP, SCTP, UDP-Lite.
        Some(6 | 17 | 33 | 132 | 136) => {
            if let (Some(0), _) | (_, Some(0)) = (min, max) {
                return Err(bad("SecurityGroupInvalidPortValue", "Invalid value for port 0".into()));
            }
            match (min, max) {
                (Some(least), Some(most)) if least <= most => Ok(range),
                _ => Err(bad(
                    "SecurityGroupInvalidPortRange",
                    "For TCP/UDP protocols, port_range_min must be <= port_range_max".into(),
                )),
            }
        }
        Some(1 | 58) => {
            for (value, what, name) in [(min, "type", "port-range-min"), (max, "code", "port-range-max")] {
                if let Some(value) = value.filter(|value| *value > 255) {
                    return Err(bad(
                        "SecurityGroupInvalidIcmpValue",
                        format!("Invalid value for ICMP {what} ({name}) {value}. It must be 0 to 255."),
                    ));
                }
            }
            match (min, max) {
                (None, Some(code)) => Err(bad(
                    "SecurityGroupMissingIcmpType",
                    format!(
                        "ICMP code (port-range-max) {code} is provided but ICMP type (port-range-min) is missing."
                    ),
                )),
                _ => Ok(range),
            }
        }
        None => Err(bad(
            "SecurityGroupProtocolRequiredWithPorts",
            "Must also specify protocol if port range is given.".into(),
        )),
        Some(_) => Err(bad(
            "SecurityGroupInvalidProtocolForPort",
            format!("Ports cannot be specified for protocol {protocol}."),
        )),
    }
}

pub async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    Body(sent): Body<Value>,
) -> Result<Response, Refusal> {
    let (given, bulk) = bodies("security_group_rule", "security_group_rules", sent)?;
    super::groups::ensure_default(&state, &caller).await?;
    let rules: Vec<_> = {
        let view = state.ops.world().read();
        given.into_iter().map(|g| read(&view, &caller, g)).collect::<Result<Vec<_>, _>>()?
    };
    let group = rules.first().map(|(group, _)| *group);
    if rules.iter().any(|(id, _)| Some(*id) != group) {
        return Err(bad(
            "SecurityGroupNotSingleGroupRules",
            "Only allowed to update rules for one security profile at a time".into(),
        ));
    }
    let Some(group) = group else { return Err(Refusal::bad("no rule is given")) };
    let records: Vec<RuleRecord> = rules.into_iter().map(|(_, rule)| rule).collect();
    let put = state.ops.put_rules(reach(&caller)?, group, &records).await;
    put.map_err(|error| match told::<SecurityGroupRecord>(error) {
        refusal if refusal.status == StatusCode::CONFLICT => refusal.kind("SecurityGroupRuleExists"),
        refusal => refusal,
    })?;
    let view = state.ops.world().read();
    let row = find::<SecurityGroupRecord>(&view, &caller, &group.to_string())?;
    let shown = records.iter().map(|rule| show_rule(row, rule)).collect();
    Ok(made("security_group_rule", "security_group_rules", bulk, shown))
}

pub async fn list(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    query: Query,
) -> Result<Response, Refusal> {
    super::groups::ensure_default(&state, &caller).await?;
    let shown = {
        let view = state.ops.world().read();
        rules_of(&view, &caller).map(|(group, rule)| show_rule(group, rule)).collect()
    };
    answer("security_group_rules", "/network/v2.0/security-group-rules", &base, &query, shown)
}

fn find_rule<'a>(
    view: &'a View,
    caller: &'a Caller,
    id: &str,
) -> Result<(&'a Row<SecurityGroupRecord>, &'a RuleRecord), Refusal> {
    let wanted = words::id(id).map(RuleId);
    let found = rules_of(view, caller).find(|(_, rule)| Some(rule.id) == wanted);
    found.ok_or_else(|| {
        Refusal::new(StatusCode::NOT_FOUND, format!("Security group rule {id} does not exist"))
            .kind("SecurityGroupRuleNotFound")
    })
}

pub async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    query: Query,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let view = state.ops.world().read();
    let (group, rule) = find_rule(&view, &caller, &id)?;
    Ok(one("security_group_rule", StatusCode::OK, &query, show_rule(group, rule)))
}

pub async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let (group, rule) = {
        let view = state.ops.world().read();
        let (group, rule) = find_rule(&view, &caller, &id)?;
        (group.id, rule.id)
    };
    state.ops.remove_rule_of(reach(&caller)?, group, rule).await.map_err(told::<SecurityGroupRecord>)?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges_in_neutrons_words() {
        let (tcp, icmp) = (Some(6), Some(1));
        let parse = |number, min: Value, max: Value| -> Result<Range, String> {
            let both = || ports(number, "x", port(Some(min))?, port(Some(max))?);
            both().map_err(|refusal| refusal.message)
        };
        assert_eq!(parse(tcp, json!(80), json!("90")), Ok((Some(80), Some(90))));
        assert_eq!(parse(icmp, json!(11), Value::Null), Ok((Some(11), None)));
        let table = [
            (tcp, json!(-16), json!(80), "Invalid value for port -16"),
            (tcp, json!(80), json!(79), "port_range_min must be <= port_range_max"),
            (tcp, json!(80), json!(65536), "Invalid value for port 65536"),
            (tcp, Value::Null, json!(6), "port_range_min must be <= port_range_max"),
            (icmp, json!(1), json!(256), "Invalid value for ICMP code"),
            (icmp, Value::Null, json!(6), "ICMP type (port-range-min) is missing"),
            (icmp, json!(300), json!(1), "Invalid value for ICMP type"),
            (None, json!(1), json!(2), "Must also specify protocol"),
        ];
        for (number, min, max, says) in table {
            let refused = parse(number, min, max).unwrap_err();
            assert!(refused.contains(says), "{refused}");
        }
    }

    #[test]
    fn protocols() {
        let read = |value, family| protocol(Some(value), family).map_err(|refusal| refusal.kind);
        assert_eq!(read(json!("TCP"), Family::Ipv4).as_deref(), Ok("tcp"));
        assert_eq!(read(json!(17), Family::Ipv6).as_deref(), Ok("17"));
        assert_eq!(read(Value::Null, Family::Ipv4).as_deref(), Ok("any"));
        assert_eq!(read(json!("bad_protocol_name"), Family::Ipv4), Err("SecurityGroupRuleInvalidProtocol"));
        assert_eq!(read(json!("ipv6-icmp"), Family::Ipv4), Err("SecurityGroupEthertypeConflictWithProtocol"));
        assert_eq!(read(json!(256), Family::Ipv4), Err("SecurityGroupRuleInvalidProtocol"));
    }
}
