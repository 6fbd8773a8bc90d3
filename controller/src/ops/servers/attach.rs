//! Volumes into and out of an instance's hands, while it runs too.
//!
//! A volume is bytes on one host. One that has been in nobody's hands holds nothing that could not be made again: it
//! is made on its first instance's host. The bytes of any other travel there, and no body gets it before they have
//! arrived (`volume_journeys.rs`). What leaves is free only when the host has let go of it.

use super::conclude::let_go;
use super::journal::note;
use super::{Origin, allowed};
use crate::model::*;
use crate::ops::list::find;
use crate::ops::orders::entomb;
use crate::ops::volume_edit::doings;
use crate::ops::volume_groups::sees;
use crate::ops::volume_journeys::set_out;
use crate::ops::volumes::room;
use crate::ops::{Draft, Ops, OpsError, Row, View, sights};
use crate::scheduler::{Policy, Request, place};
use amphi_api::volume::VolumeState;
use amphi_api::wire::Tombstone;
use amphi_api::{HostId, InstanceId, VolumeId};
use jiff::Timestamp;
use uuid::Uuid;

/// Most further volumes of one instance: libvirt's names for them end at `vdz`.
const ATTACHMENTS_MAX: usize = 24;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttachWish {
    pub volume: Option<VolumeId>,
    /// `/dev/vdc`: taken where it is free, else the next free one.
    pub device: Option<String>,
    pub tag: Option<String>,
    pub delete_on_termination: bool,
}

const STATES: &[VmState] = &[
    VmState::Active,
    VmState::Paused,
    VmState::Stopped,
    VmState::Resized,
    VmState::Shelved,
    VmState::ShelvedOffloaded,
];

impl Ops {
    pub async fn attach_volume(
        &self,
        origin: &Origin,
        id: InstanceId,
        wish: &AttachWish,
    ) -> Result<Attachment, OpsError> {
        self.transact_room(|view| attach(view, origin, id, wish, self.policy(), Timestamp::now())).await
    }

    pub async fn detach_volume(
        &self,
        origin: &Origin,
        id: InstanceId,
        volume: VolumeId,
    ) -> Result<(), OpsError> {
        self.transact(|view| Ok((detach(view, origin, id, volume, Timestamp::now())?, ()))).await
    }

    /// Whether the volume ends with the instance.
    pub async fn keep_attachment(
        &self,
        origin: &Origin,
        id: InstanceId,
        volume: VolumeId,
        delete_on_termination: bool,
    ) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = find(&view.instances, origin.project, id)?;
            let mut record = (*row.record).clone();
            if record.root_volume == Some(volume) {
                record.server.root_ends_with_it = delete_on_termination;
            } else {
                let found = record.attachments.iter_mut().find(|a| a.volume == volume);
                found.ok_or_else(|| unattached(id, volume))?.delete_on_termination = delete_on_termination;
            }
            let mut draft = Draft::default();
            draft.update(row, &record);
            Ok((draft, ()))
        })
        .await
    }
}

fn unattached(id: InstanceId, volume: VolumeId) -> OpsError {
    OpsError::NotFound { noun: "attachment of volume", id: format!("{volume} to instance {id}") }
}

fn attach(
    view: &View,
    origin: &Origin,
    id: InstanceId,
    wish: &AttachWish,
    policy: &Policy,
    now: Timestamp,
) -> Result<(Draft, Attachment), OpsError> {
    let row = allowed(view, origin, id, "attach_volume", STATES, now)?;
    let wanted = wish.volume.ok_or_else(|| OpsError::field("volumeId", "is missing"))?;
    let volume = find(&view.volumes, row.project, wanted)?;
    refuse_unavailable(view, volume)?;
    if row.attachments.len() + row.leaving.len() >= ATTACHMENTS_MAX {
        return Err(OpsError::conflict(format!("{ATTACHMENTS_MAX} volumes are attached already")));
    }
    let mut draft = Draft::default();
    let host = row.host.ok_or_else(|| OpsError::conflict("the instance has no host"))?;
    take_volume(view, &mut draft, volume, id, host, policy, now)?;
    let attachment = Attachment {
        id: Uuid::now_v7(),
        volume: wanted,
        device: free_device(row, wish.device.as_deref())?,
        tag: wish.tag.clone(),
        delete_on_termination: wish.delete_on_termination,
        read_only: volume.traits.read_only == Some(true),
        since: now,
    };
    let mut record = (*row.record).clone();
    record.attachments.push(attachment.clone());
    record.updated_at = now;
    draft.update(row, &record);
    note(&mut draft, origin, &record, "attach_volume", "compute_attach_volume", now);
    Ok((draft, attachment))
}

