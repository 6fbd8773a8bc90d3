//! Orders to destroy, one record per host and thing, durable until the host says that it is carried out. Deleting an
//! instance's record is never what destroys its body: this is.

use super::Record;
use amphi_api::HostId;
use amphi_api::wire::Tombstone;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TombstoneRecord {
    pub host: HostId,
    pub order: Tombstone,
    pub since: Timestamp,
}

/// `HOST/instance-UUID`: one order per host and thing; a later one of a higher epoch replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TombstoneKey {
    pub host: HostId,
    pub what: What,
    pub id: Uuid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    Instance,
    Volume,
    Snapshot,
}

impl TombstoneKey {
    pub fn of(host: HostId, order: Tombstone) -> Self {
        let (what, id) = match order {
            Tombstone::Instance { id, .. } => (What::Instance, id.0),
            Tombstone::Volume { id } => (What::Volume, id.0),
            Tombstone::Snapshot { id } => (What::Snapshot, id.0),
        };
        Self { host, what, id }
    }

    /// Below every key of the host.
    pub fn first(host: HostId) -> Self {
        Self { host, what: What::Instance, id: Uuid::nil() }
    }
}

impl fmt::Display for TombstoneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            What::Instance => "instance",
            What::Volume => "volume",
            What::Snapshot => "snapshot",
        };
        write!(f, "{}/{what}-{}", self.host, self.id)
    }
}

impl FromStr for TombstoneKey {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (host, rest) = text.split_once('/').ok_or(())?;
        let (what, id) = rest.split_once('-').ok_or(())?;
        let what = match what {
            "instance" => What::Instance,
            "volume" => What::Volume,
            "snapshot" => What::Snapshot,
            _ => return Err(()),
        };
        Ok(Self { host: host.parse().map_err(|_| ())?, what, id: id.parse().map_err(|_| ())? })
    }
}

impl Record for TombstoneRecord {
    const PREFIX: &'static str = "/tombstone/";
    const NOUN: &'static str = "tombstone";
    type Id = TombstoneKey;
    fn id(&self) -> TombstoneKey {
        TombstoneKey::of(self.host, self.order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::{InstanceId, VolumeId};

    #[test]
    fn keys_read_back() {
        let host = HostId::new();
        for order in [
            Tombstone::Instance { id: InstanceId::new(), epoch: 3 },
            Tombstone::Volume { id: VolumeId::new() },
            Tombstone::Snapshot { id: amphi_api::SnapshotId::new() },
        ] {
            let key = TombstoneKey::of(host, order);
            assert_eq!(key.to_string().parse(), Ok(key));
            assert!(TombstoneKey::first(host) <= key);
        }
        assert!("x/volume-1".parse::<TombstoneKey>().is_err());
    }
}
