//! A new volume: blank, or with the bytes of an image, a snapshot or another volume. It is made where these are while there
//! is room; elsewhere they travel (`volume_journeys.rs`).

use super::list::find;
use super::{Draft, Ops, OpsError, Row, View, quotas, resolve, sights, volume_groups, volume_types};
use crate::model::*;
use crate::scheduler::{Policy, Request, place};
use amphi_api::image::ImageState;
use amphi_api::volume::{Volume, VolumeCreate};
use amphi_api::{HostId, ImageId, ProjectId, SnapshotId, UserId, VolumeId, VolumeTypeId, validate};
use jiff::Timestamp;
use std::collections::BTreeMap;

/// What a volume begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VolumeOrigin {
    #[default]
    Blank,
    Image(ImageId),
    Snapshot(SnapshotId),
    Volume(VolumeId),
}

#[derive(Clone, Debug, Default)]
pub struct VolumeWish {
    pub name: String,
    pub description: Option<String>,
    pub metadata: BTreeMap<String, String>,
    /// None: as large as what it begins with.
    pub size_gib: Option<u64>,
    pub origin: VolumeOrigin,
    /// None: that of what it begins with, else the default type.
    pub volume_type: Option<VolumeTypeId>,
    pub zone: Option<String>,
    /// Name or id of the host to make it on.
    pub host: Option<String>,
    /// Name or id of the shared volume group to make it in.
    pub group: Option<String>,
    pub user: Option<UserId>,
    /// Who asks does not know of hosts: while it holds nothing that could not be made again, it may follow its first
    /// instance to another one.
    pub movable: bool,
}

impl Ops {
    pub async fn create_volume(&self, scope: ProjectId, request: &VolumeCreate) -> Result<Volume, OpsError> {
        request.check()?;
        let wish = VolumeWish {
            name: request.name.clone(),
            size_gib: request.size_gib,
            origin: request.snapshot.map_or(VolumeOrigin::Blank, VolumeOrigin::Snapshot),
            host: request.host.clone(),
            group: request.group.clone(),
            ..VolumeWish::default()
        };
        let id = self.make_volume(scope, &wish).await?;
        self.volume(scope, id)
    }

    pub async fn make_volume(&self, scope: ProjectId, wish: &VolumeWish) -> Result<VolumeId, OpsError> {
        self.transact_room(|view| decide(view, scope, wish, self.policy(), Timestamp::now())).await
    }
}

/// What the source says: where, how large at least, and what the new record takes over.
struct Source {
    host: Option<HostId>,
    least_gib: u64,
    what: &'static str,
    traits: VolumeTraits,
}

fn decide(
    view: &View,
    scope: ProjectId,
    wish: &VolumeWish,
    policy: &Policy,
    now: Timestamp,
) -> Result<(Draft, VolumeId), OpsError> {
    check_items(&wish.metadata)?;
    let mut draft = Draft::default();
    let source = source(view, scope, wish.origin, &mut draft)?;
    let size_gib = wish.size_gib.unwrap_or(source.least_gib);
    validate::within("size_gib", size_gib, 1, validate::VOLUME_GIB_MAX, "GiB")?;
    if size_gib < source.least_gib {
        return Err(OpsError::field("size_gib", format!("the {} has {} GiB", source.what, source.least_gib)));
    }
    let volume_type = wish.volume_type.or(source.traits.volume_type);
    let kind = volume_types::usable(view, scope, volume_type.unwrap_or(VolumeTypeRecord::DEFAULT))?;
    room_for(view, scope, size_gib, &kind)?;
    let pinned = wish.host.as_ref().map(|text| resolve::host(view, "host", text)).transpose()?.map(|h| h.id);
    if let Some(zone) = &wish.zone
        && !super::aggregates::zones(view).contains_key(zone)
    {
        return Err(OpsError::field("availability_zone", format!("Availability zone '{zone}' is invalid.")));
    }
    let asked = Request {
        volume_gib: size_gib,
        volume: true,
        pinned,
        volume_host: source.host,
        zone: wish.zone.clone(),
        ..Request::default()
    };
    let hosts = sights(view);
    let near = || place(&hosts, &asked, policy);
    let host = match (volume_groups::wanted(view, wish.group.as_deref(), &kind)?, source.host) {
        (Some(group), None) => {
            volume_groups::room_in(view, group, size_gib)?;
            group.id.place()
        }
        (Some(_), Some(_)) => {
            return Err(OpsError::field("group", "a volume in a shared group begins blank or with an image"));
        }
        (None, Some(from)) if view.host_up(from) => {
            near().or_else(|_| place(&hosts, &Request { volume_host: None, ..asked.clone() }, policy))?.host
        }
        (None, _) => near()?.host,
    };
    let afar = source.host.filter(|from| *from != host);
    let (snapshot, image, volume) = match wish.origin {
        VolumeOrigin::Blank => (None, None, None),
        VolumeOrigin::Snapshot(id) => (Some(id), None, None),
        VolumeOrigin::Image(id) => (None, Some(id), None),
        VolumeOrigin::Volume(id) => (None, None, Some(id)),
    };
    let record = VolumeRecord {
        id: VolumeId::new(),
        project: scope,
        name: wish.name.clone(),
        size_gib,
        host,
        source: snapshot,
        source_image: image,
        source_volume: volume,
        untouched: wish.movable && snapshot.is_none() && volume.is_none(),
        instance: None,
        made: false,
        trashed_at: None,
        intent: Intent::Live,
        snapshots: 0,
        observed: None,
        traits: VolumeTraits {
            description: wish.description.clone(),
            metadata: wish.metadata.clone(),
            volume_type: Some(kind.id).filter(|id| *id != VolumeTypeRecord::DEFAULT),
            zone: wish.zone.clone(),
            user: wish.user,
            ..source.traits
        },
        journey: afar.map(|from| VolumeJourney::new(from, host, now)),
        created_at: now,
    };
    draft.create(&record);
    draft.claim(host, super::volumes::room(size_gib));
    Ok((draft, record.id))
}

