//! Identifiers: UUIDs with a type each, so that a volume's id never lands where a port's belongs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use utoipa::ToSchema;
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema, ToSchema)]
        #[serde(transparent)]
        #[schemars(transparent)]
        #[schema(value_type = Uuid)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id, ordered by time of creation (UUID version 7).
            #[allow(clippy::new_without_default)]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

id!(/// A project: who owns records.
    ProjectId);
id!(/// A host that runs bodies.
    HostId);
id!(/// An instance: the identity that outlives its bodies. Also the libvirt domain's UUID.
    InstanceId);
id!(/// A network: an OVN logical switch.
    NetworkId);
id!(/// A subnet of a network: a range of addresses.
    SubnetId);
id!(/// A router: an OVN logical router.
    RouterId);
id!(/// An address of an external network that stands for a port's: an OVN NAT row.
    FloatingIpId);
id!(/// A set of bandwidth limits.
    QosPolicyId);
id!(/// One limit of a QoS policy: an OVN QoS row per port.
    QosRuleId);
id!(/// A port: IP and MAC bound to an instance. Also the OVN logical port's name and the OVS `iface-id`.
    PortId);
id!(/// A security group: an OVN port group with ACLs.
    SecurityGroupId);
id!(/// One rule of a security group: an OVN ACL.
    RuleId);
id!(/// A volume: an LV.
    VolumeId);
id!(/// A volume group on a disk that several hosts see; made of LVM's own id of it.
    VolumeGroupId);
id!(/// A point-in-time copy of a volume.
    SnapshotId);
id!(/// A volume type.
    VolumeTypeId);
id!(/// An offer of a volume to another project.
    VolumeTransferId);
id!(/// An image of the catalogue.
    ImageId);
id!(/// A repository of container images: made of its project and its name.
    RepositoryId);
id!(/// Another controller that images go to or come from: made of its name.
    RegionId);
id!(/// That an image goes to a region or comes from it: made of both.
    ReplicationId);
id!(/// Which images go to a region by themselves: made of its name.
    ReplicationPolicyId);
id!(/// One exchange of an instance's body.
    ExchangeId);
id!(/// One failover of a host.
    FailoverId);
id!(/// A user: who asks.
    UserId);
id!(/// A server group: instances that keep together or apart.
    ServerGroupId);
id!(/// A scaling group: so many instances of one template.
    ScalingGroupId);

impl ProjectId {
    /// The project that exists before anyone has made one.
    pub const DEFAULT: ProjectId = ProjectId(Uuid::from_u128(0x616d_7068_6900_7000_8000_0000_0000_0001));
}

impl RepositoryId {
    /// The repository of this name in the project: no project has a name twice.
    pub fn of(project: ProjectId, name: &str) -> Self {
        Self(Uuid::new_v5(&project.0, format!("repository {name}").as_bytes()))
    }
}

/// What regions' and replication policies' names are named under.
const REGIONS: Uuid = Uuid::from_u128(0x3f5d_8a10_7c42_5e9b_9b64_d1a7_02c8_ee51);

impl RegionId {
    /// No two regions have one name.
    pub fn of(name: &str) -> Self {
        Self(Uuid::new_v5(&REGIONS, format!("region {name}").as_bytes()))
    }
}

impl ReplicationPolicyId {
    pub fn of(name: &str) -> Self {
        Self(Uuid::new_v5(&REGIONS, format!("policy {name}").as_bytes()))
    }
}

/// What LVM's ids of volume groups are named under.
const VOLUME_GROUPS: Uuid = Uuid::from_u128(0x6a0f_51c2_93d4_5b0e_8f7a_2d1c_e5b4_9a63);

impl VolumeGroupId {
    /// The same on every host that sees the group. `vg_uuid`: LVM's `vg_uuid`.
    pub fn of(vg_uuid: &str) -> Self {
        Self(Uuid::new_v5(&VOLUME_GROUPS, vg_uuid.as_bytes()))
    }

    /// Volumes lie on a host or in a shared group: where a record names the place, it is this.
    pub fn place(self) -> HostId {
        HostId(self.0)
    }
}

impl From<HostId> for VolumeGroupId {
    fn from(place: HostId) -> Self {
        Self(place.0)
    }
}
