//! Owns root file systems made of container images for VMs: one squashfs per image in the cache's folder `roots`, made
//! once, read-only, shared by all bodies. Each body holds its own name of the file (a hard link), so that what nobody
//! holds any more is known by its count of names.

use super::flatten::{FlattenError, Limits, flatten};
use super::layers;
use crate::instance::{CachedImage, DriverError};
use amphi_api::image::BlobRole;
use std::fs;
use std::io::{self, BufWriter, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// For the whole of a root: reading all layers, writing all files.
const MAKE: Duration = Duration::from_secs(900);
/// A root that no body holds goes after so long, when another one is made.
const UNUSED: Duration = Duration::from_secs(7 * 86_400);
/// Not compressed: an image's layers lie uncompressed in Docker too, and a guest's processor need not unpack.
const PLAIN: [&str; 9] = ["-no-progress", "-quiet", "-noI", "-noId", "-noD", "-noF", "-noX", "-comp", "gzip"];

/// The roots of one host.
#[derive(Clone)]
pub struct Roots {
    folder: PathBuf,
    /// Roots are made one at a time: each takes all that the disk gives.
    making: Arc<tokio::sync::Mutex<()>>,
}

/// A root, and the configuration that came with it.
#[derive(Clone, Debug)]
pub struct Root {
    pub path: PathBuf,
    pub config: Vec<u8>,
}

impl Roots {
    /// `folder` is made when the first root is.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), making: Arc::default() }
    }

    /// The image's root, made if it is not here.
    pub async fn ensure(&self, cached: &CachedImage) -> Result<Root, DriverError> {
        let image = cached.image.id;
        let key = key(cached).ok_or_else(|| DriverError::ImageBroken {
            image,
            message: "it is no container image with all its bytes".into(),
        })?;
        let path = self.folder.join(format!("{key}.squashfs"));
        let kept = self.folder.join(format!("{key}.json"));
        let _one = self.making.lock().await;
        if let (true, Ok(config)) = (path.exists(), tokio::fs::read(&kept).await) {
            return Ok(Root { path, config });
        }
        let doing = format!("make a root file system of image {image}");
        let (folder, cached) = (self.folder.clone(), cached.clone());
        let child: Arc<Mutex<Option<std::process::Child>>> = Arc::default();
        let (packs, made) = (child.clone(), path.clone());
        let work = tokio::task::spawn_blocking(move || make(&folder, &cached, &made, &kept, &packs));
        match tokio::time::timeout(MAKE, work).await {
            Ok(Ok(Ok(config))) => Ok(Root { path, config }),
            Ok(Ok(Err(Failed::Image(message)))) => Err(DriverError::ImageBroken { image, message }),
            Ok(Ok(Err(Failed::Io(source)))) => Err(DriverError::Io { doing, source }),
            Ok(Err(panicked)) => Err(DriverError::Io { doing, source: io::Error::other(panicked) }),
            Err(_) => {
                if let Some(child) = child.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
                    // Whoever writes to it hears of that.
                    let _ended = child.kill();
                }
                Err(DriverError::EngineTimeout { engine: "sqfstar", doing, limit: MAKE })
            }
        }
    }
}

/// What names the root: the digest of what it is made of.
fn key(cached: &CachedImage) -> Option<String> {
    let digest = |role: BlobRole| cached.image.blobs.get(&role).map(|blob| blob.sha256.clone());
    let by_layer = !cached.image.layers.is_empty();
    let key = if by_layer { digest(BlobRole::Config) } else { None }.or_else(|| digest(BlobRole::Archive))?;
    super::is_digest(&key).then_some(key)
}

enum Failed {
    Image(String),
    Io(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn make(
    folder: &Path,
    cached: &CachedImage,
    path: &Path,
    kept: &Path,
    packs: &Mutex<Option<std::process::Child>>,
) -> Result<Vec<u8>, Failed> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o711))?;
    sweep(folder)?;
    let mut container = layers::open(cached, folder).map_err(Failed::Image)?;
    let part = folder.join(format!("{}.part", uuid::Uuid::new_v4().simple()));
    let _gone = Part(part.clone());
    let mut child = Command::new("sqfstar")
        .args(PLAIN)
        .arg(&part)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("sqfstar (squashfs-tools): {error}")))?;
    let (stdin, mut stderr) = (child.stdin.take(), child.stderr.take());
    *packs.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
    let said = std::thread::spawn(move || {
        let mut text = String::new();
        // What it says is for people; that it says nothing readable is no failure.
        let _read = stderr.as_mut().map(|pipe| pipe.take(64 << 10).read_to_string(&mut text));
        text
    });
    let out =
        BufWriter::with_capacity(256 << 10, stdin.ok_or_else(|| io::Error::other("sqfstar has no input"))?);
    let flat = flatten(&mut container.layers, out, Limits::default());
    let child = packs.lock().unwrap_or_else(PoisonError::into_inner).take();
    let status = child.ok_or_else(|| io::Error::other("sqfstar was ended"))?.wait()?;
    let said = said.join().unwrap_or_default();
    match flat {
        Err(FlattenError::Broken { layer, message }) => {
            return Err(Failed::Image(format!("layer {layer}: {message}")));
        }
        Err(FlattenError::Write(_)) | Ok(_) if !status.success() => {
            return Err(Failed::Io(io::Error::other(format!("sqfstar: {}", said.trim()))));
        }
        Err(FlattenError::Write(error)) => return Err(error.into()),
        Ok(_) => {}
    }
    let file = fs::File::open(&part)?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.sync_all()?;
    fs::write(kept, &container.config)?;
    fs::rename(&part, path)?;
    fs::File::open(folder)?.sync_all()?;
    Ok(container.config)
}

/// A file in the making, gone unless it was renamed.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // After the rename there is nothing of this name.
        let _gone = fs::remove_file(&self.0);
    }
}

/// Removes what no body has held for long, and parts of an agent that has ended.
fn sweep(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let (path, about) = {
            let entry = entry?;
            (entry.path(), entry.metadata()?)
        };
        let old = about
            .modified()
            .ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok())
            .is_some_and(|age| age > UNUSED);
        let ends = |end: &str| path.extension().is_some_and(|e| e == end);
        if ends("part") || (ends("squashfs") && about.nlink() == 1 && old) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Gives a body its own name of a root; the old one's, if there is one, goes.
pub fn hold(root: &Path, name: &Path) -> io::Result<()> {
    let same = |a: fs::Metadata, b: fs::Metadata| a.ino() == b.ino() && a.dev() == b.dev();
    if let (Ok(a), Ok(b)) = (fs::metadata(root), fs::metadata(name)) {
        if same(a, b) {
            return Ok(());
        }
        fs::remove_file(name)?;
    }
    fs::hard_link(root, name)?;
    // Its age counts from its last use.
    fs::File::open(root)?.set_modified(SystemTime::now())
}
