//! Records and their legal transitions: pure. A record is what the store keeps of one thing; `state_of` and its kin
//! say what clients see of it. Refuses I/O, clocks (the time is an argument) and any knowledge of store or engine.

mod action;
mod aggregate;
mod blob;
mod claim;
mod conversion;
mod crossing;
mod exchange;
mod failover;
mod flavor;
mod host;
pub mod identity;
mod image;
mod image_change;
mod image_traits;
pub(crate) mod instance;
mod journey;
mod key_pair;
mod manifest;
pub mod network;
mod passes;
mod past;
mod prepull;
mod quota;
mod replication;
mod repository;
mod rollout;
mod scaling_group;
mod server_group;
mod tombstone;
mod twin;
mod volume;
mod volume_change;
mod volume_group;
mod volume_journey;
mod volume_traits;
mod volume_transfer;
mod volume_type;

pub use crate::digest::{Digest, LayerFacts, NoDigest};
pub use action::{ACTIONS_KEPT, ActionEvent, ActionKey, ActionRecord, MigrationKind, MigrationRecord};
pub use aggregate::{AggregateId, AggregateRecord, DEFAULT_ZONE, INTERNAL_ZONE, ZONE_KEY};
pub use blob::{ArchiveParts, BlobRecord, BlobSight, BlobStep, blob_step};
pub use claim::ClaimRecord;
pub use conversion::{ConversionRecord, ends_conversion};
pub use exchange::{
    ExchangeRecord, ExchangeSight, ExchangeStep, FAULT_PATIENCE, PREPARE_DEADLINE, SWITCH_DEADLINE,
    exchange_step,
};
pub use failover::{FAILOVERS_KEPT, FailoverRecord};
pub use flavor::{DEFAULT_FLAVORS, FlavorKey, FlavorRecord};
pub use host::{HostRecord, JoinDigest, JoinRecord, MaintenanceRecord};
pub use image::{ImageExport, ImageRecord};
pub use image_change::{ChangeRefused, ImageChange, change_image};
pub use image_traits::{ImageMember, ImageTraits, MemberStatus, StagedBlob, Visibility, format_of};
pub use instance::{
    Attachment, BodyRecord, FlavorCopy, InstanceObserved, InstanceRecord, Intent, Leaving, Lock, Pending,
    Resize, ServerState, ServerTraits, Shelved, Task, VmState, fault_of, server_fault, server_state,
    state_of, vm_state,
};
pub use journey::{JourneyRecord, JourneySight, VolumeMove};
pub use key_pair::{KeyKind, KeyPairKey, KeyPairRecord};
pub use manifest::{ManifestKey, ManifestKind, ManifestRecord};
pub use network::{
    FixedIp, FloatingIpRecord, NetworkRecord, PortRecord, QosPolicyRecord, RouterRecord, RuleRecord,
    SecurityGroupRecord, SubnetRecord, mac_of,
};
pub use passes::CopyRecord;
pub use past::{PAST_KEPT, PastInstanceRecord};
pub use prepull::{HostImagesRecord, HostSight as ImageHostSight, PrepullRecord, prepull_state};
pub use quota::{NO_LIMIT, QuotaKey, QuotaRecord, QuotaService, Resource};
pub use replication::{Hitch, PeerRecord, ReplicationPolicyRecord, ReplicationRecord};
pub use repository::{
    LinkKey, LinkRecord, LinkSight, Mirrored, RepositoryRecord, TagKey, TagRecord, links_due, tags_due,
};
pub use rollout::{
    RevisionKey, RevisionRecord, Rolling, RolloutRecord, RolloutSight, RolloutStep, needs_new_body,
    rollout_step,
};
pub use scaling_group::{
    Carried, GroupSight, GroupStep, Presence, ScaleSight, ScaleVerdict, Scaled, ScalingGroupRecord,
    ScalingPlace, Share, Slot, TemplateRevision, Trouble, autoscale, group_steps, in_place,
};
pub use server_group::{GroupPolicy, ServerGroupRecord};
pub use tombstone::{TombstoneKey, TombstoneRecord};
pub use twin::{TwinPlace, TwinRecord, TwinSight, TwinStep, TwinWish, twin_step};
pub use volume::{
    GIB, SnapshotRecord, VolumeObserved, VolumeRecord, snapshot_state_of, trash_allowed, volume_state_of,
};
pub use volume_change::{VolumeChange, VolumeRefused, change_volume, check_items};
pub use volume_group::{KeeperSight, VolumeGroupRecord};
pub use volume_journey::{
    DOWN_PATIENCE, VolumeJourney, VolumeJourneySight, VolumeJourneyStep, volume_journey_step,
};
pub use volume_traits::{
    HoldStep, SnapshotTraits, VolumeDoings, VolumeHold, VolumeTraits, image_metadata, snapshot_word,
};
pub use volume_transfer::VolumeTransferRecord;
pub use volume_type::{DEFAULT_VOLUME_TYPE, VolumeTypeRecord};

use amphi_api::ProjectId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Display;
use std::hash::Hash;
use std::str::FromStr;

/// What the store keeps of one thing, under `PREFIX` + id.
pub trait Record: Serialize + DeserializeOwned + Clone + PartialEq + Send + Sync + 'static {
    /// `/kind/`, with both slashes.
    const PREFIX: &'static str;
    /// What people call it: `volume`.
    const NOUN: &'static str;
    type Id: Copy + Ord + Hash + Display + FromStr + Send + Sync + 'static;

    fn id(&self) -> Self::Id;

    /// The project that owns it and its name; none for what belongs to the whole cloud.
    fn owner(&self) -> Option<(ProjectId, &str)> {
        None
    }

    fn key_of(id: Self::Id) -> String {
        format!("{}{id}", Self::PREFIX)
    }

    fn key(&self) -> String {
        Self::key_of(self.id())
    }
}
