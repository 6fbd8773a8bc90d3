//! Which volumes an order means: the root, if it boots from one, and the further ones.

use super::plan::{VolumePlan, VolumeStart};
use super::{DeviceSource, DeviceWish, ServerWish};
use crate::model::*;
use crate::ops::list::find;
use crate::ops::servers::attach::refuse_unavailable;
use crate::ops::{Draft, OpsError, View};
use amphi_api::image::BlobRole;
use amphi_api::{ImageId, ProjectId, validate};

const FIELD: &str = "block_device_mapping_v2";

pub(super) fn of(
    view: &View,
    project: ProjectId,
    wish: &ServerWish,
    root_image: Option<ImageId>,
    draft: &mut Draft,
) -> Result<(Option<VolumePlan>, Vec<VolumePlan>), OpsError> {
    let mut root = None;
    let mut further = Vec::new();
    for device in &wish.devices {
        let is_root = device.boot_index == Some(0);
        let start = match device.source {
            // A body's own disk, or a member.
            DeviceSource::Image(_) if device.local => continue,
            DeviceSource::Image(id) if Some(id) == root_image || !is_container(view, id) => {
                VolumeStart::Image(id, image_gib(view, id, device, wish)?)
            }
            DeviceSource::Image(_) => continue,
            DeviceSource::Volume(id) => {
                let row = find(&view.volumes, project, id)
                    .map_err(|_| OpsError::field(FIELD, format!("volume {id} could not be found")))?;
                refuse_unavailable(view, row)?;
                VolumeStart::There(id)
            }
            DeviceSource::Snapshot(id) => {
                let row = find(&view.snapshots, project, id)
                    .map_err(|_| OpsError::field(FIELD, format!("snapshot {id} could not be found")))?;
                if row.intent == Intent::Deleting || !row.made {
                    return Err(OpsError::field(FIELD, format!("snapshot {id} is not available")));
                }
                draft.guard(row);
                VolumeStart::Snapshot(id, device.size_gib.unwrap_or(row.size_gib).max(row.size_gib))
            }
            DeviceSource::Blank => {
                let gib = device.size_gib.ok_or_else(|| OpsError::field(FIELD, "volume_size is missing"))?;
                VolumeStart::Blank(gib)
            }
        };
        if let VolumeStart::Blank(gib) | VolumeStart::Image(_, gib) | VolumeStart::Snapshot(_, gib) = start {
            validate::within(FIELD, gib, 1, validate::VOLUME_GIB_MAX, "GiB")?;
        }
        let plan = VolumePlan {
            start,
            name: String::new(),
            delete_on_termination: device.delete_on_termination || device.local,
            device: device.device.clone(),
            tag: device.tag.clone(),
        };
        if is_root && root.is_none() { root = Some(plan) } else { further.push(plan) }
    }
    Ok((root, further))
}

fn is_container(view: &View, id: ImageId) -> bool {
    view.images.get(id).is_some_and(|row| row.format.is_container())
}

/// As large as was asked, as the flavor says, or as the image needs.
fn image_gib(view: &View, id: ImageId, device: &DeviceWish, wish: &ServerWish) -> Result<u64, OpsError> {
    let bytes = view.images.get(id).and_then(|row| row.blobs.get(&BlobRole::Disk)).map_or(0, |b| b.size);
    let flavor = Some(wish.flavor.disk_gib).filter(|gib| *gib > 0);
    Ok(device.size_gib.or(flavor).unwrap_or_else(|| bytes.div_ceil(GIB).max(1)))
}
