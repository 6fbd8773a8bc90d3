//! Owns a member's own view: its image under a layer that it writes on, a `/dev` of its own, the parts of the volume, its
//! files. Everything is mounted after the root was changed, so that links in the image lead nowhere else; what comes from
//! outside is held by its descriptor before.

use crate::boot::{mount, told};
use amphi_guest::config::{Guest, Member};
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mkdirat, mknod};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

/// The member's root, in its own mount namespace alone.
const ROOT: &str = "/run/root";
/// Where everything that members find as files lies: `<member>/<number>`, and the set's `etc`.
pub const FILES: &str = "/run/files";

/// Something from outside that a member sees.
struct Source {
    held: OwnedFd,
    target: String,
    directory: bool,
    read_only: bool,
    /// Left out where the image has not the directory that it belongs in.
    only_into_directory: bool,
}

/// Builds it all and moves into it. The calling process is the first of its namespaces.
pub fn enter(guest: &Guest, member: &Member) -> io::Result<()> {
    mount_root(member)?;
    let sources = sources(guest, member)?;
    std::env::set_current_dir(ROOT)?;
    // Puts the old root on top of the new one's place; it goes at the end.
    told("pivot_root", nix::unistd::pivot_root(".", ".").map_err(io::Error::from))?;
    let old_root = told(
        "the old root",
        open(".", OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).map_err(io::Error::from),
    )?;
    std::env::set_current_dir("/")?;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    make_folder("/proc")?;
    mount("proc", "/proc", "proc", plain, "")?;
    make_folder("/sys")?;
    mount("sys", "/sys", "sysfs", plain | MsFlags::MS_RDONLY, "")?;
    mount("cgroup", "/sys/fs/cgroup", "cgroup2", plain | MsFlags::MS_RDONLY, "")?;
    devices()?;
    for tmpfs in &member.tmpfs {
        make_folder(&tmpfs.path)?;
        let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        if !tmpfs.exec {
            flags |= MsFlags::MS_NOEXEC;
        }
        mount(
            "tmpfs",
            &tmpfs.path,
            "tmpfs",
            flags,
            &format!("size={}m,mode={}", tmpfs.size_mib, tmpfs.mode),
        )?;
    }
    for source in &sources {
        told(&source.target, bind(source))?;
    }
    // Links that point nowhere harm nobody, and kcore's memory is the machine's own.
    for hidden in ["/proc/kcore", "/proc/sysrq-trigger"] {
        mount("/dev/null", hidden, "", MsFlags::MS_BIND, "")?;
    }
    if member.read_only {
        mount(
            "",
            "/",
            "",
            MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NODEV,
            "",
        )?;
    }
    nix::unistd::fchdir(&old_root)?;
    told("the old root", umount2(".", MntFlags::MNT_DETACH).map_err(io::Error::from))?;
    std::env::set_current_dir("/")
}

/// The image below, what the member wrote on top.
fn mount_root(member: &Member) -> io::Result<()> {
    let own = format!("/scratch/members/{}", member.name);
    for folder in ["upper", "work"] {
        fs::create_dir_all(format!("{own}/{folder}"))?;
    }
    let lower = format!("/images/{}", member.root);
    // The upper directory is the root's own: it has the mode of the image's.
    let root = fs::metadata(&lower)?;
    fs::set_permissions(format!("{own}/upper"), root.permissions())?;
    fs::create_dir_all(ROOT)?;
    let data = format!("lowerdir={lower},upperdir={own}/upper,workdir={own}/work");
    mount("overlay", ROOT, "overlay", MsFlags::MS_NODEV, &data)
}

fn hold(path: &str) -> io::Result<OwnedFd> {
    told(path, open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(io::Error::from))
}

fn sources(guest: &Guest, member: &Member) -> io::Result<Vec<Source>> {
    let mut all = Vec::new();
    let mut add = |held: OwnedFd, target: &str, directory: bool, read_only: bool| {
        all.push(Source {
            held,
            target: target.to_owned(),
            directory,
            read_only,
            only_into_directory: false,
        });
    };
    for name in ["resolv.conf", "hosts", "hostname"] {
        add(hold(&format!("{FILES}/etc/{name}"))?, &format!("/etc/{name}"), false, false);
    }
    add(hold("/run/shm")?, "/dev/shm", true, false);
    add(hold("/config")?, "/config-drive", true, true);
    if guest.volume.is_some() {
        if member.mounts.is_empty() {
            add(hold("/volume")?, &guest.volume_mount, true, false);
        }
        for part in &member.mounts {
            add(told(&part.sub_path, part_of_volume(&part.sub_path))?, &part.path, true, part.read_only);
        }
    }
    // Volumes that come later appear in it: see `launch`.
    add(hold("/further")?, "/volumes", true, false);
    for (at, file) in member.files.iter().enumerate() {
        let path = format!("{FILES}/{}/{at}", member.name);
        fs::create_dir_all(format!("{FILES}/{}", member.name))?;
        fs::write(&path, &file.content)?;
        chown(&path, Some(file.uid), Some(file.gid))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
        all.push(Source {
            held: hold(&path)?,
            target: file.path.clone(),
            directory: false,
            read_only: true,
            only_into_directory: file.only_into_directory,
        });
    }
    Ok(all)
}

/// A directory of the volume, made where it is missing, step by step without following what a member may have put there.
fn part_of_volume(path: &str) -> io::Result<OwnedFd> {
    let mut here = hold("/volume")?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        match mkdirat(&here, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(nix::Error::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        here = openat(&here, name, flags, Mode::empty())?;
    }
    Ok(here)
}

/// Also where something else than a directory is in the way, a link included: what the description says is there.
fn make_folder(path: &str) -> io::Result<()> {
    if Path::new(path).is_dir() {
        return Ok(());
    }
    told(path, fs::create_dir_all(path))
}

fn bind(source: &Source) -> io::Result<()> {
    let target = Path::new(&source.target);
    let parent = target.parent().unwrap_or(Path::new("/"));
    if source.directory {
        make_folder(&source.target)?;
    } else {
        if source.only_into_directory && !parent.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(parent)?;
        if !target.exists() {
            // A link that leads nowhere: what the description says takes its place.
            if target.is_symlink() {
                fs::remove_file(target)?;
            }
            fs::write(target, "")?;
        }
    }
    let held = format!("/proc/self/fd/{}", source.held.as_fd().as_raw_fd());
    mount(&held, &source.target, "", MsFlags::MS_BIND | MsFlags::MS_REC, "")?;
    if source.read_only {
        let flags = MsFlags::MS_REMOUNT
            | MsFlags::MS_BIND
            | MsFlags::MS_RDONLY
            | MsFlags::MS_NOSUID
            | MsFlags::MS_NODEV;
        mount("", &source.target, "", flags, "")?;
    }
    Ok(())
}

/// The nodes that every container has (the OCI runtime specification's default devices).
fn devices() -> io::Result<()> {
    make_folder("/dev")?;
    mount("dev", "/dev", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME, "mode=755,size=64k")?;
    let nodes =
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    for (name, major, minor) in nodes {
        let path = format!("/dev/{name}");
        mknod(path.as_str(), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    }
    for (name, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(to, format!("/dev/{name}"))?;
    }
    for folder in ["/dev/pts", "/dev/shm", "/dev/mqueue"] {
        fs::create_dir_all(folder)?;
    }
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount("devpts", "/dev/pts", "devpts", plain, "newinstance,ptmxmode=0666,mode=0620,gid=5")?;
    mount("mqueue", "/dev/mqueue", "mqueue", plain | MsFlags::MS_NODEV, "")
}
