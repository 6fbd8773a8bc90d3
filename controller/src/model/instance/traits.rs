//! What an instance is beside its body: the flavor it was made of, who ordered it, how it is called and shown. None of
//! it reaches a host by itself.

use crate::model::{FlavorRecord, ScalingPlace};
use amphi_api::instance::Fault;
use amphi_api::placement::Qos;
use amphi_api::{HostId, ImageId, PortId, ServerGroupId, UserId, VolumeId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use uuid::Uuid;

/// A flavor as it was when the instance took it: its end or change alters nothing that is there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlavorCopy {
    pub id: String,
    pub name: String,
    pub vcpus: u32,
    pub ram_mib: u64,
    /// The root disk, GiB; 0: as large as the image needs.
    pub disk_gib: u64,
    #[serde(default)]
    pub ephemeral_gib: u64,
    #[serde(default)]
    pub swap_mib: u64,
    #[serde(default)]
    pub extra_specs: BTreeMap<String, String>,
}

impl From<&FlavorRecord> for FlavorCopy {
    fn from(flavor: &FlavorRecord) -> Self {
        Self {
            id: flavor.id.clone(),
            name: flavor.name.clone(),
            vcpus: flavor.vcpus,
            ram_mib: flavor.ram_mib,
            disk_gib: flavor.disk_gib,
            ephemeral_gib: flavor.ephemeral_gib,
            swap_mib: flavor.swap_mib,
            extra_specs: flavor.extra_specs.clone(),
        }
    }
}

/// Who locked it, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lock {
    pub by_admin: bool,
    #[serde(default)]
    pub user: Option<UserId>,
    #[serde(default)]
    pub reason: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerTraits {
    pub flavor: Option<FlavorCopy>,
    pub user: Option<UserId>,
    /// The image that was asked for; none: it boots from a volume, or was described natively.
    pub image: Option<ImageId>,
    pub key_name: Option<String>,
    pub description: Option<String>,
    pub hostname: Option<String>,
    pub tags: BTreeSet<String>,
    /// The zone that was asked for.
    pub zone: Option<String>,
    pub group: Option<ServerGroupId>,
    /// The scaling group that made it.
    pub scaling: Option<ScalingPlace>,
    /// What stands behind its vCPUs and memory.
    pub qos: Qos,
    /// The scheduler that was asked for; none: its project's, else the cloud's.
    pub scheduler: Option<String>,
    pub config_drive: bool,
    /// nova's `OS-DCF:diskConfig`: AUTO, or MANUAL.
    pub manual_disk: bool,
    pub access_v4: Option<Ipv4Addr>,
    pub access_v6: Option<Ipv6Addr>,
    /// Common to all that one request made.
    pub reservation: Option<String>,
    pub launch_index: u32,
    pub locked: Option<Lock>,
    /// When its body first ran.
    pub launched_at: Option<Timestamp>,
    /// Tags of its network devices.
    pub port_tags: BTreeMap<PortId, String>,
    /// What delete_on_termination says of the root volume.
    pub root_ends_with_it: bool,
    /// A cloud-side reason for the state ERROR, which no host knows of: no room, an order that failed for good.
    pub failure: Option<Fault>,
}

/// A further volume in the instance's hands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    pub id: Uuid,
    pub volume: VolumeId,
    /// `vdb` …
    pub device: String,
    #[serde(default)]
    pub tag: Option<String>,
    #[serde(default)]
    pub delete_on_termination: bool,
    #[serde(default)]
    pub read_only: bool,
    pub since: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leaving {
    Volume(VolumeId),
    Port(PortId),
}

/// Put aside: nothing runs. What it has on its host stays there, so that it comes back as it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shelved {
    pub since: Timestamp,
    /// Its room is free for others.
    #[serde(default)]
    pub offloaded: bool,
}

/// A change of size or host that waits to be confirmed. Both sizes, or both hosts, are claimed until then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resize {
    pub old_flavor: Option<FlavorCopy>,
    pub old_vcpus: u32,
    pub old_memory_mib: u64,
    pub old_root_gib: Option<u64>,
    #[serde(default)]
    pub old_qos: Qos,
    pub old_host: HostId,
    /// The migration's record.
    pub migration: Uuid,
    /// The new body is where its power should be.
    #[serde(default)]
    pub verified: bool,
    #[serde(default)]
    pub reverting: bool,
    pub since: Timestamp,
}
