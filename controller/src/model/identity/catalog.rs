//! The catalogue: services, where each answers, and regions.

use super::{EndpointId, Extra, RegionKey, ServiceId};
use crate::model::Record;
use amphi_api::ProjectId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceRecord {
    pub id: ServiceId,
    /// `compute`, `image` …
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    pub description: Option<String>,
    pub enabled: bool,
    #[serde(default)]
    pub extra: Extra,
    pub created_at: Timestamp,
}

impl Record for ServiceRecord {
    const PREFIX: &'static str = "/identity-service/";
    const NOUN: &'static str = "service";
    type Id = ServiceId;
    fn id(&self) -> ServiceId {
        self.id
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interface {
    Public,
    Internal,
    Admin,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndpointRecord {
    pub id: EndpointId,
    pub service: ServiceId,
    pub interface: Interface,
    /// `$(base)s` stands for the address that the client used, `$(project_id)s` for its project.
    pub url: String,
    /// The region's name.
    #[serde(default)]
    pub region: Option<String>,
    #[serde(default)]
    pub name: Option<String>,
    pub enabled: bool,
    #[serde(default)]
    pub extra: Extra,
    pub created_at: Timestamp,
}

impl Record for EndpointRecord {
    const PREFIX: &'static str = "/identity-endpoint/";
    const NOUN: &'static str = "endpoint";
    type Id = EndpointId;
    fn id(&self) -> EndpointId {
        self.id
    }
    /// By service.
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((ProjectId(self.service.0), ""))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegionRecord {
    /// What clients call its id: any text of 1 to 255 characters.
    pub name: String,
    #[serde(default)]
    pub description: String,
    /// The name of the region that it belongs to.
    #[serde(default)]
    pub parent: Option<String>,
    #[serde(default)]
    pub extra: Extra,
}

impl Record for RegionRecord {
    const PREFIX: &'static str = "/identity-region/";
    const NOUN: &'static str = "region";
    type Id = RegionKey;
    fn id(&self) -> RegionKey {
        RegionKey::of(&self.name)
    }
}
