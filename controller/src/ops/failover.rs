//! Failovers: a host is taken for dead, the network bars it, its instances leave by ascending priority, and it is let in
//! again when it has buried what left. Every step looks at the records alone; one that was decided twice is taken once.
//!
//! Refuses to judge whether a host is dead, and to know how the network bars it.

use super::exodus::Exodus;
use super::{Draft, Ops, OpsError, Row, View};
use crate::model::*;
use crate::network::Barred;
use amphi_api::failover::{Failover, FailoverCause, FailoverFate, FailoverPhase, FenceReport};
use amphi_api::host::HostState;
use amphi_api::instance::FailoverPolicy;
use amphi_api::{FailoverId, HostId, InstanceId};
use jiff::Timestamp;
use std::collections::BTreeSet;

impl Ops {
    /// Takes a host for dead: it is down, to be barred, and a failover is open. One that is so already stays as it is.
    pub async fn condemn(
        &self,
        host: HostId,
        cause: FailoverCause,
        fence: Option<FenceReport>,
    ) -> Result<(), OpsError> {
        let heard_at = self.heard_at(host);
        self.transact(|view| {
            let mut draft = Draft::default();
            let row = view.hosts.get(host).ok_or_else(|| OpsError::not_found::<HostRecord>(host))?;
            if row.barred_since.is_none() {
                condemn(view, &mut draft, row, cause, fence.clone(), heard_at, Timestamp::now());
            }
            Ok((draft, ()))
        })
        .await?;
        self.links.end(host);
        Ok(())
    }

    /// The hosts that have to be shut out now.
    pub fn barred(&self) -> BTreeSet<Barred> {
        let view = self.world().read();
        let barred = view.hosts.iter().filter(|h| h.barred_since.is_some());
        barred
            .filter_map(|h| {
                let spec = h.spec.as_ref()?;
                Some(Barred { host: h.id, chassis: spec.chassis.clone(), address: spec.address.clone() })
            })
            .collect()
    }

    /// Whether a failover waits for the network to shut its host out.
    pub fn bars_are_awaited(&self) -> bool {
        self.world().read().failovers.iter().any(|f| f.phase == FailoverPhase::Barring)
    }

    /// What waited for these hosts to be shut out goes on, if they are. Without that, only hosts go on that are off for
    /// sure, and those that never had a place in the network.
    pub async fn are_barred(&self, barred: &BTreeSet<Barred>, shut_out: bool) -> Result<(), OpsError> {
        if !self.bars_are_awaited() {
            return Ok(());
        }
        self.transact(|view| {
            let mut draft = Draft::default();
            for row in view.failovers.iter().filter(|f| f.phase == FailoverPhase::Barring) {
                let out = shut_out && barred.iter().any(|b| b.host == row.host);
                let nowhere = view.hosts.get(row.host).is_none_or(|h| h.spec.is_none());
                if !out && !nowhere && row.cause != FailoverCause::Fenced {
                    continue;
                }
                let mut record = (*row.record).clone();
                record.0.phase = FailoverPhase::Moving;
                record.0.barred_at = out.then(Timestamp::now);
                draft.update(row, &record);
            }
            Ok((draft, ()))
        })
        .await
    }

    /// Whether the host may be taken for dead: it is known, it has been here, and is not taken so already.
    pub fn may_condemn(&self, host: HostId) -> bool {
        let view = self.world().read();
        view.hosts.get(host).is_some_and(|h| h.barred_since.is_none() && h.spec.is_some())
    }

    /// Every host that has been here: its name, whether its link stands, whether it is barred.
    pub fn presence(&self) -> Vec<(HostId, String, bool, bool)> {
        let view = self.world().read();
        let hosts = view.hosts.iter().filter(|h| h.spec.is_some());
        hosts
            .map(|h| {
                let linked = h.is_up() && self.links.is_linked(h.id);
                (h.id, h.name.clone(), linked, h.barred_since.is_some())
            })
            .collect()
    }

