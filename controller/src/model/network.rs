//! Networks, ports and security groups.

use super::Record;
use amphi_api::network::{Rule, SubnetSpec};
use amphi_api::{InstanceId, NetworkId, PortId, ProjectId, SecurityGroupId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkRecord {
    pub id: NetworkId,
    pub project: ProjectId,
    pub name: String,
    pub subnet: SubnetSpec,
    pub mtu: u32,
    /// Being deleted: takes no new ports. Set in a commit of its own before the last look at its ports.
    #[serde(default)]
    pub closing: bool,
    pub created_at: Timestamp,
}

impl Record for NetworkRecord {
    const PREFIX: &'static str = "/network/";
    const NOUN: &'static str = "network";
    type Id = NetworkId;
    fn id(&self) -> NetworkId {
        self.id
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((self.project, &self.name))
    }
}

impl NetworkRecord {
    /// The key that exists while an address is taken; created with the port, in one transaction.
    pub fn address_key(network: NetworkId, address: IpAddr) -> String {
        format!("/address/{network}/{address}")
    }

    /// The key that exists while a MAC is taken on the network.
    pub fn mac_key(network: NetworkId, mac: &str) -> String {
        format!("/mac/{network}/{mac}")
    }
}

/// IP and MAC, bound to an instance from its creation to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortRecord {
    pub id: PortId,
    pub project: ProjectId,
    pub network: NetworkId,
    pub instance: InstanceId,
    /// Lower case, colon-separated.
    pub mac: String,
    pub address: IpAddr,
    pub security_groups: Vec<SecurityGroupId>,
    pub created_at: Timestamp,
}

impl Record for PortRecord {
    const PREFIX: &'static str = "/port/";
    const NOUN: &'static str = "port";
    type Id = PortId;
    fn id(&self) -> PortId {
        self.id
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((self.project, ""))
    }
}

/// The MAC of a port: OpenStack's prefix `fa:16:3e` and the last three bytes of the id, which are random.
pub fn mac_of(port: PortId) -> String {
    let bytes = port.0.as_bytes();
    format!("fa:16:3e:{:02x}:{:02x}:{:02x}", bytes[13], bytes[14], bytes[15])
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SecurityGroupRecord {
    pub id: SecurityGroupId,
    pub project: ProjectId,
    pub name: String,
    pub rules: Vec<Rule>,
    /// Being deleted: no new port takes it.
    #[serde(default)]
    pub closing: bool,
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
