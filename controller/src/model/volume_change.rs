//! What may be changed of a volume's record, and in which state: pure. Nothing in here reaches a host.

use super::{HoldStep, VolumeDoings, VolumeHold, VolumeRecord, VolumeTypeRecord};
use amphi_api::{InstanceId, VolumeTypeId};
use jiff::Timestamp;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Most items of metadata of one volume or snapshot (nova's quota of `metadata_items`; cinder has no bound).
pub const ITEMS_MAX: usize = 256;
/// Longest key and value, in characters (cinder/api/validation/parameter_types.py, `extra_specs`).
const TEXT_MAX: usize = 255;

#[derive(Clone, Debug, PartialEq)]
pub enum VolumeChange {
    Name(String),
    Description(Option<String>),
    /// Adds to what is there.
    Metadata(BTreeMap<String, String>),
    /// In place of what is there.
    AllMetadata(BTreeMap<String, String>),
    RemoveMetadata(String),
    /// Adds to what is there.
    ImageMetadata(BTreeMap<String, String>),
    RemoveImageMetadata(String),
    Bootable(bool),
    ReadOnly(bool),
    Type(VolumeTypeId),
    /// Keeps others away.
    Reserve,
    Unreserve,
    BeginDetaching,
    RollDetaching,
    /// Held by somebody, says a client.
    Attach {
        server: Option<InstanceId>,
        host_name: Option<String>,
        device: Option<String>,
        read_only: bool,
    },
    /// The one of this id, or the only one.
    Detach(Option<Uuid>),
    /// Whatever the state is.
    ForceDetach,
    Reset {
        state: Option<String>,
        detached: bool,
    },
    /// A reservation of its own, to become an attachment.
    Hold {
        id: Uuid,
        server: Option<InstanceId>,
        read_only: bool,
    },
    /// The holder has said how it connects.
    Connect {
        id: Uuid,
        host_name: Option<String>,
        device: Option<String>,
    },
    Complete(Uuid),
}

/// Why a change cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeRefused {
    #[error("Invalid volume: {0}")]
    State(String),
    /// An instance holds it: only compute lets go of it.
    #[error("Invalid volume: {0}")]
    Instance(String),
    #[error("{0}")]
    Absent(String),
    #[error("{0}")]
    Value(String),
}

/// Checks items of metadata.
pub fn check_items(items: &BTreeMap<String, String>) -> Result<(), VolumeRefused> {
    for (key, value) in items {
        let fits = |text: &str| text.chars().count() <= TEXT_MAX;
        if key.is_empty() || !fits(key) || !fits(value) {
            return Err(VolumeRefused::Value(format!(
                "metadata: key and value must have at most {TEXT_MAX} characters, the key at least one"
            )));
        }
    }
    if items.len() > ITEMS_MAX {
        return Err(VolumeRefused::Value(format!("metadata: there may be at most {ITEMS_MAX} items")));
    }
    Ok(())
}