    /// Failovers with instances to move. `again`: also where those are that found no room before.
    pub fn failovers_to_move(&self, again: bool) -> Vec<FailoverId> {
        let view = self.world().read();
        let open = view.failovers.iter().filter(|f| {
            f.returned_at.is_none()
                && match f.phase {
                    FailoverPhase::Moving => true,
                    FailoverPhase::Starting | FailoverPhase::Done => !todo(&view, f, again).is_empty(),
                    FailoverPhase::Barring => false,
                }
        });
        open.map(|f| f.id).collect()
    }

    /// Decides on every instance of the failover's host that is not decided on, those that found no room included if
    /// `again`. A few share a commit.
    pub async fn move_away(&self, id: FailoverId, again: bool) -> Result<(), OpsError> {
        let mut tried = BTreeSet::new();
        loop {
            let (done, now_tried) = self
                .transact_room(|view| Ok(self.next_moves(view, id, again, &tried, Timestamp::now())))
                .await?;
            tried.extend(now_tried);
            if done {
                return Ok(());
            }
        }
    }

    /// The next commit, whether it is the last, and whom it looked at.
    fn next_moves(
        &self,
        view: &View,
        id: FailoverId,
        again: bool,
        tried: &BTreeSet<InstanceId>,
        now: Timestamp,
    ) -> (Draft, (bool, Vec<InstanceId>)) {
        let nothing = (Draft::default(), (true, Vec::new()));
        let Some(row) = view.failovers.get(id) else { return nothing };
        if row.returned_at.is_some() || view.hosts.get(row.host).is_none_or(|h| h.barred_since.is_none()) {
            return nothing;
        }
        let mut record = (*row.record).clone();
        let mut exodus = Exodus::new(view, self.policy(), row.host, now);
        let mut left: Vec<_> =
            todo(view, row, again).into_iter().filter(|i| !tried.contains(&i.id)).collect();
        let mut taken = Vec::new();
        while !exodus.is_full() && !left.is_empty() {
            let instance = left.remove(0);
            record.set(exodus.take(instance));
            taken.push(instance.id);
        }
        let done = left.is_empty();
        if done && record.phase == FailoverPhase::Moving {
            record.0.phase = FailoverPhase::Starting;
            record.0.moved_at = Some(now);
        } else if record.phase == FailoverPhase::Done && record != *row.record {
            record.0.phase = FailoverPhase::Starting;
            record.0.ended_at = None;
        }
        if record == *row.record {
            return (Draft::default(), (done, taken));
        }
        let mut draft = exodus.draft;
        draft.update(row, &record);
        (draft, (done, taken))
    }

    /// Writes down which bodies run by now, and which failovers are over.
    pub async fn watch_failovers(&self) -> Result<(), OpsError> {
        let news: Vec<FailoverId> = {
            let view = self.world().read();
            let open = view.failovers.iter().filter(|f| f.phase == FailoverPhase::Starting);
            open.filter(|f| seen(&view, f) != *f.record).map(|f| f.id).collect()
        };
        for id in news {
            self.transact(|view| {
                let mut draft = Draft::default();
                if let Some(row) = view.failovers.get(id) {
                    let record = seen(view, row);
                    if record != *row.record {
                        draft.update(row, &record);
                    }
                }
                Ok((draft, ()))
            })
            .await?;
        }
        Ok(())
    }

    /// Barred hosts that are connected again and have buried what left them.
    pub fn returned_hosts(&self) -> Vec<HostId> {
        let view = self.world().read();
        view.hosts.iter().filter(|h| has_returned(&view, h)).map(|h| h.id).collect()
    }

