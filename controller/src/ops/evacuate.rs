//! Evacuation of a dead host, by order. Each instance moves in one commit: next epoch on the new host, claims moved, a
//! tombstone of the old epoch left for the dead host. One whose volume is on the dead host stays, and its record says
//! what is out of reach since when.
//!
//! The order itself is the fence: whoever gives it says that the host is dead. While its link stands it is refused.

use super::orders::{bury, end_exchange, entomb, held, instance_claims};
use super::servers::end_task;
use super::{Draft, Ops, OpsError, View, ports, sights};
use crate::model::*;
use crate::scheduler::{Policy, Request, place};
use amphi_api::host::{Evacuation, EvacuationMoved, EvacuationRefused, EvacuationWaiting, HostState};
use amphi_api::instance::{BodyKind, FailoverPolicy, Lost};
use amphi_api::wire::Tombstone;
use amphi_api::{HostId, InstanceId};
use jiff::Timestamp;

/// What became of one instance.
#[derive(Debug)]
enum Fate {
    Moved(EvacuationMoved),
    Waiting(EvacuationWaiting),
    Refused(EvacuationRefused),
    /// It was being deleted, and is now gone but for its tombstone.
    Gone,
}

impl Ops {
    pub async fn evacuate(&self, host: HostId) -> Result<Evacuation, OpsError> {
        let instances: Vec<InstanceId> = {
            let view = self.world().read();
            self.refuse_alive(&view, host)?;
            view.instances_on(host).map(|row| row.id).collect()
        };
        let mut answer = Evacuation { host, moved: Vec::new(), waiting: Vec::new(), refused: Vec::new() };
        for id in instances {
            let fate = self
                .transact_room(|view| {
                    self.refuse_alive(view, host)?;
                    Ok(decide(view, host, id, self.policy(), Timestamp::now()))
                })
                .await?;
            match fate {
                Fate::Moved(moved) => answer.moved.push(moved),
                Fate::Waiting(waiting) => answer.waiting.push(waiting),
                Fate::Refused(refused) => answer.refused.push(refused),
                Fate::Gone => {}
            }
        }
        Ok(answer)
    }

    /// One instance of a dead host alone.
    pub async fn evacuate_instance(&self, host: HostId, id: InstanceId) -> Result<(), OpsError> {
        let fate = self
            .transact_room(|view| {
                self.refuse_alive(view, host)?;
                Ok(decide(view, host, id, self.policy(), Timestamp::now()))
            })
            .await?;
        match fate {
            Fate::Moved(_) | Fate::Gone => Ok(()),
            Fate::Waiting(waiting) => Err(OpsError::conflict(format!(
                "volume {} is out of reach until the host returns",
                waiting.volumes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            ))),
            Fate::Refused(refused) => Err(OpsError::conflict(refused.reason)),
        }
    }

    fn refuse_alive(&self, view: &View, host: HostId) -> Result<(), OpsError> {
        let row = view.hosts.get(host).ok_or_else(|| OpsError::not_found::<HostRecord>(host))?;
        if row.state == HostState::Up || self.links.is_linked(host) {
            return Err(OpsError::conflict(format!("host '{}' is connected; it is not dead", row.name)));
        }
        Ok(())
    }
}

fn decide(view: &View, dead: HostId, id: InstanceId, policy: &Policy, now: Timestamp) -> (Draft, Fate) {
    let mut draft = Draft::default();
    let Some(row) = view.instances.get(id).filter(|row| row.host == Some(dead)) else {
        return (draft, Fate::Gone);
    };
    // The host's record guards that it has not come back in between.
    if let Some(host) = view.hosts.get(dead) {
        draft.guard(host);
    }
    if row.intent == Intent::Deleting {
        bury(view, &mut draft, row, now);
        return (draft, Fate::Gone);
    }
    let volumes: Vec<_> = row.volumes().filter_map(|id| view.volumes.get(id)).collect();
    if let Some(volume) = volumes.iter().find(|v| v.host == dead) {
        let host = view.hosts.get(dead);
        let lost = Lost {
            volume: volume.id,
            host: dead,
            host_name: host.map(|h| h.name.clone()).unwrap_or_default(),
            since: host.map_or(now, |h| h.state_since),
        };
        if row.lost != [lost.clone()] {
            let record = InstanceRecord { lost: vec![lost], updated_at: now, ..(*row.record).clone() };
            draft.update(row, &record);
        }
        let waiting = EvacuationWaiting { instance: id, name: row.name.clone(), volumes: vec![volume.id] };
        return (draft, Fate::Waiting(waiting));
    }
    let refused =
        |reason: String| Fate::Refused(EvacuationRefused { instance: id, name: row.name.clone(), reason });
    let bodies = match acceptable(row) {
        Ok(bodies) => bodies,
        Err(reason) => return (Draft::default(), refused(reason)),
    };
    let request = Request {
        vcpus: row.vcpus,
        memory_mib: row.memory_mib,
        volume_gib: 0,
        bodies: bodies.clone(),
        network: !row.ports.is_empty(),
        volume: !volumes.is_empty(),
        pinned: None,
        volume_host: volumes.first().map(|v| v.host),
        excluded: vec![dead],
        ..Request::default()
    };
    let placement = match place(&sights(view), &request, policy) {
        Ok(placement) => placement,
        Err(no_room) => return (Draft::default(), refused(no_room.to_string())),
    };
    let epoch = row.epoch + 1;
    end_exchange(view, &mut draft, row, "host_lost", "its host was lost in between", now);
    entomb(view, &mut draft, dead, Tombstone::Instance { id, epoch: row.epoch }, now);
    end_task(view, &mut draft, row, Some("its host was lost"), now);
    for (host, claims) in held(row) {
        draft.unclaim(host, claims);
    }
    for port in row.leaving.iter().filter_map(|l| match l {
        Leaving::Port(id) => view.ports.get(*id),
        Leaving::Volume(_) => None,
    }) {
        ports::release(view, &mut draft, port);
    }
    // What is shelved has given its room away; what waited for a word about its size keeps the new one.
    if row.shelved.as_ref().is_none_or(|s| !s.offloaded) {
        draft.claim(placement.host, instance_claims(row));
    }
    draft.update(
        row,
        &InstanceRecord {
            epoch,
            host: Some(placement.host),
            body: bodies[placement.body],
            exchange: None,
            task: None,
            resize: None,
            leaving: Vec::new(),
            observed: None,
            lost: Vec::new(),
            updated_at: now,
            ..(*row.record).clone()
        },
    );
    let to_name = view.host_name(placement.host).unwrap_or_default();
    let moved = EvacuationMoved { instance: id, name: row.name.clone(), to: placement.host, to_name, epoch };
    (draft, Fate::Moved(moved))
}

/// The bodies that the instance's policy lets it take elsewhere: the kind that it had comes first.
fn acceptable(row: &InstanceRecord) -> Result<Vec<BodyKind>, String> {
    match row.failover {
        FailoverPolicy::Never => Err("its failover policy is `never`".into()),
        FailoverPolicy::SameKind => Ok(vec![row.body]),
        FailoverPolicy::AnyKind => {
            let others = row.bodies.iter().map(BodyRecord::kind).filter(|kind| *kind != row.body);
            Ok(std::iter::once(row.body).chain(others).collect())
        }
    }
}
