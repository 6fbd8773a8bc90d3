//! Offers of a volume to another project: whoever has the key takes it. The key itself is not kept.

use super::Record;
use amphi_api::{ProjectId, VolumeId, VolumeTransferId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeTransferRecord {
    pub id: VolumeTransferId,
    /// Who offers.
    pub project: ProjectId,
    pub name: String,
    pub volume: VolumeId,
    /// Lower-case hexadecimal SHA-256 of id and key.
    pub key_sha256: String,
    /// Its snapshots stay behind.
    #[serde(default)]
    pub no_snapshots: bool,
    pub created_at: Timestamp,
}

impl Record for VolumeTransferRecord {
    const PREFIX: &'static str = "/volume-transfer/";
    const NOUN: &'static str = "transfer";
    type Id = VolumeTransferId;
    fn id(&self) -> VolumeTransferId {
        self.id
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((self.project, &self.name))
    }
}
