//! Networks, ports and security groups as the native face speaks of them.

use crate::{FieldError, InstanceId, NetworkId, PortId, ProjectId, RuleId, SecurityGroupId, validate};
use ipnet::IpNet;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

/// Where guests ask for their metadata, on every network with IPv4: the address that EC2 chose and all others took over.
pub const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The port behind [`METADATA_ADDRESS`], the same on every host of a network: no record stands for it, since it takes no
/// address of the network's own.
pub fn metadata_port(network: NetworkId) -> PortId {
    PortId(Uuid::new_v5(&network.0, b"metadata"))
}

/// Its MAC: locally administered, outside of the prefix that ports have.
pub fn metadata_mac(network: NetworkId) -> String {
    let b = metadata_port(network).0.into_bytes();
    format!("0e:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", b[11], b[12], b[13], b[14], b[15])
}

/// What a network is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkCreate {
    #[schema(min_length = 1, max_length = 255)]
    pub name: String,
    pub subnet: SubnetSpec,
    /// Largest frame payload, in bytes. Default 1442: what geneve leaves of an Ethernet underlay's 1500.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 576, maximum = 9000)]
    pub mtu: Option<u32>,
}

/// The network's addresses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubnetSpec {
    /// `10.1.0.0/24`; prefix lengths 8 to 29.
    #[schemars(with = "String")]
    #[schema(value_type = String, example = "10.1.0.0/24")]
    pub cidr: IpNet,
    /// Default: the subnet's first address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub gateway: Option<IpAddr>,
    /// Name servers handed to guests. At most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>, max_items = 8)]
    pub dns: Vec<IpAddr>,
    /// Whether the network answers DHCP. Default true.
    #[serde(default = "yes")]
    pub dhcp: bool,
}

fn yes() -> bool {
    true
}

/// Default MTU of a network, in bytes (1500 less geneve's 58).
pub const DEFAULT_MTU: u32 = 1442;

impl NetworkCreate {
    /// Checks all that can be known without records.
    pub fn check(&self) -> Result<(), FieldError> {
        validate::name("name", &self.name)?;
        if let Some(mtu) = self.mtu {
            validate::within("mtu", u64::from(mtu), 576, 9000, "bytes")?;
        }
        self.subnet.check().map_err(|e| e.under("subnet"))
    }
}

impl SubnetSpec {
    fn check(&self) -> Result<(), FieldError> {
        let IpNet::V4(net) = self.cidr else {
            return Err(FieldError::new("cidr", "must be an IPv4 network"));
        };
        if net.addr() != net.network() {
            return Err(FieldError::new("cidr", format!("has host bits set; did you mean {}?", net.trunc())));
        }
        validate::within("cidr", u64::from(net.prefix_len()), 8, 29, "as prefix length")?;
        if net.addr().is_multicast() || net.addr().is_loopback() || net.addr().is_unspecified() {
            return Err(FieldError::new("cidr", "must be a network of unicast addresses"));
        }
        if let Some(gateway) = self.gateway {
            let inside = matches!(gateway, IpAddr::V4(ip) if net.contains(&ip) && ip != net.network() && ip != net.broadcast());
            if !inside {
                return Err(FieldError::new("gateway", format!("{gateway} is not a host address of {net}")));
            }
        }
        if self.dns.len() > 8 {
            return Err(FieldError::new("dns", "at most 8 name servers"));
        }
        Ok(())
    }

    /// The gateway in force: the one named, or the subnet's first host address.
    pub fn effective_gateway(&self) -> IpAddr {
        self.gateway.unwrap_or_else(|| self.cidr.hosts().next().unwrap_or(self.cidr.addr()))
    }
}

/// A network as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Network {
    pub id: NetworkId,
    pub project: ProjectId,
    pub name: String,
    /// The first of its subnets, IPv4's before IPv6's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<SubnetSpec>,
    /// The other ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_subnets: Vec<SubnetSpec>,
    pub mtu: u32,
    /// Addresses in use, the gateways included.
    pub addresses_used: u64,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub created_at: Timestamp,
}

/// A port as clients see it: the addresses that belong to an instance, whatever body it has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Port {
    pub id: PortId,
    pub network: NetworkId,
    /// None: it is nobody's yet, or a router's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// Lower case, colon-separated.
    pub mac: String,
    /// The primary address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// The other ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub further_addresses: Vec<IpAddr>,
    pub security_groups: Vec<SecurityGroupId>,
}

