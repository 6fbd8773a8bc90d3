//! Exchanges: the order, and the step that the task takes with each. All state is in the records: a step decided twice
//! is taken once.

use super::list::find;
use super::move_ends::{go, journey_sight, settle};
use super::move_volumes::{read_volumes, take_volumes};
use super::moves::migrates;
use super::{Draft, ListQuery, Ops, OpsError, Row, View, resolve, sights};
use crate::model::*;
use crate::scheduler::{Request, place};
use amphi_api::instance::{BodyKind, Exchange, ExchangeCreate, ExchangePhase, Fault};
use amphi_api::{ExchangeId, InstanceId, ProjectId};
use jiff::Timestamp;

impl Ops {
    pub async fn create_exchange(
        &self,
        scope: ProjectId,
        id: InstanceId,
        request: &ExchangeCreate,
    ) -> Result<Exchange, OpsError> {
        request.check()?;
        let exchange = self
            .transact(|view| {
                let row = find(&view.instances, scope, id)?;
                let mut draft = Draft::default();
                let record = ordered(view, scope, row, request, &mut draft, Timestamp::now())?;
                self.refuse_unfit(view, row, &record.body)?;
                draft.create(&record);
                draft.update(
                    row,
                    &InstanceRecord {
                        exchange: Some(record.id),
                        updated_at: record.started_at,
                        ..(*row.record).clone()
                    },
                );
                Ok((draft, record.id))
            })
            .await?;
        self.exchange(scope, exchange)
    }

    /// The instance's host must be up and have the engines; its room is claimed already.
    fn refuse_unfit(&self, view: &View, row: &InstanceRecord, to: &BodyRecord) -> Result<(), OpsError> {
        let request = Request {
            bodies: vec![to.kind()],
            guest_kit: super::asked::wants_kit(std::slice::from_ref(to)),
            pinned: row.host,
            network: !row.ports.is_empty(),
            volume: row.volume.is_some(),
            ..Request::default()
        };
        let hosts: Vec<_> = sights(view).into_iter().filter(|h| Some(h.id) == row.host).collect();
        place(&hosts, &request, self.policy())?;
        Ok(())
    }

    pub fn exchange(&self, scope: ProjectId, id: ExchangeId) -> Result<Exchange, OpsError> {
        let view = self.world().read();
        Ok(find(&view.exchanges, scope, id)?.view(|host| view.host_name(host).unwrap_or_default()))
    }

    /// All of the project, or those of one instance.
    pub fn exchanges(
        &self,
        scope: ProjectId,
        instance: Option<InstanceId>,
        query: &ListQuery,
    ) -> Result<Vec<Exchange>, OpsError> {
        let view = self.world().read();
        if let Some(id) = instance {
            find(&view.instances, scope, id)?;
        }
        let rows = query.rows(&view.exchanges, scope, |e| instance.is_none_or(|id| e.instance == id))?;
        let name = |host| view.host_name(host).unwrap_or_default();
        Ok(rows.into_iter().map(|row| row.view(name)).collect())
    }

    /// Takes the next step of every exchange in progress; forgets those of instances that are gone. For the task.
    pub async fn step_exchanges(&self) -> Result<(), OpsError> {
        let open: Vec<ExchangeId> = {
            let view = self.world().read();
            let now = Timestamp::now();
            let acts = |e: &&Row<ExchangeRecord>| {
                view.instances.get(e.instance).is_none() || next_step(&view, e, now) != ExchangeStep::Wait
            };
            view.exchanges.iter().filter(acts).map(|e| e.id).collect()
        };
        for id in open {
            self.transact_room(|view| Ok((step(view, id, Timestamp::now()), ()))).await?;
        }
        self.forget_moved_bytes().await
    }
}

