//! Conversions of images: a new image whose bytes a host makes of another one's, as it makes those of a snapshot. The order is
//! the image's record; the host finds it in its desired state, and is done when it has handed the bytes over. Deleting the new
//! image calls it off. Refuses to look into either.

use super::{Draft, Ops, OpsError, View};
use crate::model::{ConversionRecord, HostRecord, ImageExport, ImageRecord, ImageTraits};
use amphi_api::conversion::{Conversion, ConversionReport, ConvertCreate, ConvertTo};
use amphi_api::image::{Image, ImageFormat, ImageState};
use amphi_api::set::SetSpec;
use amphi_api::wire::{ExportSource, WIRE_IMAGES};
use amphi_api::{HostId, ImageId, ProjectId};
use jiff::Timestamp;

impl Ops {
    pub async fn convert_image(
        &self,
        scope: ProjectId,
        id: ImageId,
        request: &ConvertCreate,
    ) -> Result<Conversion, OpsError> {
        request.check()?;
        let (image, now) = (ImageId::new(), Timestamp::now());
        self.transact(|view| {
            let of = seen(view, scope, id)?;
            let format = becomes(of.format, request.to)?;
            if of.state() != ImageState::Active || of.closing || of.traits.deactivated {
                return Err(OpsError::conflict(
                    "the image has not all its bytes, or is going, or is deactivated",
                ));
            }
            let host = pick(view)?;
            let name = request.name.clone().unwrap_or_else(|| named(&of.name, request.to));
            let record = record(scope, image, name, format, &of.view(), request.to, host, now);
            let mut draft = Draft::default();
            draft.touch(of);
            draft.create(&record);
            Ok((draft, ()))
        })
        .await?;
        self.conversion(scope, image)
    }

    /// The conversion that an image comes from.
    pub fn conversion(&self, scope: ProjectId, id: ImageId) -> Result<Conversion, OpsError> {
        let view = self.world().read();
        let row = super::list::find(&view.images, scope, id)?;
        let (Some(kept), Some(state)) = (&row.traits.conversion, row.conversion_state()) else {
            return Err(OpsError::NotFound { noun: "conversion to image", id: id.to_string() });
        };
        let waits = || row.export.as_ref().and_then(|export| export.fault.clone());
        Ok(Conversion {
            image: row.view(),
            of: kept.of,
            of_name: kept.of_name.clone(),
            to: kept.to,
            host: kept.host,
            state,
            progress: kept.progress,
            set: kept
                .report
                .as_ref()
                .filter(|_| kept.to == ConvertTo::Container)
                .and_then(|r| set_of(row, r)),
            report: kept.report.clone(),
            fault: kept.failed.clone().or_else(waits),
            began_at: kept.began_at,
        })
    }
}

/// An image that the project may start from.
fn seen(view: &View, scope: ProjectId, id: ImageId) -> Result<&super::Row<ImageRecord>, OpsError> {
    let row = view.images.get(id).filter(|row| row.open_to(scope));
    row.ok_or_else(|| OpsError::not_found::<ImageRecord>(id))
}

/// The format of what comes out.
fn becomes(of: ImageFormat, to: ConvertTo) -> Result<ImageFormat, OpsError> {
    match (to, of) {
        (
            ConvertTo::Container,
            ImageFormat::Qcow2 | ImageFormat::Raw | ImageFormat::Vmdk | ImageFormat::Vhd | ImageFormat::Vhdx,
        ) => Ok(ImageFormat::DockerArchive),
        (ConvertTo::Disk, ImageFormat::DockerArchive | ImageFormat::Oci) => Ok(ImageFormat::Qcow2),
        (ConvertTo::Container, _) => Err(OpsError::field("to", "a container image is made of a disk")),
        (ConvertTo::Disk, _) => Err(OpsError::field("to", "a disk is made of a container image")),
    }
}

fn named(of: &str, to: ConvertTo) -> String {
    let end = if to == ConvertTo::Container { "-container" } else { "-disk" };
    let room = 255 - end.len();
    let cut = (0..=of.len().min(room)).rev().find(|at| of.is_char_boundary(*at)).unwrap_or(0);
    format!("{}{end}", &of[..cut])
}

