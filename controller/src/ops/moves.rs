//! Planned moves between hosts: the order, the commits of its phases, and calling it off. A move is an exchange with a
//! journey (`exchanges.rs` steps both).
//!
//! Room is claimed on both hosts from the order to the end. Volumes travel while the body is stopped: the old host reads
//! them into images that nobody sees, the new host writes them from there, and the old bytes are destroyed when the
//! move is over. A VM's root disk made of an image travels only with a guest that runs (a live move); an instance whose body
//! is stopped and has one is refused by name.

use super::asked::request_of;
use super::list::find;
use super::move_ends::stone;
use super::move_volumes::{littered, volumes_of};
use super::orders::instance_claims;
use super::servers::{Origin, has_root_disk, note};
use super::volumes::room;
use super::{Draft, Ops, OpsError, Row, View, resolve, twins};
use crate::model::*;
use crate::scheduler::Request;
use amphi_api::instance::{BodyKind, BodySpec, Exchange, ExchangePhase, MoveCause, MoveCreate, Power};
use amphi_api::wire::BodyState;
use amphi_api::{ExchangeId, HostId, InstanceId, ProjectId};
use jiff::Timestamp;

/// What is asked of a move, hosts looked up.
#[derive(Clone, Debug)]
pub(super) struct MoveWish {
    pub to: Option<HostId>,
    pub kind: Option<BodyKind>,
    /// While it runs: it must, it must not, or if it cannot move otherwise.
    pub live: Option<bool>,
    /// Copied while it runs: it must be, it must not, or where it can be.
    pub ahead: Option<bool>,
    pub deadline_s: Option<u32>,
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
                    live: request.live,
                    ahead: request.ahead,
                    deadline_s: request.deadline_s,
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
            let stays = row.journey.as_ref().is_some_and(JourneyRecord::stays);
            if stays && row.phase == ExchangePhase::Switching {
                return Err(OpsError::conflict("it has gone over already"));
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
    let volumes = volumes_of(view, row, from)?;
    let request = Request {
        bodies: vec![kind],
        volume_gib: volumes.iter().map(|v| v.size_gib).sum(),
        images: body.images.clone(),
        pinned: wish.to,
        excluded: vec![from],
        ..request_of(view, row)
    };
    let to = match view.fleet.place(&request) {
        Ok(found) => found.host,
        Err(no_room) => twins::room_for_move(view, row, kind, wish.to).ok_or(no_room)?,
    };
    let live = lives(view, row, wish, kind, from, to)?;
    let copy = match live {
        true => None,
        false => passes(view, row, wish, kind, &volumes, [from, to])?,
    };
    if !live && has_root_disk(view, row) && copy.as_ref().is_none_or(|copy| !copy.root) {
        return Err(OpsError::conflict("the instance cannot leave its host: its root disk is there"));
    }
    let gib = volumes.iter().map(|v| v.size_gib).sum::<u64>() + root_gib(&body);
    let deadline_s = wish.deadline_s.or_else(|| live.then(|| deadline_of(gib, row.memory_mib)));
    if view.tombstones.get(stone(to, row.id)).is_some() {
        let name = view.host_name(to).unwrap_or_default();
        return Err(OpsError::conflict(format!(
            "host '{name}' is still clearing away what it has of the instance; try again"
        )));
    }
    if volumes.iter().any(|v| littered(view, to, v.volume)) {
        return Err(OpsError::conflict("a copy of its volume is still being destroyed there; try again"));
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
            live,
            landed: false,
            recalled: None,
            ready: false,
            fault: None,
            volumes,
            read: 0,
            left_at: None,
            stopped: false,
            copy,
            deadline_s,
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
    twins::yield_to_move(view, &mut draft, row, to)?;
    draft.claim(to, instance_claims(row));
    let gib = record.journey.as_ref().map_or(0, JourneyRecord::gib);
    if gib > 0 {
        draft.claim(to, room(gib));
    }
    // Nobody takes a snapshot of them or extends them at the same time.
    row.volumes().filter_map(|id| view.volumes.get(id)).for_each(|volume| draft.touch(volume));
    // Both hosts as they were when this was decided: up, and open.
    view.hosts.get(to).into_iter().for_each(|host| draft.guard(host));
    if let Some(group) = row.server.group.and_then(|id| view.server_groups.get(id)) {
        // Whoever places another member at the same time must look again.
        draft.touch(group);
    }
    if live {
        note(&mut draft, &Origin::native(row.project), row, "live-migration", "compute_live_migration", now);
        draft.create(&MigrationRecord {
            id: record.id.0,
            instance: row.id,
            project: row.project,
            user: None,
            kind: MigrationKind::LiveMigration,
            status: "preparing".into(),
            from: Some(from),
            to: Some(to),
            old_flavor: row.server.flavor.as_ref().map(|f| f.id.clone()),
            new_flavor: row.server.flavor.as_ref().map(|f| f.id.clone()),
            created_at: now,
            updated_at: now,
        });
    } else {
        note(&mut draft, &Origin::native(row.project), row, "migrate", "compute_prep_resize", now);
    }
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
    if let Some(rolling) = &row.rolling {
        return Err(super::updates::under_way(rolling));
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
    volumes_of(view, row, from)?;
    if has_root_disk(view, row) && runs_as_vm(row).is_err() && !takes_passes(view, from) {
        return Err(OpsError::conflict("the instance cannot leave its host: its root disk is there"));
    }
    Ok(from)
}

/// Whether its body is one that can go over while it runs, or why not.
fn runs_as_vm(row: &InstanceRecord) -> Result<(), String> {
    if row.body != BodyKind::Vm {
        return Err("only VMs go to another host while they run".into());
    }
    let running = row.current().is_some_and(|o| o.state == BodyState::Running && o.fault.is_none());
    if row.power != Power::On || !running {
        return Err("it does not run".into());
    }
    if row.body_of(row.body).is_some_and(|body| body.spec.set().is_some()) {
        return Err("it is a set that runs as a VM, and what its members have written stays behind".into());
    }
    match row.rescue {
        Some(_) => Err("it runs from a rescue's image".into()),
        None => Ok(()),
    }
}

/// Whether it goes over while it runs.
fn lives(
    view: &View,
    row: &InstanceRecord,
    wish: &MoveWish,
    kind: BodyKind,
    from: HostId,
    to: HostId,
) -> Result<bool, OpsError> {
    let can = || {
        runs_as_vm(row)?;
        if kind != BodyKind::Vm {
            return Err("the other kind of body starts anew".to_owned());
        }
        if !view.reach_of(row).is_empty() {
            return Err("it has a volume in a shared group, which one host at a time has active".to_owned());
        }
        let spec = |id: HostId| view.hosts.get(id).and_then(|h| h.spec.as_ref());
        let (Some(here), Some(there)) = (spec(from), spec(to)) else {
            return Err("a host is unknown".into());
        };
        for spec in [here, there] {
            if spec.moves_at.is_none() {
                return Err(format!("the agent of host '{}' takes no running VMs", spec.name));
            }
        }
        if here.acceleration != there.acceleration {
            return Err(format!("host '{}' runs VMs in another way", there.name));
        }
        Ok(())
    };
    match (wish.live, can()) {
        (Some(true), Ok(())) => Ok(true),
        // Unasked, only what cannot move otherwise.
        (None, Ok(())) => Ok(has_root_disk(view, row)),
        (Some(false), _) | (None, Err(_)) => Ok(false),
        (Some(true), Err(why)) => {
            Err(OpsError::conflict(format!("the instance cannot move while it runs: {why}")))
        }
    }
}

/// Whether its bytes go from host to host in passes, or why not where that is asked for.
fn passes(
    view: &View,
    row: &Row<InstanceRecord>,
    wish: &MoveWish,
    kind: BodyKind,
    volumes: &[VolumeMove],
    hosts: [HostId; 2],
) -> Result<Option<CopyRecord>, OpsError> {
    let root = has_root_disk(view, row) && kind == BodyKind::Vm && row.body == BodyKind::Vm;
    let takes = |id: HostId| takes_passes(view, id);
    let refused = |why: &str| OpsError::conflict(format!("its bytes cannot be copied while it runs: {why}"));
    match wish.ahead {
        Some(false) => Ok(None),
        Some(true) if volumes.is_empty() && !root => Err(refused("it has none that go along")),
        Some(true) if !hosts.into_iter().all(takes) => Err(refused("the agent of a host is too old for it")),
        _ if (volumes.is_empty() && !root) || !hosts.into_iter().all(takes) => Ok(None),
        _ => Ok(Some(CopyRecord { root, ..CopyRecord::default() })),
    }
}

/// Whether the host's agent sends and takes bytes in passes.
fn takes_passes(view: &View, host: HostId) -> bool {
    let spec = view.hosts.get(host).and_then(|h| h.spec.as_ref());
    spec.is_some_and(|s| s.takes_passes && s.moves_at.is_some())
}

fn root_gib(body: &BodyRecord) -> u64 {
    match &body.spec {
        BodySpec::Vm(vm) => vm.root_gib.unwrap_or(0),
        BodySpec::Set(_) => 0,
    }
}

/// The seconds that a live move gets: ten minutes, and two for each GiB of memory and disk, which is 9 MiB/s. One that is
/// slower than that on an idle wire does not end, since its guest writes as quickly as it is copied.
fn deadline_of(gib: u64, memory_mib: u64) -> u32 {
    let seconds = 600 + 120 * (gib + memory_mib.div_ceil(1024));
    u32::try_from(seconds).unwrap_or(u32::MAX).min(604_800)
}

/// The record of a live move in nova's words follows its exchange; its id is the exchange's.
pub(super) fn migrates(
    view: &View,
    draft: &mut Draft,
    exchange: &ExchangeRecord,
    word: &str,
    now: Timestamp,
) {
    if let Some(row) = view.migrations.get(exchange.id.0) {
        draft.update(row, &row.now_is(word, now));
    }
}
