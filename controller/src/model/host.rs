//! Hosts and permissions to join.

use super::Record;
use amphi_api::HostId;
use amphi_api::host::{HostSpec, HostState};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A host: its facts as it last told them, and whether its link stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostRecord {
    pub id: HostId,
    /// Unique in the cloud; also the OVN chassis name.
    pub name: String,
    pub state: HostState,
    #[serde(default)]
    pub spec: Option<HostSpec>,
    /// Since when `state` is what it is.
    pub state_since: Timestamp,
    /// How often the host has said hello. It grows the generation of its desired state with every connection, so that
    /// no controller ever sends one that the host takes for stale.
    #[serde(default)]
    pub hellos: u64,
    #[serde(default)]
    pub strangers: Vec<String>,
    /// No new instance comes here; what is here stays.
    #[serde(default)]
    pub disabled: bool,
    #[serde(default)]
    pub disabled_reason: Option<String>,
    /// An operator says that it is down, whatever its link says: nothing is placed on it.
    #[serde(default)]
    pub forced_down: bool,
    /// It fences itself when its lease runs out: its lease process said so, and was not told otherwise since. Only the
    /// instances of such a host may fail over by its lease.
    #[serde(default)]
    pub leased: bool,
    /// Instances of the class `best_effort` may come here.
    #[serde(default)]
    pub best_effort: bool,
    /// It is being emptied, or kept empty: nothing new comes here.
    #[serde(default)]
    pub maintenance: Option<MaintenanceRecord>,
    /// Taken for dead then, and not let in since: the network shuts it out, and nothing is placed on it.
    #[serde(default)]
    pub barred_since: Option<Timestamp>,
    pub joined_at: Timestamp,
}

/// The order to empty a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaintenanceRecord {
    pub since: Timestamp,
    pub reason: String,
    /// Most instances that move at one time.
    pub at_a_time: u32,
}

impl HostRecord {
    /// Why nothing new comes here, in the words of whoever said so (perhaps none).
    pub fn closed_because(&self) -> Option<&str> {
        match &self.maintenance {
            Some(maintenance) => Some(&maintenance.reason),
            None => self.disabled.then(|| self.disabled_reason.as_deref().unwrap_or_default()),
        }
    }

    pub fn is_up(&self) -> bool {
        self.state == HostState::Up
    }

    /// Neither fenced and not yet let in again, nor said to be down by an operator.
    pub fn is_in(&self) -> bool {
        self.barred_since.is_none() && !self.forced_down
    }
}

impl HostRecord {
    /// A number for clients that want one: nova's compute nodes and services had serial numbers before microversion
    /// 2.53. 31 bits of the id's random part.
    pub fn number(&self) -> u32 {
        (self.id.0.as_u128() as u32) & 0x7fff_ffff
    }
}

impl Record for HostRecord {
    const PREFIX: &'static str = "/host/";
    const NOUN: &'static str = "host";
    type Id = HostId;
    fn id(&self) -> HostId {
        self.id
    }
}

/// A join token: good once, until it expires.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JoinRecord {
    /// Lower-case hexadecimal SHA-256 of the secret; the secret itself is never kept.
    pub digest: JoinDigest,
    /// Only a host of this name may use it.
    pub host: Option<String>,
    pub expires_at: Timestamp,
}

/// Names a join record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct JoinDigest(pub [u8; 32]);

impl fmt::Display for JoinDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for JoinDigest {
    type Err = hex::FromHexError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

impl From<JoinDigest> for String {
    fn from(digest: JoinDigest) -> String {
        digest.to_string()
    }
}

impl TryFrom<String> for JoinDigest {
    type Error = hex::FromHexError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl Record for JoinRecord {
    const PREFIX: &'static str = "/join/";
    const NOUN: &'static str = "join token";
    type Id = JoinDigest;
    fn id(&self) -> JoinDigest {
        self.digest
    }
}
