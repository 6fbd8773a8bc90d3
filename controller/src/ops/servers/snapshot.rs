//! An image of an instance: the record at once, its bytes when the host has handed them over.

use super::journal::Started;
use super::resize::has_root_disk;
use super::{Origin, allowed};
use crate::model::*;
use crate::ops::images::reserve_snapshot_image;
use crate::ops::{Draft, Ops, OpsError, View};
use amphi_api::image::ImageFormat;
use amphi_api::instance::BodyKind;
use amphi_api::wire::ExportSource;
use amphi_api::{ImageId, InstanceId};
use jiff::Timestamp;
use std::collections::BTreeMap;

impl Ops {
    pub async fn create_server_image(
        &self,
        origin: &Origin,
        id: InstanceId,
        name: &str,
        metadata: &BTreeMap<String, String>,
    ) -> Result<ImageId, OpsError> {
        self.transact(|view| decide(view, origin, id, name, metadata, Timestamp::now())).await
    }
}

fn decide(
    view: &View,
    origin: &Origin,
    id: InstanceId,
    name: &str,
    metadata: &BTreeMap<String, String>,
    now: Timestamp,
) -> Result<(Draft, ImageId), OpsError> {
    use VmState::*;
    let row = allowed(view, origin, id, "createImage", &[Active, Stopped, Paused, Suspended], now)?;
    let host = row.host.ok_or_else(|| OpsError::conflict("the instance has no host"))?;
    let (format, source) = match (row.body, row.root_volume) {
        (BodyKind::Set, _) => {
            (ImageFormat::DockerArchive, ExportSource::Member { instance: id, member: None })
        }
        (BodyKind::Vm, Some(volume)) => (ImageFormat::Qcow2, ExportSource::Volume(volume)),
        (BodyKind::Vm, None) if has_root_disk(view, row) => (ImageFormat::Qcow2, ExportSource::Root(id)),
        (BodyKind::Vm, None) => {
            return Err(OpsError::conflict(
                "the instance runs from a kernel and an initramfs: it has no disk to make an image of",
            ));
        }
    };
    let mut draft = Draft::default();
    let export = ImageExport { host, source, instance: Some(id), fault: None };
    let image = reserve_snapshot_image(&mut draft, row, name, format, export, metadata, now);
    let mut record = (*row.record).clone();
    let started = Started { view, origin, before: &row.record, now };
    started.task(&mut draft, &mut record, Task::Snapshot(image), "createImage");
    draft.update(row, &record);
    Ok((draft, image))
}
