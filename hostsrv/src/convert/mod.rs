//! Converts images on this host: a VM's disk into a container image's archive, and back into a disk. Nothing of either is
//! read by this host's kernel or by the agent: a machine of the guest kit does it, thrown away afterwards
//! ([`machine`]), and what comes out goes through the controller's own checks like everything that is uploaded. Refuses to
//! know what is ordered, and to keep anything.

mod archive;
mod layout;
mod machine;

use crate::images::bases;
use crate::images::roots::{Root, Roots};
use crate::instance::vm::guest::start;
use crate::instance::vm::image_check;
use crate::qemu_img::{self, Convert, DiskFormat, QemuImgError};
use amphi_api::conversion::ConversionReport;
use amphi_api::host::Acceleration;
use amphi_api::image::{BlobRole, ImageFormat};
use amphi_guest::conversion::{NOTES_MAX, ROOT_WORD, Report, START_FILE, Start, TEXT_MAX, Told};
use fatfs::{FileSystem, FsOptions};
use layout::{Layout, Part};
use machine::Disks;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use tokio::sync::Mutex;

/// Largest tar that comes out, in bytes: the largest layer that the controller takes.
const TAR_MAX: u64 = 64 << 30;

/// What the machine starts from.
#[derive(Clone, Debug)]
pub struct Guest {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// What a BIOS starts from a disk that was made here: a partition, and the code in front of all partitions.
    pub boot: PathBuf,
    pub mbr: PathBuf,
    pub acceleration: Acceleration,
}

#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    #[error("this host's guest kit cannot convert: scripts/make-guest-kit.sh makes one that can")]
    NoKit,
    /// The same again would end the same.
    #[error("it cannot be converted: {0}")]
    Refused(String),
    #[error("the machine that converts: {0}")]
    Machine(String),
    #[error("cannot {doing}: {source}")]
    Io { doing: &'static str, source: io::Error },
    #[error(transparent)]
    Disk(#[from] QemuImgError),
}

impl ConvertError {
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoKit => "no_guest_kit",
            Self::Refused(_) => "not_convertible",
            Self::Machine(_) => "conversion_failed",
            Self::Io { .. } => "internal",
            Self::Disk(_) => "image_broken",
        }
    }
}

fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> ConvertError {
    move |source| ConvertError::Io { doing, source }
}

/// The conversions of one host, one at a time: each takes a processor and memory beside the host's own bodies.
pub struct Converter {
    able: Option<(Guest, Roots)>,
    one: Mutex<()>,
}

impl Converter {
    pub fn new(able: Option<(Guest, Roots)>) -> Self {
        Self { able, one: Mutex::default() }
    }

    /// Where container images become root file systems.
    pub fn roots(&self) -> Result<&Roots, ConvertError> {
        self.able.as_ref().map(|(_, roots)| roots).ok_or(ConvertError::NoKit)
    }

    /// Makes the archive `to` of a disk's root file system. `folder` is the caller's, and goes with what is left in it. `told`
    /// hears how far it is: names and bytes.
    pub async fn to_container(
        &self,
        disk: &Path,
        format: ImageFormat,
        folder: &Path,
        to: &Path,
        told: impl Fn(u64, u64) + Send,
    ) -> Result<ConversionReport, ConvertError> {
        let (guest, _) = self.able.as_ref().ok_or(ConvertError::NoKit)?;
        let kind = bases::lies(format).ok_or_else(|| ConvertError::Refused("its image is no disk".into()))?;
        let alone = image_check::check(format, BlobRole::Disk, disk);
        alone.map_err(io_error("look at the disk"))?.map_err(ConvertError::Refused)?;
        let _turn = self.one.lock().await;
        let size = qemu_img::virtual_size(kind, disk).await?;
        let (layer, tar) = (folder.join("layer"), folder.join("tar"));
        qemu_img::create_empty(&layer, size).await?;
        let result = File::options().read(true).write(true).create_new(true).open(&tar);
        let result = result.map_err(io_error("make a place for the tar"))?;
        // Names and holes take more room than on the disk.
        let room = size.saturating_mul(2).saturating_add(8 << 30).min(TAR_MAX);
        result.set_len(room).map_err(io_error("make a place for the tar"))?;
        let opened = || {
            let source = File::open(disk)?;
            let layer = File::options().read(true).write(true).open(&layer)?;
            Ok(Disks { source, source_format: kind.name(), layer: Some(layer), result: result.try_clone()? })
        };
        let disks = opened().map_err(io_error("open the disk"))?;
        let last = machine::run(guest, &disks, "container", told).await?;
        drop(disks);
        let (bytes, report) = match last {
            Told::Done { tar_bytes, report } if tar_bytes <= room => (tar_bytes, checked(*report)?),
            Told::Refused { message } => return Err(ConvertError::Refused(bounded(&message))),
            other => {
                return Err(ConvertError::Machine(format!("it ended with what was not asked: {other:?}")));
            }
        };
        let (to, init) = (to.to_owned(), report.init.clone());
        let write = move || {
            let mut out = BufWriter::with_capacity(1 << 20, File::create(&to)?);
            let layer = io::BufReader::with_capacity(1 << 20, File::open(&tar)?);
            archive::write(layer.take(bytes), &init, &mut out)?;
            out.flush()?;
            // It may be as large as the image.
            std::fs::remove_file(&tar)
        };
        let written = tokio::task::spawn_blocking(write).await;
        written.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(io_error("write the archive"))?;
        Ok(report)
    }

