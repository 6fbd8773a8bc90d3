//! Hosts: what an agent says of its machine, and what clients see of it.

use crate::lease::LeaseState;
use crate::placement::Qos;
use crate::resize::Isolation;
use crate::{HostId, InstanceId, VolumeGroupId, VolumeId};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What marks a host in the certificate that its joining gave it: a subject alternative name of this and the host's id.
pub const HOST_URI: &str = "amphi:host:";

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
    /// What the agent itself writes down before it acts; listed only while it cannot.
    Ledger,
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

/// A volume group on a disk that several hosts see, as one of them says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct SharedGroup {
    /// The same on every host that sees it.
    pub id: VolumeGroupId,
    /// LVM's name of it.
    pub name: String,
    pub size_bytes: u64,
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
    /// Volume groups on disks that other hosts see too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_groups: Vec<SharedGroup>,
    /// Physical networks that its switch has a bridge for (`ovn-bridge-mappings`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub physical_networks: Vec<String>,
    /// Where its agent takes VMs that come while they run; none: it takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub moves_at: Option<std::net::SocketAddr>,
    /// Its agent takes volumes' bytes there too, in passes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub takes_passes: bool,
    /// It has what sets start from that run as VMs (its agent's `guest_kit`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guest_kit: bool,
    /// What it can hold bodies to; none: its agent does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// How much of the controller's words its agent knows; 0: it does not say.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub wire: u32,
    /// Version of the agent.
    pub agent_version: String,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
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
    /// The part of the above that has a class of service of its own.
    #[serde(default, skip_serializing_if = "Classed::is_none")]
    pub classed: Classed,
}

/// What instances with a class of service have been promised, and what is set aside for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Classed {
    pub vcpus: u32,
    pub memory_mib: u64,
    /// CPU set aside, in thousandths.
    pub cpu_milli: u64,
    /// Memory set aside.
    pub memory_share_mib: u64,
}

impl Classed {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl Claims {
    /// What an instance takes of its host, volumes apart.
    pub fn of_instance(vcpus: u32, memory_mib: u64, qos: Qos) -> Self {
        let classed = match (qos.cpu_milli(), qos.memory_share_mib(memory_mib)) {
            (Some(milli), Some(memory_share_mib)) => {
                Classed { vcpus, memory_mib, cpu_milli: milli * u64::from(vcpus), memory_share_mib }
            }
            _ => Classed::default(),
        };
        Self { vcpus, memory_mib, volume_gib: 0, instances: 1, classed }
    }

    pub fn plus(self, other: Self) -> Self {
        let (a, b) = (self.classed, other.classed);
        Self {
            vcpus: self.vcpus + other.vcpus,
            memory_mib: self.memory_mib + other.memory_mib,
            volume_gib: self.volume_gib + other.volume_gib,
            instances: self.instances + other.instances,
            classed: Classed {
                vcpus: a.vcpus + b.vcpus,
                memory_mib: a.memory_mib + b.memory_mib,
                cpu_milli: a.cpu_milli + b.cpu_milli,
                memory_share_mib: a.memory_share_mib + b.memory_share_mib,
            },
        }
    }

    /// Never below nothing.
    pub fn minus(self, other: Self) -> Self {
        let (a, b) = (self.classed, other.classed);
        Self {
            vcpus: self.vcpus.saturating_sub(other.vcpus),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            volume_gib: self.volume_gib.saturating_sub(other.volume_gib),
            instances: self.instances.saturating_sub(other.instances),
            classed: Classed {
                vcpus: a.vcpus.saturating_sub(b.vcpus),
                memory_mib: a.memory_mib.saturating_sub(b.memory_mib),
                cpu_milli: a.cpu_milli.saturating_sub(b.cpu_milli),
                memory_share_mib: a.memory_share_mib.saturating_sub(b.memory_share_mib),
            },
        }
    }
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
    /// Since when the network shuts it out: it was taken for dead and has not yet buried what moved away from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    #[schema(value_type = Option<String>)]
    pub barred_since: Option<Timestamp>,
    /// Absent as long as its lease process has never renewed with this controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<HostLease>,
    /// When the agent was last heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    #[schema(value_type = Option<String>)]
    pub seen_at: Option<Timestamp>,
    /// Bodies and volumes found on the host that no record knows. They are shown, never touched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub strangers: Vec<String>,
    /// Images that are there already. Told of one host alone, never in a list of all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<crate::prepull::HeldImage>,
    /// Instances of the class `best_effort` may come here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub best_effort: bool,
    /// It is being emptied, or kept empty, since then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<Maintenance>,
}

/// How a host's lease stands: what the controller makes of it, and what the host last said itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct HostLease {
    pub standing: LeaseStanding,
    /// Why failover is held back; absent in every other standing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    pub said: LeaseState,
    /// Since its last renewal, in milliseconds.
    pub age_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LeaseStanding {
    Fresh,
    /// No renewal for a while; it may still come back by itself.
    Late,
    /// It would have ended, but too few hosts are left to say so.
    HeldBack,
    /// The host has ended its guests: failover begins, or has been.
    Ended,
}

/// A host that is being emptied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Maintenance {
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub since: Timestamp,
    pub reason: String,
    /// Most instances that move at one time.
    pub at_a_time: u32,
    /// Instances that are still here, on their way or not.
    #[serde(default)]
    pub left: u32,
    /// Those that are on their way now.
    #[serde(default)]
    pub moving: u32,
    /// Those that no move takes away now, with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<EvacuationRefused>,
}

/// What changes of a host by order; what is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostChange {
    /// Whether instances of the class `best_effort` may come here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_effort: Option<bool>,
}

/// The order to empty a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceCreate {
    /// Why: 1 to 255 characters.
    #[schema(min_length = 1, max_length = 255)]
    pub reason: String,
    /// Most instances that move at one time, 1 to 64. Default 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 64)]
    pub at_a_time: Option<u32>,
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
