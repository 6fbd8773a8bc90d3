//! What a host says it holds, taken into the records. Writes only what changed; whatever carries an older epoch than
//! the record's does not count. A record of something deleted goes when, and only when, the host says that the
//! tombstone is carried out.

use super::orders::{bury, instance_claims};
use super::servers::{conclude, end_task, freed};
use super::volumes::room;
use super::{Draft, Ops, OpsError, Row, View};
use crate::model::*;
use amphi_api::HostId;
use amphi_api::instance::{BodyKind, ExchangePhase, Fault};
use amphi_api::wire::{BodyState, ExpectedStatus, ExportStatus, HostStatus, Tombstone};
use jiff::Timestamp;
use std::sync::Arc;

/// Records changed in one transaction: well below the store's bound of operations.
pub(super) const CHUNK: usize = 40;
/// Operations after which a transaction takes no further record of a status: what one instance's news adds at most (its own
/// record, its action, what it lets go of) has room below the store's bound of 128.
const FULL: usize = 80;

impl Ops {
    /// Takes a status in. A host says only what is new: what the store cannot take now is kept and tried again.
    pub async fn status(&self, host: HostId, status: HostStatus) -> Result<(), OpsError> {
        self.hear(host);
        let status = Arc::new(status);
        self.unrecorded().insert(host, status.clone());
        self.record(host, status).await
    }

    /// Tries again what could not be recorded. For the task.
    pub async fn record_left_over(&self) -> Result<(), OpsError> {
        let left: Vec<_> = self.unrecorded().iter().map(|(host, status)| (*host, status.clone())).collect();
        for (host, status) in left {
            self.record(host, status).await?;
        }
        Ok(())
    }

    async fn record(&self, host: HostId, status: Arc<HostStatus>) -> Result<(), OpsError> {
        // What was left over may be tried again while its successor is recorded: the older one must not come last.
        let newest = || self.unrecorded().get(&host).is_some_and(|newest| Arc::ptr_eq(newest, &status));
        let observed = |view: &View| match newest() {
            true => observe(view, host, &status, Timestamp::now()),
            false => (Draft::default(), false),
        };
        while self.transact(|view| Ok(observed(view))).await? {}
        for order in &status.buried {
            let carried_out = |view: &View| match newest() {
                true => buried(view, host, *order, Timestamp::now()),
                false => Draft::default(),
            };
            self.transact_room(|view| Ok((carried_out(view), ()))).await?;
        }
        if newest() {
            self.unrecorded().remove(&host);
        }
        Ok(())
    }
}

fn is_full(draft: &Draft) -> bool {
    draft.size() >= FULL
}

