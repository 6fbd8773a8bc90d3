//! Instances leave a dead host: what becomes of each, written into one draft. Pure. A move is one commit: next epoch on
//! the new host, claims moved, a tombstone of the old epoch left for the dead one; several moves may share the commit,
//! and each sees the room that those before it took.
//!
//! Refuses to know whether the host is dead: whoever asks has made sure.

use super::asked::request_of;
use super::move_ends::{epoch_elsewhere, epoch_on, still_elsewhere};
use super::orders::{bury, end_exchange, entomb, held, instance_claims};
use super::servers::{Origin, end_task, note};
use super::volumes::room;
use super::{Draft, Row, View, ports, sights, twins};
use crate::model::*;
use crate::scheduler::{HostSight, Policy, Request, place};
use amphi_api::failover::{FailoverFate, FailoverInstance, FreshVolume, LocalVolume};
use amphi_api::instance::{BodyKind, FailoverPolicy, Lost};
use amphi_api::wire::Tombstone;
use amphi_api::{HostId, InstanceId, VolumeId};
use jiff::Timestamp;
use uuid::Uuid;

/// A draft of this size takes no further instance: each adds up to some thirty compares and writes, and the store's
/// bound is 128 of both (etcd's).
const FULL: usize = 90;

pub(super) struct Exodus<'a> {
    view: &'a View,
    policy: &'a Policy,
    sights: Vec<HostSight<'a>>,
    dead: HostId,
    now: Timestamp,
    pub draft: Draft,
    /// The next one must see what this draft does.
    alone: bool,
}

impl<'a> Exodus<'a> {
    /// The host's record guards that nothing was said of it in between.
    pub fn new(view: &'a View, policy: &'a Policy, dead: HostId, now: Timestamp) -> Self {
        let mut draft = Draft::default();
        if let Some(host) = view.hosts.get(dead) {
            draft.guard(host);
        }
        Self { view, policy, sights: sights(view), dead, now, draft, alone: false }
    }

    /// Whether the next instance belongs into the next commit.
    pub fn is_full(&self) -> bool {
        self.alone || self.draft.size() >= FULL
    }

    /// What is told of the instance, with its fate written into the draft. Members of a server group do not share one:
    /// where each goes, and what a deleted one leaves, depends on the others.
    pub fn take(&mut self, row: &Row<InstanceRecord>) -> FailoverInstance {
        self.alone |= row.server.group.is_some() || row.intent == Intent::Deleting;
        let fate = self.fate(row);
        FailoverInstance {
            instance: row.id,
            name: row.name.clone(),
            priority: row.failover_terms.priority,
            from: row.body,
            fate,
        }
    }