/// nova says it with cinder's word for the volume's state: what a client has set it to, an upload or an offer count too.
pub(in crate::ops) fn refuse_unavailable(view: &View, volume: &Row<VolumeRecord>) -> Result<(), OpsError> {
    let word = match volume_state_of(volume, view.host_up(volume.host)) {
        _ if volume.journey.is_some() => "attaching",
        _ if volume.instance.is_some() => "in-use",
        VolumeState::Unreachable => "unreachable",
        _ => volume.word(doings(view, volume)),
    };
    if matches!(word, "available" | "downloading" | "creating") {
        return Ok(());
    }
    let id = volume.id;
    Err(OpsError::field(
        "volumeId",
        format!(
            "Invalid volume: volume {id} status must be available or downloading to reserve, but the current status is {word}"
        ),
    ))
}

/// The volume into the instance's hands. On another host it is made again, or its bytes set out.
pub(in crate::ops) fn take_volume(
    view: &View,
    draft: &mut Draft,
    volume: &Row<VolumeRecord>,
    instance: InstanceId,
    host: HostId,
    policy: &Policy,
    now: Timestamp,
) -> Result<(), OpsError> {
    let mut record = (*volume.record).clone();
    record.instance = Some(instance);
    if let Some(group) = view.group_at(record.host) {
        let sees =
            view.hosts.get(host).and_then(|h| h.spec.as_ref()).is_some_and(|spec| sees(spec, record.host));
        if !sees {
            let name = &group.name;
            return Err(OpsError::conflict(format!(
                "the instance's host does not see the shared volume group '{name}'"
            )));
        }
    } else if record.host != host {
        // Made anew there as long as what it began with is there: else its bytes travel.
        let image = record.source_image.map(|id| view.images.get(id).filter(|image| !image.closing));
        let copied = record.snapshots > 0 || record.source_volume.is_some();
        if !record.untouched || copied || image.is_some_and(|image| image.is_none()) {
            set_out(view, draft, &mut record, host, policy, now)?;
            record.untouched = false;
            draft.update(volume, &record);
            return Ok(());
        }
        let asked = Request {
            volume_gib: record.size_gib,
            volume: true,
            volume_host: Some(host),
            ..Request::default()
        };
        place(&sights(view), &asked, policy)?;
        if let Some(image) = image.flatten() {
            draft.guard(image);
        }
        entomb(view, draft, record.host, Tombstone::Volume { id: volume.id }, now);
        draft.unclaim(record.host, room(record.size_gib));
        draft.claim(host, room(record.size_gib));
        (record.host, record.made, record.observed) = (host, false, None);
    }
    record.untouched = false;
    draft.update(volume, &record);
    Ok(())
}

/// The device that was asked for where it is free, else the next free one. `vda` is the root, `vdb` the instance's own
/// volume where it has one.
pub(in crate::ops) fn free_device(row: &InstanceRecord, wanted: Option<&str>) -> Result<String, OpsError> {
    let taken = |name: &str| {
        name == "vda"
            || (name == "vdb" && row.volume.is_some())
            || row.attachments.iter().any(|a| a.device == name)
    };
    let names = ('b'..='z').map(|letter| format!("vd{letter}"));
    let asked = wanted.and_then(|w| w.strip_prefix("/dev/")).filter(|name| {
        let mut letters = name.strip_prefix("vd").unwrap_or_default().chars();
        matches!((letters.next(), letters.next()), (Some('b'..='z'), None)) && !taken(name)
    });
    asked
        .map(str::to_owned)
        .or_else(|| names.into_iter().find(|name| !taken(name)))
        .ok_or_else(|| OpsError::conflict("no device name is free"))
}

fn detach(
    view: &View,
    origin: &Origin,
    id: InstanceId,
    volume: VolumeId,
    now: Timestamp,
) -> Result<Draft, OpsError> {
    let row = find(&view.instances, origin.project, id)?;
    if row.root_volume == Some(volume) {
        return Err(OpsError::Forbidden("Cannot detach a root device volume".into()));
    }
    if !row.attachments.iter().any(|a| a.volume == volume) {
        return Err(unattached(id, volume));
    }
    let row = allowed(view, origin, id, "detach_volume", STATES, now)?;
    let mut draft = Draft::default();
    let mut record = (*row.record).clone();
    record.attachments.retain(|a| a.volume != volume);
    let leaving = Leaving::Volume(volume);
    // One on its way is in no body's hands.
    match view.volumes.get(volume).is_some_and(|v| v.journey.is_some() && Some(v.host) != row.host) {
        true => let_go(view, &mut draft, &record, leaving),
        false => leave(view, &mut draft, &mut record, leaving),
    }
    record.updated_at = now;
    draft.update(row, &record);
    note(&mut draft, origin, &record, "detach_volume", "compute_detach_volume", now);
    Ok(draft)
}

/// Out of the instance: at once where no body holds it, else when the host has let go.
pub(super) fn leave(view: &View, draft: &mut Draft, record: &mut InstanceRecord, leaving: Leaving) {
    let held = match record.current() {
        Some(seen) => !seen.state.is_still() || record.power.wants_body(),
        None => record.power.wants_body(),
    };
    // A volume of a shared group may be mounted without a body: its host says when it is not.
    let shared = matches!(leaving, Leaving::Volume(id) if view.group_of(id).is_some());
    if held || shared {
        record.leaving.push(leaving);
    } else {
        let_go(view, draft, record, leaving);
    }
}
