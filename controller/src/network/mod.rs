//! OVN's northbound database as a projection of the records: computed as a whole, compared as a whole, written as the
//! difference in one transaction. Never a second truth: what somebody changes there by hand is changed back at the next
//! look; rows that are not ours (no `amphi` in their external_ids) are never touched.
//!
//! Owns what a network, a port and a security group mean in OVN's terms. Refuses to know records, hosts' liveness or
//! where the picture comes from: callers hand in a [`Topology`].

mod difference;
mod northbound;
mod render;

pub use northbound::{Northbound, ProjectionError};
pub use render::{Table, render};

use amphi_api::network::RuleSpec;
use amphi_api::{NetworkId, PortId, RuleId, SecurityGroupId};
use ipnet::Ipv4Net;
use std::net::{IpAddr, Ipv4Addr};

/// Everything OVN should know.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Topology {
    pub networks: Vec<NetworkSpec>,
    pub ports: Vec<PortSpec>,
    pub groups: Vec<GroupSpec>,
}

/// A logical switch with its DHCP answers.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkSpec {
    pub id: NetworkId,
    pub name: String,
    pub subnet: Ipv4Net,
    pub gateway: Ipv4Addr,
    pub dns: Vec<IpAddr>,
    pub dhcp: bool,
    /// In bytes.
    pub mtu: u32,
}

/// A logical switch port.
#[derive(Clone, Debug, PartialEq)]
pub struct PortSpec {
    pub id: PortId,
    pub network: NetworkId,
    pub mac: String,
    pub address: Ipv4Addr,
    /// The one chassis that may bind it. None: it may be bound nowhere.
    pub chassis: Option<String>,
    pub groups: Vec<SecurityGroupId>,
}

/// A port group with its ACLs.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupSpec {
    pub id: SecurityGroupId,
    pub rules: Vec<(RuleId, RuleSpec)>,
}
