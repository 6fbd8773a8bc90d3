//! Owns what is remembered of a blob in the cache: how its file looked when its digest was last seen, in a small file beside
//! it, whose modification time says when the blob was last asked for. A file that looks otherwise has to be read again
//! before anything starts from it.

use crate::facts::boot;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The end of the small file's name.
pub(super) const SEEN: &str = ".seen";

/// How a file looks without reading it. Whoever writes into it, cuts it or puts another in its place changes this; a
/// medium that loses bits does not, and for that there is [`Facts::is_due`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Look {
    size: u64,
    modified_s: i64,
    modified_ns: i64,
    inode: u64,
}

impl Look {
    pub fn of(found: &std::fs::Metadata) -> Self {
        Self {
            size: found.size(),
            modified_s: found.mtime(),
            modified_ns: found.mtime_nsec(),
            inode: found.ino(),
        }
    }
}

/// What is known of a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    look: Look,
    /// Seconds since 1970.
    verified_s: u64,
    /// A container image's layer: once the engine has it unpacked, nobody needs its bytes here.
    pub layer: bool,
    /// The boot of the host in which this was seen, of a blob that nobody has waited to be on the disk: after another boot,
    /// which may have followed a power cut, it has to be read again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot: Option<String>,
}

impl Facts {
    /// Of a file whose digest was seen just now. A layer's is never waited for to be on the disk.
    pub fn now(found: &std::fs::Metadata, layer: bool) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            look: Look::of(found),
            verified_s: now.as_secs(),
            layer,
            boot: layer.then(|| boot().to_owned()),
        }
    }

    pub fn hold(&self, found: &std::fs::Metadata) -> bool {
        self.look == Look::of(found) && self.boot.as_ref().is_none_or(|seen| seen == boot())
    }

    /// Whether the digest was last seen longer ago than `age`. A clock that was set back counts as long ago.
    pub fn is_due(&self, age: Duration) -> bool {
        let verified = SystemTime::UNIX_EPOCH + Duration::from_secs(self.verified_s);
        verified.elapsed().map_or(true, |elapsed| elapsed > age)
    }
}

pub(super) fn path_of(blob: &Path) -> PathBuf {
    let mut path = blob.as_os_str().to_owned();
    path.push(SEEN);
    path.into()
}

/// None where nothing, or nothing that can be read, is known.
pub(super) fn read(blob: &Path) -> Option<Facts> {
    serde_json::from_slice(&std::fs::read(path_of(blob)).ok()?).ok()
}

/// A file that a power cut leaves half written is not read as one: the blob is then read again.
pub(super) fn write(blob: &Path, facts: &Facts) -> io::Result<()> {
    std::fs::write(path_of(blob), serde_json::to_vec(facts)?)
}

/// Marks a blob as used now. Where the file system refuses, it is only evicted sooner.
pub(super) fn touch(blob: &Path) {
    let path = path_of(blob);
    let touched = std::fs::File::options().write(true).open(&path);
    if let Err(error) = touched.and_then(|file| file.set_modified(SystemTime::now())) {
        tracing::debug!("{}: {error}", path.display());
    }
}

/// Puts back when it was last asked for, after it was only looked at.
pub(super) fn used_at(blob: &Path, used: Option<SystemTime>) {
    let Some(used) = used else { return };
    let put_back = std::fs::File::options().write(true).open(path_of(blob));
    if let Err(error) = put_back.and_then(|file| file.set_modified(used)) {
        tracing::debug!("{}: {error}", blob.display());
    }
}

/// When it was last asked for.
pub(super) fn used(blob: &Path) -> Option<SystemTime> {
    std::fs::metadata(path_of(blob)).and_then(|found| found.modified()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_somebody_wrote_to_looks_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let blob = folder.path().join("blob");
        std::fs::write(&blob, b"bytes").unwrap();
        assert_eq!(read(&blob), None);
        let facts = Facts::now(&std::fs::metadata(&blob).unwrap(), true);
        write(&blob, &facts).unwrap();
        assert_eq!(read(&blob), Some(facts.clone()));
        assert!(facts.hold(&std::fs::metadata(&blob).unwrap()));
        assert!(!facts.is_due(Duration::from_secs(60)));
        let past = Facts { verified_s: facts.verified_s - 100, ..facts.clone() };
        assert!(past.is_due(Duration::from_secs(60)));
        let rebooted = Facts { boot: Some("another".to_owned()), ..facts.clone() };
        assert!(
            !rebooted.hold(&std::fs::metadata(&blob).unwrap()),
            "a layer's bytes may not have reached the disk"
        );
        let disk = Facts::now(&std::fs::metadata(&blob).unwrap(), false);
        assert_eq!(disk.boot, None, "it was waited for");
        let future = Facts { verified_s: facts.verified_s + 1000, ..facts.clone() };
        assert!(future.is_due(Duration::from_secs(60)), "a clock that was set back");
        // The same bytes written again: who knows.
        std::fs::remove_file(&blob).unwrap();
        std::fs::write(&blob, b"bytes").unwrap();
        let other = std::fs::File::options().write(true).open(&blob).unwrap();
        other.set_modified(SystemTime::now() + Duration::from_secs(5)).unwrap();
        assert!(!facts.hold(&std::fs::metadata(&blob).unwrap()));
        std::fs::write(path_of(&blob), b"{").unwrap();
        assert_eq!(read(&blob), None, "half a file");
    }

    #[test]
    fn use_is_told_by_the_small_file() {
        let folder = tempfile::tempdir().unwrap();
        let blob = folder.path().join("blob");
        std::fs::write(&blob, b"bytes").unwrap();
        touch(&blob);
        assert_eq!(used(&blob), None);
        let facts = Facts::now(&std::fs::metadata(&blob).unwrap(), false);
        write(&blob, &facts).unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(7200);
        std::fs::File::options().write(true).open(path_of(&blob)).unwrap().set_modified(long_ago).unwrap();
        touch(&blob);
        assert!(used(&blob).unwrap() > long_ago + Duration::from_secs(3600));
        assert!(facts.hold(&std::fs::metadata(&blob).unwrap()), "using it changes nothing of it");
    }
}