    fn fate(&mut self, row: &Row<InstanceRecord>) -> FailoverFate {
        let (view, now) = (self.view, self.now);
        if row.intent == Intent::Deleting {
            bury(view, &mut self.draft, row, now);
            return FailoverFate::Gone;
        }
        if let Some(other) = still_elsewhere(view, row) {
            let name = view.host_name(other).unwrap_or_default();
            let reason =
                format!("it was moving here from '{name}', which has not said that its body is gone");
            return FailoverFate::Refused { reason };
        }
        let here: Vec<&Row<VolumeRecord>> =
            row.volumes().filter_map(|id| view.volumes.get(id)).filter(|v| v.host == self.dead).collect();
        let fresh = match (row.failover_terms.local_volume, here.as_slice()) {
            (LocalVolume::Fresh, [only]) if row.volume == Some(only.id) => Some(*only),
            _ => None,
        };
        // A policy that forbids the move comes before the volume that would hold it back.
        let bodies = match acceptable(row) {
            Ok(bodies) => bodies,
            Err(reason) if here.is_empty() => return FailoverFate::Refused { reason },
            Err(_) => Vec::new(),
        };
        if bodies.is_empty() || (fresh.is_none() && !here.is_empty()) {
            self.lose(row, &here);
            return FailoverFate::Waiting { volumes: here.iter().map(|v| v.id).collect() };
        }
        let taken_over: Vec<VolumeId> = row.volumes().filter(|id| view.group_of(*id).is_some()).collect();
        if !taken_over.is_empty() && view.hosts.get(self.dead).is_none_or(|h| h.barred_since.is_none()) {
            let reason = "its volume is in a shared group, and its host is not shut out: evacuate the host";
            return FailoverFate::Refused { reason: reason.into() };
        }
        if let Some((twin, place)) = twins::flips(view, row, self.dead, &bodies, fresh.is_some()) {
            return self.flip(row, twin, place, fresh, taken_over);
        }
        let local = |v: &&Row<VolumeRecord>| v.host != self.dead && view.group_at(v.host).is_none();
        let elsewhere = row.volumes().filter_map(|id| view.volumes.get(id)).find(local);
        let request = Request {
            volume_gib: fresh.map_or(0, |v| v.size_gib),
            bodies: bodies.clone(),
            volume_host: elsewhere.map(|v| v.host),
            excluded: vec![self.dead],
            ..request_of(view, row)
        };
        let placement = match place(&self.sights, &request, self.policy) {
            Ok(placement) => placement,
            Err(no_room) => return FailoverFate::Refused { reason: no_room.to_string() },
        };
        let fresh = fresh.map(|old| self.replace(row.id, old, placement.host));
        let (to, body) = (placement.host, bodies[placement.body]);
        let epoch = epoch_on(view, row, to);
        // What is shelved has given its room away; what waited for a word about its size keeps the new one.
        if row.shelved.as_ref().is_none_or(|s| !s.offloaded) {
            self.draft.claim(to, instance_claims(row));
            self.take_room(to, instance_claims(row));
        }
        self.settle(row, to, body, epoch, fresh);
        let to_name = view.host_name(to).unwrap_or_default();
        FailoverFate::Moved {
            to,
            to_name,
            body,
            epoch,
            fresh_volume: fresh,
            taken_over,
            twin: false,
            at: now,
            running_at: None,
        }
    }

    /// The twin's host takes the instance: the room is the twin's, and what is made there needs a start.
    fn flip(
        &mut self,
        row: &Row<InstanceRecord>,
        twin: &Row<TwinRecord>,
        place: &TwinPlace,
        old: Option<&Row<VolumeRecord>>,
        taken_over: Vec<VolumeId>,
    ) -> FailoverFate {
        let (view, to, body) = (self.view, place.host, place.body);
        let epoch = place.epoch.max(epoch_elsewhere(view, row));
        let fresh = old.zip(place.volume).map(|(old, (new, _))| FreshVolume { old: old.id, new });
        if let Some(old) = old {
            self.draft.update(old, &VolumeRecord { instance: None, ..(*old.record).clone() });
        }
        twins::take_over(&mut self.draft, twin, place);
        self.draft.claim(to, instance_claims(row));
        self.settle(row, to, body, epoch, fresh);
        FailoverFate::Moved {
            to,
            to_name: view.host_name(to).unwrap_or_default(),
            body,
            epoch,
            fresh_volume: fresh,
            taken_over,
            twin: epoch == place.epoch && twins::is_ready(view, place),
            at: self.now,
            running_at: None,
        }
    }

    /// Says in the record what is out of reach.
    fn lose(&mut self, row: &Row<InstanceRecord>, volumes: &[&Row<VolumeRecord>]) {
        let host = self.view.hosts.get(self.dead);
        let lost = |volume: &&Row<VolumeRecord>| Lost {
            volume: volume.id,
            host: self.dead,
            host_name: host.map(|h| h.name.clone()).unwrap_or_default(),
            since: host.map_or(self.now, |h| h.state_since),
        };
        let lost: Vec<Lost> = volumes.iter().map(lost).collect();
        let known = |l: &Lost| row.lost.iter().any(|old| (old.volume, old.host) == (l.volume, l.host));
        if row.lost.len() != lost.len() || !lost.iter().all(known) {
            let record = InstanceRecord { lost, updated_at: self.now, ..(*row.record).clone() };
            self.draft.update(row, &record);
        }
    }

