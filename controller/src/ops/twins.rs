//! Twins: where each is, in commits that claim its room; what a failover and a move make of it. Every step looks at the
//! records alone.
//!
//! Refuses to start anything: a twin is only ever expected by its host, until a failover's commit names that host.

use super::asked::request_of;
use super::exodus::blank;
use super::move_ends::{epoch_elsewhere, stone};
use super::orders::{entomb, instance_claims};
use super::volumes::room;
use super::{Draft, Ops, OpsError, Row, View};
use crate::model::*;
use crate::scheduler::Request;
use amphi_api::failover::{LocalVolume, Twin};
use amphi_api::instance::{BodyKind, FailoverPolicy};
use amphi_api::wire::Tombstone;
use amphi_api::{HostId, InstanceId, VolumeId};
use jiff::{SignedDuration, Timestamp};

/// A host that is away this long is no place for a twin: agents and machines that restart are back within it.
const AWAY: SignedDuration = SignedDuration::from_secs(60);

impl Ops {
    /// Takes the next step of every twin. `again`: also of those that found no room before. For the task.
    pub async fn step_twins(&self, again: bool) -> Result<(), OpsError> {
        let due: Vec<InstanceId> = {
            let (view, now) = (self.world().read(), Timestamp::now());
            view.twins_due().filter(|id| next(&view, *id, again, now) != TwinStep::Wait).collect()
        };
        for id in due {
            self.transact_room(|view| Ok((step(view, id, again, Timestamp::now()), ()))).await?;
        }
        Ok(())
    }
}

fn next(view: &View, id: InstanceId, again: bool, now: Timestamp) -> TwinStep {
    let twin = view.twins.get(id).map(|row| &*row.record);
    let row = view.instances.get(id);
    twin_step(&TwinSight {
        twin,
        wish: row.map_or(TwinWish::None, |row| wish(view, row)),
        own: row.and_then(|row| row.host),
        epoch: row.map_or(0, |row| epoch_elsewhere(view, row)),
        claims: row.map(|row| instance_claims(row)).unwrap_or_default(),
        fit: twin.and_then(|t| t.place.as_ref()).is_some_and(|place| is_fit(view, place.host, now)),
        again,
    })
}

/// What the instance asks of a twin now.
fn wish(view: &View, row: &Row<InstanceRecord>) -> TwinWish {
    if row.failover != FailoverPolicy::Twin || row.intent == Intent::Deleting {
        return TwinWish::None;
    }
    let unfit = |why: &str| TwinWish::Unfit(why.to_owned());
    let Some(own) = row.host else { return unfit("no host has room for the instance itself") };
    let travels = row.exchange.and_then(|id| view.exchanges.get(id)).is_some_and(|e| e.journey.is_some());
    if travels || view.hosts.get(own).is_none_or(|h| h.barred_since.is_some()) {
        return TwinWish::Later;
    }
    if row.shelved.is_some() {
        return unfit("the instance is shelved");
    }
    if row.resize.is_some() {
        return unfit("the instance's resize waits to be confirmed or reverted");
    }
    if row.rescue.is_some() {
        return unfit("the instance runs from a rescue's image");
    }
    if row.root_volume.is_some_and(|id| view.group_of(id).is_some()) {
        return unfit(
            "the instance's root disk is in a shared volume group: it is taken over, without a twin",
        );
    }
    let fresh_gib = match (row.failover_terms.local_volume, beyond_reach(view, row).as_slice()) {
        (_, []) => None,
        (LocalVolume::Fresh, [only]) if row.volume == Some(only.id) => Some(only.size_gib),
        (_, [first, ..]) => {
            let host = view.host_name(first.host).unwrap_or_default();
            return TwinWish::Unfit(format!("volume {} is on host '{host}' and nowhere else", first.id));
        }
    };
    let mut bodies: Vec<BodyKind> = row.bodies.iter().map(BodyRecord::kind).collect();
    if let Some(kind) = row.failover_terms.twin_body {
        bodies.retain(|one| *one == kind);
    }
    if bodies.is_empty() {
        return unfit("the instance lists no body of the twin's kind");
    }
    // A set starts in a fraction of the time that a VM boots in.
    bodies.sort_by_key(|kind| *kind != BodyKind::Set);
    TwinWish::One { bodies, fresh_gib }
}

