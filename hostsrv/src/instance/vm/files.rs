//! Owns the files of a VM's body on the host: `config.img`, `console.log` and a rescue's `rescue.qcow2` in the body's
//! folder, and the root disk beside it. Checks images before QEMU sees them.

use super::disks::{self, VolumeIo};
use super::{drive_image, image_check, xml};
use crate::images::bases;
use crate::instance::folders::{self, blocking};
use crate::instance::{BodyPlan, DriverError, config_drive};
use crate::qemu_img::{self, DiskFormat, QemuImgError};
use amphi_api::image::{BlobRole, Image};
use amphi_api::instance::BodyKind;
use amphi_api::wire::BodyDesired;
use amphi_api::{ImageId, InstanceId};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const LOG: &str = "console.log";
/// The most that is read of a console log, in bytes.
const LOG_TAIL_MAX: u64 = 1 << 20;

/// Where one body's files lie.
#[derive(Clone, Debug)]
pub struct BodyFiles {
    folder: PathBuf,
    root: PathBuf,
}

impl BodyFiles {
    pub fn new(state_dir: &Path, plan: &BodyPlan) -> Self {
        let image = plan.body.images().first().map_or(ImageId(uuid::Uuid::nil()), |image| image.id);
        Self {
            folder: folders::of_body(state_dir, plan.instance, BodyKind::Vm, plan.epoch),
            root: folders::root(state_dir, plan.instance, plan.root, image),
        }
    }

    /// The disk made of the body's image. It is not the epoch's: another one finds it again.
    pub fn root(&self) -> PathBuf {
        self.root.clone()
    }

    /// The disk made of the rescue's image, as long as it is needed.
    pub fn rescue(&self) -> PathBuf {
        self.folder.join("rescue.qcow2")
    }

    pub fn config_drive(&self) -> PathBuf {
        self.folder.join("config.img")
    }

    /// What the guest of a set's VM is told.
    pub fn guest_config(&self) -> PathBuf {
        self.folder.join("guest.img")
    }

    /// Where the line to the guest of a set's VM ends. At most 107 bytes (unix(7)), with a state directory as it is usual.
    pub fn guest_socket(&self) -> PathBuf {
        self.folder.join("line")
    }

    /// What members of a set's VM write on, beside their volume.
    pub fn scratch(&self) -> PathBuf {
        self.folder.join("scratch.img")
    }

    /// This body's own name of an image's root file system.
    pub fn guest_root(&self, image: ImageId) -> PathBuf {
        self.folder.join(format!("root-{image}.squashfs"))
    }

    pub fn console_log(&self) -> PathBuf {
        self.folder.join(LOG)
    }
}

fn io_error(doing: impl Into<String>) -> impl FnOnce(io::Error) -> DriverError {
    let doing = doing.into();
    move |source| DriverError::Io { doing, source }
}

/// Checks the images and writes what is missing. An existing root disk of the plan's count is kept: it is the guest's.
pub async fn ensure(files: &BodyFiles, plan: &BodyPlan) -> Result<(), DriverError> {
    let drive = { (files.clone(), config_drive::files(plan)) };
    blocking("write the config drive", move || write_config_drive(&drive.0, &drive.1)).await?;
    let own = match &plan.body {
        BodyDesired::Vm { image, root_gib, .. } => Some((image, *root_gib)),
        // Its disks are `guest`'s.
        BodyDesired::SetVm { .. } => None,
        BodyDesired::Set { .. } => return Err(no_vm(plan)),
    };
    if let Some((image, root_gib)) = own.filter(|_| disks::has_own_root(plan)) {
        check(plan, &plan.body, image).await?;
        ensure_disk(&files.root(), plan, &plan.body, image, root_gib).await?;
    } else if let Some((image, _)) = own
        && plan.rescue.is_none()
        && !disks::is_disk(&plan.body)
    {
        check(plan, &plan.body, image).await?;
    }
    if let Some(rescue) = &plan.rescue {
        let BodyDesired::Vm { image, root_gib, .. } = rescue else {
            // A rescue that is a set of members is what the guest runs then.
            if matches!(rescue, BodyDesired::SetVm { .. }) {
                return Ok(());
            }
            return Err(no_vm(plan));
        };
        check(plan, rescue, image).await?;
        if disks::is_disk(rescue) {
            ensure_disk(&files.rescue(), plan, rescue, image, *root_gib).await?;
        }
    }
    Ok(())
}

fn no_vm(plan: &BodyPlan) -> DriverError {
    DriverError::EngineRefused {
        engine: "libvirt",
        doing: format!("make the files of instance {}", plan.instance),
        message: "a body of the plan, its own or the rescue's, is not a VM".into(),
    }
}

