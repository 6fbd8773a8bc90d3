//! Another size, another host: one body of the next epoch, with room claimed for both until somebody says which stays.
//!
//! What an instance has on its host does not travel: a VM's root disk, volumes, a snapshot of them. Such an instance is
//! resized where it is; one without any may also move.

use super::journal::Started;
use super::{Origin, allowed};
use crate::model::*;
use crate::ops::asked::{self, request_of};
use crate::ops::orders::{entomb, instance_claims};
use crate::ops::{Draft, Ops, OpsError, View, resolve, sights};
use crate::scheduler::{Policy, Request, place};
use amphi_api::image::ImageFormat;
use amphi_api::instance::{BodyKind, BodySpec};
use amphi_api::wire::Tombstone;
use amphi_api::{HostId, InstanceId};
use jiff::Timestamp;
use uuid::Uuid;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResizeWish {
    /// The new size; none: only another host.
    pub flavor: Option<FlavorCopy>,
    /// Name or id of the host to go to, for operators.
    pub host: Option<String>,
}

impl Ops {
    pub async fn resize_server(
        &self,
        origin: &Origin,
        id: InstanceId,
        wish: &ResizeWish,
    ) -> Result<(), OpsError> {
        self.transact_room(|view| Ok((decide(view, origin, id, wish, self.policy(), Timestamp::now())?, ())))
            .await
    }
}

fn decide(
    view: &View,
    origin: &Origin,
    id: InstanceId,
    wish: &ResizeWish,
    policy: &Policy,
    now: Timestamp,
) -> Result<Draft, OpsError> {
    let verb = if wish.flavor.is_some() { "resize" } else { "migrate" };
    let row = allowed(view, origin, id, verb, &[VmState::Active, VmState::Stopped], now)?;
    let Some(old_host) = row.host else {
        return Err(OpsError::conflict("the instance has no host"));
    };
    if let Some(kept) = row.memory_kept_mib {
        // Its room would be counted as that of the size which it leaves.
        return Err(OpsError::conflict(format!(
            "its guest still has up to {kept} MiB of memory, of which it is to give back all but {} MiB: wait, or stop it",
            row.memory_mib
        )));
    }
    let mut record = (*row.record).clone();
    if let Some(flavor) = &wish.flavor {
        let old = row.server.flavor.as_ref();
        if old.is_some_and(|old| old.id == flavor.id) {
            return Err(OpsError::field("flavorRef", "When resizing, instances must change flavor!"));
        }
        if old.is_some_and(|old| flavor.disk_gib < old.disk_gib) && has_root_disk(view, row) {
            return Err(OpsError::field(
                "flavorRef",
                "Flavor's disk is too small: a root disk never becomes smaller",
            ));
        }
        (record.vcpus, record.memory_mib) = (flavor.vcpus, flavor.ram_mib);
        record.server.qos = asked::qos_of(flavor)?;
        record.server.flavor = Some(flavor.clone());
        if flavor.disk_gib > 0 {
            grow_roots(&mut record, flavor.disk_gib);
        }
    }
    let host = host_for(view, row, &record, wish, old_host, policy)?;
    let mut draft = Draft::default();
    let migration = MigrationRecord {
        id: Uuid::now_v7(),
        instance: id,
        project: row.project,
        user: origin.user,
        kind: if wish.flavor.is_some() { MigrationKind::Resize } else { MigrationKind::Migration },
        status: "migrating".into(),
        from: Some(old_host),
        to: Some(host),
        old_flavor: row.server.flavor.as_ref().map(|f| f.id.clone()),
        new_flavor: record.server.flavor.as_ref().map(|f| f.id.clone()),
        created_at: now,
        updated_at: now,
    };
    draft.create(&migration);
    draft.claim(host, instance_claims(&record));
    if host != old_host {
        entomb(view, &mut draft, old_host, Tombstone::Instance { id, epoch: row.epoch }, now);
    }
    record.resize = Some(Resize {
        old_flavor: row.server.flavor.clone(),
        old_vcpus: row.vcpus,
        old_memory_mib: row.memory_mib,
        old_root_gib: None,
        old_qos: row.server.qos,
        old_host,
        migration: migration.id,
        verified: false,
        reverting: false,
        since: now,
    });
    record.host = Some(host);
    record.epoch += 1;
    record.observed = None;
    Started { view, origin, before: &row.record, now }.task(&mut draft, &mut record, Task::Resize, verb);
    draft.update(row, &record);
    Ok(draft)
}

/// Where it goes: where it is, if it fits there; elsewhere if nothing holds it and it is asked, or has to.
fn host_for(
    view: &View,
    row: &InstanceRecord,
    record: &InstanceRecord,
    wish: &ResizeWish,
    here: HostId,
    policy: &Policy,
) -> Result<HostId, OpsError> {
    let request = request_of(view, record);
    let pinned =
        wish.host.as_deref().map(|text| resolve::host(view, "host", text)).transpose()?.map(|h| h.id);
    let bound = bound_to_host(view, row);
    let sights = sights(view);
    if wish.flavor.is_some() && pinned.is_none_or(|host| host == here) {
        let stay = Request { pinned: Some(here), ..request.clone() };
        match (place(&sights, &stay, policy), &bound) {
            (Ok(placement), _) => return Ok(placement.host),
            (Err(no_room), Some(_)) => return Err(no_room.into()),
            (Err(_), None) => {}
        }
    }
    match bound {
        Some(why) => Err(OpsError::conflict(format!("the instance cannot leave its host: {why}"))),
        None => Ok(place(&sights, &Request { pinned, excluded: vec![here], ..request }, policy)?.host),
    }
}

/// What keeps it on its host, in words.
fn bound_to_host(view: &View, row: &InstanceRecord) -> Option<String> {
    if let Some(volume) = row.volumes().next() {
        return Some(format!("volume {volume} is there"));
    }
    has_root_disk(view, row).then(|| "its root disk is there".into())
}

/// A VM that booted from a disk image has a disk on its host; one of kernel and initramfs has none.
pub(in crate::ops) fn has_root_disk(view: &View, row: &InstanceRecord) -> bool {
    let image = row.body_of(row.body).and_then(|body| view.images.get(*body.images.first()?));
    row.body == BodyKind::Vm
        && row.root_volume.is_none()
        && row.body_of(row.body).is_none_or(|body| body.spec.set().is_none())
        && image.is_none_or(|image| image.format != ImageFormat::KernelInitramfs)
}

fn grow_roots(record: &mut InstanceRecord, gib: u64) {
    for body in &mut record.bodies {
        if let BodySpec::Vm(vm) = &mut body.spec
            && vm.root_gib.is_some_and(|now| now < gib)
        {
            vm.root_gib = Some(gib);
        }
    }
}
