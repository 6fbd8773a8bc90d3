//! What a host says it holds, taken into the records. Writes only what changed; whatever carries an older epoch than
//! the record's does not count. A record of something deleted goes when, and only when, the host says that the
//! tombstone is carried out.

use super::orders::{bury, entomb};
use super::volumes::room;
use super::{Draft, Ops, OpsError, View};
use crate::model::*;
use amphi_api::HostId;
use amphi_api::wire::{BodyState, HostStatus, Tombstone};
use jiff::Timestamp;

/// Records changed in one transaction: well below the store's bound of operations.
pub(super) const CHUNK: usize = 40;

impl Ops {
    pub async fn status(&self, host: HostId, status: &HostStatus) -> Result<(), OpsError> {
        self.hear(host);
        while self.transact(|view| Ok(observe(view, host, status, Timestamp::now()))).await? {}
        for order in &status.buried {
            self.transact_room(|view| Ok((buried(view, host, *order, Timestamp::now()), ()))).await?;
        }
        Ok(())
    }
}

/// The next changes to the records; true while there may be more.
fn observe(view: &View, host: HostId, status: &HostStatus, now: Timestamp) -> (Draft, bool) {
    let mut draft = Draft::default();
    let mut left = CHUNK;
    for seen in &status.instances {
        let Some(row) = view.instances.get(seen.id) else { continue };
        if row.host != host || seen.epoch != row.epoch || left == 0 {
            continue;
        }
        let observed = InstanceObserved::from(seen);
        if row.observed.as_ref().is_some_and(|before| before.says_the_same(&observed)) {
            continue;
        }
        let built = row.built || seen.state == BodyState::Running;
        let record =
            InstanceRecord { observed: Some(observed), built, updated_at: now, ..(*row.record).clone() };
        draft.update(row, &record);
        left -= 1;
    }
    for seen in &status.volumes {
        let Some(row) = view.volumes.get(seen.id).filter(|row| row.host == host) else { continue };
        let observed = VolumeObserved {
            size_bytes: seen.size_bytes,
            present: seen.present,
            trashed: seen.trashed,
            fault: seen.fault.clone(),
        };
        let made = row.made || seen.present;
        if left == 0 || (row.made == made && row.observed.as_ref() == Some(&observed)) {
            continue;
        }
        draft.update(row, &VolumeRecord { made, observed: Some(observed), ..(*row.record).clone() });
        left -= 1;
    }
    for seen in &status.snapshots {
        let Some(row) = view.snapshots.get(seen.id).filter(|row| row.host == host) else { continue };
        let made = row.made || seen.present;
        if left == 0 || (row.made == made && row.fault == seen.fault) {
            continue;
        }
        draft.update(row, &SnapshotRecord { made, fault: seen.fault.clone(), ..(*row.record).clone() });
        left -= 1;
    }
    if let Some(row) = view.hosts.get(host).filter(|row| row.strangers != status.strangers) {
        draft.update(row, &HostRecord { strangers: status.strangers.clone(), ..(*row.record).clone() });
    }
    (draft, left == 0)
}

/// A tombstone is carried out: it goes, and with it the record of what was deleted.
fn buried(view: &View, host: HostId, order: Tombstone, now: Timestamp) -> Draft {
    let mut draft = Draft::default();
    let Some(stone) = view.tombstones.get(TombstoneKey::of(host, order)) else { return draft };
    // A later order of a higher epoch is not carried out by this word.
    if stone.order != order {
        return draft;
    }
    draft.delete(stone);
    match order {
        Tombstone::Instance { id, epoch } => {
            let row = view.instances.get(id).filter(|row| row.host == host && row.epoch <= epoch);
            if let Some(row) = row.filter(|row| row.intent == Intent::Deleting) {
                bury(view, &mut draft, row, now);
            }
        }
        Tombstone::Volume { id } => {
            let row = view.volumes.get(id).filter(|row| row.host == host && row.intent == Intent::Deleting);
            if let Some(row) = row {
                draft.unclaim(host, room(row.size_gib));
                draft.delete(row);
            }
        }
        Tombstone::Snapshot { id } => {
            let row = view.snapshots.get(id).filter(|row| row.host == host && row.intent == Intent::Deleting);
            if let Some(row) = row {
                draft.unclaim(host, room(row.size_gib));
                draft.delete(row);
                if let Some(volume) = view.volumes.get(row.volume) {
                    let snapshots = volume.snapshots.saturating_sub(1);
                    draft.update(volume, &VolumeRecord { snapshots, ..(*volume.record).clone() });
                }
            }
        }
    }
    draft
}

impl Ops {
    /// Live bodies that this host still reports although the record belongs elsewhere get a tombstone here: a host that
    /// came back with an older epoch is told so even when the order of its time was lost.
    pub async fn entomb_strays(&self, host: HostId, status: &HostStatus) -> Result<(), OpsError> {
        let stray = |view: &View, id, epoch: u64| {
            let row = view.instances.get(id)?;
            let known = view
                .tombstones
                .get(TombstoneKey::of(host, Tombstone::Instance { id, epoch }))
                .is_some_and(|t| matches!(t.order, Tombstone::Instance { epoch: e, .. } if e >= epoch));
            (row.host != host && epoch < row.epoch && !known).then_some(Tombstone::Instance { id, epoch })
        };
        let any = {
            let view = self.world().read();
            status
                .instances
                .iter()
                .any(|s| s.state != BodyState::Absent && stray(&view, s.id, s.epoch).is_some())
        };
        if !any {
            return Ok(());
        }
        self.transact(|view| {
            let mut draft = Draft::default();
            let strays = status.instances.iter().filter(|s| s.state != BodyState::Absent);
            let orders = strays.filter_map(|s| stray(view, s.id, s.epoch)).take(CHUNK);
            orders.for_each(|order| entomb(view, &mut draft, host, order, Timestamp::now()));
            Ok((draft, ()))
        })
        .await
    }
}
