//! Volumes and snapshots.
//!
//! A volume: creating → available ⇄ in use; available → trashed → restoring → available, or purging → gone. Only the
//! host's word that a tombstone is carried out removes the record, and only its word ends the restoring. One that is on its
//! way to its instance's host counts as in use.

use super::{Intent, Record, SnapshotTraits, VolumeJourney, VolumeTraits};
use amphi_api::instance::Fault;
use amphi_api::volume::{SnapshotState, VolumeState};
use amphi_api::{HostId, ImageId, InstanceId, ProjectId, SnapshotId, VolumeId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Bytes of a GiB.
pub const GIB: u64 = 1 << 30;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeRecord {
    pub id: VolumeId,
    pub project: ProjectId,
    pub name: String,
    pub size_gib: u64,
    pub host: HostId,
    /// It began with this snapshot's bytes.
    #[serde(default)]
    pub source: Option<SnapshotId>,
    /// It began with this image's disk.
    #[serde(default)]
    pub source_image: Option<ImageId>,
    /// It began as a copy of this volume.
    #[serde(default)]
    pub source_volume: Option<VolumeId>,
    /// It has been in nobody's hands since it was made: what it holds can be made again on another host.
    #[serde(default)]
    pub untouched: bool,
    #[serde(default)]
    pub instance: Option<InstanceId>,
    /// The host has said that it is there, once; from then on it is never made anew.
    #[serde(default)]
    pub made: bool,
    #[serde(default)]
    pub trashed_at: Option<Timestamp>,
    #[serde(default)]
    pub intent: Intent,
    /// Snapshots that exist; each of them bars the purge. Counted here so that a purge and a new snapshot conflict.
    #[serde(default)]
    pub snapshots: u32,
    #[serde(default)]
    pub observed: Option<VolumeObserved>,
    /// What is said of it, and who holds it.
    #[serde(default)]
    pub traits: VolumeTraits,
    /// Its bytes are on their way to another host.
    #[serde(default)]
    pub journey: Option<VolumeJourney>,
    pub created_at: Timestamp,
}

/// What the host last said of a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeObserved {
    pub size_bytes: u64,
    pub present: bool,
    pub trashed: bool,
    #[serde(default)]
    pub fault: Option<Fault>,
}

impl VolumeRecord {
    /// The record once it is ordered out of the recycle bin. Its last order was to go there: whatever the host said before,
    /// it counts as held in the bin until the host says otherwise.
    pub fn restored(&self) -> Self {
        let observed = self.observed.clone().map(|seen| VolumeObserved { trashed: true, ..seen });
        Self { trashed_at: None, observed, ..self.clone() }
    }

    /// Whether the host's desired state differs between the two.
    pub fn matters(&self, before: &Self) -> bool {
        let told = |v: &Self| v.journey.as_ref().map(VolumeJourney::told);
        (self.size_gib, self.host, self.made, self.trashed_at, self.intent, self.source)
            != (before.size_gib, before.host, before.made, before.trashed_at, before.intent, before.source)
            || told(self) != told(before)
    }
}

/// What clients see.
pub fn volume_state_of(record: &VolumeRecord, host_up: bool) -> VolumeState {
    let observed = record.observed.as_ref();
    let faulty = observed.is_some_and(|o| o.fault.is_some());
    if record.intent == Intent::Deleting {
        VolumeState::Purging
    } else if record.trashed_at.is_some() {
        VolumeState::Trashed
    } else if !host_up {
        VolumeState::Unreachable
    } else if faulty {
        VolumeState::Error
    } else if !record.made {
        VolumeState::Creating
    } else if observed.is_some_and(|o| o.trashed) {
        VolumeState::Restoring
    } else if observed.is_some_and(|o| o.size_bytes < record.size_gib * GIB) {
        VolumeState::Extending
    } else if record.instance.is_some() || record.traits.hold.is_some() || record.journey.is_some() {
        VolumeState::InUse
    } else {
        VolumeState::Available
    }
}

/// Why a volume cannot go to the recycle bin now, in words; none: it can.
pub fn trash_allowed(record: &VolumeRecord) -> Result<(), String> {
    if record.intent == Intent::Deleting {
        return Err("it is being purged".into());
    }
    if record.trashed_at.is_some() {
        return Err("it is in the recycle bin already".into());
    }
    match record.instance {
        Some(instance) => Err(format!("it belongs to instance {instance}; delete that first")),
        None if record.traits.hold.is_some() => Err("it is attached or reserved".into()),
        None if record.journey.as_ref().is_some_and(|j| !j.is_birth(record)) => {
            Err("it is on its way between hosts".into())
        }
        None => Ok(()),
    }
}

