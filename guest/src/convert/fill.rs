//! Fills a disk's root file system out of an image's, which comes as a squashfs: names, owners, modes, times, links, devices
//! and extended attributes as they are there. Refuses to decide what boots it: that is the host's part of the disk.

use super::{Ended, beat, tell};
use crate::boot::{self, mount};
use crate::calls;
use amphi_guest::conversion::{RESULT_SERIAL, SOURCE_SERIAL, Told};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

pub fn run(port: &mut File) -> Result<(), Ended> {
    let (from, to) = (Path::new("/from"), Path::new("/disk"));
    let source = boot::disk(SOURCE_SERIAL)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    mount(&source.to_string_lossy(), "/from", "squashfs", flags, "")?;
    let result = boot::disk(RESULT_SERIAL)?;
    // The second partition: the first holds what a BIOS starts.
    mount(&format!("{}2", result.display()), "/disk", "ext4", MsFlags::MS_NODEV | MsFlags::MS_NOSUID, "")?;
    let (entries, bytes) = copy(from, to, &mut beat(port))?;
    for folder in ["dev", "proc", "sys", "run", "tmp"] {
        let folder = to.join(folder);
        if fs::symlink_metadata(&folder).is_err() {
            fs::create_dir(&folder)?;
            let mode = if folder.ends_with("tmp") { 0o1777 } else { 0o755 };
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode))?;
        }
    }
    nix::unistd::sync();
    umount2(to, MntFlags::empty()).map_err(io::Error::from)?;
    tell(port, &Told::Filled { entries, bytes })?;
    Ok(())
}

/// The tree below `from`, into an empty `to` (but for what a new ext4 has).
fn copy(from: &Path, to: &Path, told: &mut dyn FnMut(u64, u64)) -> io::Result<(u64, u64)> {
    let mut links: HashMap<u64, PathBuf> = HashMap::new();
    let (mut entries, mut bytes) = (0, 0);
    let mut waiting = vec![PathBuf::new()];
    // A directory's times are set when nothing is put into it any more.
    let mut folders = Vec::new();
    while let Some(relative) = waiting.pop() {
        let (old, new) = (from.join(&relative), to.join(&relative));
        let about = fs::symlink_metadata(&old)?;
        entries += 1;
        if about.is_dir() {
            if !relative.as_os_str().is_empty() && fs::symlink_metadata(&new).is_err() {
                fs::create_dir(&new)?;
            }
            let names = fs::read_dir(&old)?.map(|e| e.map(|e| relative.join(e.file_name())));
            waiting.extend(names.collect::<io::Result<Vec<_>>>()?);
            dress(&old, &new, &about)?;
            folders.push((new, about));
        } else if let Some(first) = links.get(&about.ino()).filter(|_| about.nlink() > 1) {
            fs::hard_link(first, &new)?;
        } else {
            bytes += one(&old, &new, &about)?;
            dress(&old, &new, &about)?;
            times(&new, &about)?;
            if about.nlink() > 1 {
                links.insert(about.ino(), new);
            }
        }
        told(entries, bytes);
    }
    for (folder, about) in folders.iter().rev() {
        times(folder, about)?;
    }
    Ok((entries, bytes))
}

fn one(old: &Path, new: &Path, about: &Metadata) -> io::Result<u64> {
    let kind = about.file_type();
    if kind.is_symlink() {
        symlink(fs::read_link(old)?, new)?;
    } else if kind.is_file() {
        return sparse(&mut File::open(old)?, &mut File::create_new(new)?);
    } else {
        let kind = match () {
            () if kind.is_fifo() => SFlag::S_IFIFO,
            () if kind.is_char_device() => SFlag::S_IFCHR,
            () if kind.is_block_device() => SFlag::S_IFBLK,
            () => SFlag::S_IFSOCK,
        };
        mknod(new, kind, Mode::empty(), about.rdev())?;
    }
    Ok(0)
}

/// A file's bytes, with a hole where whole blocks of them are zeros.
fn sparse(from: &mut impl Read, to: &mut File) -> io::Result<u64> {
    let (mut block, mut size) = ([0; 4096], 0);
    loop {
        let mut filled = 0;
        while filled < block.len() {
            match from.read(&mut block[filled..])? {
                0 => break,
                got => filled += got,
            }
        }
        if filled == 0 {
            to.set_len(size)?;
            return Ok(size);
        }
        size += filled as u64;
        if block[..filled].iter().all(|b| *b == 0) {
            to.seek(SeekFrom::Start(size))?;
        } else {
            to.write_all(&block[..filled])?;
        }
    }
}

/// Owner, then mode, which a change of owner takes bits from, then what a change of either takes away.
fn dress(old: &Path, new: &Path, about: &Metadata) -> io::Result<()> {
    lchown(new, Some(about.uid()), Some(about.gid()))?;
    if !about.is_symlink() {
        fs::set_permissions(new, fs::Permissions::from_mode(about.mode() & 0o7777))?;
    }
    for (name, value) in calls::xattrs(old)? {
        calls::set_xattr(new, &name, &value)?;
    }
    Ok(())
}

fn times(new: &Path, about: &Metadata) -> io::Result<()> {
    let at = TimeSpec::new(about.mtime(), about.mtime_nsec());
    Ok(utimensat(nix::fcntl::AT_FDCWD, new, &at, &at, UtimensatFlags::NoFollowSymlink)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_copied_as_it_is() {
        let base = std::env::temp_dir().join(format!("amphi-fill-{}", std::process::id()));
        let _old = fs::remove_dir_all(&base);
        let (from, to) = (base.join("from"), base.join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::create_dir_all(&to).unwrap();
        fs::write(from.join("a/file"), "text").unwrap();
        fs::set_permissions(from.join("a/file"), fs::Permissions::from_mode(0o4711)).unwrap();
        fs::hard_link(from.join("a/file"), from.join("a/b/other")).unwrap();
        symlink("../file", from.join("a/b/link")).unwrap();
        let holes = [vec![0; 1 << 20], b"end".to_vec(), vec![0; 10_000]].concat();
        fs::write(from.join("holes"), &holes).unwrap();
        times(&from.join("a/file"), &fs::symlink_metadata("/").unwrap()).unwrap();
        let (entries, bytes) = copy(&from, &to, &mut |_, _| {}).unwrap();
        assert_eq!((entries, bytes), (7, 4 + holes.len() as u64));
        assert!(fs::read(to.join("holes")).unwrap() == holes);
        assert!(fs::symlink_metadata(to.join("holes")).unwrap().blocks() * 512 < 100_000);
        let about = |path: &str| fs::symlink_metadata(to.join(path)).unwrap();
        assert_eq!(about("a/file").ino(), about("a/b/other").ino());
        assert_eq!(about("a/file").mode() & 0o7777, 0o4711);
        assert_eq!(about("a/file").mtime(), fs::symlink_metadata("/").unwrap().mtime());
        assert_eq!(fs::read_link(to.join("a/b/link")).unwrap(), Path::new("../file"));
        fs::remove_dir_all(&base).unwrap();
    }
}