fn ordered(
    view: &View,
    scope: ProjectId,
    row: &InstanceRecord,
    request: &ExchangeCreate,
    draft: &mut Draft,
    now: Timestamp,
) -> Result<ExchangeRecord, OpsError> {
    if row.intent == Intent::Deleting {
        return Err(OpsError::conflict("the instance is being deleted"));
    }
    if let Some(other) = row.exchange {
        return Err(OpsError::conflict(format!("exchange {other} is in progress; wait for its end")));
    }
    if let Some(rolling) = &row.rolling {
        return Err(super::updates::under_way(rolling));
    }
    if row.body == request.to {
        return Err(OpsError::conflict(format!("its body is a {} already", row.body)));
    }
    let listed = row.body_of(request.to);
    // One artifact for both: the set that it runs now, with the same images. Two descriptions of a set that it lists, of
    // which one is out of date, are one too many.
    let same = counterpart(row).filter(|_| listed.is_none_or(|listed| listed.spec.set().is_some()));
    let (body, added) = match (&request.body, listed, same) {
        (None, listed, Some(same)) => (same, listed.is_none()),
        (Some(_), Some(_), _) => {
            return Err(OpsError::field("body", format!("the instance lists a {} already", request.to)));
        }
        // One artifact for both: the set that it runs now, with the same images.
        (None, None, None) => {
            return Err(OpsError::field("body", format!("is missing: the instance lists no {}", request.to)));
        }
        (None, Some(listed), None) => (listed.clone(), false),
        (Some(spec), None, _) => {
            let (body, images) = resolve::body(view, scope, "body", spec)?;
            images.into_iter().for_each(|image| draft.guard(image));
            (body, true)
        }
    };
    Ok(ExchangeRecord {
        id: ExchangeId::new(),
        project: scope,
        instance: row.id,
        from: row.body,
        to: request.to,
        body,
        added,
        journey: None,
        cancelled: false,
        phase: ExchangePhase::Preparing,
        phase_since: now,
        outage_ms: None,
        fault: None,
        started_at: now,
        ended_at: None,
    })
}

/// The body that the instance has, as the other kind; none: it is a VM of its own image.
fn counterpart(row: &InstanceRecord) -> Option<BodyRecord> {
    let own = row.body_of(row.body)?;
    Some(BodyRecord { spec: own.spec.counterpart()?, images: own.images.clone() })
}

fn next_step(view: &View, exchange: &ExchangeRecord, now: Timestamp) -> ExchangeStep {
    let Some(instance) = view.instances.get(exchange.instance) else { return ExchangeStep::Wait };
    if exchange.ended() || instance.exchange != Some(exchange.id) {
        return ExchangeStep::Wait;
    }
    let host = instance.host.and_then(|id| view.hosts.get(id)).filter(|h| h.is_up());
    exchange_step(ExchangeSight {
        exchange,
        instance: &instance.record,
        host_up_since: host.map(|h| h.state_since),
        journey: exchange.journey.as_ref().map(|journey| journey_sight(view, exchange, journey)),
        now,
    })
}

