//! Failovers: what became of a host's instances after the host was taken for dead, with the time of every step. And
//! what an instance says beforehand of its own.

use crate::instance::{BodyKind, FailoverPolicy, Fault};
use crate::{FailoverId, FieldError, HostId, InstanceId, VolumeId, validate};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The priority of an instance that says nothing.
pub const PRIORITY_DEFAULT: u32 = 100;
/// Largest number that a priority may have.
pub const PRIORITY_MAX: u32 = 1000;

/// What happens to a data volume that lies on the dead host alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LocalVolume {
    /// The instance waits for its host: no byte is ever given up without an order.
    #[default]
    Wait,
    /// The instance goes on elsewhere with a new, blank volume of the same size. The old one stays a volume, detached.
    Fresh,
}

/// How an instance is treated in a failover, beside its policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FailoverTerms {
    /// 0 to 1,000: lower goes first. Default 100.
    #[serde(default = "priority_default")]
    pub priority: u32,
    #[serde(default)]
    pub local_volume: LocalVolume,
    /// With the policy `twin`: the kind of body that the twin is. Default: a set before a VM, where the instance accepts both
    /// and there is room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub twin_body: Option<BodyKind>,
}

fn priority_default() -> u32 {
    PRIORITY_DEFAULT
}

impl Default for FailoverTerms {
    fn default() -> Self {
        Self { priority: PRIORITY_DEFAULT, local_volume: LocalVolume::default(), twin_body: None }
    }
}

impl FailoverTerms {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub fn check(&self) -> Result<(), FieldError> {
        validate::within("priority", self.priority.into(), 0, PRIORITY_MAX.into(), "")
    }
}

/// What an instance says from now on of the loss of its host, all of it: what is not named is the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FailoverChange {
    #[serde(default)]
    pub failover: FailoverPolicy,
    #[serde(default)]
    pub failover_terms: FailoverTerms,
}

/// How it stands with the body that waits on another host, as far as a start is all that it lacks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Twin {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<BodyKind>,
    /// A failover starts it, and nothing else is left to do.
    pub ready: bool,
    /// Why there is none: in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What keeps its host from making it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
}

/// Why the host was taken for dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailoverCause {
    /// Its lease ended.
    LeaseEnded,
    /// A fence driver said that it is off.
    Fenced,
    /// An operator said so (`evacuate`).
    Ordered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailoverPhase {
    /// The host is being barred from the network: nothing moves before that.
    Barring,
    /// Its instances are being given to other hosts.
    Moving,
    /// All that can be elsewhere is placed; bodies are starting, and what found no room is tried again.
    Starting,
    /// Every instance that moved runs, or the host is back and takes up what is left.
    Done,
}

/// What the fence driver said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct FenceReport {
    /// `command`, `ipmi`, `redfish`.
    pub driver: String,
    pub success: bool,
    /// Why it did not succeed; empty when it did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub at: Timestamp,
}

/// What became of one instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case", tag = "result")]
pub enum FailoverFate {
    /// It has a new epoch on another host.
    Moved {
        to: HostId,
        to_name: String,
        body: BodyKind,
        epoch: u64,
        /// It began with a blank volume; the old one is still on the dead host.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fresh_volume: Option<FreshVolume>,
        /// Its volumes in shared groups, taken over as they are: the new host alone has them from this epoch on.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        taken_over: Vec<VolumeId>,
        /// Its twin was ready there, and was started.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        twin: bool,
        #[schemars(with = "String")]
        #[schema(value_type = String)]
        at: Timestamp,
        /// When the new body was first said to run (or to be as ordered, if that is not running).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<String>")]
        #[schema(value_type = Option<String>)]
        running_at: Option<Timestamp>,
    },
    /// It waits for its host: these volumes are there and nowhere else.
    Waiting { volumes: Vec<VolumeId> },
    /// No other host was fit, or its policy forbids it. The former is tried again until the host is back.
    Refused { reason: String },
    /// It was being deleted and is gone.
    Gone,
}

/// A volume in place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct FreshVolume {
    pub old: VolumeId,
    pub new: VolumeId,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct FailoverInstance {
    pub instance: InstanceId,
    pub name: String,
    pub priority: u32,
    /// The kind of body that it had.
    pub from: BodyKind,
    #[serde(flatten)]
    pub fate: FailoverFate,
}

/// One failover of one host, as a record of what happened. All times are the controller's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Failover {
    pub id: FailoverId,
    pub host: HostId,
    pub host_name: String,
    pub cause: FailoverCause,
    pub phase: FailoverPhase,
    /// When the host was last heard before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    #[schema(value_type = Option<String>)]
    pub heard_at: Option<Timestamp>,
    /// When it was taken for dead.
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub decided_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<FenceReport>,
    /// When the network had shut it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    #[schema(value_type = Option<String>)]
    pub barred_at: Option<Timestamp>,
    /// When every instance had been decided on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    #[schema(value_type = Option<String>)]
    pub moved_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    #[schema(value_type = Option<String>)]
    pub ended_at: Option<Timestamp>,
    /// When the host was let in again: it had buried what had moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    #[schema(value_type = Option<String>)]
    pub returned_at: Option<Timestamp>,
    pub instances: Vec<FailoverInstance>,
}