/// Volumes that another host than their own cannot have when theirs is lost. What is in a shared group is taken over.
fn beyond_reach<'a>(view: &'a View, row: &InstanceRecord) -> Vec<&'a Row<VolumeRecord>> {
    let own = |id: &VolumeId| view.group_of(*id).is_none();
    row.volumes().filter(own).filter_map(|id| view.volumes.get(id)).collect()
}

fn is_fit(view: &View, host: HostId, now: Timestamp) -> bool {
    view.hosts.get(host).is_some_and(|host| {
        let here = host.is_up() || now.duration_since(host.state_since) < AWAY;
        here && host.is_in() && host.closed_because().is_none()
    })
}

/// The transaction of the next step; empty when there is nothing to do.
fn step(view: &View, id: InstanceId, again: bool, now: Timestamp) -> Draft {
    let mut draft = Draft::default();
    let twin = view.twins.get(id);
    match (next(view, id, again, now), twin, view.instances.get(id)) {
        (TwinStep::Forget, Some(twin), _) => {
            clear(view, &mut draft, twin, now);
            draft.delete(twin);
        }
        (TwinStep::Drop(why), Some(twin), _) => {
            clear(view, &mut draft, twin, now);
            draft.update(twin, &TwinRecord { place: None, why, ..(*twin.record).clone() });
        }
        (TwinStep::Renew(epoch), Some(twin), _) => {
            let place = twin.place.clone().map(|p| TwinPlace { epoch, ready: false, fault: None, ..p });
            draft.update(twin, &TwinRecord { place, ..(*twin.record).clone() });
        }
        (TwinStep::Say(why), _, Some(row)) => say(&mut draft, twin, row, why),
        (TwinStep::Place, _, Some(row)) => place(view, &mut draft, twin, row, now),
        _ => {}
    }
    draft
}

fn say(draft: &mut Draft, twin: Option<&Row<TwinRecord>>, row: &Row<InstanceRecord>, why: String) {
    let record = TwinRecord { instance: row.id, project: row.project, place: None, why: Some(why) };
    if twin.is_none_or(|twin| *twin.record != record) {
        draft.put_record(twin, &record);
    }
}

fn place(
    view: &View,
    draft: &mut Draft,
    twin: Option<&Row<TwinRecord>>,
    row: &Row<InstanceRecord>,
    now: Timestamp,
) {
    let TwinWish::One { bodies, fresh_gib } = wish(view, row) else { return };
    // Where something of the instance is still being cleared away, its order could meet what is made now.
    let littered =
        view.hosts.iter().map(|h| h.id).filter(|host| view.tombstones.get(stone(*host, row.id)).is_some());
    let request = Request {
        excluded: row.host.into_iter().chain(littered).collect(),
        images: bodies.iter().filter_map(|kind| row.body_of(*kind)).flat_map(|b| b.images.clone()).collect(),
        bodies: bodies.clone(),
        volume_gib: fresh_gib.unwrap_or(0),
        ..request_of(view, row)
    };
    let found = match view.fleet.place(&request) {
        Ok(found) => found,
        Err(no_room) => return say(draft, twin, row, format!("no other host is fit: {no_room}")),
    };
    let (host, body) = (found.host, bodies[found.body]);
    let claims = instance_claims(row);
    draft.claim(host, claims);
    let old = fresh_gib.and(row.volume).and_then(|id| view.volumes.get(id));
    let volume = old.map(|old| {
        draft.claim(host, room(old.size_gib));
        let why = format!("blank, for the twin of instance {}, in place of volume {}", row.id, old.id);
        let record = blank(old, row.id, host, why, now);
        draft.create(&record);
        draft.guard(old);
        (record.id, old.size_gib)
    });
    let epoch = epoch_elsewhere(view, row);
    let place = TwinPlace { host, body, epoch, claims, volume, ready: false, fault: None, since: now };
    let record = TwinRecord { instance: row.id, project: row.project, place: Some(place), why: None };
    draft.put_record(twin, &record);
    // Both as they were when this was decided.
    draft.guard(row);
    view.hosts.get(host).into_iter().for_each(|host| draft.guard(host));
    if let Some(group) = row.server.group.and_then(|id| view.server_groups.get(id)) {
        draft.touch(group);
    }
}

