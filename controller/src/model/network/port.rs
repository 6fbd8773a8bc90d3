//! Ports: a MAC and addresses on a network, for an instance, a router or somebody's own use.

use super::{Notes, is_no, is_yes, yes};
use crate::model::Record;
use amphi_api::resize::Bandwidth;
use amphi_api::{InstanceId, NetworkId, PortId, ProjectId, QosPolicyId, RouterId, SecurityGroupId, SubnetId};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Words of `device_owner` that mean something here. What else stands there is the client's own.
pub mod owner {
    pub const INSTANCE: &str = "compute:nova";
    pub const ROUTER_INTERFACE: &str = "network:router_interface";
    pub const ROUTER_GATEWAY: &str = "network:router_gateway";
    pub const FLOATING_IP: &str = "network:floatingip";
    /// The metadata service's place on a network elsewhere. Here no record stands for it, and nobody may say so.
    pub const METADATA: &str = "network:distributed";
}

/// A MAC and addresses, bound to whoever holds it until it is deleted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortRecord {
    pub id: PortId,
    /// The nil id for what belongs to a router's gateway or a floating IP.
    pub project: ProjectId,
    pub network: NetworkId,
    /// The instance that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// Made with the instance, so it goes with it.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub owned: bool,
    /// Lower case, colon-separated.
    pub mac: String,
    /// The first is the primary one.
    #[serde(default)]
    pub fixed_ips: Vec<FixedIp>,
    pub security_groups: Vec<SecurityGroupId>,
    /// Nothing goes out but what a rule lets out. Otherwise what goes out is free while no group of it speaks of egress.
    #[serde(default, skip_serializing_if = "is_no")]
    pub egress_by_rule: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Whose it is, in the words of whoever made it so: an instance's or router's id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub device_id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub device_owner: String,
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub admin_up: bool,
    /// Off: it sends and takes what it likes.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub port_security: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_pairs: Vec<AddressPair>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dhcp_options: Vec<DhcpOption>,
    /// The host that somebody named, where no instance says it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub binding_host: String,
    /// Empty: `normal`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub vnic_type: String,
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub binding_profile: serde_json::Map<String, serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qos: Option<QosPolicyId>,
    /// Its own, before any policy's.
    #[serde(default, skip_serializing_if = "Bandwidth::is_none")]
    pub bandwidth: Bandwidth,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub dns_name: String,
    #[serde(default)]
    pub notes: Notes,
    pub created_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FixedIp {
    pub subnet: SubnetId,
    pub address: IpAddr,
}

/// Further addresses that the port may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressPair {
    pub address: IpNet,
    /// None: the port's own.
    pub mac: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhcpOption {
    pub name: String,
    pub value: String,
    /// 4 or 6.
    pub version: u8,
}

impl Record for PortRecord {
    const PREFIX: &'static str = "/port/";
    const NOUN: &'static str = "port";
    type Id = PortId;
    fn id(&self) -> PortId {
        self.id
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((self.project, &self.name))
    }
}

impl PortRecord {
    /// A port of nobody yet, without addresses.
    pub fn new(id: PortId, project: ProjectId, network: NetworkId, mac: String, now: Timestamp) -> Self {
        Self {
            id,
            project,
            network,
            instance: None,
            owned: false,
            mac,
            fixed_ips: Vec::new(),
            security_groups: Vec::new(),
            egress_by_rule: true,
            name: String::new(),
            device_id: String::new(),
            device_owner: String::new(),
            admin_up: true,
            port_security: true,
            allowed_pairs: Vec::new(),
            dhcp_options: Vec::new(),
            binding_host: String::new(),
            vnic_type: String::new(),
            binding_profile: serde_json::Map::new(),
            qos: None,
            bandwidth: Bandwidth::default(),
            dns_name: String::new(),
            notes: Notes::default(),
            created_at: now,
        }
    }

    /// The primary address.
    pub fn address(&self) -> Option<IpAddr> {
        self.fixed_ips.first().map(|ip| ip.address)
    }

    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.fixed_ips.iter().map(|ip| ip.address)
    }

    /// The router that it is an interface or the gateway of.
    pub fn router(&self) -> Option<RouterId> {
        let routers = [owner::ROUTER_INTERFACE, owner::ROUTER_GATEWAY].contains(&self.device_owner.as_str());
        routers.then(|| self.device_id.parse().ok()).flatten()
    }

    /// Held by the cloud itself: by a router, a floating IP, the metadata service.
    pub fn is_of_network(&self) -> bool {
        self.device_owner.starts_with("network:")
    }
}

/// The MAC of a port: OpenStack's prefix `fa:16:3e` and the last three bytes of the id, which are random.
pub fn mac_of(port: PortId) -> String {
    let bytes = port.0.as_bytes();
    format!("fa:16:3e:{:02x}:{:02x}:{:02x}", bytes[13], bytes[14], bytes[15])
}