/// The transaction of the next step; empty when there is nothing to do.
fn step(view: &View, id: ExchangeId, now: Timestamp) -> Draft {
    let mut draft = Draft::default();
    let Some(row) = view.exchanges.get(id) else { return draft };
    let Some(instance) = view.instances.get(row.instance) else {
        draft.delete(row);
        return draft;
    };
    match next_step(view, row, now) {
        ExchangeStep::Wait => {}
        ExchangeStep::Cross => {
            draft.update(row, &row.entering(ExchangePhase::Crossing, now));
            migrates(view, &mut draft, row, "running", now);
        }
        ExchangeStep::Recall(fault) => {
            let journey = row.journey.clone().map(|j| JourneyRecord { recalled: Some(fault), ..j });
            draft.update(row, &ExchangeRecord { journey, ..(*row.record).clone() });
        }
        ExchangeStep::Land => {
            let Some(journey) = row.journey.clone() else { return draft };
            take_volumes(view, &mut draft, &journey, journey.to);
            let to = journey.to;
            let journey = Some(JourneyRecord { left_at: Some(now), ..journey });
            draft.update(row, &ExchangeRecord { journey, ..row.entering(ExchangePhase::Switching, now) });
            go(view, &mut draft, instance, to, row.to, now);
        }
        ExchangeStep::CopyAhead => {
            draft.update(row, &row.entering(ExchangePhase::CopyingAhead, now));
        }
        ExchangeStep::Stop => {
            let journey = row.journey.clone().map(|j| JourneyRecord { left_at: Some(now), ..j });
            draft.update(row, &ExchangeRecord { journey, ..row.entering(ExchangePhase::Stopping, now) });
        }
        ExchangeStep::Copy => {
            let Some(journey) = row.journey.clone() else { return draft };
            let journey = Some(match journey.copy {
                // The old host reads them, and sends them itself.
                Some(_) => journey,
                None => read_volumes(view, &mut draft, &journey, now),
            });
            draft.update(row, &ExchangeRecord { journey, ..row.entering(ExchangePhase::Copying, now) });
        }
        ExchangeStep::Ship { read } => {
            let Some(journey) = row.journey.clone() else { return draft };
            let journey = Some(JourneyRecord { read, ..journey });
            draft.update(row, &ExchangeRecord { journey, ..(*row.record).clone() });
        }
        ExchangeStep::Leave => {
            let Some(journey) = row.journey.clone() else { return draft };
            take_volumes(view, &mut draft, &journey, journey.to);
            let leaving = row.entering(ExchangePhase::Leaving, now);
            let to = journey.to;
            let journey = Some(JourneyRecord { left_at: journey.left_at.or(Some(now)), ..journey });
            draft.update(row, &ExchangeRecord { journey, ..leaving });
            go(view, &mut draft, instance, to, row.to, now);
        }
        ExchangeStep::Switch if row.journey.is_some() => {
            draft.update(row, &row.entering(ExchangePhase::Switching, now));
        }
        ExchangeStep::Return(fault) => {
            let Some(journey) = &row.journey else { return draft };
            take_volumes(view, &mut draft, journey, journey.from);
            let back = row.entering(ExchangePhase::Returning, now);
            draft.update(row, &ExchangeRecord { fault: Some(fault), ..back });
            go(view, &mut draft, instance, journey.from, row.from, now);
        }
        ExchangeStep::Resume => {
            draft.update(row, &row.entering(ExchangePhase::RollingBack, now));
        }
        ExchangeStep::Switch => {
            draft.update(row, &row.entering(ExchangePhase::Switching, now));
            let mut record = next_epoch(instance, row.to, now);
            match record.bodies.iter_mut().find(|body| body.kind() == row.to) {
                // A set's may have been changed since it was listed.
                Some(listed) if listed.spec.set().is_some() => *listed = row.record.body.clone(),
                Some(_) => {}
                None => record.bodies.push(row.record.body.clone()),
            }
            draft.update(instance, &record);
        }
        ExchangeStep::Done { outage_ms } => {
            let done = row.entering(ExchangePhase::Done, now);
            draft.update(row, &ExchangeRecord { outage_ms, ..done });
            migrates(view, &mut draft, row, "completed", now);
            settle(view, &mut draft, row, instance, now);
            draft.update(instance, &free(instance, now));
        }
        ExchangeStep::RollBack(fault) => {
            let back = row.entering(ExchangePhase::RollingBack, now);
            draft.update(row, &ExchangeRecord { fault: Some(fault), ..back });
            let mut record = next_epoch(instance, row.from, now);
            if row.added {
                record.bodies.retain(|body| body.kind() != row.to);
            }
            draft.update(instance, &record);
        }
        ExchangeStep::Fail(fault) => {
            let word = if row.cancelled { "cancelled" } else { "error" };
            migrates(view, &mut draft, row, word, now);
            draft.update(row, &failed(row, fault, now));
            settle(view, &mut draft, row, instance, now);
            draft.update(instance, &free(instance, now));
        }
    }
    draft
}

fn next_epoch(instance: &InstanceRecord, body: BodyKind, now: Timestamp) -> InstanceRecord {
    InstanceRecord { epoch: instance.epoch + 1, body, updated_at: now, ..instance.clone() }
}

fn free(instance: &InstanceRecord, now: Timestamp) -> InstanceRecord {
    InstanceRecord { exchange: None, updated_at: now, ..instance.clone() }
}

fn failed(row: &ExchangeRecord, fault: Fault, now: Timestamp) -> ExchangeRecord {
    ExchangeRecord { fault: Some(fault), ..row.entering(ExchangePhase::Failed, now) }
}