/// The next changes to the records; true while there may be more.
fn observe(view: &View, host: HostId, status: &HostStatus, now: Timestamp) -> (Draft, bool) {
    let mut draft = Draft::default();
    // Something has to wait for the next round: its record is written in this one.
    let mut again = false;
    // The host has seen what is desired now: it has let go of what is no longer in it.
    let fresh = status.generation >= view.generation(host);
    for seen in &status.instances {
        let Some(row) = view.instances.get(seen.id) else { continue };
        if row.host != Some(host) || seen.epoch != row.epoch || is_full(&draft) {
            continue;
        }
        let observed = InstanceObserved::from(seen);
        let same = row.observed.as_ref().is_some_and(|before| before.says_the_same(&observed));
        let built = row.built || seen.state == BodyState::Running;
        let kept = still_kept(row, &observed, fresh);
        let lets_go = kept != row.memory_kept_mib;
        if same && !lets_go && (row.leaving.is_empty() || !fresh) {
            continue;
        }
        let mut record =
            InstanceRecord { observed: Some(observed), built, updated_at: now, ..(*row.record).clone() };
        record.memory_kept_mib = kept;
        if lets_go {
            draft.unclaim(host, instance_claims(row));
            draft.claim(host, instance_claims(&record));
        }
        if record.intent == Intent::Live && record.task_done() {
            end_task(view, &mut draft, row, None, now);
            conclude(view, &mut draft, &mut record, now);
        }
        let holds = |leaving: &Leaving| matches!(leaving, Leaving::Volume(id) if status.active.contains(id));
        let went = fresh && !record.leaving.iter().any(holds) && freed(view, &mut draft, &mut record);
        if same && !went && !lets_go {
            continue;
        }
        draft.update(row, &record);
    }
    for seen in &status.expected {
        let coming = |e: &&Row<ExchangeRecord>| {
            let to = e.journey.as_ref().is_some_and(|j| j.to == host);
            let comes = matches!(e.phase, ExchangePhase::Preparing | ExchangePhase::Crossing);
            to && comes && e.instance == seen.id
        };
        let Some(row) = view.journeys_of(host).find(coming) else { continue };
        let (Some(journey), Some(instance)) = (&row.journey, view.instances.get(seen.id)) else { continue };
        let mut now = JourneyRecord { ready: seen.ready, landed: seen.landed, ..journey.clone() };
        now.fault = seen.fault.clone();
        if journey.live || journey.copy.is_some() {
            fill(&mut now, status);
        }
        if is_full(&draft) || seen.epoch != instance.epoch + 1 || says_the_same(&now, journey) {
            continue;
        }
        draft.update(row, &ExchangeRecord { journey: Some(now), ..(*row.record).clone() });
    }
    for row in view.twins_on(host) {
        let Some(place) = row.placed_on(host) else { continue };
        let said = |e: &&ExpectedStatus| e.id == row.instance && e.epoch == place.epoch;
        let Some(seen) = status.expected.iter().find(said) else { continue };
        let same = place.ready == seen.ready && Fault::same(&place.fault, &seen.fault);
        if is_full(&draft) || same {
            continue;
        }
        let place = TwinPlace { ready: seen.ready, fault: seen.fault.clone(), ..place.clone() };
        draft.update(row, &TwinRecord { place: Some(place), ..(*row.record).clone() });
    }
    for row in view.journeys_of(host).filter(|e| e.phase == ExchangePhase::Stopping) {
        let Some(journey) = row.journey.as_ref().filter(|j| j.from == host && !j.stopped) else { continue };
        let epoch = view.instances.get(row.instance).map(|i| i.epoch);
        let seen = status.instances.iter().find(|i| i.id == row.instance && Some(i.epoch) == epoch);
        // A host that lost its power says that nothing runs, and would start it again by the order that it remembers.
        if fresh && seen.is_some_and(|i| i.state.is_still()) && !is_full(&draft) {
            let journey = Some(JourneyRecord { stopped: true, ..journey.clone() });
            draft.update(row, &ExchangeRecord { journey, ..(*row.record).clone() });
        }
    }
    for seen in status.instances.iter().filter_map(|i| i.copying.as_ref()) {
        let Some(row) = view.exchanges.get(seen.exchange).filter(|_| !is_full(&draft)) else { continue };
        let last = row.phase == ExchangePhase::Copying;
        let Some(journey) = row.journey.as_ref().filter(|j| j.from == host) else { continue };
        if !last && row.phase != ExchangePhase::CopyingAhead {
            continue;
        }
        if let Some(copy) = journey.copy.as_ref().and_then(|copy| copy.told(seen, last)) {
            let journey = Some(JourneyRecord { copy: Some(copy), ..journey.clone() });
            draft.update(row, &ExchangeRecord { journey, ..(*row.record).clone() });
        }
    }
    let copies =
        |e: &&Row<ExchangeRecord>| matches!(e.phase, ExchangePhase::Copying | ExchangePhase::CopyingAhead);
    for row in view.journeys_of(host).filter(copies) {
        let Some(journey) = row.journey.as_ref().filter(|j| j.to == host) else { continue };
        let mut now = JourneyRecord { fault: None, ..journey.clone() };
        fill(&mut now, status);
        if !says_the_same(&now, journey) && !is_full(&draft) && !draft.writes(&row.key()) {
            draft.update(row, &ExchangeRecord { journey: Some(now), ..(*row.record).clone() });
        }
    }
    for row in view.volumes_to(host).filter(|row| row.host != host) {
        let Some(journey) = row.journey.as_ref().filter(|j| j.shipped) else { continue };
        let Some(seen) = status.volumes.iter().find(|v| v.id == row.id) else { continue };
        let arrived = journey.arrived || seen.present;
        let news = arrived != journey.arrived || !Fault::same(&journey.fault, &seen.fault);
        if news && !is_full(&draft) && !draft.writes(&row.key()) {
            let journey = Some(VolumeJourney { arrived, fault: seen.fault.clone(), ..journey.clone() });
            draft.update(row, &VolumeRecord { journey, ..(*row.record).clone() });
        }
    }
    for seen in &status.volumes {
        let Some(row) = view.volumes.get(seen.id).filter(|row| view.speaks_for(host, row.host)) else {
            continue;
        };
        let observed = VolumeObserved {
            size_bytes: seen.size_bytes,
            present: seen.present,
            trashed: seen.trashed,
            fault: seen.fault.clone(),
        };
        // Made once, not seen now, and no word of a fault: LVM did not answer. What was known stays known.
        if row.made && !seen.present && seen.fault.is_none() {
            continue;
        }
        let made = row.made || seen.present;
        if is_full(&draft) || (row.made == made && row.observed.as_ref() == Some(&observed)) {
            continue;
        }
        if draft.writes(&row.key()) {
            again = true;
            continue;
        }
        draft.update(row, &VolumeRecord { made, observed: Some(observed), ..(*row.record).clone() });
    }
    for seen in &status.snapshots {
        let Some(row) = view.snapshots.get(seen.id).filter(|row| row.host == host) else { continue };
        let made = row.made || seen.present;
        if is_full(&draft) || (row.made == made && row.fault == seen.fault) {
            continue;
        }
        draft.update(row, &SnapshotRecord { made, fault: seen.fault.clone(), ..(*row.record).clone() });
    }
    for seen in &status.exports {
        let Some(row) = view.images.get(seen.image).filter(|row| row.exporting_host() == Some(host)) else {
            continue;
        };
        let waits = row.export.as_ref().and_then(|e| e.instance).and_then(|id| view.instances.get(id));
        if waits.is_some_and(|i| draft.writes(&i.key())) {
            again = true;
            continue;
        }
        if !is_full(&draft) {
            exported(view, &mut draft, row, seen, now);
        }
    }
    for row in view.volume_groups.iter().filter(|g| g.keeper == Some(host) && g.retiring) {
        if fresh && !is_full(&draft) {
            draft.update(row, &row.released());
        }
    }
    if let Some(row) = view.hosts.get(host).filter(|row| row.strangers != status.strangers) {
        draft.update(row, &HostRecord { strangers: status.strangers.clone(), ..(*row.record).clone() });
    }
    let more = again || is_full(&draft);
    (draft, more)
}

