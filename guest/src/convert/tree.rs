//! Reads a mounted tree, names in order, and writes it as a tar. Owns what is left out: the kernel and its pseudo file
//! systems, sockets, devices, and names by which a container engine would understand something else.

use super::tar::{self, Entry, Kind};
use crate::calls;
use amphi_guest::conversion::Report;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Directories that stay, empty.
const EMPTY: [&str; 12] = [
    "boot",
    "dev",
    "proc",
    "sys",
    "run",
    "tmp",
    "var/run",
    "lib/modules",
    "usr/lib/modules",
    "lib/firmware",
    "usr/lib/firmware",
    "lost+found",
];
/// A file with larger holes than this is left out: a container has no holes, and its layer would be as large as they say.
const HOLES_MAX: u64 = 1 << 30;
/// The same for all files together.
const ALL_HOLES_MAX: u64 = 4 << 30;
/// Most names.
const ENTRIES_MAX: u64 = 2_000_000;
const PIECE: usize = 1 << 20;

/// What stands in the place of what the machine had, and what comes beside it. The latter's directory is there.
pub struct Added {
    pub path: String,
    pub mode: u32,
    pub content: Vec<u8>,
}

/// Tells how far it is, now and then.
pub type Tell<'a> = dyn FnMut(u64, u64) + 'a;

pub struct Walk<'a, W: Write> {
    root: &'a Path,
    out: W,
    report: &'a mut Report,
    added: &'a [Added],
    links: HashMap<(u64, u64), Vec<u8>>,
    holes: u64,
    buffer: Vec<u8>,
}

impl<'a, W: Write> Walk<'a, W> {
    pub fn new(root: &'a Path, out: W, report: &'a mut Report, added: &'a [Added]) -> Self {
        Self { root, out, report, added, links: HashMap::new(), holes: 0, buffer: vec![0; PIECE] }
    }

    /// The whole tree; answers what it was written to.
    pub fn run(mut self, tell: &mut Tell) -> io::Result<W> {
        let mut waiting: Vec<PathBuf> = vec![PathBuf::new()];
        while let Some(relative) = waiting.pop() {
            let whole = self.root.join(&relative);
            // A tree whose blocks were spoilt has names that lead nowhere.
            let about = match fs::symlink_metadata(&whole) {
                Ok(about) => about,
                Err(error) => {
                    self.report.note("left_out", &relative.to_string_lossy(), &error.to_string());
                    continue;
                }
            };
            if self.report.entries >= ENTRIES_MAX {
                return Err(io::Error::other(format!("it has more than {ENTRIES_MAX} names")));
            }
            self.one(&relative, &whole, &about)?;
            tell(self.report.entries, self.report.bytes);
            if about.is_dir() && !is_empty(&relative) {
                match names(&whole) {
                    // The last one pushed comes first.
                    Ok(names) => waiting.extend(names.into_iter().rev().map(|name| relative.join(name))),
                    Err(error) => {
                        self.report.note("left_out", &relative.to_string_lossy(), &error.to_string());
                    }
                }
            }
        }
        for file in self.added {
            self.add(file)?;
        }
        tar::end(&mut self.out)?;
        Ok(self.out)
    }

    fn add(&mut self, file: &Added) -> io::Result<()> {
        let size = file.content.len() as u64;
        let kind = Kind::File(size);
        let path = file.path.as_bytes();
        tar::begin(
            &mut self.out,
            &Entry { path, kind, mode: file.mode, uid: 0, gid: 0, mtime: 0, xattrs: &[] },
        )?;
        self.out.write_all(&file.content)?;
        tar::padding(&mut self.out, size)
    }