impl Record for VolumeRecord {
    const PREFIX: &'static str = "/volume/";
    const NOUN: &'static str = "volume";
    type Id = VolumeId;
    fn id(&self) -> VolumeId {
        self.id
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((self.project, &self.name))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    pub id: SnapshotId,
    pub project: ProjectId,
    pub name: String,
    pub volume: VolumeId,
    pub size_gib: u64,
    pub host: HostId,
    #[serde(default)]
    pub made: bool,
    #[serde(default)]
    pub intent: Intent,
    #[serde(default)]
    pub fault: Option<Fault>,
    /// What is said of it.
    #[serde(default)]
    pub traits: SnapshotTraits,
    pub created_at: Timestamp,
}

impl SnapshotRecord {
    /// Whether the host's desired state differs between the two.
    pub fn matters(&self, before: &Self) -> bool {
        (self.host, self.made, self.intent) != (before.host, before.made, before.intent)
    }
}

/// What clients see.
pub fn snapshot_state_of(record: &SnapshotRecord) -> SnapshotState {
    if record.intent == Intent::Deleting {
        SnapshotState::Deleting
    } else if record.fault.is_some() {
        SnapshotState::Error
    } else if record.made {
        SnapshotState::Available
    } else {
        SnapshotState::Creating
    }
}

impl Record for SnapshotRecord {
    const PREFIX: &'static str = "/snapshot/";
    const NOUN: &'static str = "snapshot";
    type Id = SnapshotId;
    fn id(&self) -> SnapshotId {
        self.id
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((self.project, &self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states() {
        let base = VolumeRecord {
            id: VolumeId::new(),
            project: ProjectId::DEFAULT,
            name: "v".into(),
            size_gib: 2,
            host: HostId::new(),
            source: None,
            source_image: None,
            source_volume: None,
            untouched: false,
            instance: None,
            made: true,
            trashed_at: None,
            intent: Intent::Live,
            snapshots: 0,
            observed: Some(VolumeObserved {
                size_bytes: 2 * GIB,
                present: true,
                trashed: false,
                fault: None,
            }),
            traits: VolumeTraits::default(),
            journey: None,
            created_at: Timestamp::UNIX_EPOCH,
        };
        let journey = VolumeJourney::new(HostId::new(), HostId::new(), Timestamp::UNIX_EPOCH);
        let fault =
            Fault { code: "volume_group_full".into(), message: "full".into(), since: Timestamp::UNIX_EPOCH };
        let observed =
            |size, fault| Some(VolumeObserved { size_bytes: size, present: true, trashed: false, fault });
        let id = InstanceId::new();
        let in_bin = Some(Timestamp::UNIX_EPOCH);
        type Change = Box<dyn Fn(&mut VolumeRecord)>;
        let table: Vec<(Change, bool, VolumeState)> = vec![
            (Box::new(|_| ()), true, VolumeState::Available),
            (Box::new(|_| ()), false, VolumeState::Unreachable),
            (Box::new(move |v| v.instance = Some(id)), true, VolumeState::InUse),
            (Box::new(move |v| v.journey = Some(journey.clone())), true, VolumeState::InUse),
            (Box::new(|v| (v.made, v.observed) = (false, None)), true, VolumeState::Creating),
            (Box::new(move |v| v.observed = observed(GIB, None)), true, VolumeState::Extending),
            (Box::new(move |v| v.observed = observed(GIB, Some(fault.clone()))), true, VolumeState::Error),
            (Box::new(|v| v.trashed_at = Some(Timestamp::UNIX_EPOCH)), false, VolumeState::Trashed),
            (Box::new(move |v| v.trashed_at = in_bin), true, VolumeState::Trashed),
            (
                // The order to trash was followed by the one to restore before the host said a word.
                Box::new(move |v| *v = VolumeRecord { trashed_at: in_bin, ..v.clone() }.restored()),
                true,
                VolumeState::Restoring,
            ),
            (
                Box::new(move |v| *v = VolumeRecord { instance: Some(id), ..v.restored() }),
                true,
                VolumeState::Restoring,
            ),
            (Box::new(|v| *v = v.restored()), false, VolumeState::Unreachable),
            (Box::new(|v| v.intent = Intent::Deleting), true, VolumeState::Purging),
        ];
        for (at, (change, up, want)) in table.into_iter().enumerate() {
            let mut record = base.clone();
            change(&mut record);
            assert_eq!(volume_state_of(&record, up), want, "row {at}");
        }
        assert!(trash_allowed(&base).is_ok());
        assert!(trash_allowed(&VolumeRecord { instance: Some(id), ..base }).is_err());
    }
}