/// What its host still has to count of memory that its guest was told to give back.
fn still_kept(row: &InstanceRecord, seen: &InstanceObserved, fresh: bool) -> Option<u64> {
    let kept_mib = row.memory_kept_mib?;
    // Of before the order: what the guest had then says nothing of what it may take. And while two hosts have room for it,
    // or none has, that room is not changed.
    let offloaded = row.shelved.as_ref().is_some_and(|shelved| shelved.offloaded);
    if !fresh || row.exchange.is_some() || offloaded {
        return Some(kept_mib);
    }
    let has_mib = match seen.size.memory {
        _ if seen.state.is_still() || seen.kind != BodyKind::Vm => 0,
        Some(range) => range.has_mib.min(kept_mib),
        None => kept_mib,
    };
    (has_mib > row.memory_mib).then_some(has_mib)
}

/// Which of its volumes have arrived, and what keeps one from it.
fn fill(journey: &mut JourneyRecord, status: &HostStatus) {
    for one in &mut journey.volumes {
        let Some(seen) = status.volumes.iter().find(|v| v.id == one.volume) else { continue };
        one.arrived |= seen.present;
        journey.fault = journey.fault.take().or_else(|| seen.fault.clone());
    }
}

/// The same but for the moment at which a lasting fault was last seen.
fn says_the_same(now: &JourneyRecord, before: &JourneyRecord) -> bool {
    Fault::same(&now.fault, &before.fault)
        && *now == JourneyRecord { fault: now.fault.clone(), ..before.clone() }
}

