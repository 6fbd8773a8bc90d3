//! Owns which disks a VM has and in what order: root, rescue, the instance's volume, further volumes; and their XML, the
//! same at a start and when one joins a running guest. Pure; how a device can be opened is handed in.

use super::files::BodyFiles;
use super::markup::Element;
use crate::instance::{BodyPlan, VolumeAttachment};
use crate::qemu_img::DiskFormat;
use amphi_api::VolumeId;
use amphi_api::wire::BodyDesired;
use std::path::{Path, PathBuf};

/// libvirt keeps at most this much of a virtio disk's serial (the virtio specification's VIRTIO_BLK_ID_BYTES).
const SERIAL_MAX: usize = 20;
/// What a VM starts from. The guest names its disks by itself, in the order of these names, without gaps.
const BOOT_DISK: &str = "vda";
const VOLUME_DISK: &str = "vdb";
/// The own root disk while the guest starts from a rescue's, and the config drive: behind all that may come.
const SHELVED_ROOT: &str = "vdy";
const CONFIG_DISK: &str = "vdz";

/// libvirt's aliases for devices of ours, by which they are known again.
pub const ROOT_ALIAS: &str = "ua-root";
pub const VOLUME_ALIAS: &str = "ua-vol-";

/// How QEMU reads and writes a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeIo {
    /// A block device; else a plain file.
    pub block: bool,
    /// It can be opened with O_DIRECT: past the host's page cache, with kernel AIO.
    pub direct: bool,
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    pub alias: String,
    pub target: String,
    pub serial: String,
    pub source: PathBuf,
    bytes: Bytes,
    read_only: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bytes {
    /// A qcow2 file of ours.
    Own,
    /// A small raw file that nobody writes.
    Config,
    Volume(VolumeIo),
    /// A raw file that a guest's members write on.
    Scratch,
}

/// A volume's serial as the guest sees it: the first 20 hexadecimal digits of its id.
pub fn volume_serial(volume: VolumeId) -> String {
    volume.0.simple().to_string()[..SERIAL_MAX].to_owned()
}

/// Whether the plan's VM has a root disk made of its image.
pub fn has_own_root(plan: &BodyPlan) -> bool {
    plan.root_volume.is_none() && is_disk(&plan.body)
}

pub fn is_disk(body: &BodyDesired) -> bool {
    matches!(body, BodyDesired::Vm { image, .. } if DiskFormat::of(image.format).is_some())
}

/// Every disk of the plan's VM.
pub fn of(plan: &BodyPlan, files: &BodyFiles, io: impl Fn(&Path) -> VolumeIo) -> Vec<Disk> {
    let mut disks = Vec::new();
    let own = |alias: &str, serial: &str, target: &str, source: PathBuf| Disk {
        alias: alias.to_owned(),
        target: target.to_owned(),
        serial: serial.to_owned(),
        source,
        bytes: Bytes::Own,
        read_only: false,
    };
    let volume = |volume: &VolumeAttachment, target: &str, read_only| Disk {
        alias: format!("{VOLUME_ALIAS}{}", volume.id),
        target: target.to_owned(),
        serial: volume_serial(volume.id),
        source: volume.device.clone(),
        bytes: Bytes::Volume(io(&volume.device)),
        read_only,
    };
    if plan.rescue.as_ref().is_some_and(is_disk) {
        disks.push(own("ua-rescue", "rescue", BOOT_DISK, files.rescue()));
    }
    let root = if plan.rescue.is_some() { SHELVED_ROOT } else { BOOT_DISK };
    match &plan.root_volume {
        Some(attached) => disks.push(volume(attached, root, false)),
        None if is_disk(&plan.body) => disks.push(own(ROOT_ALIAS, "root", root, files.root())),
        None => {}
    }
    disks.extend(plan.volume.iter().map(|attached| volume(attached, VOLUME_DISK, false)));
    disks.extend(plan.attachments.iter().map(|extra| volume(&extra.volume, &extra.device, extra.read_only)));
    disks.push(Disk {
        bytes: Bytes::Config,
        read_only: true,
        ..own("ua-config", "config-2", CONFIG_DISK, files.config_drive())
    });
    disks
}

