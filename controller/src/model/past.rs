//! What is kept of an instance that is gone: enough to say what it used, and when.

use super::{InstanceRecord, Record};
use amphi_api::{InstanceId, ProjectId};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// How long it is kept: a year and a month, so that a year's bill can be written after its end.
pub const PAST_KEPT: SignedDuration = SignedDuration::from_hours(396 * 24);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PastInstanceRecord {
    pub id: InstanceId,
    pub project: ProjectId,
    pub name: String,
    /// The flavor's name; empty for what was made without one.
    #[serde(default)]
    pub flavor: String,
    pub vcpus: u32,
    pub memory_mib: u64,
    #[serde(default)]
    pub disk_gib: u64,
    pub created_at: Timestamp,
    pub deleted_at: Timestamp,
}

impl PastInstanceRecord {
    /// What remains of an instance that goes now.
    pub fn of(instance: &InstanceRecord, now: Timestamp) -> Self {
        let flavor = instance.server.flavor.as_ref();
        let disk_gib = flavor.map_or(0, |f| f.disk_gib + f.ephemeral_gib);
        Self {
            id: instance.id,
            project: instance.project,
            name: instance.name.clone(),
            flavor: flavor.map(|f| f.name.clone()).unwrap_or_default(),
            vcpus: instance.vcpus,
            memory_mib: instance.memory_mib,
            disk_gib,
            created_at: instance.created_at,
            deleted_at: now,
        }
    }
}

impl Record for PastInstanceRecord {
    const PREFIX: &'static str = "/past-instance/";
    const NOUN: &'static str = "past instance";
    type Id = InstanceId;
    fn id(&self) -> InstanceId {
        self.id
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((self.project, &self.name))
    }
}