/// What waits there goes: its room is free, and a tombstone orders it away. Where the instance itself is by now, what was made
/// for it is the instance's.
fn clear(view: &View, draft: &mut Draft, twin: &TwinRecord, now: Timestamp) {
    let Some(place) = &twin.place else { return };
    // A host that was forgotten holds nothing that could be ordered away.
    if view.hosts.get(place.host).is_none() {
        return;
    }
    draft.unclaim(place.host, place.claims);
    let there = view.instances.get(twin.instance).is_some_and(|row| row.host == Some(place.host));
    if !there {
        entomb(view, draft, place.host, Tombstone::Instance { id: twin.instance, epoch: place.epoch }, now);
    }
    if let Some(volume) = place.volume.and_then(|(id, _)| view.volumes.get(id)) {
        entomb(view, draft, place.host, Tombstone::Volume { id: volume.id }, now);
        // Its room goes when the host says that it is destroyed.
        draft.update(
            volume,
            &VolumeRecord { intent: Intent::Deleting, instance: None, ..(*volume.record).clone() },
        );
    }
}

/// The twin that a failover starts: where it can be counted on, and with what the instance may go on with elsewhere.
pub(super) fn flips<'a>(
    view: &'a View,
    row: &InstanceRecord,
    dead: HostId,
    bodies: &[BodyKind],
    fresh: bool,
) -> Option<(&'a Row<TwinRecord>, &'a TwinPlace)> {
    let twin = view.twins.get(row.id).filter(|_| row.failover == FailoverPolicy::Twin)?;
    let place = twin.record.place.as_ref()?;
    let host = view.hosts.get(place.host)?;
    let fit = host.is_up() && host.is_in() && place.host != dead;
    // Another size than the instance's by now: what is kept there is not what it takes.
    let same = bodies.contains(&place.body)
        && place.volume.is_some() == fresh
        && place.claims == instance_claims(row);
    let clear = view.tombstones.get(stone(place.host, row.id)).is_none();
    (fit && same && clear).then_some((twin, place))
}

/// The twin's room and what was made for it become the instance's.
pub(super) fn take_over(draft: &mut Draft, twin: &Row<TwinRecord>, place: &TwinPlace) {
    draft.unclaim(place.host, place.claims);
    draft.update(twin, &TwinRecord { place: None, why: None, ..(*twin.record).clone() });
}

/// The room of a twin, for a move of its instance that finds no other.
pub(super) fn room_for_move(
    view: &View,
    row: &InstanceRecord,
    kind: BodyKind,
    to: Option<HostId>,
) -> Option<HostId> {
    let place = view.twins.get(row.id)?.record.place.as_ref()?;
    let host = view.hosts.get(place.host)?;
    let open = host.is_up() && host.is_in() && host.closed_because().is_none();
    let same = place.body == kind && place.volume.is_none() && place.claims == instance_claims(row);
    (open && same && to.is_none_or(|to| to == place.host)).then_some(place.host)
}

/// A move comes to the twin's host: what waits there is the move's from now on.
pub(super) fn yield_to_move(
    view: &View,
    draft: &mut Draft,
    row: &InstanceRecord,
    to: HostId,
) -> Result<(), OpsError> {
    let Some(twin) = view.twins.get(row.id) else { return Ok(()) };
    let Some(place) = twin.record.placed_on(to) else { return Ok(()) };
    if place.epoch > row.epoch + 1 || place.volume.is_some() {
        return Err(OpsError::conflict("its twin there is being made anew; try again"));
    }
    take_over(draft, twin, place);
    Ok(())
}

/// A host is forgotten, and the twins that waited there with it.
pub(super) fn forget_host(view: &View, draft: &mut Draft, host: HostId, most: usize) {
    for twin in view.twins_on(host).take(most) {
        draft.update(twin, &TwinRecord { place: None, why: None, ..(*twin.record).clone() });
    }
}

/// As clients see it; none where the policy asks for none.
pub(super) fn told(view: &View, row: &InstanceRecord) -> Option<Twin> {
    if row.failover != FailoverPolicy::Twin {
        return None;
    }
    let twin = view.twins.get(row.id);
    let place = twin.and_then(|twin| twin.record.place.as_ref());
    let fit = place.is_some_and(|p| view.host_up(p.host));
    Some(Twin {
        host: place.map(|p| p.host),
        host_name: place.and_then(|p| view.host_name(p.host)),
        body: place.map(|p| p.body),
        ready: fit && place.is_some_and(|p| is_ready(view, p)),
        why: twin.and_then(|twin| twin.why.clone()),
        fault: place.and_then(|p| p.fault.clone()),
    })
}

/// Whether a start is all that it lacks.
pub(super) fn is_ready(view: &View, place: &TwinPlace) -> bool {
    let made = |(id, _)| view.volumes.get(id).is_some_and(|volume| volume.made);
    place.ready && place.volume.is_none_or(made)
}
