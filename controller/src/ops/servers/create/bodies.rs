//! Which bodies an order means: a disk image makes a VM, a container image a set. An instance that is given both lists
//! both, and `amphi:bodies` (a flavor's extra spec, or the server's own metadata) says which comes first, or which alone
//! will do.

use super::{DeviceSource, ServerWish};
use crate::model::*;
use crate::ops::{Draft, OpsError, Row, View, resolve};
use amphi_api::image::ImageFormat;
use amphi_api::instance::{BodyKind, BodySpec, VmSpec};
use amphi_api::set::{MemberSpec, SetSpec};
use amphi_api::{ImageId, ProjectId};

/// Orders the acceptable bodies: `vm`, `set`, `set,vm`.
pub const BODIES_KEY: &str = "amphi:bodies";

pub(super) struct Bodies {
    pub bodies: Vec<BodyRecord>,
    /// What the server shows as its image; none: it boots from a volume.
    pub image: Option<ImageId>,
    /// The disk image that a volume is to be made of and booted from.
    pub root_image: Option<ImageId>,
}

pub(super) fn of(
    view: &View,
    project: ProjectId,
    wish: &ServerWish,
    described: Option<&SetSpec>,
    draft: &mut Draft,
) -> Result<Bodies, OpsError> {
    let mut members: Vec<(i64, &Row<ImageRecord>)> = Vec::new();
    let mut disk: Option<&Row<ImageRecord>> = None;
    let mut whole: Option<BodyRecord> = None;
    let mut root_image = None;
    let mut from_volume = false;
    if let Some(id) = wish.image {
        let row = image(view, project, id, "imageRef")?;
        // A disk that becomes a volume is as large as that.
        let local = !wish.devices.iter().any(|d| d.boot_index == Some(0) && !d.local);
        let disk_gib = (local && !row.format.is_container()).then_some(wish.flavor.disk_gib);
        resolve::enough_for(row, wish.flavor.ram_mib, disk_gib)?;
        if row.format == ImageFormat::SetDescription {
            if let Some(set) = described {
                set.check_memory(wish.flavor.ram_mib).map_err(|e| e.under("imageRef"))?;
            }
            let (body, images) = resolve::body_of_image(view, project, id, None, described)?;
            images.into_iter().for_each(|image| draft.guard(image));
            whole = Some(body);
        } else if row.format.is_container() {
            members.push((0, row));
        } else {
            disk = Some(row);
        }
    }
    for device in &wish.devices {
        let boots = device.boot_index.is_some_and(|index| index >= 0);
        match device.source {
            DeviceSource::Image(id) => {
                let row = image(view, project, id, "block_device_mapping_v2")?;
                if row.format.is_container() {
                    // The CLI names the image twice: as imageRef and as the device of index 0.
                    let at = device.boot_index.unwrap_or(members.len() as i64).max(0);
                    if !members.iter().any(|(index, known)| *index == at && known.id == id) {
                        members.push((at, row));
                    }
                } else if boots {
                    disk = Some(row);
                    root_image = (!device.local).then_some(id);
                }
            }
            DeviceSource::Volume(_) | DeviceSource::Snapshot(_) if device.boot_index == Some(0) => {
                from_volume = true;
            }
            _ => {}
        }
    }
    let mut set_first = false;
    let mut bodies = Vec::new();
    if let Some(row) = disk {
        draft.guard(row);
        bodies.push(vm(row, wish.flavor.disk_gib));
    } else if from_volume {
        bodies.push(boot_volume(view, wish)?);
    }
    if let Some(body) = whole.take() {
        set_first = true;
        bodies.push(body);
    } else if !members.is_empty() {
        for (_, row) in &members {
            draft.guard(row);
        }
        bodies.push(set(&members)?);
    }
    set_first |= members.first().is_some_and(|(_, row)| Some(row.id) == wish.image);
    let first_kind = if set_first { BodyKind::Set } else { BodyKind::Vm };
    bodies.sort_by_key(|body| body.kind() != first_kind);
    choose(&mut bodies, wish)?;
    if bodies.is_empty() {
        return Err(OpsError::field(
            "imageRef",
            "Invalid imageRef provided: name an image, or a device to boot from",
        ));
    }
    let shown = wish.image.or(disk.map(|row| row.id)).or(members.first().map(|(_, row)| row.id));
    let image = shown.filter(|_| root_image.is_none() && !from_volume);
    Ok(Bodies { bodies, image, root_image })
}

