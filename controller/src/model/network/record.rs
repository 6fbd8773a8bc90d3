//! Networks themselves.

use super::{Notes, is_no, is_yes, yes};
use crate::model::Record;
use amphi_api::{NetworkId, ProjectId, QosPolicyId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkRecord {
    pub id: NetworkId,
    pub project: ProjectId,
    pub name: String,
    pub mtu: u32,
    /// Being deleted: takes no new ports. Set in a commit of its own before the last look at its ports.
    #[serde(default)]
    pub closing: bool,
    /// Every project may put ports on it.
    #[serde(default, skip_serializing_if = "is_no")]
    pub shared: bool,
    /// Routers may have their gateways here, floating IPs come from here; every project may see it.
    #[serde(default, skip_serializing_if = "is_no")]
    pub external: bool,
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub admin_up: bool,
    /// Whether new ports filter, unless they say otherwise.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub port_security: bool,
    /// What carries its frames between hosts.
    #[serde(default)]
    pub provider: Provider,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qos: Option<QosPolicyId>,
    #[serde(default, skip_serializing_if = "is_no")]
    pub is_default: bool,
    #[serde(default)]
    pub notes: Notes,
    pub created_at: Timestamp,
}

/// What carries a network's frames between hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Provider {
    /// A tunnel. `segment` is its key, 1 to 2^24 - 1; none: OVN chooses.
    Geneve { segment: Option<u32> },
    /// The physical network's untagged frames.
    Flat { physical: String },
    /// The physical network's frames of one VLAN, 1 to 4094.
    Vlan { physical: String, segment: u16 },
}

impl Default for Provider {
    fn default() -> Self {
        Self::Geneve { segment: None }
    }
}

impl Provider {
    pub fn physical(&self) -> Option<&str> {
        match self {
            Self::Geneve { .. } => None,
            Self::Flat { physical } | Self::Vlan { physical, .. } => Some(physical),
        }
    }

    /// OpenStack's name of the type.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Geneve { .. } => "geneve",
            Self::Flat { .. } => "flat",
            Self::Vlan { .. } => "vlan",
        }
    }

    pub fn segment(&self) -> Option<u32> {
        match self {
            Self::Geneve { segment } => *segment,
            Self::Flat { .. } => None,
            Self::Vlan { segment, .. } => Some(u32::from(*segment)),
        }
    }

    /// The key that exists while the segment is taken.
    pub fn segment_key(&self) -> Option<String> {
        match self {
            Self::Geneve { segment } => segment.map(|n| format!("/segment/geneve/{n}")),
            Self::Flat { physical } => Some(format!("/segment/flat/{physical}")),
            Self::Vlan { physical, segment } => Some(format!("/segment/vlan/{physical}/{segment}")),
        }
    }
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
