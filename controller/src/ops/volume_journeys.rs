//! Volumes whose bytes come from another host: the order, and the step that the task takes with each. All state is in
//! the volume's record: a step decided twice is taken once.

use super::move_volumes::{carrier, carrying, is_read, littered};
use super::orders::entomb;
use super::servers::{Origin, note_failed};
use super::volumes::room;
use super::{Draft, Ops, OpsError, Row, View, sights};
use crate::model::*;
use crate::scheduler::{Policy, Request, place};
use amphi_api::instance::Fault;
use amphi_api::wire::{ExportSource, Tombstone};
use amphi_api::{HostId, VolumeId};
use jiff::Timestamp;

impl Ops {
    /// Takes the next step of every volume that is on its way. For the task.
    pub async fn step_volume_journeys(&self) -> Result<(), OpsError> {
        let open: Vec<VolumeId> = {
            let view = self.world().read();
            let now = Timestamp::now();
            let acts = |row: &&Row<VolumeRecord>| next_step(&view, row, now) != VolumeJourneyStep::Wait;
            view.volumes_travelling().filter(acts).map(|row| row.id).collect()
        };
        for id in open {
            self.transact_room(|view| Ok((step(view, id, Timestamp::now()), ()))).await?;
        }
        Ok(())
    }
}

/// The volume sets out, if there is room for it. The caller writes the record.
pub(super) fn set_out(
    view: &View,
    draft: &mut Draft,
    record: &mut VolumeRecord,
    to: HostId,
    policy: &Policy,
    now: Timestamp,
) -> Result<(), OpsError> {
    let asked =
        Request { volume_gib: record.size_gib, volume: true, volume_host: Some(to), ..Request::default() };
    place(&sights(view), &asked, policy)?;
    draft.claim(to, room(record.size_gib));
    record.journey = Some(VolumeJourney::new(record.host, to, now));
    Ok(())
}

/// The instance that has the volume or waits for it.
fn owner<'a>(view: &'a View, row: &VolumeRecord) -> Option<&'a Row<InstanceRecord>> {
    let instance = view.instances.get(row.instance?).filter(|i| i.intent == Intent::Live)?;
    let further = instance.attachments.iter().any(|a| a.volume == row.id);
    (further || instance.volume == Some(row.id) || instance.root_volume == Some(row.id)).then_some(instance)
}

fn next_step(view: &View, row: &VolumeRecord, now: Timestamp) -> VolumeJourneyStep {
    let Some(journey) = &row.journey else { return VolumeJourneyStep::Wait };
    let down = |id: HostId| match view.hosts.get(id) {
        Some(host) if host.is_up() => None,
        Some(host) => Some(host.state_since),
        None => Some(journey.since),
    };
    let owner = owner(view, row);
    let image = journey.image.and_then(|id| view.images.get(id));
    volume_journey_step(&VolumeJourneySight {
        volume: row,
        journey,
        wanted_on: owner.and_then(|i| i.host),
        spare: owner.is_some_and(|i| i.built && i.attachments.iter().any(|a| a.volume == row.id)),
        from_down: down(journey.from),
        to_down: down(journey.to),
        read: carrier(view, journey.image).is_some(),
        read_fault: image.and_then(|image| image.record.export.as_ref()?.fault.as_ref()),
        littered: littered(view, journey.to, row.id),
        needed: is_read(view, row, journey.image),
        now,
    })
}

/// The transaction of the next step; empty when there is nothing to do.
fn step(view: &View, id: VolumeId, now: Timestamp) -> Draft {
    let mut draft = Draft::default();
    let Some(row) = view.volumes.get(id) else { return draft };
    let Some(journey) = row.journey.clone() else { return draft };
    let next = next_step(view, row, now);
    if next == VolumeJourneyStep::Wait {
        return draft;
    }
    let mut record = (*row.record).clone();
    let owner = owner(view, row);
    match next {
        VolumeJourneyStep::Wait => {}
        VolumeJourneyStep::Read => {
            let Some(source) = source(row, &journey) else { return draft };
            let image = carrying(id, journey.from, source, now);
            record.journey = Some(VolumeJourney { image: Some(image.id), ..journey });
            draft.create(&image);
        }
        VolumeJourneyStep::Ship => record.journey = Some(VolumeJourney { shipped: true, ..journey }),
        VolumeJourneyStep::Arrive => {
            draft.unclaim(row.host, room(row.size_gib));
            entomb(view, &mut draft, row.host, Tombstone::Volume { id }, now);
            (record.host, record.made, record.observed, record.journey) = (journey.to, true, None, None);
            // It goes to where the instance is: not if that leaves in the same moment.
            owner.into_iter().for_each(|instance| draft.guard(instance));
        }
        VolumeJourneyStep::Stay => turn_back(view, &mut draft, &mut record, now),
        VolumeJourneyStep::Tell(fault) => {
            let seen = VolumeObserved { size_bytes: 0, present: false, trashed: false, fault: Some(fault) };
            record.observed = Some(seen);
        }
        VolumeJourneyStep::GiveBack(fault) => {
            turn_back(view, &mut draft, &mut record, now);
            record.instance = None;
            owner.into_iter().for_each(|instance| take_away(&mut draft, instance, id, &fault, now));
        }
    }
    draft.update(row, &record);
    draft
}

/// What is to be read.
fn source(row: &VolumeRecord, journey: &VolumeJourney) -> Option<ExportSource> {
    if !journey.is_birth(row) {
        return Some(ExportSource::Volume(row.id));
    }
    row.source.map(ExportSource::Snapshot).or(row.source_volume.map(ExportSource::Volume))
}

/// It is where it was; what the other host has of it, or may be writing, goes.
fn turn_back(view: &View, draft: &mut Draft, record: &mut VolumeRecord, now: Timestamp) {
    let Some(journey) = record.journey.take().filter(|j| !j.is_birth(record)) else { return };
    draft.unclaim(journey.to, room(record.size_gib));
    if journey.shipped {
        entomb(view, draft, journey.to, Tombstone::Volume { id: record.id }, now);
    }
}

/// The instance does not get the volume; its list of actions says why.
fn take_away(draft: &mut Draft, row: &Row<InstanceRecord>, id: VolumeId, fault: &Fault, now: Timestamp) {
    let mut record = (*row.record).clone();
    record.attachments.retain(|a| a.volume != id);
    record.updated_at = now;
    let why = format!("volume {id} did not get to its host: {}", fault.message);
    let origin = Origin::native(row.project);
    note_failed(draft, &origin, &record, "attach_volume", "compute_attach_volume", &why, now);
    draft.update(row, &record);
}
