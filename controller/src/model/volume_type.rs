//! Volume types: names that volumes are asked by. There is one kind of storage, the hosts' volume groups; a type says who
//! may ask for it, what is promised of it, and how much of it a project may have.

use super::Record;
use amphi_api::{ProjectId, VolumeTypeId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// The name of the type that volumes have which ask for none (cinder/volume/volume_types.py, `DEFAULT_VOLUME_TYPE`).
pub const DEFAULT_VOLUME_TYPE: &str = "__DEFAULT__";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeTypeRecord {
    pub id: VolumeTypeId,
    /// Unique in the whole cloud.
    pub name: String,
    #[serde(default)]
    pub description: Option<String>,
    /// Every project may use it.
    pub public: bool,
    #[serde(default)]
    pub extra_specs: BTreeMap<String, String>,
    /// Who may use it if it is not public.
    #[serde(default)]
    pub projects: BTreeSet<ProjectId>,
    pub created_at: Timestamp,
}

impl VolumeTypeRecord {
    pub const DEFAULT: VolumeTypeId =
        VolumeTypeId(Uuid::from_u128(0x616d_7068_6900_7000_8000_0000_0000_0005));

    /// The default type as it is until somebody changes it.
    pub fn default_type() -> Self {
        Self {
            id: Self::DEFAULT,
            name: DEFAULT_VOLUME_TYPE.into(),
            description: Some("Default Volume Type".into()),
            public: true,
            extra_specs: BTreeMap::new(),
            projects: BTreeSet::new(),
            created_at: Timestamp::UNIX_EPOCH,
        }
    }

    /// Whether a project may ask for it.
    pub fn open_to(&self, project: ProjectId) -> bool {
        self.public || self.projects.contains(&project)
    }
}

impl Record for VolumeTypeRecord {
    const PREFIX: &'static str = "/volume-type/";
    const NOUN: &'static str = "volume type";
    type Id = VolumeTypeId;
    fn id(&self) -> VolumeTypeId {
        self.id
    }
}
