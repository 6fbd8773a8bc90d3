//! Routers. Their interfaces are ports; the record holds what is the router's alone.

use super::{HostRoute, Notes, is_yes, yes};
use crate::model::Record;
use amphi_api::{NetworkId, PortId, ProjectId, RouterId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouterRecord {
    pub id: RouterId,
    pub project: ProjectId,
    pub name: String,
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub admin_up: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<HostRoute>,
    #[serde(default)]
    pub notes: Notes,
    pub created_at: Timestamp,
}

/// The way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    pub network: NetworkId,
    /// The router's port there.
    pub port: PortId,
    /// What goes out carries the router's address.
    pub snat: bool,
}

impl Record for RouterRecord {
    const PREFIX: &'static str = "/router/";
    const NOUN: &'static str = "router";
    type Id = RouterId;
    fn id(&self) -> RouterId {
        self.id
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((self.project, &self.name))
    }
}