/// What the host says of an image's bytes: they are there, or why not. The task of the instance that they come from ends
/// either way.
fn exported(
    view: &View,
    draft: &mut Draft,
    row: &Row<ImageRecord>,
    seen: &ExportStatus,
    now: Timestamp,
) -> bool {
    let mut record = (*row.record).clone();
    let (Some(export), Some(role)) = (record.export.clone(), row.format.roles().first()) else {
        return false;
    };
    let error = match (&seen.blob, &seen.fault) {
        (Some(blob), _) => {
            super::bringing::named(view, draft, &blob.sha256, record.project);
            if let Some(parts) = view.archive_parts(&blob.sha256) {
                record.take_parts(parts);
            }
            record.blobs.insert(*role, blob.clone());
            record.export = None;
            record.traits.conversion = told(&record, seen);
            None
        }
        // Nothing that its host could try would change it.
        (None, Some(fault)) if record.traits.conversion.is_some() && ends_conversion(fault) => {
            record.export = None;
            if let Some(conversion) = &mut record.traits.conversion {
                conversion.failed = Some(fault.clone());
            }
            None
        }
        (None, Some(fault)) if export.fault.as_ref().map(|f| &f.message) != Some(&fault.message) => {
            record.export = Some(ImageExport { fault: Some(fault.clone()), ..export.clone() });
            Some(fault.message.as_str())
        }
        (None, _) => {
            let now = told(&record, seen);
            if now == record.traits.conversion {
                return false;
            }
            record.traits.conversion = now;
            // It goes on: what went wrong before is past.
            record.export = Some(ImageExport { fault: seen.fault.clone(), ..export.clone() });
            None
        }
    };
    draft.update(row, &record);
    let instance = export.instance.and_then(|id| view.instances.get(id));
    let waits = |i: &&Row<InstanceRecord>| i.task.as_ref().is_some_and(|p| p.task == Task::Snapshot(row.id));
    if let Some(instance) = instance.filter(waits) {
        end_task(view, draft, instance, error, now);
        draft.update(instance, &InstanceRecord { task: None, updated_at: now, ..(*instance.record).clone() });
    }
    true
}

/// An image's conversion with what its host says of it.
fn told(record: &ImageRecord, seen: &ExportStatus) -> Option<ConversionRecord> {
    let kept = record.traits.conversion.as_ref()?;
    Some(seen.conversion.as_ref().map_or_else(|| kept.clone(), |status| kept.told(status)))
}

/// A tombstone is carried out: it goes, and with it the record of what was deleted.
fn buried(view: &View, host: HostId, order: Tombstone, now: Timestamp) -> Draft {
    let mut draft = Draft::default();
    // Its own, or that of a shared group which it keeps.
    let mut places = std::iter::once(host).chain(view.kept_by(host).map(|group| group.id.place()));
    let found = places.find_map(|place| view.tombstones.get(TombstoneKey::of(place, order)));
    let Some(stone) = found else { return draft };
    let host = stone.host;
    // A later order of a higher epoch is not carried out by this word.
    if stone.order != order {
        return draft;
    }
    draft.delete(stone);
    match order {
        Tombstone::Instance { id, epoch } => {
            let row = view.instances.get(id).filter(|row| row.host == Some(host) && row.epoch <= epoch);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{Cloud, P};
    use amphi_api::instance::InstanceState;
    use serde_json::json;

    /// Each of them ends its creation's action too: a host that was busy tells of all at once.
    #[tokio::test]
    async fn news_of_many_instances_are_recorded_in_as_many_transactions_as_they_need() {
        let (cloud, h1, _) = Cloud::furnished().await;
        for n in 0..30 {
            let mut small = json!({"host": "h1", "name": format!("i{n}"), "memory_mib": 16, "vcpus": 1});
            small["qos"] = json!("burstable_10");
            if n < 20 {
                small["volume"] = json!({"size_gib": 1});
            }
            cloud.create(small).await.unwrap();
        }
        cloud.ops.status(h1, cloud.obedient(h1)).await.unwrap();
        let view = cloud.ops.world().read();
        assert!(view.instances_on(h1).all(|row| row.built), "all are seen running");
        assert_eq!(view.instances_on(h1).count(), 30);
        assert!(view.volumes_on(h1).all(|row| row.made));
    }

    #[tokio::test]
    async fn what_was_left_over_does_not_come_after_its_successor() {
        let (cloud, h1, _) = Cloud::furnished().await;
        let made = cloud.create(json!({"host": "h1"})).await.unwrap();
        let newer = cloud.obedient(h1);
        let mut older = newer.clone();
        older.instances[0].state = BodyState::Stopped;
        cloud.break_store(true);
        assert!(cloud.ops.status(h1, older).await.is_err());
        let left: Vec<_> = cloud.ops.unrecorded().values().cloned().collect();
        cloud.break_store(false);
        cloud.ops.status(h1, newer).await.unwrap();
        cloud.ops.record(h1, left[0].clone()).await.unwrap();
        assert_eq!(cloud.ops.instance(P, made.id).unwrap().state, InstanceState::Running);
        assert!(cloud.ops.unrecorded().is_empty());
    }
}