    fn one(&mut self, relative: &Path, whole: &Path, about: &Metadata) -> io::Result<()> {
        let shown = relative.to_string_lossy().into_owned();
        let path = relative.as_os_str().as_bytes();
        if self.added.iter().any(|file| file.path == shown) {
            return Ok(());
        }
        if let Some(why) = unfit(relative) {
            self.report.note("left_out", &shown, why);
            return Ok(());
        }
        if boots(relative) {
            return Ok(());
        }
        let kind = about.file_type();
        let target;
        let mut size = 0;
        let first = (about.nlink() > 1 && !about.is_dir())
            .then(|| self.links.get(&(about.dev(), about.ino())).cloned())
            .flatten();
        let is_link = first.is_some();
        let kind = if let Some(first) = first {
            target = first;
            self.report.hard_links += 1;
            Kind::HardLink(&target)
        } else if kind.is_dir() {
            Kind::Directory
        } else if kind.is_symlink() {
            target = fs::read_link(whole)?.as_os_str().as_bytes().to_vec();
            Kind::Symlink(&target)
        } else if kind.is_fifo() {
            Kind::Fifo
        } else if kind.is_file() {
            let holes = about.size().saturating_sub(about.blocks() * 512);
            if holes > HOLES_MAX || self.holes + holes > ALL_HOLES_MAX {
                let why = format!(
                    "a sparse file that says it has {} bytes and has {}",
                    about.size(),
                    about.blocks() * 512
                );
                self.report.note("left_out", &shown, &why);
                return Ok(());
            }
            self.holes += holes;
            self.report.sparse_files += u64::from(holes >= 64 << 10);
            size = about.size();
            Kind::File(size)
        } else {
            if !kind.is_socket() {
                self.report.note("left_out", &shown, "a device: containers get theirs from their engine");
            }
            return Ok(());
        };
        let xattrs = if is_link { Vec::new() } else { self.xattrs(whole, &shown) };
        self.report.capabilities +=
            u64::from(xattrs.iter().any(|(name, _): &(Vec<u8>, Vec<u8>)| name == b"security.capability"));
        self.report.set_ids += u64::from(matches!(kind, Kind::File(_)) && about.mode() & 0o6000 != 0);
        self.report.entries += 1;
        let opened = if matches!(kind, Kind::File(_)) { Some(File::open(whole)) } else { None };
        let file = match opened.transpose() {
            Ok(file) => file,
            Err(error) => {
                self.report.note("left_out", &shown, &error.to_string());
                return Ok(());
            }
        };
        if about.nlink() > 1 && !about.is_dir() && !is_link {
            self.links.insert((about.dev(), about.ino()), path.to_vec());
        }
        let path = if path.is_empty() { b"." } else { path };
        tar::begin(
            &mut self.out,
            &Entry {
                path,
                kind,
                mode: about.mode(),
                uid: about.uid(),
                gid: about.gid(),
                mtime: about.mtime(),
                xattrs: &xattrs,
            },
        )?;
        if let Some(file) = file {
            self.copy(file, size, &shown)?;
        }
        Ok(())
    }

    /// Exactly as many bytes as the header says, whatever can be read.
    fn copy(&mut self, file: File, size: u64, shown: &str) -> io::Result<()> {
        let mut file = file.take(size);
        let mut left = size;
        while left > 0 {
            let piece = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = match file.read(&mut self.buffer[..piece]) {
                Ok(got) => got,
                // A part of the image that is wrong in silence would be worse than none.
                Err(error) => return Err(io::Error::other(format!("/{shown} cannot be read: {error}"))),
            };
            if got == 0 {
                return Err(io::Error::other(format!("/{shown} ends before its end")));
            }
            self.out.write_all(&self.buffer[..got])?;
            left -= got as u64;
            self.report.bytes += got as u64;
        }
        tar::padding(&mut self.out, size)
    }

    fn xattrs(&mut self, whole: &Path, shown: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut all = match calls::xattrs(whole) {
            Ok(all) => all,
            Err(error) => {
                self.report.note("left_out", shown, &format!("its extended attributes: {error}"));
                return Vec::new();
            }
        };
        all.retain(|(name, _)| is_kept(name));
        all.sort();
        all
    }
}