impl Disk {
    /// A disk that a set's VM starts from, known to its guest by its serial number.
    pub fn of_guest(serial: &str, target: &str, source: PathBuf, read_only: bool) -> Self {
        Self {
            alias: format!("ua-guest-{serial}"),
            target: target.to_owned(),
            serial: serial.to_owned(),
            source,
            bytes: if read_only { Bytes::Config } else { Bytes::Scratch },
            read_only,
        }
    }

    pub fn element(&self) -> Element {
        let driver = |kind: &str| Element::new("driver").attr("name", "qemu").attr("type", kind);
        let driver = match self.bytes {
            Bytes::Own => driver("qcow2").attr("cache", "writeback"),
            Bytes::Config => driver("raw"),
            // What of it is not on the disk after a power cut of the host nobody was promised.
            Bytes::Scratch => driver("raw").attr("cache", "unsafe"),
            Bytes::Volume(VolumeIo { direct: true, .. }) => {
                driver("raw").attr("cache", "none").attr("io", "native")
            }
            Bytes::Volume(_) => driver("raw").attr("cache", "writeback").attr("io", "threads"),
        };
        let driver = match self.bytes {
            Bytes::Config => driver,
            _ => driver.attr("error_policy", "enospace").attr("discard", "unmap"),
        };
        let (kind, attribute) = match self.bytes {
            Bytes::Volume(VolumeIo { block: true, .. }) => ("block", "dev"),
            _ => ("file", "file"),
        };
        let disk = Element::new("disk")
            .attr("type", kind)
            .attr("device", "disk")
            .child(driver)
            .child(Element::new("source").attr(attribute, self.source.display()))
            .child(Element::new("target").attr("dev", &self.target).attr("bus", "virtio"))
            .child(Element::new("serial").text(&self.serial))
            .child(Element::new("alias").attr("name", &self.alias));
        if self.read_only { disk.child(Element::new("readonly")) } else { disk }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::instance::ExtraVolume;
    use amphi_api::image::ImageFormat;

    /// Targets with their aliases, as the guest gets them.
    fn table(plan: &BodyPlan) -> Vec<(String, String)> {
        let files = BodyFiles::new(Path::new("/s"), plan);
        let io = |_: &Path| VolumeIo { block: true, direct: true };
        of(plan, &files, io).into_iter().map(|disk| (disk.target, disk.alias)).collect()
    }

    #[test]
    fn roots_rescues_and_volumes_have_their_places() {
        let mut plan = sample::plan(ImageFormat::Qcow2);
        let volume = plan.volume.clone().unwrap();
        let of_volume = format!("ua-vol-{}", volume.id);
        let is = |plan: &BodyPlan, expected: &[(&str, &str)]| {
            let expected: Vec<_> = expected.iter().map(|(t, a)| ((*t).to_owned(), (*a).to_owned())).collect();
            assert_eq!(table(plan), expected);
        };
        is(&plan, &[("vda", "ua-root"), ("vdb", &of_volume), ("vdz", "ua-config")]);
        let rescue = plan.body.clone();
        plan.rescue = Some(rescue);
        is(&plan, &[("vda", "ua-rescue"), ("vdy", "ua-root"), ("vdb", &of_volume), ("vdz", "ua-config")]);
        plan.rescue = None;
        plan.root_volume = plan.volume.take();
        plan.attachments = vec![ExtraVolume {
            volume: VolumeAttachment { id: VolumeId::new(), ..volume },
            device: "vdd".into(),
            read_only: true,
        }];
        let extra = format!("ua-vol-{}", plan.attachments[0].volume.id);
        is(&plan, &[("vda", &of_volume), ("vdd", &extra), ("vdz", "ua-config")]);
        assert!(!has_own_root(&plan));
    }
}