    /// Lets a host in that has come back; false if it must wait after all.
    pub async fn let_in(&self, host: HostId) -> Result<bool, OpsError> {
        self.transact(|view| {
            let mut draft = Draft::default();
            let now = Timestamp::now();
            let mut is_in = false;
            if let Some(row) = view.hosts.get(host).filter(|row| has_returned(view, row)) {
                draft.update(row, &HostRecord { barred_since: None, ..(*row.record).clone() });
                is_in = true;
                for row in view.failovers.iter().filter(|f| f.host == host && f.returned_at.is_none()) {
                    let mut record = (*row.record).clone();
                    record.0.returned_at = Some(now);
                    draft.update(row, &record.seen(|id| view.instances.get(id).map(|r| &*r.record), now));
                }
            }
            Ok((draft, is_in))
        })
        .await
    }

    /// The newest first; of one host, or of all.
    pub fn failovers(&self, host: Option<HostId>) -> Vec<Failover> {
        let view = self.world().read();
        let rows = view.failovers.iter().rev().filter(|f| host.is_none_or(|host| f.host == host));
        rows.map(|f| f.record.0.clone()).collect()
    }

    pub fn failover(&self, id: FailoverId) -> Result<Failover, OpsError> {
        let view = self.world().read();
        let row = view.failovers.get(id).ok_or_else(|| OpsError::not_found::<FailoverRecord>(id))?;
        Ok(row.record.0.clone())
    }
}

pub(super) fn condemn(
    view: &View,
    draft: &mut Draft,
    row: &Row<HostRecord>,
    cause: FailoverCause,
    fence: Option<FenceReport>,
    heard_at: Option<Timestamp>,
    now: Timestamp,
) -> FailoverId {
    let since = if row.is_up() { now } else { row.state_since };
    draft.update(
        row,
        &HostRecord {
            state: HostState::Down,
            state_since: since,
            barred_since: Some(now),
            ..(*row.record).clone()
        },
    );
    let record = FailoverRecord(Failover {
        id: FailoverId::new(),
        host: row.id,
        host_name: row.name.clone(),
        cause,
        // An order does not wait: whoever gives it has seen to it that the host is dead.
        phase: if cause == FailoverCause::Ordered { FailoverPhase::Moving } else { FailoverPhase::Barring },
        heard_at,
        decided_at: now,
        fence,
        barred_at: None,
        moved_at: None,
        ended_at: None,
        returned_at: None,
        instances: Vec::new(),
    });
    draft.create(&record);
    let over = view.failovers.iter().filter(|f| f.is_closed());
    let excess = view.failovers.len().saturating_sub(FAILOVERS_KEPT).min(super::status::CHUNK);
    over.take(excess).for_each(|old| draft.delete(old));
    record.0.id
}

/// Instances of the host to be decided on, the most urgent first.
fn todo<'a>(view: &'a View, failover: &FailoverRecord, again: bool) -> Vec<&'a Row<InstanceRecord>> {
    let open = |row: &&Row<InstanceRecord>| match failover.of(row.id).map(|told| &told.fate) {
        None => true,
        // Its policy does not change by itself, its volume does not come by itself.
        Some(FailoverFate::Refused { .. }) => again && row.failover != FailoverPolicy::Never,
        Some(FailoverFate::Moved { .. } | FailoverFate::Gone) => true,
        Some(FailoverFate::Waiting { .. }) => false,
    };
    let mut rows: Vec<_> = view.instances_on(failover.host).filter(open).collect();
    rows.sort_by_key(|row| (row.failover_terms.priority, row.id));
    rows
}

fn seen(view: &View, failover: &FailoverRecord) -> FailoverRecord {
    failover.seen(|id| view.instances.get(id).map(|row| &*row.record), Timestamp::now())
}

/// Connected since it was barred, with nothing left to bury, and nothing still being decided about it.
fn has_returned(view: &View, host: &HostRecord) -> bool {
    let undecided = |f: &Row<FailoverRecord>| {
        f.host == host.id && matches!(f.phase, FailoverPhase::Barring | FailoverPhase::Moving)
    };
    host.barred_since.is_some()
        && host.is_up()
        && view.tombstones_on(host.id).next().is_none()
        && !view.failovers.iter().any(undecided)
}