/// The host that is to do it: of those that can, the one with the least to hand over.
fn pick(view: &View) -> Result<HostId, OpsError> {
    let able = view.hosts.iter().filter(|host| can(host));
    let busy = |host: &super::Row<HostRecord>| view.exports_on(host.id).count();
    able.min_by_key(|host| (busy(host), host.name.clone())).map(|host| host.id).ok_or_else(|| {
        OpsError::conflict(
            "no host can convert: one is needed that is up, open, and has a guest kit (guest_kit in `amphi host show`) and an \
             agent of this version",
        )
    })
}

fn can(host: &HostRecord) -> bool {
    let kit = host.spec.as_ref().is_some_and(|spec| spec.guest_kit && spec.wire >= WIRE_IMAGES);
    kit && host.is_up() && host.is_in() && host.closed_because().is_none()
}

#[allow(clippy::too_many_arguments)] // A record's fields, each once.
fn record(
    project: ProjectId,
    id: ImageId,
    name: String,
    format: ImageFormat,
    of: &Image,
    to: ConvertTo,
    host: HostId,
    now: Timestamp,
) -> ImageRecord {
    let (container, disk) = match to {
        ConvertTo::Container => ("docker", "raw"),
        ConvertTo::Disk => ("bare", "qcow2"),
    };
    ImageRecord {
        id,
        project,
        name,
        format,
        cmdline: String::new(),
        blobs: Default::default(),
        layers: Vec::new(),
        traits: ImageTraits {
            container_format: Some(container.into()),
            disk_format: Some(disk.into()),
            properties: [("converted_from".to_owned(), of.id.to_string())].into(),
            updated_at: Some(now),
            conversion: Some(ConversionRecord {
                of: of.id,
                of_name: of.name.clone(),
                to,
                host,
                progress: Default::default(),
                report: None,
                failed: None,
                began_at: now,
            }),
            ..ImageTraits::default()
        },
        export: Some(ImageExport {
            host,
            source: ExportSource::Conversion { of: Box::new(of.clone()), to },
            instance: None,
            fault: None,
        }),
        closing: false,
        created_at: now,
    }
}

/// The images that a conversion is made of and that is not over.
pub(super) fn being_converted(view: &View, id: ImageId) -> Option<ImageId> {
    let made_of = |row: &&super::Row<ImageRecord>| {
        row.exporting_host().is_some() && row.traits.conversion.as_ref().is_some_and(|c| c.of == id)
    };
    view.images.iter().find(made_of).map(|row| row.id)
}

/// A set of one member that runs what came out, as a machine: with memory of its own where machines have it.
fn set_of(row: &ImageRecord, report: &ConversionReport) -> Option<SetSpec> {
    let mut member = serde_json::json!({
        "index": 0, "name": "machine", "image": row.name, "stop": {"grace_s": 60},
        "tmpfs": [{"path": "/run", "size_mib": 64, "mode": "0755", "exec": true}, {"path": "/tmp", "size_mib": 256}],
    });
    if report.init.kind == "none" {
        member["command"] = serde_json::json!(["/bin/sh", "-c", "sleep infinity"]);
    }
    serde_json::from_value(serde_json::json!({ "members": [member] })).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_room() {
        assert_eq!(named("web", ConvertTo::Container), "web-container");
        let long = "ä".repeat(127);
        let name = named(&long, ConvertTo::Disk);
        assert!(name.len() <= 255 && name.ends_with("ä-disk"), "{name}");
    }

    #[test]
    fn what_becomes_what() {
        use ImageFormat::{DockerArchive, KernelInitramfs, Oci, Other, Qcow2, Raw, SetDescription};
        for (of, container, disk) in [
            (Qcow2, Some(DockerArchive), None),
            (Raw, Some(DockerArchive), None),
            (DockerArchive, None, Some(Qcow2)),
            (Oci, None, Some(Qcow2)),
            (KernelInitramfs, None, None),
            (SetDescription, None, None),
            (Other, None, None),
        ] {
            assert_eq!(becomes(of, ConvertTo::Container).ok(), container, "{of:?}");
            assert_eq!(becomes(of, ConvertTo::Disk).ok(), disk, "{of:?}");
        }
    }
}