    /// Makes the qcow2 disk `to` of a container image's root file system.
    pub async fn to_disk(
        &self,
        root: &Root,
        folder: &Path,
        to: &Path,
        told: impl Fn(u64, u64) + Send,
    ) -> Result<ConversionReport, ConvertError> {
        let (guest, _) = self.able.as_ref().ok_or(ConvertError::NoKit)?;
        let start = start(&root.config).map_err(ConvertError::Refused)?;
        let _turn = self.one.lock().await;
        let disk = folder.join("disk");
        let (kit, made, source) = (guest.clone(), disk.clone(), root.path.clone());
        let make = tokio::task::spawn_blocking(move || make_disk(&kit, &source, &made, &start));
        make.await.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(io_error("make the disk"))?;
        let opened = || {
            let result = File::options().read(true).write(true).open(&disk)?;
            Ok(Disks { source: File::open(&root.path)?, source_format: "raw", layer: None, result })
        };
        let disks = opened().map_err(io_error("open the disk"))?;
        let report = match machine::run(guest, &disks, "disk", told).await? {
            Told::Filled { entries, bytes } => {
                ConversionReport { entries, bytes, ..ConversionReport::default() }
            }
            Told::Refused { message } => return Err(ConvertError::Refused(bounded(&message))),
            other => {
                return Err(ConvertError::Machine(format!("it ended with what was not asked: {other:?}")));
            }
        };
        drop(disks);
        let (from_format, to_format) = (DiskFormat::Raw, DiskFormat::Qcow2);
        let pack =
            Convert { from: &disk, from_format, to, to_format, into_device: false, limit: machine::LIMIT };
        pack.run().await?;
        Ok(report)
    }
}

/// All of a disk but what is in its root file system: its partitions, what a BIOS starts, an empty ext4.
fn make_disk(kit: &Guest, root: &Path, disk: &Path, start: &Start) -> io::Result<()> {
    let boot = File::open(&kit.boot)?;
    // Twice what is in it, and some: names and blocks take room, and a machine writes. What is empty takes none.
    let layout = Layout::new(boot.metadata()?.len(), std::fs::metadata(root)?.len() * 2 + (2 << 30));
    let mut file = File::options().read(true).write(true).create_new(true).open(disk)?;
    file.set_len(layout.bytes())?;
    let id = uuid::Uuid::new_v4();
    let number = id.as_bytes()[..4].try_into().unwrap_or_default();
    file.write_all(&layout.mbr(&std::fs::read(&kit.mbr)?, number)?)?;
    layout.boot(boot, &mut file)?;
    {
        let part =
            Part { file: &mut file, begin: layout.boot * 512, length: layout.boot_length * 512, at: 0 };
        let system = FileSystem::new(part, FsOptions::new().update_accessed_date(false))?;
        let menu = format!(
            "DEFAULT amphi\nPROMPT 0\nLABEL amphi\n  KERNEL vmlinuz\n  INITRD initrd\n  APPEND quiet console=tty0 console=ttyS0 {ROOT_WORD}={id}\n"
        );
        for (name, bytes) in [("syslinux.cfg", menu.into_bytes()), (START_FILE, serde_json::to_vec(start)?)] {
            let mut file = system.root_dir().create_file(name)?;
            file.truncate()?;
            file.write_all(&bytes)?;
            file.flush()?;
        }
        system.unmount()?;
    }
    file.sync_all()?;
    let output = std::process::Command::new("mkfs.ext4")
        .args(["-q", "-F", "-L", "root", "-U", &id.to_string()])
        .args(["-E", &format!("offset={},lazy_itable_init=1,nodiscard", layout.root_at())])
        .arg(disk)
        .arg(format!("{}k", layout.root_length / 2))
        .stdin(std::process::Stdio::null())
        .output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!(
            "mkfs.ext4: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    Ok(())
}

fn bounded(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).take(TEXT_MAX).collect()
}

