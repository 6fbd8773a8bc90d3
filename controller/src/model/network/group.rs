//! Security groups and their rules.

use super::{Notes, is_yes, yes};
use crate::model::Record;
use amphi_api::network::{Direction, Family};
use amphi_api::{ProjectId, RuleId, SecurityGroupId};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A rule's protocol that means every protocol.
pub const ANY_PROTOCOL: &str = "any";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SecurityGroupRecord {
    pub id: SecurityGroupId,
    pub project: ProjectId,
    pub name: String,
    pub rules: Vec<RuleRecord>,
    /// What goes out is free as long as no rule speaks of egress.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub free_egress: bool,
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub stateful: bool,
    /// Being deleted: no new port takes it.
    #[serde(default)]
    pub closing: bool,
    #[serde(default)]
    pub notes: Notes,
    pub created_at: Timestamp,
}

impl Record for SecurityGroupRecord {
    const PREFIX: &'static str = "/security-group/";
    const NOUN: &'static str = "security group";
    type Id = SecurityGroupId;
    fn id(&self) -> SecurityGroupId {
        self.id
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((self.project, &self.name))
    }
}

impl SecurityGroupRecord {
    /// The id of the group `default` that every project has: made of the project's, so that two who make it at once
    /// make the same.
    pub fn default_id(project: ProjectId) -> SecurityGroupId {
        SecurityGroupId(Uuid::new_v5(&project.0, b"security group default"))
    }

    pub fn is_default(&self) -> bool {
        self.id == Self::default_id(self.project)
    }

    /// As OpenStack makes a group: all may go out, nothing comes in.
    pub fn new(id: SecurityGroupId, project: ProjectId, name: String, now: Timestamp) -> Self {
        let out = |family| RuleRecord::new(Direction::Egress, family, now);
        Self {
            id,
            project,
            name,
            rules: vec![out(Family::Ipv4), out(Family::Ipv6)],
            free_egress: false,
            stateful: true,
            closing: false,
            notes: Notes::default(),
            created_at: now,
        }
    }

    /// The project's `default`: its members reach each other.
    pub fn default_of(project: ProjectId, now: Timestamp) -> Self {
        let id = Self::default_id(project);
        let mut group = Self::new(id, project, "default".into(), now);
        for family in [Family::Ipv4, Family::Ipv6] {
            let rule = RuleRecord::new(Direction::Ingress, family, now);
            group.rules.push(RuleRecord { remote_group: Some(id), ..rule });
        }
        group.notes.description = "Default security group".into();
        group
    }
}

/// One thing that is let through, with its answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleRecord {
    pub id: RuleId,
    #[serde(default)]
    pub direction: Direction,
    #[serde(default)]
    pub family: Family,
    /// `any`, a name (`tcp`) or a number (`6`), as it was given.
    pub protocol: String,
    /// First port; ICMP's type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_min: Option<u16>,
    /// Last port; ICMP's code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_max: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<IpNet>,
    /// From or to the ports of this group only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_group: Option<SecurityGroupId>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
}

impl RuleRecord {
    /// Everything of a family, in one direction.
    pub fn new(direction: Direction, family: Family, now: Timestamp) -> Self {
        Self {
            id: RuleId::new(),
            direction,
            family,
            protocol: ANY_PROTOCOL.into(),
            port_min: None,
            port_max: None,
            remote: None,
            remote_group: None,
            description: String::new(),
            created_at: Some(now),
        }
    }

    /// IP's number of the protocol; none: any.
    pub fn number(&self) -> Option<u8> {
        protocol_number(&self.protocol, self.family)
    }

    /// Whether both let the same through. Anywhere is the same as no remote at all.
    pub fn same(&self, other: &Self) -> bool {
        let remote = |r: &Self| r.remote.map(|n| n.trunc()).filter(|n| n.prefix_len() > 0);
        // ICMP's type alone means every code, but a single port is a range of one.
        let last = |r: &Self| match r.number() {
            Some(1 | 58) => r.port_max,
            _ => r.port_max.or(r.port_min),
        };
        (self.direction, self.family, self.number(), self.port_min, last(self), self.remote_group)
            == (
                other.direction,
                other.family,
                other.number(),
                other.port_min,
                last(other),
                other.remote_group,
            )
            && remote(self) == remote(other)
    }
}

/// The number of a protocol's name, as neutron knows them (neutron-lib, `IP_PROTOCOL_MAP`); `icmp` is ICMPv6 where the
/// family is IPv6. None: any protocol, or none that is known.
pub fn protocol_number(text: &str, family: Family) -> Option<u8> {
    let number = match text {
        "icmp" | "1" if family == Family::Ipv6 => 58,
        "ah" => 51,
        "dccp" => 33,
        "egp" => 8,
        "esp" => 50,
        "gre" => 47,
        "icmp" => 1,
        "igmp" => 2,
        "ipip" => 4,
        "ipv6-encap" => 41,
        "ipv6-frag" => 44,
        "ipv6-icmp" | "icmpv6" => 58,
        "ipv6-nonxt" => 59,
        "ipv6-opts" => 60,
        "ipv6-route" => 43,
        "ospf" => 89,
        "pgm" => 113,
        "rsvp" => 46,
        "sctp" => 132,
        "tcp" => 6,
        "udp" => 17,
        "udplite" => 136,
        "vrrp" => 112,
        other => return other.parse().ok(),
    };
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_let_the_same_through_are_the_same() {
        let rule = |change: &dyn Fn(&mut RuleRecord)| {
            let mut rule = RuleRecord::new(Direction::Ingress, Family::Ipv4, Timestamp::UNIX_EPOCH);
            rule.protocol = "tcp".into();
            (rule.port_min, rule.port_max) = (Some(80), Some(80));
            change(&mut rule);
            rule
        };
        let one = rule(&|_| ());
        type Change = Box<dyn Fn(&mut RuleRecord)>;
        let table: [(Change, bool); 7] = [
            (Box::new(|r| r.protocol = "6".into()), true),
            (Box::new(|r| r.port_max = None), true),
            (Box::new(|r| r.remote = Some("0.0.0.0/0".parse().unwrap())), true),
            (Box::new(|r| r.description = "x".into()), true),
            (Box::new(|r| r.remote = Some("10.0.0.0/8".parse().unwrap())), false),
            (Box::new(|r| r.direction = Direction::Egress), false),
            (Box::new(|r| r.family = Family::Ipv6), false),
        ];
        for (at, (change, same)) in table.iter().enumerate() {
            assert_eq!(one.same(&rule(change)), *same, "{at}");
        }
    }

    #[test]
    fn a_project_has_one_default() {
        let project = ProjectId::new();
        let group = SecurityGroupRecord::default_of(project, Timestamp::UNIX_EPOCH);
        assert!(group.is_default());
        assert_eq!(group.rules.len(), 4);
        assert_ne!(group.id, SecurityGroupRecord::default_id(ProjectId::new()));
    }

    #[test]
    fn a_rule_of_an_older_store_opens() {
        let old = r#"{"id":"00000000-0000-0000-0000-000000000001","direction":"ingress","protocol":"any"}"#;
        let rule: RuleRecord = serde_json::from_str(old).unwrap();
        assert_eq!((rule.number(), rule.family), (None, Family::Ipv4));
    }
}
