//! Owns disks that were uploaded in a foreign format (vmdk, vhd, vhdx): each is made a qcow2 once, in the cache's folder
//! `bases`, named by the digest of what it was made of, and all bodies and volumes begin with that. So QEMU's readers of
//! those formats see them once, bounded, and never under a running guest. Refuses to read a file that does not stand alone.

use super::facts::{self, Facts};
use crate::instance::DriverError;
use crate::qemu_img::{self, DiskFormat, QemuImgError};
use amphi_api::ImageId;
use amphi_api::disk::{self, Ends};
use amphi_api::image::{Blob, ImageFormat};
use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// For one conversion: as long as for the copy of a volume.
const MAKE: Duration = Duration::from_secs(3600);
/// A base that no body here is of goes after so long without use.
const UNUSED: Duration = Duration::from_secs(86_400);
const ENDING: &str = ".qcow2";

/// How an image's disk lies on this host, once it is here.
pub fn lies(format: ImageFormat) -> Option<DiskFormat> {
    DiskFormat::of(format).map(|of| if of == DiskFormat::Raw { of } else { DiskFormat::Qcow2 })
}

/// The format of a disk that is made a qcow2 here; none: it is used as it comes.
pub(super) fn foreign(format: ImageFormat) -> Option<DiskFormat> {
    DiskFormat::of(format).filter(|_| format.is_foreign_disk())
}

/// How large a base may become, in bytes: what its disk holds with its tables, and no more than a disk that was packed well
/// expands to. A file that claims more is a bomb.
fn most(virtual_size: u64, packed: u64) -> u64 {
    let whole = virtual_size.saturating_add(virtual_size / 256).saturating_add(16 << 20);
    whole.min(packed.saturating_mul(100).saturating_add(1 << 30))
}

/// The bases of one host.
#[derive(Clone)]
pub(super) struct Bases {
    folder: PathBuf,
    /// One at a time: each takes all that the disk gives.
    making: Arc<tokio::sync::Mutex<()>>,
}

impl Bases {
    /// `folder` is made when the first base is.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, making: Arc::default() }
    }

    /// The base that is made of a blob. `fetched` is asked for the blob's file where it is not there yet.
    pub async fn ensure(
        &self,
        image: ImageId,
        format: DiskFormat,
        blob: &Blob,
        fetched: impl Future<Output = Result<PathBuf, DriverError>>,
    ) -> Result<PathBuf, DriverError> {
        let path = self.folder.join(format!("{}{ENDING}", blob.sha256));
        let _one = self.making.lock().await;
        if whole(&path) {
            facts::touch(&path);
            return Ok(path);
        }
        let from = fetched.await?;
        let doing = || format!("make a base of image {image}");
        let failed = |source| DriverError::Io { doing: doing(), source };
        self.make_folder().map_err(failed)?;
        let broken = |message| DriverError::ImageBroken { image, message };
        let file = from.clone();
        let look = move || {
            let mut file = std::fs::File::open(file)?;
            let size = file.metadata()?.len();
            Ends::read(format, &mut file, 0, size)
        };
        let ends = tokio::task::spawn_blocking(look).await.unwrap_or_else(|e| Err(io::Error::other(e)));
        let size = disk::look(format, &ends.map_err(failed)?).map_err(broken)?;
        let part = Part(self.folder.join(format!("{}.part", uuid::Uuid::new_v4().simple())));
        match qemu_img::rewrite(format, &from, &part.0, most(size, blob.size), MAKE).await {
            Err(QemuImgError::Refused { message, .. }) => return Err(broken(message)),
            done => done?,
        }
        let (kept, made) = (path.clone(), part.0.clone());
        let keep = move || {
            let file = std::fs::File::open(&made)?;
            file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
            file.sync_all()?;
            std::fs::rename(&made, &kept)?;
            facts::write(&kept, &Facts::now(&std::fs::metadata(&kept)?, false))
        };
        let keep = tokio::task::spawn_blocking(keep).await.unwrap_or_else(|e| Err(io::Error::other(e)));
        keep.map_err(failed)?;
        tracing::info!(%image, "made a qcow2 of a {} disk", format.name());
        Ok(path)
    }

    /// QEMU runs as a user of its own, which has to pass through.
    fn make_folder(&self) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        std::fs::set_permissions(&self.folder, std::fs::Permissions::from_mode(0o711))
    }

    /// Removes bases that nothing here is made of, after a day, and what an agent left that has ended.
    pub fn sweep(&self, in_use: &BTreeSet<String>) -> io::Result<()> {
        let listing = match std::fs::read_dir(&self.folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            listing => listing?,
        };
        let Ok(_one) = self.making.try_lock() else { return Ok(()) };
        for item in listing {
            let path = item?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let idle = |at: std::time::SystemTime| at.elapsed().is_ok_and(|age| age > UNUSED);
            let goes = match name.strip_suffix(ENDING) {
                Some(digest) => !in_use.contains(digest) && facts::used(&path).is_none_or(idle),
                None => name.ends_with(".part"),
            };
            if goes {
                super::shelf::remove(&path)?;
            }
        }
        Ok(())
    }
}

/// Whether it is as it was when it had been made.
fn whole(path: &Path) -> bool {
    let found = std::fs::metadata(path);
    found.is_ok_and(|found| facts::read(path).is_some_and(|facts| facts.hold(&found)))
}

