//! Maintenance: a host is emptied by moves, so many at a time, and takes nothing new. The order is in the host's record;
//! a task makes it true, and re-reads the world each time.

use super::moves::{MoveWish, ordered};
use super::{Draft, Ops, OpsError, Row, View};
use crate::model::*;
use amphi_api::host::{EvacuationRefused, Host, Maintenance, MaintenanceCreate};
use amphi_api::instance::{ExchangePhase, MoveCause};
use amphi_api::{HostId, InstanceId, validate};
use jiff::{SignedDuration, Timestamp};

const AT_A_TIME: u32 = 2;
const AT_A_TIME_MAX: u32 = 64;
/// An instance whose move failed is tried again after this.
const AGAIN: SignedDuration = SignedDuration::from_secs(60);

impl Ops {
    /// Orders a host empty. Ordered again, it takes the new reason and number.
    pub async fn begin_maintenance(&self, id: HostId, request: &MaintenanceCreate) -> Result<Host, OpsError> {
        validate::name("reason", &request.reason)?;
        let at_a_time = request.at_a_time.unwrap_or(AT_A_TIME);
        validate::within("at_a_time", at_a_time.into(), 1, AT_A_TIME_MAX.into(), "")?;
        self.transact_room(|view| {
            let row = view.hosts.get(id).ok_or_else(|| OpsError::not_found::<HostRecord>(id))?;
            let since = row.maintenance.as_ref().map_or_else(Timestamp::now, |m| m.since);
            let maintenance = MaintenanceRecord { since, reason: request.reason.clone(), at_a_time };
            let mut draft = Draft::default();
            draft.update(row, &HostRecord { maintenance: Some(maintenance), ..(*row.record).clone() });
            Ok((draft, ()))
        })
        .await?;
        self.host(id)
    }

    /// The host takes instances again. Moves that have not begun to leave are called off.
    pub async fn end_maintenance(&self, id: HostId) -> Result<(), OpsError> {
        self.transact_room(|view| {
            let row = view.hosts.get(id).ok_or_else(|| OpsError::not_found::<HostRecord>(id))?;
            if row.maintenance.is_none() {
                return Err(OpsError::conflict(format!("host '{}' is not in maintenance", row.name)));
            }
            let mut draft = Draft::default();
            draft.update(row, &HostRecord { maintenance: None, ..(*row.record).clone() });
            let mine = |e: &&Row<ExchangeRecord>| {
                matches!(e.phase, ExchangePhase::Preparing | ExchangePhase::CopyingAhead)
                    && e.journey.as_ref().is_some_and(|j| j.from == id && j.cause == MoveCause::Maintenance)
            };
            for exchange in moves_from(view, id).into_iter().filter(mine) {
                draft.update(exchange, &ExchangeRecord { cancelled: true, ..(*exchange.record).clone() });
            }
            Ok((draft, ()))
        })
        .await
    }

    /// Orders the next moves away from every host in maintenance. For the task.
    pub async fn step_maintenance(&self) -> Result<(), OpsError> {
        let hosts: Vec<(HostId, u32)> = {
            let view = self.world().read();
            let row = |h: &Row<HostRecord>| Some((h.id, h.maintenance.as_ref()?.at_a_time));
            view.hosts.iter().filter_map(row).collect()
        };
        for (host, at_a_time) in hosts {
            let waiting: Vec<InstanceId> = {
                let view = self.world().read();
                view.instances_on(host).filter(|row| row.exchange.is_none()).map(|row| row.id).collect()
            };
            for id in waiting {
                let more = self.transact_room(|view| {
                    let maintenance = view.hosts.get(host).and_then(|h| h.maintenance.clone());
                    let (Some(maintenance), Some(row)) = (maintenance, view.instances.get(id)) else {
                        return Ok((Draft::default(), true));
                    };
                    if moves_from(view, host).len() >= at_a_time as usize {
                        return Ok((Draft::default(), false));
                    }
                    let now = Timestamp::now();
                    if row.host != Some(host) || row.exchange.is_some() || failed_lately(view, id, now) {
                        return Ok((Draft::default(), true));
                    }
                    match ordered(view, row, &wish(&maintenance), now) {
                        Ok((draft, _)) => Ok((draft, true)),
                        // Told in the host's view; tried again at the next look.
                        Err(_) => Ok((Draft::default(), true)),
                    }
                });
                if !more.await? {
                    break;
                }
            }
        }
        Ok(())
    }
}

fn wish(maintenance: &MaintenanceRecord) -> MoveWish {
    MoveWish {
        to: None,
        kind: None,
        live: None,
        ahead: None,
        deadline_s: None,
        reason: maintenance.reason.clone(),
        cause: MoveCause::Maintenance,
    }
}

/// Moves under way from the host.
fn moves_from(view: &View, host: HostId) -> Vec<&Row<ExchangeRecord>> {
    view.journeys_of(host).filter(|e| e.journey.as_ref().is_some_and(|j| j.from == host)).collect()
}

fn failed_lately(view: &View, id: InstanceId, now: Timestamp) -> bool {
    let last = view.exchanges.iter().rev().find(|e| e.instance == id && e.ended());
    let failed = last.filter(|e| e.phase == ExchangePhase::Failed && e.journey.is_some());
    failed.and_then(|e| e.ended_at).is_some_and(|at| now.duration_since(at) < AGAIN)
}

/// How far the host is from being empty.
pub(super) fn progress(view: &View, host: &HostRecord) -> Option<Maintenance> {
    let order = host.maintenance.as_ref()?;
    let now = Timestamp::now();
    let rows: Vec<_> = view.instances_on(host.id).collect();
    let held = rows.iter().filter(|row| row.exchange.is_none()).filter_map(|row| {
        let reason = match ordered(view, row, &wish(order), now) {
            Err(error) => error.to_string(),
            Ok(_) if failed_lately(view, row.id, now) => "its last move failed; it is tried again".into(),
            Ok(_) => return None,
        };
        Some(EvacuationRefused { instance: row.id, name: row.name.clone(), reason })
    });
    let moving = moves_from(view, host.id);
    // Those that have left and are not yet buried here still count as left.
    let gone = moving.iter().filter(|e| !rows.iter().any(|row| row.id == e.instance));
    let leaving = gone.filter(|e| e.phase == ExchangePhase::Leaving).count();
    Some(Maintenance {
        since: order.since,
        reason: order.reason.clone(),
        at_a_time: order.at_a_time,
        left: (rows.len() + leaving) as u32,
        moving: moving.len() as u32,
        held: held.collect(),
    })
}