/// Applies one change.
pub fn change_volume(
    record: &mut VolumeRecord,
    doings: VolumeDoings,
    change: &VolumeChange,
    now: Timestamp,
) -> Result<(), VolumeRefused> {
    use VolumeRefused::*;
    let word = record.word(doings).to_owned();
    let must_be = |states: &[&str]| {
        if states.contains(&word.as_str()) {
            return Ok(());
        }
        Err(State(format!("Volume status must be {}, but current status is: {word}.", states.join(" or "))))
    };
    let instance = record.instance;
    let held = || match instance {
        Some(id) => Err(Instance(format!("Volume is attached to instance {id}; detach it there."))),
        None => Ok(()),
    };
    let hold = |id, step| VolumeHold {
        id,
        server: None,
        host_name: None,
        device: None,
        read_only: false,
        step,
        since: now,
    };
    let traits = &mut record.traits;
    match change {
        VolumeChange::Name(name) => record.name.clone_from(name),
        VolumeChange::Description(text) => traits.description.clone_from(text),
        VolumeChange::Metadata(items) => traits.metadata.extend(items.clone()),
        VolumeChange::AllMetadata(items) => traits.metadata.clone_from(items),
        VolumeChange::RemoveMetadata(key) => {
            traits.metadata.remove(key).ok_or_else(|| Absent(format!("metadata {key}")))?;
        }
        VolumeChange::ImageMetadata(items) => traits.image.extend(items.clone()),
        VolumeChange::RemoveImageMetadata(key) => {
            traits.image.remove(key).ok_or_else(|| Absent(format!("image metadata {key}")))?;
        }
        VolumeChange::Bootable(bootable) => traits.bootable = *bootable,
        VolumeChange::ReadOnly(read_only) => {
            must_be(&["available"])?;
            traits.read_only = Some(*read_only);
        }
        VolumeChange::Type(id) => {
            must_be(&["available", "in-use"])?;
            traits.volume_type = Some(*id).filter(|id| *id != VolumeTypeRecord::DEFAULT);
        }
        VolumeChange::Reserve => {
            must_be(&["available"])?;
            traits.hold = Some(hold(Uuid::now_v7(), HoldStep::Reserved));
        }
        VolumeChange::Unreserve => {
            // What is not reserved stays as it is, as in cinder (volume/api.py, `unreserve`).
            if traits.hold.as_ref().is_some_and(|hold| hold.step == HoldStep::Reserved) {
                traits.hold = None;
            }
        }
        VolumeChange::BeginDetaching => {
            must_be(&["in-use"])?;
            traits.detaching = true;
        }
        VolumeChange::RollDetaching => traits.detaching = false,
        VolumeChange::Attach { server, host_name, device, read_only } => {
            must_be(&["available", "attaching"])?;
            held()?;
            let before = traits.hold.take().map_or_else(Uuid::now_v7, |hold| hold.id);
            traits.hold = Some(VolumeHold {
                server: *server,
                host_name: host_name.clone(),
                device: device.clone(),
                read_only: *read_only,
                ..hold(before, HoldStep::Attached)
            });
        }
        VolumeChange::Detach(id) => {
            held()?;
            let Some(found) = traits.hold.as_ref().filter(|hold| id.is_none_or(|id| id == hold.id)) else {
                return Err(match id {
                    Some(id) => Absent(format!("attachment {id}")),
                    None => State("Volume is not attached.".into()),
                });
            };
            tracing::debug!(attachment = %found.id, "detached");
            (traits.hold, traits.detaching) = (None, false);
        }
        VolumeChange::ForceDetach => {
            held()?;
            (traits.hold, traits.detaching) = (None, false);
        }
        VolumeChange::Reset { state, detached } => {
            if *detached {
                (traits.hold, traits.detaching) = (None, false);
            }
            traits.mark = None;
            let state = state.clone();
            let natural = record.word(VolumeDoings::default()).to_owned();
            record.traits.mark = state.filter(|state| *state != natural);
        }
        VolumeChange::Hold { id, server, read_only } => {
            must_be(&["available"])?;
            traits.hold =
                Some(VolumeHold { server: *server, read_only: *read_only, ..hold(*id, HoldStep::Reserved) });
        }
        VolumeChange::Connect { id, host_name, device } => {
            let found = traits.hold.as_mut().filter(|hold| hold.id == *id);
            let found = found.ok_or_else(|| Absent(format!("attachment {id}")))?;
            found.host_name.clone_from(host_name);
            found.device.clone_from(device);
            found.step = HoldStep::Attaching;
        }
        VolumeChange::Complete(id) => {
            let found = traits.hold.as_mut().filter(|hold| hold.id == *id);
            let found = found.ok_or_else(|| Absent(format!("attachment {id}")))?;
            found.step = HoldStep::Attached;
        }
    }
    check_items(&record.traits.metadata)?;
    check_items(&record.traits.image)?;
    record.traits.updated_at = Some(now);
    Ok(())
}
