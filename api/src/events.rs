//! What has happened, one line each, as `amphi events` tells it.

use crate::{HostId, InstanceId};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// An instance's record is there.
    Created,
    /// Nothing of the instance is left.
    Deleted,
    /// An order was taken.
    Ordered,
    /// An order has come to its end, well or not.
    Concluded,
    /// The body's state has changed.
    State,
    /// A fault has come, or changed.
    Fault,
    FaultOver,
    /// The instance belongs to another host now.
    Placed,
    MemberStarted,
    MemberEnded,
    MemberRestarted,
    /// The kernel ended something in a member that asked for more memory than there was.
    OutOfMemory,
    /// A member's probes hold.
    Ready,
    NotReady,
    /// The agent in a VM's guest answers, or does no longer.
    GuestAgent,
    /// A step of an exchange or a move.
    Exchange,
    HostUp,
    HostDown,
    /// An engine of a host is in trouble, or has come out of it.
    Engine,
    /// A step of a host's failover.
    Failover,
}

/// One thing that has happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Event {
    /// Where it stands in the order of all that happened; what comes after it is asked by it.
    pub cursor: String,
    /// When the controller learned of it.
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub at: Timestamp,
    pub kind: EventKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// The instance's, or the host's.
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct EventPage {
    pub events: Vec<Event>,
    /// What comes next is asked by this.
    pub next: String,
    /// Between what was asked after and the first of these, some were not kept.
    pub lost: bool,
}
