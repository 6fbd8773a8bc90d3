//! Planned moves between hosts: the order, the commits of its phases, and calling it off. A move is an exchange with a
//! journey (`exchanges.rs` steps both).
//!
//! Room is claimed on both hosts from the order to the end. Volumes travel while the body is stopped: the old host reads
//! them into images that nobody sees, the new host writes them from there, and the old bytes are destroyed when the
//! move is over. A VM's root disk made of an image travels only with a guest that runs (a live move); an instance whose body
//! is stopped and has one is refused by name.

use super::asked::request_of;
use super::list::find;
use super::orders::{entomb, instance_claims};
use super::servers::{Origin, has_root_disk, note};
use super::volumes::room;
use super::{Draft, Ops, OpsError, Row, View, resolve};
use crate::model::*;
use crate::scheduler::Request;
use amphi_api::failover::FailoverPhase;
use amphi_api::image::ImageFormat;
use amphi_api::instance::{BodyKind, Exchange, ExchangePhase, MoveCause, MoveCreate, Power};
use amphi_api::wire::{BodyState, ExportSource, Tombstone};
use amphi_api::{ExchangeId, HostId, ImageId, InstanceId, ProjectId, VolumeId};
use jiff::Timestamp;

/// What is asked of a move, hosts looked up.
#[derive(Clone, Debug)]
pub(super) struct MoveWish {
    pub to: Option<HostId>,
    pub kind: Option<BodyKind>,
    /// While it runs: it must, it must not, or if it cannot move otherwise.
    pub live: Option<bool>,
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
    let to = view.fleet.place(&request)?.host;
    let live = lives(view, row, wish, kind, from, to)?;
    if !live && has_root_disk(view, row) {
        return Err(OpsError::conflict("the instance cannot leave its host: its root disk is there"));
    }
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
    if has_root_disk(view, row) && runs_as_vm(row).is_err() {
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

/// Its volumes, if all of them can leave the host.
fn volumes_of(view: &View, row: &InstanceRecord, from: HostId) -> Result<Vec<VolumeMove>, OpsError> {
    let mut volumes = Vec::new();
    for id in row.volumes() {
        let held = |why: &str| {
            OpsError::conflict(format!("the instance cannot leave its host: volume {id} is there, and {why}"))
        };
        let volume = view.volumes.get(id).ok_or_else(|| held("no record knows it"))?;
        if volume.snapshots > 0 {
            return Err(held("its snapshots do not move: delete them first"));
        }
        if volume.journey.is_some() {
            return Err(OpsError::conflict(format!("volume {id} is on its way to the instance's host")));
        }
        if !volume.made || volume.host != from || volume.intent != Intent::Live || volume.trashed_at.is_some()
        {
            return Err(held("it is not whole"));
        }
        if row.leaving.contains(&Leaving::Volume(id)) {
            return Err(held("it is being detached"));
        }
        if is_read(view, volume, None) {
            return Err(held("its bytes are being read"));
        }
        volumes.push(VolumeMove { volume: id, size_gib: volume.size_gib, image: None, arrived: false });
    }
    Ok(volumes)
}

/// Whether a volume's bytes are needed where they are: a snapshot, another volume or an image is being made of them.
/// `but`: the image that carries them elsewhere.
pub(super) fn is_read(view: &View, volume: &VolumeRecord, but: Option<ImageId>) -> bool {
    let exported = |image: &Row<ImageRecord>| {
        Some(image.id) != but
            && image
                .export
                .as_ref()
                .is_some_and(|e| e.source == ExportSource::Volume(volume.id) && e.fault.is_none())
    };
    let snapped = |s: &Row<SnapshotRecord>| {
        s.volume == volume.id && !s.made && s.intent == Intent::Live && s.fault.is_none()
    };
    being_made(view, volume.host, |v| v.source_volume == Some(volume.id)).is_some()
        || view.exports_on(volume.host).any(exported)
        || view.snapshots_on(volume.host).any(snapped)
}

/// A volume that is being made of what is on this host.
pub(super) fn being_made(
    view: &View,
    host: HostId,
    of_it: impl Fn(&VolumeRecord) -> bool,
) -> Option<VolumeId> {
    let mut all = view.volumes_on(host).chain(view.volumes_travelling());
    all.find(|v| !v.made && of_it(v)).map(|v| v.id)
}

/// Refuses what would change a volume that is on its way, or would need its bytes where they are.
pub(super) fn refuse_moving(view: &View, volume: &VolumeRecord) -> Result<(), OpsError> {
    if volume.journey.is_some() {
        return Err(OpsError::conflict("the volume is on its way to its instance's host; wait for its end"));
    }
    let exchange = volume.instance.and_then(|id| view.instances.get(id)?.exchange);
    match exchange.and_then(|id| view.exchanges.get(id)).filter(|e| e.journey.is_some()) {
        Some(exchange) => Err(OpsError::conflict(format!(
            "the volume moves to another host (exchange {}); wait for its end",
            exchange.id
        ))),
        None => Ok(()),
    }
}

/// Whether the host is still destroying bytes of the volume.
pub(super) fn littered(view: &View, host: HostId, id: VolumeId) -> bool {
    view.tombstones.get(TombstoneKey::of(host, Tombstone::Volume { id })).is_some()
}

/// An image to carry a volume's bytes, which this host is to read. It belongs to nobody's project.
pub(super) fn carrying(volume: VolumeId, host: HostId, source: ExportSource, now: Timestamp) -> ImageRecord {
    ImageRecord {
        id: ImageId::new(),
        project: NOBODY,
        name: format!("volume {volume} on its way"),
        format: ImageFormat::Qcow2,
        cmdline: String::new(),
        blobs: Default::default(),
        export: Some(ImageExport { host, source, instance: None, fault: None }),
        closing: false,
        traits: ImageTraits::default(),
        created_at: now,
    }
}

/// Orders every volume read, each into an image of its own.
pub(super) fn read_volumes(
    view: &View,
    draft: &mut Draft,
    journey: &JourneyRecord,
    now: Timestamp,
) -> JourneyRecord {
    let mut journey = journey.clone();
    for one in &mut journey.volumes {
        let Some(volume) = view.volumes.get(one.volume) else { continue };
        let image = carrying(volume.id, volume.host, ExportSource::Volume(volume.id), now);
        draft.create(&image);
        one.image = Some(image.id);
    }
    journey
}

/// The volumes belong to this host from now on: it has their bytes.
pub(super) fn take_volumes(view: &View, draft: &mut Draft, journey: &JourneyRecord, host: HostId) {
    for row in journey.volumes.iter().filter_map(|v| view.volumes.get(v.volume)) {
        if row.host != host {
            let record = VolumeRecord { host, made: true, observed: None, ..(*row.record).clone() };
            draft.update(row, &record);
        }
    }
}

/// What carries a volume's bytes, once all of them are there.
pub(super) fn carrier(view: &View, image: Option<ImageId>) -> Option<&Row<ImageRecord>> {
    let image = view.images.get(image?)?;
    (image.export.is_none() && !image.blobs.is_empty()).then_some(image)
}

/// Owns what is on its way between hosts: no client sees it.
pub(super) const NOBODY: ProjectId = ProjectId(uuid::Uuid::nil());

impl Ops {
    /// Images that carried volumes go when nobody waits for them.
    pub(super) async fn forget_moved_bytes(&self) -> Result<(), OpsError> {
        let idle: Vec<ImageId> = {
            let view = self.world().read();
            let waits = |id: ImageId| {
                let copying = view.exchanges.iter().filter(|e| e.phase == ExchangePhase::Copying);
                let mut volumes = copying.filter_map(|e| e.journey.as_ref()).flat_map(|j| &j.volumes);
                let mut alone = view.volumes_travelling().filter_map(|v| v.journey.as_ref()?.image);
                volumes.any(|v| v.image == Some(id)) || alone.any(|image| image == id)
            };
            view.images.of_project(NOBODY).map(|image| image.id).filter(|id| !waits(*id)).collect()
        };
        for id in idle {
            let blobs: Vec<String> = self
                .transact(|view| {
                    let mut draft = Draft::default();
                    let row = view.images.get(id);
                    row.into_iter().for_each(|row| draft.delete(row));
                    let blobs = row.into_iter().flat_map(|row| row.blobs.values());
                    Ok((draft, blobs.map(|b| b.sha256.clone()).collect()))
                })
                .await?;
            self.drop_unnamed(blobs);
        }
        Ok(())
    }
}

fn stone(host: HostId, id: InstanceId) -> TombstoneKey {
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
        if journey.live || !matches!(exchange.phase, ExchangePhase::Preparing | ExchangePhase::Stopping) {
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

fn has_not_left(phase: ExchangePhase) -> bool {
    use ExchangePhase::{Copying, Crossing, Preparing, Stopping};
    matches!(phase, Preparing | Crossing | Stopping | Copying)
}

/// The epoch of an instance that goes elsewhere than it was about to: the next one may be ready on the host that it was
/// to go to, and is cleared away there, perhaps beside the body that now comes.
pub(super) fn epoch_elsewhere(view: &View, row: &InstanceRecord) -> u64 {
    let exchange = row.exchange.and_then(|id| view.exchanges.get(id));
    let promised = exchange.is_some_and(|e| e.journey.is_some() && has_not_left(e.phase));
    row.epoch + 1 + u64::from(promised)
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