/// What only a VM that does not run allows: its root disk grows to what is asked for, those of lower counts go, and so
/// does a rescue's that is over.
pub async fn settle(state_dir: &Path, files: &BodyFiles, plan: &BodyPlan) -> Result<(), DriverError> {
    let (state_dir, instance, count) = (state_dir.to_owned(), plan.instance, plan.root);
    let rescue = plan.rescue.is_none().then(|| files.rescue());
    blocking("remove disks that are over", move || {
        let lower = folders::roots(&state_dir, instance)?.into_iter().filter(|(found, _)| *found < count);
        for path in lower.map(|(_, path)| path).chain(rescue) {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    })
    .await?;
    let BodyDesired::Vm { root_gib: Some(gib), .. } = &plan.body else { return Ok(()) };
    if !disks::has_own_root(plan) {
        return Ok(());
    }
    let root = files.root();
    if qemu_img::virtual_size(DiskFormat::Qcow2, &root).await? < gib << 30 {
        qemu_img::grow(&root, gib << 30).await?;
    }
    Ok(())
}

async fn check(plan: &BodyPlan, body: &BodyDesired, image: &Image) -> Result<(), DriverError> {
    for role in image.format.roles() {
        let path = xml::blob(plan, body, *role)?.to_owned();
        let format = image.format;
        let role = *role;
        blocking("read the image", move || image_check::check(format, role, &path))
            .await?
            .map_err(|message| DriverError::ImageBroken { image: image.id, message })?;
    }
    Ok(())
}

/// A disk over the image's, unless it is there.
async fn ensure_disk(
    disk: &Path,
    plan: &BodyPlan,
    body: &BodyDesired,
    image: &Image,
    gib: Option<u64>,
) -> Result<(), DriverError> {
    if tokio::fs::try_exists(disk).await.map_err(io_error("look for the root disk"))? {
        return Ok(());
    }
    let base = xml::blob(plan, body, BlobRole::Disk)?;
    let format = bases::lies(image.format).unwrap_or(DiskFormat::Raw);
    let size = match qemu_img::virtual_size(format, base).await {
        Err(QemuImgError::Refused { message, .. }) => {
            return Err(DriverError::ImageBroken { image: image.id, message });
        }
        size => size?,
    };
    let size = gib.map_or(size, |gib| size.max(gib << 30));
    Ok(qemu_img::create_overlay(format, base, disk, size).await?)
}

fn write_config_drive(files: &BodyFiles, content: &[(String, Vec<u8>)]) -> io::Result<()> {
    make_folder(&files.folder)?;
    let path = files.config_drive();
    let bytes = drive_image::image(content)?;
    if std::fs::read(&path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    // It holds user data, perhaps with secrets. QEMU gets at it because libvirt hands it over at start.
    let part = files.folder.join("config.img.part");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    std::fs::rename(part, path)
}

/// QEMU runs as a user of its own, which has to pass through and may not look around.
fn make_folder(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let instance = folder.parent().unwrap_or(folder);
    for folder in [instance.parent().unwrap_or(instance), instance, folder] {
        let mode = std::fs::metadata(folder)?.permissions().mode();
        if mode & 0o111 != 0o111 {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode | 0o111))?;
        }
    }
    Ok(())
}

/// How the volume's device can be opened. One that is not there yet is taken for a block device like any other.
pub fn volume_io(device: &Path) -> VolumeIo {
    let block = std::fs::metadata(device).map_or(true, |m| m.file_type().is_block_device());
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECT).open(device);
    // EINVAL is what a file system without direct I/O says (open(2)).
    let direct = !opened.is_err_and(|e| e.raw_os_error() == Some(nix::libc::EINVAL));
    VolumeIo { block, direct }
}

/// The console log of the newest body that has one.
pub fn newest_console(state_dir: &Path, instance: InstanceId) -> io::Result<Option<PathBuf>> {
    let folders = folders::epochs(state_dir, instance, BodyKind::Vm)?;
    Ok(folders.into_iter().rev().map(|(_, folder)| folder.join(LOG)).find(|log| log.exists()))
}

/// The last lines of the newest body's console that has one. Empty when nothing was written yet.
pub async fn console_tail(state_dir: &Path, instance: InstanceId, lines: u32) -> Result<String, DriverError> {
    let state_dir = state_dir.to_owned();
    blocking("read the console log", move || {
        let Some(log) = newest_console(&state_dir, instance)? else { return Ok(String::new()) };
        let mut bytes = tail(&log)?;
        // virtlogd moves a log that has grown to `console.log.0`.
        if (bytes.len() as u64) < LOG_TAIL_MAX {
            let mut older = tail(&log.with_file_name("console.log.0")).unwrap_or_default();
            older.append(&mut bytes);
            bytes = older;
        }
        Ok(last_lines(&String::from_utf8_lossy(&bytes), lines as usize))
    })
    .await
}

fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_MAX)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn last_lines(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.split_inclusive('\n').collect();
    all[all.len().saturating_sub(lines)..].concat()
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use amphi_api::image::ImageFormat;

    #[test]
    fn last_lines_are_whole() {
        for (text, lines, expected) in
            [("a\nb\nc", 2, "b\nc"), ("a\nb\n", 1, "b\n"), ("a\n", 9, "a\n"), ("", 3, ""), ("a\nb", 0, "")]
        {
            assert_eq!(last_lines(text, lines), expected, "{text:?}");
        }
    }

    #[tokio::test]
    async fn the_newest_bodys_console_is_read() {
        let state = tempfile::tempdir().unwrap();
        let plan = sample::plan(ImageFormat::KernelInitramfs);
        let content = config_drive::files(&plan);
        for epoch in [3, 4, 10] {
            let plan = BodyPlan { epoch, ..plan.clone() };
            write_config_drive(&BodyFiles::new(state.path(), &plan), &content).unwrap();
        }
        let log = BodyFiles::new(state.path(), &BodyPlan { epoch: 10, ..plan.clone() }).console_log();
        std::fs::write(&log, b"one\n\xfftwo\nthree\n").unwrap();
        assert_eq!(
            console_tail(state.path(), plan.instance, 2).await.unwrap(),
            "\u{fffd}two\nthree\n",
            "not lossy, or of another epoch"
        );
    }
}
