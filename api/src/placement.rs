//! Placement as clients ask for it: classes of service with what each takes of a host, and the reasons why a host is
//! chosen or not.

use crate::instance::BodyKind;
use crate::{FieldError, HostId, InstanceId, validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use utoipa::ToSchema;

/// How much of a host stands behind an instance's vCPUs and memory.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Qos {
    /// Counted at the cloud's own ratios (`cpu_overcommit`, `memory_overcommit_percent`).
    #[default]
    Standard,
    /// A CPU per vCPU, memory once.
    Guaranteed,
    /// Two vCPUs per CPU, memory 1.5 times.
    #[serde(rename = "burstable_2")]
    Burstable2,
    /// Five vCPUs per CPU, memory 1.5 times.
    #[serde(rename = "burstable_5", alias = "burstable")]
    Burstable5,
    /// Ten vCPUs per CPU, memory 1.5 times.
    #[serde(rename = "burstable_10")]
    Burstable10,
    /// Nothing is set aside. Only on hosts where an operator allows it.
    BestEffort,
}

impl Qos {
    pub const ALL: [Self; 6] = [
        Self::Standard,
        Self::Guaranteed,
        Self::Burstable2,
        Self::Burstable5,
        Self::Burstable10,
        Self::BestEffort,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Guaranteed => "guaranteed",
            Self::Burstable2 => "burstable_2",
            Self::Burstable5 => "burstable_5",
            Self::Burstable10 => "burstable_10",
            Self::BestEffort => "best_effort",
        }
    }

    /// CPU that is set aside for one vCPU, in thousandths. None: the cloud's own ratio says.
    pub fn cpu_milli(self) -> Option<u64> {
        match self {
            Self::Standard => None,
            Self::Guaranteed => Some(1000),
            Self::Burstable2 => Some(500),
            Self::Burstable5 => Some(200),
            Self::Burstable10 => Some(100),
            Self::BestEffort => Some(0),
        }
    }

    /// Memory that is set aside for so much, in MiB, rounded up. None: the cloud's own ratio says.
    pub fn memory_share_mib(self, memory_mib: u64) -> Option<u64> {
        match self {
            Self::Standard => None,
            Self::Guaranteed => Some(memory_mib),
            Self::Burstable2 | Self::Burstable5 | Self::Burstable10 => {
                Some(memory_mib.saturating_mul(2).div_ceil(3))
            }
            Self::BestEffort => Some(0),
        }
    }
}

impl fmt::Display for Qos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Qos {
    type Err = String;
    /// Also `burstable` for five to one, and `-` in the place of `_`.
    fn from_str(text: &str) -> Result<Self, String> {
        let word = text.replace('-', "_");
        let word = if word == "burstable" { "burstable_5" } else { &word };
        Self::ALL.into_iter().find(|qos| qos.word() == word).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|qos| qos.word()).collect();
            format!("'{text}' is no class of service; there are {}", known.join(", "))
        })
    }
}

/// What would be placed. Everything left out is not asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlacementAsk {
    /// An instance that exists: what it is says what is asked, and its own host is left out. Name or id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Virtual CPUs, at most 256.
    #[serde(default)]
    #[schema(maximum = 256)]
    pub vcpus: u32,
    /// At most 4,194,304 MiB.
    #[serde(default)]
    #[schema(maximum = 4_194_304)]
    pub memory_mib: u64,
    /// Room for new volumes, in GiB; at most 65,536.
    #[serde(default)]
    #[schema(maximum = 65_536)]
    pub volume_gib: u64,
    /// Acceptable bodies, the preferred first. Default: both, a set first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 2)]
    pub bodies: Vec<BodyKind>,
    /// Names or ids of networks. At most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 8)]
    pub networks: Vec<String>,
    /// Name or id of the image, for hosts that have it already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Name or id of the one host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    #[serde(default)]
    pub qos: Qos,
    /// Name of the scheduler. Default: the project's, else the cloud's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
}

impl PlacementAsk {
    pub fn check(&self) -> Result<(), FieldError> {
        validate::within("vcpus", self.vcpus.into(), 0, 256, "")?;
        validate::within("memory_mib", self.memory_mib, 0, 4 << 20, "MiB")?;
        validate::within("volume_gib", self.volume_gib, 0, validate::VOLUME_GIB_MAX, "GiB")?;
        validate::within("bodies", self.bodies.len() as u64, 0, 2, "bodies")?;
        validate::within("networks", self.networks.len() as u64, 0, 8, "networks")
    }
}

/// What placement says of every host. It claims nothing: the next order may find things changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct PlacementExplained {
    /// The scheduler that decided.
    pub scheduler: String,
    /// Absent: no host is fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<PlacementChosen>,
    /// The fit ones first, the best of them first of all.
    pub hosts: Vec<PlacementVerdict>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct PlacementChosen {
    pub host: HostId,
    pub host_name: String,
    /// The kind of body that it would have; absent where only a volume is placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<BodyKind>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct PlacementVerdict {
    pub host: HostId,
    pub name: String,
    /// Every reason against it; none: it is fit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<PlacementReason>,
    /// The first acceptable body that runs there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<BodyKind>,
    /// Of a fit one: each weight as it counts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, f64>,
    /// Their sum; the greatest is chosen, the lowest id among equals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct PlacementReason {
    /// The filter that objects: `state`, `cpu` …
    pub filter: String,
    /// In words, with figures.
    pub why: String,
}

/// The question how the hosts' load could be levelled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RebalanceAsk {
    /// Most moves in the plan, 1 to 1,000.
    #[schema(minimum = 1, maximum = 1000)]
    pub most: u32,
}

/// Moves that would level the load, in order. Only a plan: each is ordered as a move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct RebalancePlan {
    pub moves: Vec<RebalanceMove>,
    /// The fullest host's load less the emptiest one's, 0 to 1, as it is and as it would be. A host's load is what is
    /// set aside of its CPUs or memory, whichever is more.
    pub spread_before: f64,
    pub spread_after: f64,
}

/// One move of a rebalancing's plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct RebalanceMove {
    pub instance: InstanceId,
    pub name: String,
    pub from: HostId,
    pub from_name: String,
    pub to: HostId,
    pub to_name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_what_serde_writes_and_reads() {
        for qos in Qos::ALL {
            assert_eq!(serde_json::to_value(qos).unwrap(), qos.word());
            assert_eq!(qos.word().parse(), Ok(qos));
            assert_eq!(qos.word().replace('_', "-").parse(), Ok(qos));
        }
        assert_eq!("burstable".parse(), Ok(Qos::Burstable5));
        assert_eq!(serde_json::from_str::<Qos>("\"burstable\"").unwrap(), Qos::Burstable5);
        assert!("gold".parse::<Qos>().unwrap_err().contains("guaranteed"));
    }
}