/// A security group to make. What no rule lets in stays out; what goes out is free unless an egress rule exists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecurityGroupCreate {
    #[schema(min_length = 1, max_length = 255)]
    pub name: String,
    #[serde(default)]
    #[schema(max_items = 256)]
    pub rules: Vec<RuleSpec>,
}

/// One thing that is let through, with its answers (stateful).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleSpec {
    #[serde(default)]
    pub direction: Direction,
    #[serde(default, skip_serializing_if = "Family::is_v4")]
    pub family: Family,
    pub protocol: Protocol,
    /// IP's number of the protocol, with `other` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u8>,
    /// First port of the range; tcp and udp only. Neither `port_min` nor `port_max`: every port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub port_min: Option<u16>,
    /// Last port of the range; default `port_min`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub port_max: Option<u16>,
    /// From (ingress) or to (egress) these addresses only. Default: anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    #[schema(value_type = Option<String>, example = "10.0.0.0/8")]
    pub remote: Option<IpNet>,
    /// From or to the ports of this security group only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_group: Option<SecurityGroupId>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    #[default]
    Ingress,
    Egress,
}

/// Which kind of IP a rule speaks of.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    #[default]
    Ipv4,
    Ipv6,
}

impl Family {
    fn is_v4(&self) -> bool {
        *self == Self::Ipv4
    }

    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    #[default]
    Any,
    /// ICMPv6 where the family is IPv6.
    Icmp,
    Tcp,
    Udp,
    /// The one of `number`.
    Other,
}

/// Most rules of one group.
pub const RULES_MAX: usize = 256;

impl SecurityGroupCreate {
    pub fn check(&self) -> Result<(), FieldError> {
        validate::name("name", &self.name)?;
        if self.rules.len() > RULES_MAX {
            return Err(FieldError::new("rules", format!("at most {RULES_MAX} rules")));
        }
        for (at, rule) in self.rules.iter().enumerate() {
            rule.check().map_err(|e| e.under(&format!("rules[{at}]")))?;
        }
        Ok(())
    }
}

impl RuleSpec {
    pub fn check(&self) -> Result<(), FieldError> {
        let has_ports = self.port_min.is_some() || self.port_max.is_some();
        if has_ports && !matches!(self.protocol, Protocol::Tcp | Protocol::Udp) {
            return Err(FieldError::new("port_min", "only tcp and udp have ports"));
        }
        if self.port_max.is_some() && self.port_min.is_none() {
            return Err(FieldError::new("port_min", "is missing beside port_max"));
        }
        if let (Some(min), Some(max)) = (self.port_min, self.port_max)
            && min > max
        {
            return Err(FieldError::new("port_max", format!("{max} is below port_min {min}")));
        }
        if self.port_min == Some(0) {
            return Err(FieldError::new("port_min", "must be 1 to 65535"));
        }
        if (self.protocol == Protocol::Other) != self.number.is_some() {
            return Err(FieldError::new("number", "belongs to protocol other, and to it alone"));
        }
        if self.remote.is_some_and(|remote| matches!(remote, IpNet::V4(_)) != self.family.is_v4()) {
            let family = if self.family.is_v4() { "IPv4" } else { "IPv6" };
            return Err(FieldError::new("remote", format!("must be an {family} network")));
        }
        if self.remote.is_some() && self.remote_group.is_some() {
            return Err(FieldError::new("remote_group", "cannot stand beside remote"));
        }
        Ok(())
    }
}

/// A security group as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct SecurityGroup {
    pub id: SecurityGroupId,
    pub project: ProjectId,
    pub name: String,
    pub rules: Vec<Rule>,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub created_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rule {
    pub id: RuleId,
    #[serde(flatten)]
    pub spec: RuleSpec,
}

/// The spec's own fields and the id. Derived, it would be a spec, which takes no further field, with a further field.
impl PartialSchema for Rule {
    fn schema() -> RefOr<Schema> {
        let mut rule = RuleSpec::schema();
        if let RefOr::T(Schema::Object(object)) = &mut rule {
            object.properties.insert("id".to_owned(), Ref::from_schema_name(RuleId::name()).into());
            object.required.push("id".to_owned());
            object.additional_properties = None;
            object.description = None;
        }
        rule
    }
}

impl ToSchema for Rule {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((RuleId::name().into_owned(), RuleId::schema()));
        RuleSpec::schemas(schemas);
    }
}