    /// A blank volume on the new host; the old one is nobody's from now on, and stays.
    fn replace(&mut self, instance: InstanceId, old: &Row<VolumeRecord>, host: HostId) -> FreshVolume {
        let description = format!("blank, in place of volume {}, whose host was lost", old.id);
        let record = blank(old, instance, host, description, self.now);
        self.draft.create(&record);
        self.draft.claim(host, room(record.size_gib));
        self.take_room(host, room(record.size_gib));
        self.draft.update(old, &VolumeRecord { instance: None, ..(*old.record).clone() });
        FreshVolume { old: old.id, new: record.id }
    }

    /// The instance is the other host's, where its room is claimed already.
    fn settle(
        &mut self,
        row: &Row<InstanceRecord>,
        to: HostId,
        body: BodyKind,
        epoch: u64,
        fresh: Option<FreshVolume>,
    ) {
        let (view, dead, now) = (self.view, self.dead, self.now);
        let origin = Origin::native(row.project);
        let why = ("host_lost", "its host was lost in between");
        end_exchange(view, &mut self.draft, row, row.host, why, now);
        entomb(view, &mut self.draft, dead, Tombstone::Instance { id: row.id, epoch: row.epoch }, now);
        end_task(view, &mut self.draft, row, Some("its host was lost"), now);
        for (host, claims) in held(row) {
            self.draft.unclaim(host, claims);
        }
        for port in row.leaving.iter().filter_map(|l| match l {
            Leaving::Port(id) => view.ports.get(*id),
            Leaving::Volume(_) => None,
        }) {
            ports::release(view, &mut self.draft, port);
        }
        let record = InstanceRecord {
            epoch,
            host: Some(to),
            body,
            exchange: None,
            task: None,
            resize: None,
            leaving: Vec::new(),
            volume: fresh.map(|f| f.new).or(row.volume),
            observed: None,
            lost: Vec::new(),
            updated_at: now,
            ..(*row.record).clone()
        };
        note(&mut self.draft, &origin, &record, "evacuate", "compute_rebuild_instance", now);
        self.draft.create(&MigrationRecord {
            id: Uuid::now_v7(),
            instance: row.id,
            project: row.project,
            user: None,
            kind: MigrationKind::Evacuation,
            status: "done".into(),
            from: Some(dead),
            to: Some(to),
            old_flavor: None,
            new_flavor: None,
            created_at: now,
            updated_at: now,
        });
        self.draft.update(row, &record);
    }

    fn take_room(&mut self, host: HostId, claims: amphi_api::host::Claims) {
        for sight in self.sights.iter_mut().filter(|sight| sight.id == host) {
            sight.claims = sight.claims.plus(claims);
            sight.starting += 1;
        }
    }
}

/// The bodies that the instance's policy lets it take elsewhere: the kind that it had comes first.
fn acceptable(row: &InstanceRecord) -> Result<Vec<BodyKind>, String> {
    match row.failover {
        FailoverPolicy::Never => Err("its failover policy is `never`".into()),
        FailoverPolicy::SameKind => Ok(vec![row.body]),
        FailoverPolicy::AnyKind | FailoverPolicy::Twin => {
            let others = row.bodies.iter().map(BodyRecord::kind).filter(|kind| *kind != row.body);
            Ok(std::iter::once(row.body).chain(others).collect())
        }
    }
}

/// An empty volume in place of another one, for the same instance on another host.
pub(super) fn blank(
    old: &VolumeRecord,
    instance: InstanceId,
    host: HostId,
    description: String,
    now: Timestamp,
) -> VolumeRecord {
    VolumeRecord {
        id: VolumeId::new(),
        host,
        source: None,
        source_image: None,
        source_volume: None,
        untouched: false,
        instance: Some(instance),
        made: false,
        trashed_at: None,
        snapshots: 0,
        observed: None,
        journey: None,
        traits: VolumeTraits {
            description: Some(description),
            volume_type: old.traits.volume_type,
            zone: old.traits.zone.clone(),
            ..VolumeTraits::default()
        },
        created_at: now,
        ..old.clone()
    }
}
