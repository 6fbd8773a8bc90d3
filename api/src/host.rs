//! Hosts: what an agent says of its machine, and what clients see of it.

use crate::{HostId, InstanceId, VolumeId};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How VMs run here, as found by running one: a device file proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Acceleration {
    Kvm,
    Tcg,
}

/// How an LV becomes a block device here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeActivation {
    /// device-mapper.
    Dm,
    /// A loop device over a contiguous LV, where the kernel has no device-mapper.
    Loop,
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum EngineName {
    Docker,
    Libvirt,
    Qemu,
    Ovs,
    Ovn,
    Lvm,
}

/// One engine of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Engine {
    pub name: EngineName,
    /// As the engine says it; empty while it has never answered.
    pub version: String,
    /// Why it cannot be used now; absent when it works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// What a host is and has: the agent measures it, the controller never guesses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct HostSpec {
    pub name: String,
    /// The OVN chassis name (Open vSwitch's `system-id`).
    pub chassis: String,
    /// Address of the tunnel end.
    pub address: String,
    /// Logical CPUs.
    pub cpus: u32,
    pub memory_mib: u64,
    /// CPUs and memory kept for the host itself.
    pub reserved_cpus: u32,
    pub reserved_memory_mib: u64,
    /// The volume group's size and what is free in it, in bytes.
    pub volume_group_bytes: u64,
    pub volume_group_free_bytes: u64,
    pub acceleration: Acceleration,
    pub activation: VolumeActivation,
    pub engines: Vec<Engine>,
    /// Physical networks that its switch has a bridge for (`ovn-bridge-mappings`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub physical_networks: Vec<String>,
    /// Version of the agent.
    pub agent_version: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// Has a certificate, has not yet connected.
    Joined,
    Up,
    /// Its link is gone; nothing is known of its bodies.
    Down,
}

/// What is promised to instances on a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Claims {
    pub vcpus: u32,
    pub memory_mib: u64,
    pub volume_gib: u64,
    pub instances: u32,
}

/// A host as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Host {
    pub id: HostId,
    pub name: String,
    pub state: HostState,
    /// Absent until the agent has connected once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<HostSpec>,
    pub claims: Claims,
    /// When the agent was last heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    #[schema(value_type = Option<String>)]
    pub seen_at: Option<Timestamp>,
    /// Bodies and volumes found on the host that no record knows. They are shown, never touched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub strangers: Vec<String>,
}

/// A one-time permission to join.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct JoinToken {
    /// Give it to `amphi-hostsrv join`. It carries the controller's address, its CA's digest and a secret.
    pub token: String,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub expires_at: Timestamp,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinTokenCreate {
    /// Only a host of this name may use it. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// How long it is good, in seconds; 1 to 604,800. Default 3,600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 604_800)]
    pub ttl_seconds: Option<u64>,
}

/// What an evacuation did with each instance of the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Evacuation {
    pub host: HostId,
    pub moved: Vec<EvacuationMoved>,
    /// Instances that stay: their volume is on the dead host.
    pub waiting: Vec<EvacuationWaiting>,
    /// Instances for which no other host was fit, with the reason.
    pub refused: Vec<EvacuationRefused>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct EvacuationMoved {
    pub instance: InstanceId,
    pub name: String,
    pub to: HostId,
    pub to_name: String,
    pub epoch: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct EvacuationWaiting {
    pub instance: InstanceId,
    pub name: String,
    /// The volumes out of reach until the host returns.
    pub volumes: Vec<VolumeId>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct EvacuationRefused {
    pub instance: InstanceId,
    pub name: String,
    pub reason: String,
}
