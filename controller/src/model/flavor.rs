//! Flavors: named sizes of instances, as nova has them. An instance keeps a copy of the flavor that it was made of, so
//! that a flavor's end changes nothing that runs.

use super::Record;
use amphi_api::ProjectId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// A flavor's place in the store: made of its id alone (UUIDv5), so that no id is there twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlavorKey(Uuid);

const FLAVORS: Uuid = Uuid::from_u128(0x616d_7068_6900_5000_8000_0000_0000_0f1a);

impl FlavorKey {
    /// The place of the flavor of this id, whether there is one or not.
    pub fn of(flavor: &str) -> Self {
        Self(Uuid::new_v5(&FLAVORS, flavor.as_bytes()))
    }
}

impl fmt::Display for FlavorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for FlavorKey {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlavorRecord {
    /// Any text that the maker chose; a UUID where he chose none.
    pub id: String,
    /// Unique in the cloud.
    pub name: String,
    pub vcpus: u32,
    pub ram_mib: u64,
    /// The root disk, GiB; 0: as large as the image needs.
    pub disk_gib: u64,
    #[serde(default)]
    pub ephemeral_gib: u64,
    #[serde(default)]
    pub swap_mib: u64,
    /// Kept for clients, without effect: QoS is the network's.
    #[serde(default = "one")]
    pub rxtx_factor: f64,
    #[serde(default = "yes")]
    pub is_public: bool,
    /// Shown to administrators only; no new instance takes it.
    #[serde(default)]
    pub disabled: bool,
    /// Projects that may use it though it is not public.
    #[serde(default)]
    pub access: BTreeSet<ProjectId>,
    #[serde(default)]
    pub extra_specs: BTreeMap<String, String>,
    #[serde(default)]
    pub description: Option<String>,
    pub created_at: Timestamp,
}

fn one() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

impl FlavorRecord {
    pub fn key(&self) -> FlavorKey {
        FlavorKey::of(&self.id)
    }

    /// Whether members of the project may use it.
    pub fn open_to(&self, project: ProjectId) -> bool {
        self.is_public || self.access.contains(&project)
    }

    /// The key that exists while a name is taken.
    pub fn name_key(name: &str) -> String {
        // By digest: names may be longer than keys, and hold what keys may not.
        format!("/flavor-name/{}", Uuid::new_v5(&FLAVORS, name.as_bytes()))
    }
}

impl Record for FlavorRecord {
    const PREFIX: &'static str = "/flavor/";
    const NOUN: &'static str = "flavor";
    type Id = FlavorKey;
    fn id(&self) -> FlavorKey {
        FlavorRecord::key(self)
    }
}

/// What devstack makes: (id, name, vCPUs, MiB, GiB). devstack, `lib/nova` `create_flavors`, and the sizes that nova
/// itself used to seed (nova/db/sqlalchemy/migrate_repo, 216_havana `_populate_instance_types`).
pub const DEFAULT_FLAVORS: &[(&str, &str, u32, u64, u64)] = &[
    ("1", "m1.tiny", 1, 512, 1),
    ("2", "m1.small", 1, 2048, 20),
    ("3", "m1.medium", 2, 4096, 40),
    ("4", "m1.large", 4, 8192, 80),
    ("5", "m1.xlarge", 8, 16384, 160),
    ("42", "m1.nano", 1, 192, 1),
    ("84", "m1.micro", 1, 256, 1),
    ("c1", "cirros256", 1, 256, 1),
    ("d1", "ds512M", 1, 512, 5),
    ("d2", "ds1G", 1, 1024, 10),
    ("d3", "ds2G", 2, 2048, 10),
    ("d4", "ds4G", 4, 4096, 20),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_of_ids() {
        assert_eq!(FlavorKey::of("1"), FlavorKey::of("1"));
        assert_ne!(FlavorKey::of("1"), FlavorKey::of("01"));
        assert_eq!(FlavorKey::of("x").to_string().parse(), Ok(FlavorKey::of("x")));
    }

    #[test]
    fn old_records_open() {
        let text =
            r#"{"id":"1","name":"a","vcpus":1,"ram_mib":2,"disk_gib":0,"created_at":"2026-01-01T00:00:00Z"}"#;
        let record: FlavorRecord = serde_json::from_str(text).unwrap();
        assert!(record.is_public && !record.disabled && record.rxtx_factor == 1.0);
        assert!(record.open_to(ProjectId::DEFAULT));
        let hidden = FlavorRecord { is_public: false, ..record };
        assert!(!hidden.open_to(ProjectId::DEFAULT));
    }
}