/// Those that mean the same in a container. Others steer the host's overlays and security modules.
fn is_kept(name: &[u8]) -> bool {
    (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
        || name == b"security.capability"
        || name.starts_with(b"system.posix_acl_")
}

fn names(folder: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let mut names =
        fs::read_dir(folder)?.map(|e| e.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn is_empty(relative: &Path) -> bool {
    EMPTY.iter().any(|kept| relative == Path::new(kept))
}

/// The kernel's links in the root directory.
fn boots(relative: &Path) -> bool {
    let name = relative.as_os_str().as_bytes();
    [&b"vmlinuz"[..], b"vmlinuz.old", b"initrd.img", b"initrd.img.old"].contains(&name)
}

/// Why a name cannot be in a layer.
fn unfit(relative: &Path) -> Option<&'static str> {
    let name = relative.file_name().map(OsStr::as_bytes).unwrap_or_default();
    if name.starts_with(b".wh.") {
        return Some("its name means in a container image that another file is gone");
    }
    if relative.as_os_str().len() > 4000 { Some("its name is too long") } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_tree_becomes_a_tar() {
        let folder = std::env::temp_dir().join(format!("amphi-tree-{}", std::process::id()));
        let _old = fs::remove_dir_all(&folder);
        for dir in ["boot/grub", "etc", "usr/lib/modules/6.1", "var", "tmp"] {
            fs::create_dir_all(folder.join(dir)).unwrap();
        }
        fs::write(folder.join("boot/vmlinuz"), "kernel").unwrap();
        fs::write(folder.join("usr/lib/modules/6.1/a.ko"), "module").unwrap();
        fs::write(folder.join("etc/fstab"), "/dev/vda1 / ext4").unwrap();
        fs::write(folder.join("etc/.wh.passwd"), "").unwrap();
        fs::write(folder.join("var/first"), "same").unwrap();
        fs::hard_link(folder.join("var/first"), folder.join("var/second")).unwrap();
        symlink("/etc/../../../escape", folder.join("var/link")).unwrap();
        symlink("boot/vmlinuz", folder.join("vmlinuz")).unwrap();
        File::create(folder.join("var/sparse")).unwrap().set_len(1 << 20).unwrap();
        File::create(folder.join("var/lastlog")).unwrap().set_len(1 << 40).unwrap();
        let mut report = Report::default();
        let added = [Added { path: "etc/fstab".into(), mode: 0o644, content: b"none\n".to_vec() }];
        let out = Walk::new(&folder, Vec::new(), &mut report, &added).run(&mut |_, _| {}).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let mut names = Vec::new();
        let mut at = 0;
        while out[at] != 0 {
            let name: String =
                out[at..at + 100].iter().take_while(|b| **b != 0).map(|b| char::from(*b)).collect();
            let size =
                u64::from_str_radix(std::str::from_utf8(&out[at + 124..at + 135]).unwrap(), 8).unwrap();
            names.push((name, char::from(out[at + 156]), size));
            at += 512 + (size as usize).next_multiple_of(512);
        }
        let names: Vec<_> = names.iter().map(|(name, kind, size)| (name.as_str(), *kind, *size)).collect();
        assert_eq!(
            names,
            [
                ("./", '5', 0),
                ("boot/", '5', 0),
                ("etc/", '5', 0),
                ("tmp/", '5', 0),
                ("usr/", '5', 0),
                ("usr/lib/", '5', 0),
                ("usr/lib/modules/", '5', 0),
                ("var/", '5', 0),
                ("var/first", '0', 4),
                ("var/link", '2', 0),
                ("var/second", '1', 0),
                ("var/sparse", '0', 1 << 20),
                ("etc/fstab", '0', 5),
            ]
        );
        assert_eq!((report.hard_links, report.sparse_files), (1, 1));
        let left: Vec<_> = report.notes.iter().map(|note| note.what.as_str()).collect();
        assert_eq!(left, ["etc/.wh.passwd", "var/lastlog"]);
    }
}
