//! What is said of a volume or a snapshot beside its bytes, and its state in cinder's words. Refuses anything that a
//! host would have to know.

use super::{ImageRecord, Intent, SnapshotRecord, VolumeRecord, snapshot_state_of, volume_state_of};
use amphi_api::image::{ImageState, size_of};
use amphi_api::volume::{SnapshotState, VolumeState};
use amphi_api::{InstanceId, UserId, VolumeTypeId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeTraits {
    pub description: Option<String>,
    pub metadata: BTreeMap<String, String>,
    /// None: the default type.
    pub volume_type: Option<VolumeTypeId>,
    /// The availability zone that it was asked into.
    pub zone: Option<String>,
    pub bootable: bool,
    /// Properties of the image that it began with: cinder's `volume_image_metadata`.
    pub image: BTreeMap<String, String>,
    pub user: Option<UserId>,
    /// What was last said of its being read only.
    pub read_only: Option<bool>,
    /// Held by somebody who is no instance here.
    pub hold: Option<VolumeHold>,
    /// An instance's volume is about to be taken away, says a client.
    pub detaching: bool,
    /// A state that an administrator has set in place of the true one.
    pub mark: Option<String>,
    pub updated_at: Option<Timestamp>,
}

/// Who holds a volume, as far as clients say: nothing is plugged into anything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeHold {
    /// The attachment's.
    pub id: Uuid,
    #[serde(default)]
    pub server: Option<InstanceId>,
    #[serde(default)]
    pub host_name: Option<String>,
    #[serde(default)]
    pub device: Option<String>,
    #[serde(default)]
    pub read_only: bool,
    pub step: HoldStep,
    pub since: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldStep {
    /// Nobody else may take it.
    Reserved,
    /// Whoever holds it has said how it connects.
    Attaching,
    Attached,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SnapshotTraits {
    pub description: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub user: Option<UserId>,
    /// A state that an administrator has set in place of the true one.
    pub mark: Option<String>,
    pub updated_at: Option<Timestamp>,
}

/// What else is going on with a volume; each takes more than the record to see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeDoings {
    /// An image is being made of it.
    pub uploading: bool,
    /// It is offered to another project.
    pub offered: bool,
    /// An instance has given it up and its host has not yet let go.
    pub leaving: bool,
}

impl VolumeRecord {
    /// Not in the recycle bin, nor on its way out: what cinder's clients see.
    pub fn seen(&self) -> bool {
        self.trashed_at.is_none() && self.intent == Intent::Live
    }

    /// cinder/objects/fields.py, `VolumeStatus`. A host that is down changes nothing: the bytes are where they were.
    pub fn word(&self, doings: VolumeDoings) -> &str {
        let traits = &self.traits;
        if let Some(mark) = &traits.mark {
            return mark;
        }
        match volume_state_of(self, true) {
            VolumeState::Creating if self.source_image.is_some() => "downloading",
            VolumeState::Creating => "creating",
            VolumeState::Extending => "extending",
            VolumeState::Trashed | VolumeState::Purging => "deleting",
            VolumeState::Restoring => "maintenance",
            VolumeState::Error | VolumeState::Unreachable => "error",
            VolumeState::InUse if self.journey.is_some() => "attaching",
            VolumeState::InUse if traits.detaching || doings.leaving => "detaching",
            VolumeState::InUse => match traits.hold.as_ref().map(|hold| hold.step) {
                Some(HoldStep::Reserved) => "attaching",
                _ if doings.uploading => "uploading",
                _ => "in-use",
            },
            VolumeState::Available if doings.uploading => "uploading",
            VolumeState::Available if doings.offered => "awaiting-transfer",
            VolumeState::Available => "available",
        }
    }

    /// Changed by a client.
    pub fn updated_at(&self) -> Timestamp {
        self.traits.updated_at.unwrap_or(self.created_at)
    }
}

/// cinder/objects/fields.py, `SnapshotStatus`.
pub fn snapshot_word(record: &SnapshotRecord) -> &str {
    match (snapshot_state_of(record), &record.traits.mark) {
        (SnapshotState::Deleting, _) => "deleting",
        (_, Some(mark)) => mark,
        (SnapshotState::Creating, _) => "creating",
        (SnapshotState::Available, _) => "available",
        (SnapshotState::Error, _) => "error",
    }
}

/// What a volume keeps of the image that it begins with (cinder/volume/flows/manager/create_volume.py,
/// `_capture_volume_image_metadata`).
pub fn image_metadata(image: &ImageRecord) -> BTreeMap<String, String> {
    let (container, disk) = image.glance_formats();
    let mut kept = image.traits.properties.clone();
    let mut keep = |key: &str, value: Option<String>| {
        kept.extend(value.map(|value| (key.to_owned(), value)));
    };
    keep("image_id", Some(image.id.to_string()));
    keep("image_name", Some(image.name.clone()));
    keep("checksum", image.traits.md5.clone());
    keep("container_format", container.map(str::to_owned));
    keep("disk_format", disk.map(str::to_owned));
    keep("min_disk", Some(image.traits.min_disk.to_string()));
    keep("min_ram", Some(image.traits.min_ram.to_string()));
    let size = size_of(image.format, &image.blobs, &image.layers);
    keep("size", (image.state() == ImageState::Active).then(|| size.to_string()));
    kept
}