/// A machine's report, in the bounds that it should have kept itself; its words are the controller's by their names.
fn checked(report: Report) -> Result<ConversionReport, ConvertError> {
    let words = report.notes.iter().flat_map(|note| [&note.kind, &note.what, &note.why]);
    let words = words.chain(report.services.iter().flat_map(|one| [&one.name, &one.why]));
    let words = words.chain(report.mounted.iter().flat_map(|(path, on)| [path, on]));
    let mut words = words.chain([&report.system, &report.root, &report.init.kind]);
    let many = report.notes.len() > NOTES_MAX
        || report.services.len() > NOTES_MAX
        || report.mounted.len() > NOTES_MAX;
    // Each character was counted there.
    if many || words.any(|word| word.chars().count() > 2 * TEXT_MAX) {
        return Err(ConvertError::Machine("its report is larger than it may be".into()));
    }
    let same = serde_json::to_value(&report).and_then(serde_json::from_value);
    same.map_err(|error| ConvertError::Machine(format!("its report: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_guest::conversion::{Init, Note, Service};

    #[test]
    fn a_report_is_the_same_on_both_sides_and_bounded() {
        let mut report = Report {
            system: "Linux".into(),
            root: "partition 1 (ext4)".into(),
            mounted: vec![("/var".into(), "vg/var".into())],
            init: Init { kind: "systemd".into(), argv: vec!["/init".into()], stop_signal: "SIGPWR".into() },
            services: vec![Service { name: "web".into(), started: false, why: "so".into() }],
            notes: vec![Note { kind: "swap".into(), what: "x".into(), why: "y".into() }],
            entries: 1,
            bytes: 2,
            hard_links: 3,
            sparse_files: 4,
            capabilities: 5,
            set_ids: 6,
        };
        let same = checked(report.clone()).unwrap();
        assert_eq!(serde_json::to_value(&same).unwrap(), serde_json::to_value(&report).unwrap());
        report.system = "x".repeat(10_000);
        assert!(checked(report.clone()).is_err());
        report.system = String::new();
        report.notes = vec![report.notes[0].clone(); NOTES_MAX + 1];
        assert!(checked(report).is_err());
    }

    #[test]
    fn a_disk_has_what_a_bios_and_a_kernel_look_for() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let boot = File::options().read(true).write(true).create_new(true).open(at("boot.img")).unwrap();
        boot.set_len(16 << 20).unwrap();
        fatfs::format_volume(&boot, fatfs::FormatVolumeOptions::new().fat_type(fatfs::FatType::Fat16))
            .unwrap();
        std::fs::write(at("mbr.bin"), [9; 440]).unwrap();
        std::fs::write(at("root"), [1; 5000]).unwrap();
        let kit = Guest {
            kernel: at("kernel"),
            initramfs: at("initramfs"),
            boot: at("boot.img"),
            mbr: at("mbr.bin"),
            acceleration: Acceleration::Tcg,
        };
        let start = Start { argv: vec!["/web".into()], ..Start::default() };
        make_disk(&kit, &at("root"), &at("disk"), &start).unwrap();
        let layout = Layout::new(16 << 20, 10_000 + (2 << 30));
        let mut disk = File::options().read(true).write(true).open(at("disk")).unwrap();
        assert_eq!(disk.metadata().unwrap().len(), layout.bytes());
        let part = Part { file: &mut disk, begin: 1 << 20, length: 16 << 20, at: 0 };
        let system = FileSystem::new(part, FsOptions::new()).unwrap();
        let read = |name: &str| {
            let mut text = String::new();
            system.root_dir().open_file(name).unwrap().read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(serde_json::from_str::<Start>(&read(START_FILE)).unwrap(), start);
        let menu = read("syslinux.cfg");
        let id = menu.split(&format!("{ROOT_WORD}=")).nth(1).unwrap().trim().to_owned();
        drop(system);
        let mut head = vec![0; 2048];
        std::os::unix::fs::FileExt::read_exact_at(&disk, &mut head, layout.root_at()).unwrap();
        assert_eq!(
            (&head[1080..1082], &head[1128..1144]),
            (&[0x53, 0xef][..], &uuid::Uuid::parse_str(&id).unwrap().as_bytes()[..])
        );
        assert!(
            make_disk(&kit, &at("root"), &at("disk"), &start).is_err(),
            "what is there is not written over"
        );
    }

    #[tokio::test]
    async fn what_is_no_disk_of_its_own_is_refused_before_a_machine_sees_it() {
        let folder = tempfile::tempdir().unwrap();
        let none = PathBuf::from("/nonexistent");
        let guest = Guest {
            kernel: none.clone(),
            initramfs: none.clone(),
            boot: none.clone(),
            mbr: none,
            acceleration: Acceleration::Tcg,
        };
        let converter = Converter::new(Some((guest, Roots::new(folder.path()))));
        let disk = folder.path().join("disk");
        let mut head = vec![0_u8; 512];
        head[..4].copy_from_slice(b"QFI\xfb");
        head[4..8].copy_from_slice(&3_u32.to_be_bytes());
        head[8..16].copy_from_slice(&104_u64.to_be_bytes());
        head[16..20].copy_from_slice(&11_u32.to_be_bytes());
        head[104..115].copy_from_slice(b"/etc/shadow");
        std::fs::write(&disk, &head).unwrap();
        let to = folder.path().join("bytes");
        for (format, want) in [(ImageFormat::Qcow2, "backing file"), (ImageFormat::Oci, "no disk")] {
            let told =
                converter.to_container(&disk, format, folder.path(), &to, |_, _| {}).await.unwrap_err();
            assert!(told.to_string().contains(want) && told.code() == "not_convertible", "{told}");
        }
        let none =
            Converter::new(None).to_container(&disk, ImageFormat::Raw, folder.path(), &to, |_, _| {}).await;
        assert_eq!(none.unwrap_err().code(), "no_guest_kit");
    }
}
