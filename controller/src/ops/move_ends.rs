//! How a move goes over and how it ends: both hosts as the next step sees them, the commits that give the instance to the
//! other host, and what is left to clear away where it is not.

use super::move_volumes::carrier;
use super::orders::{entomb, instance_claims};
use super::volumes::room;
use super::{Draft, Row, View};
use crate::model::*;
use amphi_api::failover::FailoverPhase;
use amphi_api::instance::{BodyKind, ExchangePhase};
use amphi_api::wire::Tombstone;
use amphi_api::{HostId, InstanceId};
use jiff::Timestamp;

pub(super) fn stone(host: HostId, id: InstanceId) -> TombstoneKey {
    TombstoneKey::of(host, Tombstone::Instance { id, epoch: 0 })
}

/// Both hosts as the next step's decision sees them.
pub(super) fn journey_sight<'a>(
    view: &'a View,
    exchange: &ExchangeRecord,
    journey: &'a JourneyRecord,
) -> JourneySight<'a> {
    let up = |id: HostId| view.hosts.get(id).filter(|h| h.is_up()).map(|h| h.state_since);
    // An operator's word that a host is down says that nothing runs there.
    let clear = |id: HostId| {
        view.tombstones.get(stone(id, exchange.instance)).is_none()
            || view.hosts.get(id).is_none_or(|h| h.forced_down && !h.is_up())
    };
    JourneySight {
        journey,
        from_up_since: up(journey.from),
        to_up_since: up(journey.to),
        to_since: view.hosts.get(journey.to).map_or(exchange.phase_since, |h| h.state_since),
        from_clear: clear(journey.from),
        to_clear: clear(journey.to),
        read: journey.volumes.iter().filter(|v| carrier(view, v.image).is_some()).count() as u32,
        read_fault: journey
            .volumes
            .iter()
            .find_map(|v| view.images.get(v.image?)?.record.export.as_ref()?.fault.as_ref()),
    }
}

/// The instance at its next epoch on the other host, with an order for this one to clear it away.
pub(super) fn go(
    view: &View,
    draft: &mut Draft,
    row: &Row<InstanceRecord>,
    to: HostId,
    body: BodyKind,
    now: Timestamp,
) {
    if let Some(here) = row.host {
        entomb(view, draft, here, Tombstone::Instance { id: row.id, epoch: row.epoch }, now);
    }
    let record = InstanceRecord {
        host: Some(to),
        body,
        epoch: row.epoch + 1,
        observed: None,
        updated_at: now,
        ..(*row.record).clone()
    };
    draft.update(row, &record);
}

/// A move ends: the room on the host where the instance is not goes free. One that has not begun to leave has made
/// something ready there, which is cleared away.
pub(super) fn settle(
    view: &View,
    draft: &mut Draft,
    exchange: &ExchangeRecord,
    row: &InstanceRecord,
    now: Timestamp,
) {
    let Some(journey) = &exchange.journey else { return };
    let other = if row.host == Some(journey.from) { journey.to } else { journey.from };
    draft.unclaim(other, instance_claims(row));
    // The bytes that the volume's record does not speak of are a copy, or what the copy was made of.
    for one in &journey.volumes {
        let at = view.volumes.get(one.volume).map_or(row.host, |v| Some(v.host));
        let other = if at == Some(journey.from) { journey.to } else { journey.from };
        draft.unclaim(other, room(one.size_gib));
        // Without either, nothing is made there before the copying.
        let early = journey.live || journey.copy.is_some();
        if early || !matches!(exchange.phase, ExchangePhase::Preparing | ExchangePhase::Stopping) {
            entomb(view, draft, other, Tombstone::Volume { id: one.volume }, now);
        }
    }
    // What is ready there for an epoch that will not be.
    let ready = match exchange.phase {
        phase if has_not_left(phase) => Some(row.epoch + 1),
        ExchangePhase::Leaving if other == journey.to => Some(row.epoch),
        _ => None,
    };
    if let Some(epoch) = ready {
        entomb(view, draft, other, Tombstone::Instance { id: row.id, epoch }, now);
    }
}

pub(super) fn has_not_left(phase: ExchangePhase) -> bool {
    use ExchangePhase::{Copying, CopyingAhead, Crossing, Preparing, Stopping};
    matches!(phase, Preparing | Crossing | CopyingAhead | Stopping | Copying)
}

/// The epoch of an instance that goes elsewhere than it was about to: the next one may be ready on the host that it was
/// to go to, and is cleared away there, perhaps beside the body that now comes.
pub(super) fn epoch_elsewhere(view: &View, row: &InstanceRecord) -> u64 {
    let exchange = row.exchange.and_then(|id| view.exchanges.get(id));
    let promised = exchange.is_some_and(|e| e.journey.is_some() && has_not_left(e.phase));
    row.epoch + 1 + u64::from(promised)
}

/// The same on a given host: above what an order that waits there would destroy.
pub(super) fn epoch_on(view: &View, row: &InstanceRecord, host: HostId) -> u64 {
    let buried = view.tombstones.get(stone(host, row.id)).map_or(0, |stone| match stone.order {
        Tombstone::Instance { epoch, .. } => epoch,
        Tombstone::Volume { .. } | Tombstone::Snapshot { .. } => 0,
    });
    epoch_elsewhere(view, row).max(buried + 1)
}

/// The other host, on which a body of an earlier epoch may still run: it has not said that it is gone, and is neither shut
/// out nor said to be down.
pub(super) fn still_elsewhere(view: &View, row: &InstanceRecord) -> Option<HostId> {
    let host = where_the_body_is(view, row).filter(|host| row.host != Some(*host))?;
    view.tombstones.get(stone(host, row.id))?;
    let record = view.hosts.get(host)?;
    let barring = |f: &Row<FailoverRecord>| f.host == host && f.phase == FailoverPhase::Barring;
    let shut_out = record.barred_since.is_some() && !view.failovers.iter().any(barring);
    let said_down = record.forced_down && !record.is_up();
    (!shut_out && !said_down).then_some(host)
}

/// A deletion in the middle of a move: the instance belongs to the host on which its body may still be, and goes when
/// that one says so.
pub(super) fn where_the_body_is(view: &View, row: &InstanceRecord) -> Option<HostId> {
    let exchange = row.exchange.and_then(|id| view.exchanges.get(id))?;
    let journey = exchange.journey.as_ref()?;
    match exchange.phase {
        ExchangePhase::Leaving => Some(journey.from),
        ExchangePhase::Returning => Some(journey.to),
        _ => None,
    }
}
