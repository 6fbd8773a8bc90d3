//! Volumes, snapshots and the recycle bin as the native face speaks of them.

use crate::{FieldError, HostId, InstanceId, ProjectId, SnapshotId, VolumeGroupId, VolumeId, validate};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A volume to make. It lives in the volume group of one host (the one named, or the emptiest), or in a shared group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeCreate {
    #[schema(min_length = 1, max_length = 255)]
    pub name: String,
    /// 1 to 65,536 GiB. May be left out with `snapshot`: then the snapshot's size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 65_536)]
    pub size_gib: Option<u64>,
    /// Begin with this snapshot's bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotId>,
    /// Name or id of the host to make it on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Name or id of the shared volume group to make it in: any host that sees the group can have it. Not with `host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

impl VolumeCreate {
    pub fn check(&self) -> Result<(), FieldError> {
        validate::name("name", &self.name)?;
        if self.host.is_some() && self.group.is_some() {
            return Err(FieldError::new("group", "a shared group is no host's: leave one of them out"));
        }
        match self.size_gib {
            Some(size) => validate::within("size_gib", size, 1, validate::VOLUME_GIB_MAX, "GiB"),
            None if self.snapshot.is_some() => Ok(()),
            None => Err(FieldError::new("size_gib", "is missing")),
        }
    }
}

/// Make a volume larger, while it is used too. It never becomes smaller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeExtend {
    /// The new size, in GiB.
    #[schema(minimum = 1, maximum = 65_536)]
    pub size_gib: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    #[schema(min_length = 1, max_length = 255)]
    pub name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// Ordered, not yet there.
    Creating,
    Available,
    InUse,
    /// A larger size was ordered and is not yet there; usable meanwhile.
    Extending,
    /// In the recycle bin: restored with its bytes until it is purged.
    Trashed,
    /// Ordered out of the recycle bin; the host has not yet said that it is.
    Restoring,
    /// Ordered gone for good; the host has not yet said so.
    Purging,
    /// Its host does not answer: the bytes are there and out of reach until it returns.
    Unreachable,
    Error,
}

/// A volume as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Volume {
    pub id: VolumeId,
    pub project: ProjectId,
    pub name: String,
    /// Ordered size, in GiB.
    pub size_gib: u64,
    /// Size on the host, in bytes; absent until it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    pub state: VolumeState,
    /// Where it is. Of one in a shared group: the host that has it in hand, or the group's keeper while nobody has.
    pub host: HostId,
    pub host_name: String,
    /// The shared volume group that it is in; none: a host's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<VolumeGroupId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Since when it lies in the recycle bin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    #[schema(value_type = Option<String>)]
    pub trashed_at: Option<Timestamp>,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub created_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    Creating,
    Available,
    Deleting,
    Error,
}

/// A point-in-time copy of a volume, on the volume's host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Snapshot {
    pub id: SnapshotId,
    pub project: ProjectId,
    pub name: String,
    pub volume: VolumeId,
    pub size_gib: u64,
    pub state: SnapshotState,
    pub host: HostId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub created_at: Timestamp,
}