fn image<'a>(
    view: &'a View,
    project: ProjectId,
    id: ImageId,
    field: &str,
) -> Result<&'a Row<ImageRecord>, OpsError> {
    resolve::any_image(view, project, field, id)
}

fn vm(row: &Row<ImageRecord>, disk_gib: u64) -> BodyRecord {
    let root_gib = Some(disk_gib).filter(|gib| *gib > 0 && row.format != ImageFormat::KernelInitramfs);
    BodyRecord {
        spec: BodySpec::Vm(VmSpec { image: row.id.to_string(), root_gib, set: None }),
        images: vec![row.id],
    }
}

/// A VM of a volume needs no image; the record keeps the one that the volume was made of, if there is one.
fn boot_volume(view: &View, wish: &ServerWish) -> Result<BodyRecord, OpsError> {
    let source = wish.devices.iter().find(|d| d.boot_index == Some(0)).map(|d| d.source);
    let made_of = match source {
        Some(DeviceSource::Volume(id)) => view.volumes.get(id).and_then(|v| v.source_image),
        Some(DeviceSource::Snapshot(id)) => {
            let volume = view.snapshots.get(id).and_then(|s| view.volumes.get(s.volume));
            volume.and_then(|v| v.source_image)
        }
        _ => None,
    };
    let image = made_of.filter(|id| view.images.get(*id).is_some());
    let name = image.map(|id| id.to_string()).unwrap_or_default();
    let spec = BodySpec::Vm(VmSpec { image: name, root_gib: None, set: None });
    Ok(BodyRecord { spec, images: image.into_iter().collect() })
}

fn set(members: &[(i64, &Row<ImageRecord>)]) -> Result<BodyRecord, OpsError> {
    let mut members = members.to_vec();
    members.sort_by_key(|(index, _)| *index);
    let specs = members.iter().map(|(index, row)| MemberSpec {
        index: u32::try_from(*index).unwrap_or(u32::MAX),
        image: row.id.to_string(),
        ..MemberSpec::default()
    });
    let set = SetSpec { members: specs.collect(), volume_mount: "/data".into(), ..SetSpec::default() };
    set.check().map_err(|e| e.under("block_device_mapping_v2"))?;
    Ok(BodyRecord {
        spec: BodySpec::Set(set.normalized()),
        images: members.iter().map(|(_, row)| row.id).collect(),
    })
}

/// Keeps and orders the bodies as `amphi:bodies` says.
fn choose(bodies: &mut Vec<BodyRecord>, wish: &ServerWish) -> Result<(), OpsError> {
    let said = wish.metadata.get(BODIES_KEY).or_else(|| wish.flavor.extra_specs.get(BODIES_KEY));
    let Some(said) = said else { return Ok(()) };
    let mut order = Vec::new();
    for word in said.split(',').map(str::trim) {
        order.push(match word {
            "vm" => BodyKind::Vm,
            "set" => BodyKind::Set,
            _ => {
                return Err(OpsError::field(
                    "metadata",
                    format!("{BODIES_KEY} is 'vm', 'set', or both in the order wanted; not '{said}'"),
                ));
            }
        });
    }
    bodies.retain(|body| order.contains(&body.kind()));
    bodies.sort_by_key(|body| order.iter().position(|kind| *kind == body.kind()));
    if bodies.is_empty() {
        return Err(OpsError::field(
            "imageRef",
            format!("no image makes what {BODIES_KEY} asks for: {said}"),
        ));
    }
    Ok(())
}
