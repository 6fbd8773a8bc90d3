//! Owns the files of a VM's body on the host: `root.qcow2`, `config.img` and `console.log` in the body's folder. Checks
//! images before QEMU sees them.

use super::xml::{self, VolumeIo};
use super::{drive_image, image_check};
use crate::instance::folders::{self, blocking};
use crate::instance::{BodyPlan, DriverError, config_drive};
use amphi_api::InstanceId;
use amphi_api::image::{BlobRole, Image, ImageFormat};
use amphi_api::instance::BodyKind;
use amphi_api::wire::BodyDesired;
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
}

impl BodyFiles {
    pub fn new(state_dir: &Path, instance: InstanceId, epoch: u64) -> Self {
        Self { folder: folders::of_body(state_dir, instance, BodyKind::Vm, epoch) }
    }

    pub fn root(&self) -> PathBuf {
        self.folder.join("root.qcow2")
    }

    pub fn config_drive(&self) -> PathBuf {
        self.folder.join("config.img")
    }

    pub fn console_log(&self) -> PathBuf {
        self.folder.join(LOG)
    }
}

fn io_error(doing: impl Into<String>) -> impl FnOnce(io::Error) -> DriverError {
    let doing = doing.into();
    move |source| DriverError::Io { doing, source }
}

/// Checks the image and writes what is missing. An existing root disk is kept: it is the guest's.
pub async fn ensure(files: &BodyFiles, plan: &BodyPlan) -> Result<(), DriverError> {
    let BodyDesired::Vm { image, root_gib } = &plan.body else {
        return Err(DriverError::EngineRefused {
            engine: "libvirt",
            doing: format!("make the files of instance {}", plan.instance),
            message: "the plan's body is not a VM".into(),
        });
    };
    let drive = { (files.clone(), config_drive::files(plan)) };
    blocking("write the config drive", move || write_config_drive(&drive.0, &drive.1)).await?;
    check(plan, image).await?;
    if matches!(image.format, ImageFormat::Qcow2 | ImageFormat::Raw) {
        ensure_root(files, plan, image, *root_gib).await?;
    }
    Ok(())
}

async fn check(plan: &BodyPlan, image: &Image) -> Result<(), DriverError> {
    for role in image.format.roles() {
        let path = xml::blob(plan, *role)?.to_owned();
        let format = image.format;
        let role = *role;
        let head = blocking("read the image", move || image_check::head(&path)).await?;
        image_check::check(format, role, &head)
            .map_err(|message| DriverError::ImageBroken { image: image.id, message })?;
    }
    Ok(())
}

async fn ensure_root(
    files: &BodyFiles,
    plan: &BodyPlan,
    image: &Image,
    root_gib: Option<u64>,
) -> Result<(), DriverError> {
    let root = files.root();
    if tokio::fs::try_exists(&root).await.map_err(io_error("look for the root disk"))? {
        return Ok(());
    }
    let base = xml::blob(plan, BlobRole::Disk)?;
    let size = image_check::virtual_size(image.format, base)
        .await?
        .map_err(|message| DriverError::ImageBroken { image: image.id, message })?;
    let size = root_gib.map_or(size, |gib| size.max(gib << 30));
    image_check::create_overlay(image.format, base, &root, size).await
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

/// The last lines of the newest body's console that has one. Empty when nothing was written yet.
pub async fn console_tail(state_dir: &Path, instance: InstanceId, lines: u32) -> Result<String, DriverError> {
    let state_dir = state_dir.to_owned();
    blocking("read the console log", move || {
        for (_, folder) in folders::epochs(&state_dir, instance, BodyKind::Vm)?.into_iter().rev() {
            let log = folder.join(LOG);
            if !log.exists() {
                continue;
            }
            let mut bytes = tail(&log)?;
            // virtlogd moves a log that has grown to `console.log.0`.
            if (bytes.len() as u64) < LOG_TAIL_MAX {
                let mut older = tail(&folder.join("console.log.0")).unwrap_or_default();
                older.append(&mut bytes);
                bytes = older;
            }
            return Ok(last_lines(&String::from_utf8_lossy(&bytes), lines as usize));
        }
        Ok(String::new())
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
            write_config_drive(&BodyFiles::new(state.path(), plan.instance, epoch), &content).unwrap();
        }
        let log = BodyFiles::new(state.path(), plan.instance, 10).console_log();
        std::fs::write(&log, b"one\n\xfftwo\nthree\n").unwrap();
        assert_eq!(
            console_tail(state.path(), plan.instance, 2).await.unwrap(),
            "\u{fffd}two\nthree\n",
            "not lossy, or of another epoch"
        );
    }
}
