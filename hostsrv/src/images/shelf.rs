//! Owns the folder of the cache: a blob's file at `images/<sha256>`, what is known of it beside it, and its part while it
//! comes. Decides whether what lies there may be used, and takes away what may not, naming it.

use super::coming::{blocking, digest_of_file};
use super::facts::{self, Facts};
use super::trouble::Trouble;
use amphi_api::image::Blob;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::Notify;

/// The end of a name that is still being written.
pub(super) const PART: &str = ".part";
/// A blob whose digest was last seen longer ago is read again. Media lose bits over years, not days, and whatever writes
/// changes how the file looks: a day bounds how long a silent fault can lie there for the cost of one read.
const VERIFY: Duration = Duration::from_secs(86_400);

/// Between two pieces of what is only read to be looked at: at most 100 MiB/s of a disk that guests use too.
const PAUSE: Duration = Duration::from_millis(10);

pub(super) struct Shelf {
    pub folder: PathBuf,
    /// A blob has come into its place.
    pub grown: Notify,
}

impl Shelf {
    pub fn path(&self, sha256: &str) -> PathBuf {
        self.folder.join(sha256)
    }

    pub fn part(&self, sha256: &str) -> PathBuf {
        self.folder.join(format!("{sha256}{PART}"))
    }

    /// Whether the blob is here and what its digest says: as it looked when that was seen, or read again now. What is not
    /// is taken away.
    pub async fn holds(&self, blob: &Blob, layer: bool) -> Result<bool, Trouble> {
        let (path, blob) = (self.path(&blob.sha256), blob.clone());
        blocking("look for a blob", move || {
            let found = match std::fs::metadata(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
                found => found?,
            };
            let known = facts::read(&path).filter(|facts| facts.hold(&found));
            if found.len() == blob.size && known.is_some() {
                facts::touch(&path);
                return Ok(true);
            }
            verify(&path, &blob.sha256, known.map_or(layer, |facts| facts.layer), Duration::ZERO)
        })
        .await
    }

    /// Reads what is due to be read again; answers the digests of what was taken away.
    pub async fn look_through(&self) -> Result<Vec<String>, Trouble> {
        let folder = self.folder.clone();
        blocking("read blobs again", move || {
            let listing = match std::fs::read_dir(&folder) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                listing => listing?,
            };
            let mut gone = Vec::new();
            for item in listing {
                let item = item?;
                let Ok(name) = item.file_name().into_string() else { continue };
                let known = facts::read(&item.path());
                if !super::is_digest(&name) || known.as_ref().is_some_and(|facts| !facts.is_due(VERIFY)) {
                    continue;
                }
                let used = facts::used(&item.path());
                match verify(&item.path(), &name, known.is_some_and(|facts| facts.layer), PAUSE) {
                    Ok(true) => facts::used_at(&item.path(), used),
                    Ok(false) => gone.push(name),
                    // Evicted meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(gone)
        })
        .await
    }

    /// Takes a blob away that is not what it should be; answers what to tell of it.
    pub fn discard(&self, sha256: &str, why: &str) -> Trouble {
        match discard(&self.path(sha256), why) {
            Ok(()) => Trouble::Changed(format!("blob {sha256} had changed on this host's disk: {why}")),
            Err(error) => Trouble::io("remove a changed blob")(error),
        }
    }
}

/// Reads a blob. True: it is what its name says, which is written down. False: it is not, and is gone.
fn verify(path: &Path, sha256: &str, layer: bool, pause: Duration) -> io::Result<bool> {
    let before = std::fs::metadata(path)?;
    let (digest, _) = digest_of_file(path, pause)?;
    if digest == sha256 {
        // How it looked before it was read: whoever writes meanwhile is noticed the next time.
        facts::write(path, &Facts::now(&before, layer))?;
        return Ok(true);
    }
    discard(path, &format!("its digest is {digest}"))?;
    Ok(false)
}

fn discard(path: &Path, why: &str) -> io::Result<()> {
    tracing::error!(
        "{} is not what it was when it came: {why}; it is removed and fetched anew",
        path.display()
    );
    remove(path)
}

/// A blob with what is known of it. One that is not there is no error.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    for path in [path.to_owned(), facts::path_of(path)] {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
