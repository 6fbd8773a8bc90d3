//! QoS policies: limits that a port or a network names.

use super::{Notes, is_no};
use crate::model::Record;
use amphi_api::network::Direction;
use amphi_api::{ProjectId, QosPolicyId, QosRuleId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QosPolicyRecord {
    pub id: QosPolicyId,
    pub project: ProjectId,
    pub name: String,
    #[serde(default, skip_serializing_if = "is_no")]
    pub shared: bool,
    #[serde(default, skip_serializing_if = "is_no")]
    pub is_default: bool,
    #[serde(default)]
    pub rules: Vec<QosRule>,
    /// Being deleted: nothing new names it.
    #[serde(default)]
    pub closing: bool,
    #[serde(default)]
    pub notes: Notes,
    pub created_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QosRule {
    pub id: QosRuleId,
    #[serde(flatten)]
    pub kind: QosKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum QosKind {
    /// kbit/s and kbit; a burst of 0 is left to the switch. Ingress is towards the port.
    BandwidthLimit { max_kbps: u32, max_burst_kbps: u32, direction: Direction },
    /// Marks what the port sends; 0 to 56.
    DscpMarking { dscp_mark: u8 },
}

impl Record for QosPolicyRecord {
    const PREFIX: &'static str = "/qos-policy/";
    const NOUN: &'static str = "QoS policy";
    type Id = QosPolicyId;
    fn id(&self) -> QosPolicyId {
        self.id
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((self.project, &self.name))
    }
}
