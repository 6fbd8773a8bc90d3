//! Archives on their way between a member and this machine's disk. One out of a member is not trusted: nothing in it may lead out
//! of where it is unpacked. Refuses devices.

use bytes::Bytes;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use tokio::sync::mpsc;

const PIECE: usize = 32 << 10;

/// What comes, for a thread that waits for it.
pub struct Pieces {
    pub waiting: mpsc::Receiver<Bytes>,
    pub piece: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.waiting.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}

/// In a directory that is there; else as what the path names, beside which it is unpacked first.
pub fn unpack(archive: impl Read, to: &Path) -> Result<(), String> {
    let told = |error: io::Error| format!("{}: {error}", to.display());
    if to.is_dir() {
        return unpack_in(archive, to).map(drop);
    }
    let trailing = to.as_os_str().as_encoded_bytes().ends_with(b"/");
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if trailing || !parent.is_dir() {
        return Err(format!("{}: no such directory", if trailing { to } else { parent }.display()));
    }
    let beside = Beside::new(parent).map_err(told)?;
    let tops = unpack_in(archive, &beside.0)?;
    let [top] = tops.as_slice() else {
        return Err(format!("the archive has {} things at its top, and {} is one", tops.len(), to.display()));
    };
    let top = beside.0.join(top);
    if to.exists() && top.is_dir() {
        return Err(format!("{} is there and is no directory", to.display()));
    }
    std::fs::rename(top, to).map_err(told)
}

/// A directory for the time of unpacking.
struct Beside(PathBuf);

impl Beside {
    fn new(parent: &Path) -> io::Result<Self> {
        let path = parent.join(format!(".amphi-cp-{}", std::process::id()));
        std::fs::DirBuilder::new().create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether owners can be given away here.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The names at the archive's top.
fn unpack_in(archive: impl Read, to: &Path) -> Result<Vec<PathBuf>, String> {
    let mut archive = tar::Archive::new(archive);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(is_root());
    archive.set_overwrite(true);
    let read = |error: io::Error| format!("the archive: {error}");
    let mut tops: Vec<PathBuf> = Vec::new();
    let mut directories = Vec::new();
    for entry in archive.entries().map_err(read)? {
        let mut entry = entry.map_err(read)?;
        let path = entry.path().map_err(read)?.into_owned();
        let told = |error: io::Error| format!("{}: {error}", path.display());
        let leads_out =
            || format!("'{}' in the archive leads out of where it is unpacked: refused", path.display());
        let inside =
            |path: &Path| path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        let kind = entry.header().entry_type();
        if !inside(&path) {
            return Err(leads_out());
        }
        if kind.is_hard_link() && !entry.link_name().map_err(told)?.is_some_and(|to| inside(&to)) {
            return Err(leads_out());
        }
        let top = path.components().find(|c| matches!(c, Component::Normal(_)));
        if let Some(top) = top.map(|top| PathBuf::from(top.as_os_str()))
            && !tops.contains(&top)
        {
            tops.push(top);
        }
        if matches!(kind, tar::EntryType::Char | tar::EntryType::Block | tar::EntryType::Fifo) {
            eprintln!("{}: left out, it is a device or a pipe", path.display());
        } else if kind.is_dir() {
            // At the end: one that may not be written to is filled first.
            std::fs::create_dir_all(to).map_err(told)?;
            directories.push(entry);
        } else if !entry.unpack_in(to).map_err(told)? {
            return Err(leads_out());
        }
    }
    directories.sort_by(|a, b| b.path_bytes().cmp(&a.path_bytes()));
    for mut directory in directories {
        if !directory.unpack_in(to).map_err(read)? {
            return Err("a directory in the archive leads out of where it is unpacked: refused".to_owned());
        }
    }
    Ok(tops)
}

/// A directory with all that is in it, or one file, under this name.
pub fn pack(from: &Path, name: &str, to: impl Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(io::BufWriter::with_capacity(PIECE, to));
    tar.follow_symlinks(false);
    if from.symlink_metadata()?.is_dir() {
        tar.append_dir_all(name, from)?;
    } else {
        tar.append_path_with_name(from, name)?;
    }
    tar.into_inner()?.flush()
}

/// An archive's bytes on their way.
pub struct Packed {
    pub pieces: mpsc::Sender<io::Result<Vec<u8>>>,
}

impl Write for Packed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.pieces.blocking_send(Ok(bytes.to_vec()));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use tar::{EntryType, Header};

    #[test]
    fn what_is_packed_is_unpacked_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        std::fs::create_dir_all(from.join("sub")).unwrap();
        std::fs::write(from.join("sub/file"), b"bytes\0").unwrap();
        std::fs::set_permissions(from.join("sub/file"), PermissionsExt::from_mode(0o4751)).unwrap();
        std::fs::set_permissions(from.join("sub"), PermissionsExt::from_mode(0o750)).unwrap();
        std::os::unix::fs::symlink("sub/file", from.join("link")).unwrap();
        let mut bytes = Vec::new();
        pack(&from, "as", &mut bytes).unwrap();
        let to = dir.path().join("to");
        unpack(&bytes[..], &to).unwrap();
        assert_eq!(std::fs::read(to.join("sub/file")).unwrap(), b"bytes\0");
        let mode = |path: &str| std::fs::metadata(to.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("sub/file"), mode("sub")), (0o4751, 0o750));
        assert_eq!(std::fs::read_link(to.join("link")).unwrap(), Path::new("sub/file"));
        // Into a directory that is there.
        unpack(&bytes[..], &to).unwrap();
        assert!(to.join("as/sub/file").is_file());
        assert!(unpack(&bytes[..], &dir.path().join("none/x")).is_err());
        assert!(unpack(&bytes[..bytes.len() / 2], &dir.path().join("half")).is_err());
        assert!(!dir.path().join("half").exists(), "half of it was left");
        let left = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 2, "what was unpacked beside is gone");
    }

    #[test]
    fn an_archive_cannot_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        std::fs::create_dir(&to).unwrap();
        let entry = |kind, name: &str, link: &str| {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o644);
            header.set_size(0);
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_cksum();
            header
        };
        let outside = dir.path().to_str().unwrap();
        let regular = EntryType::Regular;
        for entries in [
            vec![entry(regular, "../evil", "")],
            vec![entry(regular, "a/../../evil", "")],
            vec![entry(regular, "/tmp/evil", "")],
            vec![entry(EntryType::Link, "evil", "../../etc/passwd")],
            vec![entry(EntryType::Symlink, "way", outside), entry(regular, "way/evil", "")],
            vec![entry(EntryType::Symlink, "way", ".."), entry(EntryType::Directory, "way/evil", "")],
        ] {
            let mut tar = tar::Builder::new(Vec::new());
            entries.iter().for_each(|header| tar.append(header, io::empty()).unwrap());
            let bytes = tar.into_inner().unwrap();
            assert!(unpack(&bytes[..], &to).is_err(), "{:?}", entries.last().unwrap().path());
            assert!(!dir.path().join("evil").exists());
            let _ = std::fs::remove_file(to.join("way"));
        }
    }
}