/// A file in the making, gone unless it was renamed.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // After the rename there is nothing of this name.
        let _gone = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn qemu_img(args: &[&str], paths: &[&Path]) {
        let done = Command::new("qemu-img").args(args).args(paths).output().unwrap();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// The first MiB of text, the rest empty.
    fn disk(folder: &Path) -> (PathBuf, Vec<u8>) {
        let mut bytes: Vec<u8> =
            (0u32..1 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        bytes.resize(8 << 20, 0);
        let path = folder.join("disk.raw");
        std::fs::write(&path, &bytes).unwrap();
        (path, bytes)
    }

    #[tokio::test]
    async fn each_format_that_qemu_writes_becomes_the_same_disk_once() {
        let folder = tempfile::tempdir().unwrap();
        let (raw, bytes) = disk(folder.path());
        let bases = Bases::new(folder.path().join("bases"));
        for (n, (format, options)) in [
            (DiskFormat::Vmdk, "subformat=monolithicSparse"),
            (DiskFormat::Vmdk, "subformat=streamOptimized"),
            (DiskFormat::Vhd, "subformat=dynamic,force_size=on"),
            (DiskFormat::Vhd, "subformat=fixed,force_size=on"),
            (DiskFormat::Vhdx, "subformat=dynamic"),
            (DiskFormat::Vhdx, "subformat=fixed"),
        ]
        .into_iter()
        .enumerate()
        {
            let from = folder.path().join(format!("{n}"));
            qemu_img(&["convert", "-f", "raw", "-O", format.driver(), "-o", options], &[&raw, &from]);
            let blob = Blob { sha256: format!("{n:064}"), size: std::fs::metadata(&from).unwrap().len() };
            let asked = AtomicUsize::new(0);
            let ensure = || {
                bases.ensure(ImageId::new(), format, &blob, async {
                    asked.fetch_add(1, Ordering::Relaxed);
                    Ok(from.clone())
                })
            };
            let (base, again) = tokio::join!(ensure(), ensure());
            assert_eq!(
                (base.as_ref().unwrap(), asked.load(Ordering::Relaxed)),
                (again.as_ref().unwrap(), 1),
                "{format:?}"
            );
            let back = folder.path().join("back");
            qemu_img(&["convert", "-f", "qcow2", "-O", "raw"], &[base.as_ref().unwrap(), &back]);
            assert!(std::fs::read(&back).unwrap() == bytes, "{format:?} {options}: other bytes");
            // Somebody wrote into it: it is made anew.
            std::fs::write(base.unwrap(), b"something else").unwrap();
            let base = ensure().await.unwrap();
            assert_eq!(asked.load(Ordering::Relaxed), 2);
            qemu_img(&["convert", "-f", "qcow2", "-O", "raw"], &[&base, &back]);
            assert!(std::fs::read(&back).unwrap() == bytes, "{format:?} {options}: other bytes");
        }
        // Used today: all stay. Unused for two days: what is in use stays.
        let kept = || {
            std::fs::read_dir(&bases.folder)
                .unwrap()
                .filter_map(|f| f.ok()?.file_name().into_string().ok())
                .filter(|f| f.ends_with(ENDING))
                .count()
        };
        bases.sweep(&BTreeSet::new()).unwrap();
        assert_eq!(kept(), 6);
        for n in 0..6 {
            let seen = facts::path_of(&bases.folder.join(format!("{n:064}{ENDING}")));
            let old = std::time::SystemTime::now() - 2 * UNUSED;
            std::fs::File::options().write(true).open(seen).unwrap().set_modified(old).unwrap();
        }
        bases.sweep(&BTreeSet::from([format!("{:064}", 3)])).unwrap();
        assert_eq!(kept(), 1);
        assert!(bases.folder.join(format!("{:064}{ENDING}", 3)).exists());
    }

    #[tokio::test]
    async fn what_leads_elsewhere_or_expands_without_end_becomes_no_base() {
        let folder = tempfile::tempdir().unwrap();
        let (raw, _) = disk(folder.path());
        let bases = Bases::new(folder.path().join("bases"));
        let flat = folder.path().join("flat.vmdk");
        qemu_img(&["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=monolithicFlat"], &[&raw, &flat]);
        let blob =
            |path: &Path| Blob { sha256: "0".repeat(64), size: std::fs::metadata(path).unwrap().len() };
        let refused = async |path: &Path| {
            let blob = blob(path);
            let done = bases.ensure(ImageId::new(), DiskFormat::Vmdk, &blob, async { Ok(path.to_owned()) });
            done.await.unwrap_err()
        };
        let error = refused(&flat).await;
        assert!(matches!(error, DriverError::ImageBroken { .. }), "{error}");
        assert!(error.to_string().contains("other files"), "{error}");
        assert!(refused(&raw).await.to_string().contains("no vmdk"));
        assert!(std::fs::read_dir(&bases.folder).is_ok_and(|mut d| d.next().is_none()), "something is left");
        let to = folder.path().join("bomb");
        let sparse = folder.path().join("sparse.vmdk");
        qemu_img(&["convert", "-f", "raw", "-O", "vmdk"], &[&raw, &sparse]);
        let error = qemu_img::rewrite(DiskFormat::Vmdk, &sparse, &to, 1 << 19, MAKE).await.unwrap_err();
        assert!(error.to_string().contains("expands to more than 524288 bytes"), "{error}");
        assert_eq!(most(1 << 30, 1 << 40), (1 << 30) + (4 << 20) + (16 << 20));
        assert_eq!(most(1 << 46, 1 << 20), (1 << 30) + (100 << 20), "a bomb");
    }
}
