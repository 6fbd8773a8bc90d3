//! Owns sets that run as VMs: what they start from (the host's guest kit, a root file system per image, a disk that
//! members write on, the description), and what is known of each over its line. Refuses to know libvirt.

mod line;
mod render;
mod streams;

pub use line::Guests;
pub use render::start;
pub use streams::{open, tail, target};

use super::disks::Disk;
use super::files::BodyFiles;
use crate::images::roots::{self, Root, Roots};
use crate::instance::folders::blocking;
use crate::instance::{BodyPlan, DriverError};
use amphi_api::ImageId;
use amphi_api::host::Acceleration;
use amphi_api::image::Image;
use amphi_api::set::SetSpec;
use amphi_api::wire::BodyDesired;
use amphi_guest::{CONFIG_SERIAL, SCRATCH_SERIAL};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Distinct images of one set: each is a disk, and a machine has some 22 places left for disks and interfaces.
const IMAGES_MAX: usize = 12;
/// What a member may write where its description does not say, in MiB. Only what is written takes room on the host.
const ROOT_MIB: u64 = 8 << 10;
/// A file system's own share of the disk, in MiB.
const OVERHEAD_MIB: u64 = 64;
/// QEMU reads disks by whole sectors.
const SECTOR: usize = 512;

/// What a host has installed for running sets as VMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kit {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
}

impl Kit {
    /// The kit in this folder; why there is none, in words.
    pub fn find(folder: &Path) -> Result<Self, String> {
        let kit = Self { kernel: folder.join("kernel"), initramfs: folder.join("initramfs") };
        for file in [&kit.kernel, &kit.initramfs] {
            if let Err(error) = fs::File::open(file) {
                return Err(format!(
                    "{}: {error} (guest_kit; scripts/make-guest-kit.sh makes one)",
                    file.display()
                ));
            }
        }
        Ok(kit)
    }

    /// What the machine starts from that converts images; none: the kit is one of before there were such.
    pub fn converts(&self, acceleration: Acceleration) -> Option<crate::convert::Guest> {
        let initramfs = self.initramfs.with_file_name("convert-initramfs");
        let there = initramfs.exists();
        there.then(|| crate::convert::Guest {
            kernel: self.kernel.clone(),
            boot: self.initramfs.with_file_name("boot.img"),
            mbr: self.initramfs.with_file_name("mbr.bin"),
            initramfs,
            acceleration,
        })
    }
}

/// The set that a plan's VM runs, if that is what runs.
pub fn of(plan: &BodyPlan) -> Option<(&SetSpec, &[Image])> {
    match plan.runs() {
        BodyDesired::SetVm { set, images } => Some((set, images)),
        BodyDesired::Set { .. } | BodyDesired::Vm { .. } => None,
    }
}

/// A root's serial number: of the image's id, whose last half is what differs among ids made at one moment.
fn serial(image: ImageId) -> String {
    format!("root-{}", &image.0.simple().to_string()[17..])
}

fn refused(plan: &BodyPlan, message: impl Into<String>) -> DriverError {
    DriverError::EngineRefused {
        engine: "the guest kit",
        doing: format!("run the set of instance {} as a VM", plan.instance),
        message: message.into(),
    }
}

/// Everything that the plan's guest starts from; its disks.
pub async fn make_ready(
    plan: &BodyPlan,
    set: &SetSpec,
    images: &[Image],
    files: &BodyFiles,
    roots: &Roots,
) -> Result<Vec<Disk>, DriverError> {
    let mut made: BTreeMap<ImageId, Root> = BTreeMap::new();
    for image in images {
        if made.contains_key(&image.id) {
            continue;
        }
        let cached = plan
            .images
            .get(&image.id)
            .ok_or_else(|| refused(plan, format!("image {} is not here", image.id)))?;
        made.insert(image.id, roots.ensure(cached).await?);
    }
    if made.len() > IMAGES_MAX {
        let many = format!(
            "its members have {} images, a VM takes at most {IMAGES_MAX}: run it as a set",
            made.len()
        );
        return Err(refused(plan, many));
    }
    let configs: BTreeMap<ImageId, &[u8]> =
        made.iter().map(|(id, root)| (*id, root.config.as_slice())).collect();
    let guest = render::guest(plan, set, images, &configs)?;
    let text = serde_json::to_vec(&guest).map_err(|error| refused(plan, error.to_string()))?;
    if text.len() > amphi_guest::CONFIG_MAX {
        return Err(refused(plan, "its description is too large"));
    }
    let mut disks = vec![
        Disk::of_guest(CONFIG_SERIAL, "vdax", files.guest_config(), true),
        Disk::of_guest(SCRATCH_SERIAL, "vday", files.scratch(), false),
    ];
    let mut held = Vec::new();
    for (at, (id, root)) in made.iter().enumerate() {
        // vdaa, vdab … : behind all that a guest's disks are called otherwise. Guests know them by their serial numbers.
        let target = format!("vda{}", char::from(b'a' + at as u8));
        let name = files.guest_root(*id);
        disks.push(Disk::of_guest(&serial(*id), &target, name.clone(), true));
        held.push((root.path.clone(), name));
    }
    let mib = OVERHEAD_MIB
        + set.members.iter().map(|member| member.options.root_mib.unwrap_or(ROOT_MIB)).sum::<u64>();
    let (config, scratch) = (files.guest_config(), files.scratch());
    blocking("write the disks of a set's VM", move || {
        for (root, name) in &held {
            roots::hold(root, name)?;
        }
        write_config(&config, text)?;
        ensure_scratch(&scratch, mib << 20)
    })
    .await?;
    Ok(disks)
}

/// It holds files and variables, perhaps with secrets: QEMU gets at it because libvirt hands it over.
fn write_config(path: &Path, mut text: Vec<u8>) -> io::Result<()> {
    text.resize(text.len().next_multiple_of(SECTOR), 0);
    if fs::read(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let part = path.with_extension("part");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(part, path)
}

/// A sparse file with an empty ext4; one that is there is the body's own.
fn ensure_scratch(path: &Path, bytes: u64) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let part = path.with_extension("part");
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?.set_len(bytes)?;
    // Without a journal: after a power cut of the host what members wrote outside of their volume may be gone, as it is
    // with a set's.
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,discard"])
        .arg(&part)
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!(
            "mkfs.ext4: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    fs::rename(part, path)
}
