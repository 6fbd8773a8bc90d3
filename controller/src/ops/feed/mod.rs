//! The feed of events: what a commit says has happened, in the order of commits. Bounded; in memory; the same on every
//! controller, since all follow the same commits. A cursor is a commit's revision and a place in it.
//!
//! A controller that starts has the last step of each order, exchange and failover that is kept as a record, in its place,
//! and nothing of what only passes by (states, faults, restarts) from before its start: whoever asks for that is told that
//! some is lost. Refuses to keep anything in the store.

mod told;

use super::identity::Caller;
use super::{Ops, OpsError, View, resolve};
use crate::model::*;
use crate::store::{Change, Event as Stored, Revision};
use amphi_api::events::{Event, EventKind, EventPage};
use amphi_api::{HostId, InstanceId, ProjectId};
use jiff::Timestamp;
use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use told::Told;

/// Most events that are kept.
const KEPT: usize = 10_000;
/// Most events of one answer.
pub const LIMIT_MAX: u32 = 1000;
/// Longest wait for an event, in seconds: below what proxies and clients bear.
pub const WAIT_MAX: u64 = 25;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    revision: Revision,
    place: u32,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.revision, self.place)
    }
}

impl FromStr for Cursor {
    type Err = OpsError;
    fn from_str(text: &str) -> Result<Self, OpsError> {
        let parsed = text.split_once('.').and_then(|(revision, place)| {
            Some(Self { revision: revision.parse().ok()?, place: place.parse().ok()? })
        });
        parsed.ok_or_else(|| OpsError::field("after", format!("'{text}' is no cursor")))
    }
}

#[derive(Clone, Debug)]
struct Kept {
    cursor: Cursor,
    at: Timestamp,
    told: Told,
}

/// What is kept, the oldest first.
#[derive(Debug, Default)]
pub struct Feed {
    kept: VecDeque<Kept>,
    /// Of what lies at or before this, only some is kept.
    floor: Revision,
}

/// What is asked for; all that is none lets everything pass.
#[derive(Clone, Debug, Default)]
pub struct FeedQuery {
    /// A cursor, or `now`.
    pub after: Option<String>,
    pub since: Option<Timestamp>,
    pub instance: Option<InstanceId>,
    /// A host's name or id.
    pub host: Option<String>,
    pub kinds: Vec<EventKind>,
    pub limit: Option<u32>,
    /// How long to wait for the first, in seconds.
    pub wait: u64,
}

struct Wanted {
    after: Option<Cursor>,
    since: Option<Timestamp>,
    instance: Option<InstanceId>,
    host: Option<HostId>,
    kinds: Vec<EventKind>,
    limit: usize,
    project: ProjectId,
    /// Hosts are the operator's business.
    hosts: bool,
}

/// The records that a commit is about, as they were before it.
pub(super) struct Before {
    instances: Vec<(InstanceId, Option<Arc<InstanceRecord>>)>,
    hosts: Vec<(HostId, Option<Arc<HostRecord>>)>,
    actions: Vec<(ActionKey, Option<Arc<ActionRecord>>)>,
    exchanges: Vec<(amphi_api::ExchangeId, Option<Arc<ExchangeRecord>>)>,
    failovers: Vec<(amphi_api::FailoverId, Option<Arc<FailoverRecord>>)>,
}

impl Before {
    pub fn of(view: &View, change: &Change) -> Self {
        let mut before = Self {
            instances: Vec::new(),
            hosts: Vec::new(),
            actions: Vec::new(),
            exchanges: Vec::new(),
            failovers: Vec::new(),
        };
        for event in &change.events {
            let key = match event {
                Stored::Put(entry) => entry.key.as_str(),
                Stored::Deleted { key } => key.as_str(),
            };
            macro_rules! take {
                ($record:ty, $table:ident) => {
                    if let Some(id) = key.strip_prefix(<$record>::PREFIX).and_then(|id| id.parse().ok()) {
                        let row = view.$table.get(id).map(|row| row.record.clone());
                        before.$table.push((id, row));
                        continue;
                    }
                };
            }
            take!(InstanceRecord, instances);
            take!(HostRecord, hosts);
            take!(ActionRecord, actions);
            take!(ExchangeRecord, exchanges);
            take!(FailoverRecord, failovers);
        }
        before
    }

    /// What has happened between then and now.
    fn tell(&self, view: &View) -> Vec<Told> {
        let mut told = Vec::new();
        let host = |id: HostId| view.hosts.get(id).map_or_else(|| id.to_string(), |row| row.name.clone());
        for (id, before) in &self.actions {
            if let Some(now) = view.actions.get(*id) {
                let name = view.instances.get(now.instance).map(|row| row.name.clone());
                told.extend(told::action(before.as_deref(), now, name.unwrap_or_default()));
            }
        }
        for (id, before) in &self.instances {
            let now = view.instances.get(*id).map(|row| &*row.record);
            told.extend(told::instance(before.as_deref(), now, &host));
        }
        for (id, before) in &self.exchanges {
            if let Some(now) = view.exchanges.get(*id) {
                let name = view.instances.get(now.instance).map(|row| row.name.clone());
                told.extend(told::exchange(before.as_deref(), now, name.unwrap_or_default(), &host));
            }
        }
        for (id, before) in &self.hosts {
            let now = view.hosts.get(*id).map(|row| &*row.record);
            told.extend(told::host(before.as_deref(), now));
        }
        for (id, before) in &self.failovers {
            if let Some(now) = view.failovers.get(*id) {
                told.extend(told::failover(before.as_deref(), now));
            }
        }
        told
    }
}

