//! OVN's northbound database as a projection of the records: computed as a whole, compared as a whole, written as the
//! difference in one transaction. Never a second truth: what somebody changes there by hand is changed back at the next
//! look; rows that are not ours (no `amphi` in their external_ids) are never touched.
//!
//! Owns what a network, a port, a security group, a router and a limit mean in OVN's terms. Refuses to know records,
//! hosts' liveness or where the picture comes from: callers hand in a [`Topology`].

mod acl;
mod dhcp;
mod difference;
mod northbound;
mod ports;
mod render;
mod router;
mod southbound;

pub use northbound::{Northbound, ProjectionError};
pub use render::{Table, render};
pub use southbound::{BarError, Barred, NetworkBar, Southbound};

use amphi_api::network::{Direction, Family};
use amphi_api::{FloatingIpId, NetworkId, PortId, QosRuleId, RouterId, RuleId, SecurityGroupId, SubnetId};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Everything OVN should know.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Topology {
    pub networks: Vec<NetworkSpec>,
    pub subnets: Vec<SubnetSpec>,
    pub ports: Vec<PortSpec>,
    pub groups: Vec<GroupSpec>,
    pub routers: Vec<RouterSpec>,
}

/// A logical switch.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkSpec {
    pub id: NetworkId,
    pub name: String,
    /// The key of its tunnels; none: OVN chooses.
    pub tunnel_key: Option<u32>,
    /// The physical network that carries its frames, and their VLAN.
    pub physical: Option<(String, Option<u16>)>,
    /// Every host answers guests' questions about themselves.
    pub metadata: bool,
}

/// DHCP's answers for a range of addresses.
#[derive(Clone, Debug, PartialEq)]
pub struct SubnetSpec {
    pub id: SubnetId,
    pub cidr: IpNet,
    pub gateway: Option<IpAddr>,
    pub dns: Vec<IpAddr>,
    /// Destination and next hop.
    pub routes: Vec<(IpNet, IpAddr)>,
    pub dhcp: bool,
    /// IPv6: only what hosts need beside an address they make themselves.
    pub stateless: bool,
    /// In bytes.
    pub mtu: u32,
}

/// A logical switch port.
#[derive(Clone, Debug, PartialEq)]
pub struct PortSpec {
    pub id: PortId,
    pub network: NetworkId,
    pub mac: String,
    /// With their subnets.
    pub addresses: Vec<(SubnetId, IpAddr)>,
    /// The one chassis that may bind it, or `from,to` while its guest goes over from the one to the other. None: it may be
    /// bound nowhere.
    pub chassis: Option<String>,
    pub groups: Vec<SecurityGroupId>,
    /// Nothing goes out but by a rule.
    pub egress_by_rule: bool,
    pub up: bool,
    /// It sends and takes what it likes.
    pub open: bool,
    /// Further addresses it may use, each with its own MAC or the port's.
    pub pairs: Vec<(IpNet, Option<String>)>,
    /// DHCP options in OVN's names and spelling, by IP version.
    pub dhcp_options: Vec<(u8, String, String)>,
    pub limits: Vec<LimitSpec>,
    /// TCP ports at which its host asks whether it works, from the metadata service's place.
    pub probed: BTreeSet<u16>,
    pub kind: PortKind,
}

impl Default for PortSpec {
    fn default() -> Self {
        Self {
            id: PortId(Default::default()),
            network: NetworkId(Default::default()),
            mac: String::new(),
            addresses: Vec::new(),
            chassis: None,
            groups: Vec::new(),
            egress_by_rule: false,
            up: true,
            open: false,
            pairs: Vec::new(),
            dhcp_options: Vec::new(),
            limits: Vec::new(),
            probed: BTreeSet::new(),
            kind: PortKind::Instance,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortKind {
    /// An instance's.
    #[default]
    Instance,
    /// A router's leg.
    Router,
}

/// A limit of what passes a port.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitSpec {
    pub id: QosRuleId,
    /// Ingress is towards the port.
    pub direction: Direction,
    /// kbit/s and kbit.
    pub bandwidth: Option<(u32, u32)>,
    pub dscp: Option<u8>,
}

/// A port group with its ACLs.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupSpec {
    pub id: SecurityGroupId,
    /// What goes out is free as long as no rule speaks of egress.
    pub free_egress: bool,
    pub stateful: bool,
    pub rules: Vec<RuleSpec>,
}

/// One thing that is let through.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleSpec {
    pub id: RuleId,
    pub direction: Direction,
    pub family: Family,
    /// IP's number; none: any.
    pub protocol: Option<u8>,
    /// First port, or ICMP's type.
    pub min: Option<u16>,
    /// Last port, or ICMP's code.
    pub max: Option<u16>,
    pub remote: Option<IpNet>,
    pub remote_group: Option<SecurityGroupId>,
}

/// A logical router.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterSpec {
    pub id: RouterId,
    pub name: String,
    pub up: bool,
    pub legs: Vec<LegSpec>,
    /// Destination and next hop.
    pub routes: Vec<(IpNet, IpAddr)>,
    /// What goes out from these carries that address.
    pub snat: Vec<(IpNet, IpAddr)>,
    pub floating: Vec<FloatingSpec>,
}

/// A router's port.
#[derive(Clone, Debug, PartialEq)]
pub struct LegSpec {
    pub port: PortId,
    pub mac: String,
    /// Its addresses with their prefix lengths.
    pub addresses: Vec<IpNet>,
    /// The chassis that may carry the router's way out, the preferred first. Empty for a leg inside.
    pub chassis: Vec<String>,
    /// What routers say to IPv6 hosts: `slaac`, `dhcpv6_stateful`, `dhcpv6_stateless`.
    pub advertise: Option<String>,
    pub mtu: u32,
}

/// An outer address that stands for an inner one.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatingSpec {
    pub id: FloatingIpId,
    pub outside: IpAddr,
    pub inside: IpAddr,
}
