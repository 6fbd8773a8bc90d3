//! Planned moves between hosts: the order, the commits of its phases, and calling it off. A move is an exchange with a
//! journey (`exchanges.rs` steps both).
//!
//! Room is claimed on both hosts from the order to the end. What an instance has on its host's disks does not travel:
//! one with a volume or a root disk of its own is refused by name.

use super::asked::request_of;
use super::list::find;
use super::orders::{entomb, instance_claims};
use super::servers::{Origin, has_root_disk, note};
use super::{Draft, Ops, OpsError, Row, View, resolve};
use crate::model::*;
use crate::scheduler::Request;
use amphi_api::instance::{BodyKind, Exchange, ExchangePhase, MoveCause, MoveCreate};
use amphi_api::wire::Tombstone;
use amphi_api::{ExchangeId, HostId, InstanceId, ProjectId};
use jiff::Timestamp;

/// What is asked of a move, hosts looked up.
#[derive(Clone, Debug)]
pub(super) struct MoveWish {
    pub to: Option<HostId>,
    pub kind: Option<BodyKind>,
    pub reason: String,
    pub cause: MoveCause,
}

impl Ops {
    pub async fn create_move(
        &self,
        scope: ProjectId,
        id: InstanceId,
        request: &MoveCreate,
    ) -> Result<Exchange, OpsError> {
        request.check()?;
        let exchange = self
            .transact_room(|view| {
                let row = find(&view.instances, scope, id)?;
                let to = request.to.as_deref().map(|text| resolve::host(view, "to", text)).transpose()?;
                let wish = MoveWish {
                    to: to.map(|host| host.id),
                    kind: request.kind,
                    reason: request.reason.clone(),
                    cause: MoveCause::Order,
                };
                ordered(view, row, &wish, Timestamp::now())
            })
            .await?;
        self.exchange(scope, exchange)
    }

    /// Calls an exchange or a move off: it ends as failed, with the old body where it was.
    pub async fn cancel_exchange(&self, scope: ProjectId, id: ExchangeId) -> Result<Exchange, OpsError> {
        self.transact(|view| {
            let row = find(&view.exchanges, scope, id)?;
            if row.ended() {
                return Err(OpsError::conflict("it has ended already"));
            }
            if matches!(row.phase, ExchangePhase::Returning | ExchangePhase::RollingBack) {
                return Err(OpsError::conflict("it is going back already"));
            }
            let mut draft = Draft::default();
            if !row.cancelled {
                draft.update(row, &ExchangeRecord { cancelled: true, ..(*row.record).clone() });
            }
            Ok((draft, ()))
        })
        .await?;
        self.exchange(scope, id)
    }
}

/// The order in one commit, or why not.
pub(super) fn ordered(
    view: &View,
    row: &Row<InstanceRecord>,
    wish: &MoveWish,
    now: Timestamp,
) -> Result<(Draft, ExchangeId), OpsError> {
    let from = movable(view, row)?;
    let kind = wish.kind.unwrap_or(row.body);
    let body = row.body_of(kind).cloned().ok_or_else(|| {
        OpsError::field("kind", format!("the instance lists no {kind}; exchange it with a body first"))
    })?;
    if wish.to == Some(from) {
        let here = view.host_name(from).unwrap_or_default();
        return Err(OpsError::field("to", format!("the instance is on '{here}' already")));
    }
    let request = Request {
        bodies: vec![kind],
        images: body.images.clone(),
        pinned: wish.to,
        excluded: vec![from],
        ..request_of(view, row)
    };
    let to = view.fleet.place(&request)?.host;
    if view.tombstones.get(stone(to, row.id)).is_some() {
        let name = view.host_name(to).unwrap_or_default();
        return Err(OpsError::conflict(format!(
            "host '{name}' is still clearing away what it has of the instance; try again"
        )));
    }
    let record = ExchangeRecord {
        id: ExchangeId::new(),
        project: row.project,
        instance: row.id,
        from: row.body,
        to: kind,
        body,
        added: false,
        journey: Some(JourneyRecord {
            from,
            to,
            reason: wish.reason.clone(),
            cause: wish.cause,
            ready: false,
            fault: None,
            left_at: None,
        }),
        cancelled: false,
        phase: ExchangePhase::Preparing,
        phase_since: now,
        outage_ms: None,
        fault: None,
        started_at: now,
        ended_at: None,
    };
    let mut draft = Draft::default();
    draft.create(&record);
    draft.claim(to, instance_claims(row));
    // Both hosts as they were when this was decided: up, and open.
    view.hosts.get(to).into_iter().for_each(|host| draft.guard(host));
    if let Some(group) = row.server.group.and_then(|id| view.server_groups.get(id)) {
        // Whoever places another member at the same time must look again.
        draft.touch(group);
    }
    note(&mut draft, &Origin::native(row.project), row, "migrate", "compute_prep_resize", now);
    let moved = InstanceRecord { exchange: Some(record.id), updated_at: now, ..(*row.record).clone() };
    draft.update(row, &moved);
    Ok((draft, record.id))
}

/// The host that it can leave.
pub(super) fn movable(view: &View, row: &InstanceRecord) -> Result<HostId, OpsError> {
    if row.intent == Intent::Deleting {
        return Err(OpsError::conflict("the instance is being deleted"));
    }
    if let Some(other) = row.exchange {
        return Err(OpsError::conflict(format!("exchange {other} is in progress; wait for its end")));
    }
    let from = row.host.ok_or_else(|| OpsError::conflict("no host has room for the instance"))?;
    if !view.host_up(from) {
        let name = view.host_name(from).unwrap_or_default();
        return Err(OpsError::conflict(format!("host '{name}' does not answer; evacuate it")));
    }
    if row.shelved.is_some() {
        return Err(OpsError::conflict("the instance is shelved; unshelve it"));
    }
    if row.resize.is_some() {
        return Err(OpsError::conflict("its resize waits to be confirmed or reverted"));
    }
    if let Some(pending) = &row.task {
        return Err(OpsError::conflict(format!("it is {}; wait for its end", pending.task.word())));
    }
    if let Some(volume) = row.volumes().next() {
        return Err(OpsError::conflict(format!(
            "the instance cannot leave its host: volume {volume} is there, and a volume's bytes do not move yet"
        )));
    }
    if has_root_disk(view, row) {
        return Err(OpsError::conflict("the instance cannot leave its host: its root disk is there"));
    }
    Ok(from)
}

fn stone(host: HostId, id: InstanceId) -> TombstoneKey {
    TombstoneKey::of(host, Tombstone::Instance { id, epoch: 0 })
}

/// Both hosts as the next step's decision sees them.
pub(super) fn journey_sight<'a>(
    view: &View,
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
    if exchange.phase == ExchangePhase::Preparing {
        entomb(view, draft, other, Tombstone::Instance { id: row.id, epoch: row.epoch + 1 }, now);
    }
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
