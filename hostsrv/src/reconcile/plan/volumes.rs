//! The steps for volumes that no instance uses, for snapshots, and for the bytes that a tombstone names.

use super::{Observed, Step};
use crate::storage::{ObservedVolume, VolumeKind};
use amphi_api::VolumeId;
use amphi_api::wire::{HostDesired, SnapshotDesired, VolumeDesired};
use std::collections::{BTreeMap, BTreeSet};

/// Whether the volume is missing, unfinished, or smaller than ordered.
pub(super) fn lacks(ordered: &VolumeDesired, seen: &Observed<'_>) -> bool {
    let Some(volumes) = seen.volumes else { return false };
    volumes.get(&ordered.id.0).is_none_or(|v| v.size_bytes < ordered.size_bytes || !v.complete)
}

pub fn is_attached(volume: &ObservedVolume) -> bool {
    volume.mounted.is_some() || volume.device.is_some()
}

/// The steps for a volume that no instance here uses.
pub fn volume(desired: &VolumeDesired, seen: Option<&ObservedVolume>, used_by_body: bool) -> Vec<Step> {
    let volume = desired.id;
    match (seen, desired.trashed_at) {
        (Some(seen), Some(_)) if seen.trashed_at.is_none() && !used_by_body => vec![Step::Trash { volume }],
        (Some(seen), None) => {
            let mut steps = Vec::new();
            if seen.trashed_at.is_some() {
                steps.push(Step::Restore { volume });
            }
            if seen.size_bytes < desired.size_bytes || !seen.complete {
                steps.push(Step::EnsureVolume { volume });
            }
            if is_attached(seen) && !used_by_body {
                steps.push(Step::DetachVolume { volume });
            }
            steps
        }
        (None, None) => vec![Step::EnsureVolume { volume }],
        _ => Vec::new(),
    }
}

/// Volumes of shared groups that are active here and in the hands of no instance that is ordered here: another host may be
/// waiting for each of them.
pub fn strays<'a>(
    desired: &HostDesired,
    seen: &'a BTreeMap<uuid::Uuid, ObservedVolume>,
) -> impl Iterator<Item = VolumeId> + use<'a> {
    let ordered: BTreeSet<VolumeId> = desired.instances.iter().flat_map(super::volumes_of).collect();
    let active = seen.values().filter(|volume| volume.shared.is_some() && is_attached(volume));
    active.map(|volume| VolumeId(volume.id)).filter(move |id| !ordered.contains(id))
}

/// The steps for the bytes of a volume or snapshot that a tombstone names.
pub fn purge(id: uuid::Uuid, seen: &Observed<'_>) -> Vec<Step> {
    let here = seen.volumes.is_some_and(|all| all.contains_key(&id));
    if here { vec![Step::Purge { id }] } else { Vec::new() }
}

/// The steps for a snapshot.
pub fn snapshot(desired: &SnapshotDesired, seen: Option<&ObservedVolume>) -> Vec<Step> {
    match seen {
        Some(seen) if seen.complete && matches!(seen.kind, VolumeKind::Snapshot { .. }) => Vec::new(),
        _ if desired.made => Vec::new(),
        _ => vec![Step::TakeSnapshot],
    }
}