/// Whether the project's quotas have room for one volume more.
pub(super) fn room_for(
    view: &View,
    scope: ProjectId,
    size_gib: u64,
    kind: &VolumeTypeRecord,
) -> Result<(), OpsError> {
    quotas::check_within(view, scope, Resource::PerVolumeGigabytes, 0, size_gib)?;
    quotas::check(view, scope, &[(Resource::Volumes, 1), (Resource::Gigabytes, size_gib)])?;
    let (count, gib) = volume_types::used(view, scope, kind.id);
    quotas::check_named(view, scope, &format!("volumes_{}", kind.name), count, 1)?;
    quotas::check_named(view, scope, &format!("gigabytes_{}", kind.name), gib, size_gib)
}

fn source(
    view: &View,
    scope: ProjectId,
    origin: VolumeOrigin,
    draft: &mut Draft,
) -> Result<Source, OpsError> {
    match origin {
        VolumeOrigin::Blank => {
            Ok(Source { host: None, least_gib: 0, what: "", traits: VolumeTraits::default() })
        }
        VolumeOrigin::Snapshot(id) => {
            let row = find(&view.snapshots, scope, id)
                .map_err(|_| OpsError::field("snapshot", format!("no snapshot {id}")))?;
            if row.intent == Intent::Deleting || snapshot_word(row) != "available" {
                return Err(OpsError::taken("snapshot", format!("snapshot {id} is not available")));
            }
            draft.touch(row);
            let parent = view.volumes.get(row.volume).map(|v| inherited(v)).unwrap_or_default();
            Ok(Source { host: Some(row.host), least_gib: row.size_gib, what: "snapshot", traits: parent })
        }
        VolumeOrigin::Volume(id) => {
            let row = find(&view.volumes, scope, id)
                .ok()
                .filter(|row| row.seen())
                .ok_or_else(|| OpsError::field("source_volid", format!("no volume {id}")))?;
            let word = row.word(VolumeDoings::default());
            if !row.made || !matches!(word, "available" | "in-use") {
                return Err(OpsError::taken("source_volid", format!("volume {id} is {word}")));
            }
            super::move_volumes::refuse_moving(view, row)?;
            volume_groups::refuse_copies(view, row)?;
            draft.touch(row);
            let traits = inherited(row);
            Ok(Source { host: Some(row.host), least_gib: row.size_gib, what: "source volume", traits })
        }
        VolumeOrigin::Image(id) => {
            let row = usable_image(view, scope, id)?;
            draft.guard(row);
            let bytes = row.traits.virtual_size.unwrap_or_else(|| row.blobs.values().map(|b| b.size).sum());
            Ok(Source {
                host: None,
                least_gib: bytes.div_ceil(GIB).max(row.traits.min_disk.into()).max(1),
                what: "image",
                traits: VolumeTraits {
                    bootable: true,
                    image: image_metadata(row),
                    ..VolumeTraits::default()
                },
            })
        }
    }
}

/// What a copy has in common with what it is copied from.
fn inherited(volume: &VolumeRecord) -> VolumeTraits {
    VolumeTraits {
        bootable: volume.traits.bootable,
        image: volume.traits.image.clone(),
        volume_type: volume.traits.volume_type,
        ..VolumeTraits::default()
    }
}

fn usable_image(view: &View, scope: ProjectId, id: ImageId) -> Result<&Row<ImageRecord>, OpsError> {
    let wrong = |why: &str| OpsError::field("imageRef", format!("Image {id} {why}"));
    let row = view.images.get(id).filter(|row| row.open_to(scope) && !row.closing);
    let row = row.ok_or_else(|| OpsError::field("imageRef", format!("Invalid image identifier {id}")))?;
    if row.state() != ImageState::Active || row.traits.deactivated {
        return Err(wrong("is not active."));
    }
    match row.format.is_disk() {
        true => Ok(row),
        false => Err(wrong("is no disk: a volume cannot begin with it.")),
    }
}

impl From<VolumeRefused> for OpsError {
    fn from(refused: VolumeRefused) -> Self {
        match refused {
            VolumeRefused::State(_) | VolumeRefused::Instance(_) => Self::conflict(refused.to_string()),
            VolumeRefused::Absent(id) => Self::NotFound { noun: "volume's", id },
            VolumeRefused::Value(message) => Self::field("metadata", message),
        }
    }
}