impl Feed {
    /// What the records tell of before. `modified`: the commit that wrote each.
    pub(super) fn of_records(view: &View, modified: &[(String, Revision)]) -> Self {
        let host = |id: HostId| view.hosts.get(id).map_or_else(|| id.to_string(), |row| row.name.clone());
        let mut kept: Vec<Kept> = Vec::new();
        for (key, revision) in modified {
            let name =
                |id: InstanceId| view.instances.get(id).map(|row| row.name.clone()).unwrap_or_default();
            let mut last = |at: Timestamp, told: Vec<Told>| {
                // Its last step: the earlier ones were written over.
                let told = told.into_iter().next_back();
                let cursor = Cursor { revision: *revision, place: 0 };
                kept.extend(told.map(|told| Kept { cursor, at, told }));
            };
            if let Some(id) =
                key.strip_prefix(ActionRecord::PREFIX).and_then(|id| id.parse::<ActionKey>().ok())
            {
                if let Some(row) = view.actions.get(id) {
                    last(row.updated_at, told::action(None, row, name(row.instance)));
                }
            } else if let Some(row) = id_of::<ExchangeRecord>(key).and_then(|id| view.exchanges.get(id)) {
                last(row.phase_since, told::exchange(None, row, name(row.instance), &host));
            } else if let Some(row) = id_of::<FailoverRecord>(key).and_then(|id| view.failovers.get(id)) {
                last(row.ended_at.unwrap_or(row.decided_at), told::failover(None, row));
            }
        }
        kept.sort_by_key(|kept| kept.cursor);
        let over = kept.len().saturating_sub(KEPT);
        Self { kept: kept.into_iter().skip(over).collect(), floor: view.revision() }
    }

    /// Takes in what a commit says; `view` has it already.
    pub(super) fn take(&mut self, before: &Before, view: &View, now: Timestamp) {
        let revision = view.revision();
        for (place, told) in (1..).zip(before.tell(view)) {
            self.kept.push_back(Kept { cursor: Cursor { revision, place }, at: now, told });
        }
        while self.kept.len() > KEPT {
            if let Some(gone) = self.kept.pop_front() {
                self.floor = self.floor.max(gone.cursor.revision);
            }
        }
    }

    fn newest(&self) -> Cursor {
        let floor = Cursor { revision: self.floor, place: 0 };
        self.kept.back().map_or(floor, |kept| kept.cursor.max(floor))
    }

    fn page(&self, wanted: &Wanted) -> EventPage {
        let after = wanted.after.unwrap_or_default();
        let begin = self.kept.partition_point(|kept| kept.cursor <= after);
        let mut next = self.newest().max(after);
        let mut events = Vec::new();
        for kept in self.kept.range(begin..).filter(|kept| wanted.takes(kept)) {
            if events.len() == wanted.limit {
                next = wanted.cursor_of_last(&events).unwrap_or(next);
                break;
            }
            events.push(kept.event());
        }
        EventPage {
            events,
            next: next.to_string(),
            lost: wanted.after.is_some_and(|a| a.revision < self.floor),
        }
    }
}

fn id_of<R: Record>(key: &str) -> Option<R::Id> {
    key.strip_prefix(R::PREFIX)?.parse().ok()
}

impl Kept {
    fn event(&self) -> Event {
        let Told { kind, instance, host, name, member, message, .. } = self.told.clone();
        Event { cursor: self.cursor.to_string(), at: self.at, kind, instance, host, name, member, message }
    }
}

impl Wanted {
    fn takes(&self, kept: &Kept) -> bool {
        let told = &kept.told;
        let seen = match told.project {
            Some(project) => project == self.project,
            None => self.hosts,
        };
        seen && self.since.is_none_or(|since| kept.at >= since)
            && self.instance.is_none_or(|instance| told.instance == Some(instance))
            && self.host.is_none_or(|host| told.host == Some(host))
            && (self.kinds.is_empty() || self.kinds.contains(&told.kind))
    }

    fn cursor_of_last(&self, events: &[Event]) -> Option<Cursor> {
        events.last()?.cursor.parse().ok()
    }
}

impl Ops {
    /// What has happened, as far as the caller may see it; waits for something where nothing has yet.
    pub async fn events(&self, caller: &Caller, query: &FeedQuery) -> Result<EventPage, OpsError> {
        if query.limit.is_some_and(|limit| limit == 0 || limit > LIMIT_MAX) {
            return Err(OpsError::field("limit", format!("must be 1 to {LIMIT_MAX}")));
        }
        if query.wait > WAIT_MAX {
            return Err(OpsError::field("wait", format!("must be 0 to {WAIT_MAX}")));
        }
        let now = query.after.as_deref() == Some("now");
        let host = match &query.host {
            Some(text) => Some(resolve::host(&self.world().read(), "host", text)?.id),
            None => None,
        };
        let after = match &query.after {
            Some(_) if now => Some(self.world().feed().newest()),
            Some(text) => Some(text.parse()?),
            None => None,
        };
        let wanted = Wanted {
            after,
            since: query.since,
            instance: query.instance,
            host,
            kinds: query.kinds.clone(),
            limit: query.limit.unwrap_or(LIMIT_MAX) as usize,
            project: caller.project()?,
            hosts: caller.is_admin(),
        };
        let mut changes = self.world().changes();
        let until = tokio::time::Instant::now() + Duration::from_secs(query.wait);
        loop {
            changes.mark_unchanged();
            let page = self.world().feed().page(&wanted);
            if !page.events.is_empty() || page.lost {
                return Ok(page);
            }
            match tokio::time::timeout_at(until, changes.changed()).await {
                Ok(Ok(())) => {}
                _ => return Ok(page),
            }
        }
    }
}

#[cfg(test)]
mod tests;
