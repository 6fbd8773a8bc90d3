//! Aggregates: named groups of hosts with metadata; one that names a zone makes the availability zone of its hosts.

use super::Record;
use amphi_api::HostId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// The zone of hosts that no aggregate gives one: nova's `default_availability_zone`.
pub const DEFAULT_ZONE: &str = "nova";
/// The zone in which the controller's own services are shown: nova's `internal_service_availability_zone`.
pub const INTERNAL_ZONE: &str = "internal";
/// The metadata key under which nova keeps an aggregate's zone.
pub const ZONE_KEY: &str = "availability_zone";

/// A number, as nova's aggregates have; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AggregateId(pub u64);

impl fmt::Display for AggregateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for AggregateId {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AggregateRecord {
    pub id: AggregateId,
    pub uuid: Uuid,
    /// Unique in the cloud.
    pub name: String,
    #[serde(default)]
    pub zone: Option<String>,
    /// Without the zone, which is shown among them.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    #[serde(default)]
    pub hosts: BTreeSet<HostId>,
    pub created_at: Timestamp,
    #[serde(default)]
    pub updated_at: Option<Timestamp>,
}

impl AggregateRecord {
    /// Metadata as clients see it, the zone included.
    pub fn shown_metadata(&self) -> BTreeMap<String, String> {
        let zone = self.zone.iter().map(|zone| (ZONE_KEY.to_owned(), zone.clone()));
        self.metadata.clone().into_iter().chain(zone).collect()
    }
}

impl Record for AggregateRecord {
    const PREFIX: &'static str = "/aggregate/";
    const NOUN: &'static str = "aggregate";
    type Id = AggregateId;
    fn id(&self) -> AggregateId {
        self.id
    }
}
