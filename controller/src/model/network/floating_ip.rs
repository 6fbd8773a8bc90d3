//! Floating IPs: an address of an external network that stands for one of a port.

use super::Notes;
use crate::model::Record;
use amphi_api::{FloatingIpId, NetworkId, PortId, ProjectId, RouterId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FloatingIpRecord {
    pub id: FloatingIpId,
    pub project: ProjectId,
    /// The external network.
    pub network: NetworkId,
    pub address: IpAddr,
    /// The port that holds the address there.
    pub holder: PortId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    #[serde(default)]
    pub notes: Notes,
    pub created_at: Timestamp,
}

/// What the address stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub port: PortId,
    pub address: IpAddr,
    /// The router that translates.
    pub router: RouterId,
}

impl Record for FloatingIpRecord {
    const PREFIX: &'static str = "/floating-ip/";
    const NOUN: &'static str = "floating IP";
    type Id = FloatingIpId;
    fn id(&self) -> FloatingIpId {
        self.id
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((self.project, ""))
    }
}
