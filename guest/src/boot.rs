//! Owns the first moments: the kernel's file systems, modules, a root that can be left, and disks by their serial
//! numbers. Refuses to know members.

use amphi_guest::config::Guest;
use amphi_guest::{CONFIG_MAX, CONFIG_SERIAL, VERSION};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount as mount_raw};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the modules are in the initramfs, with their order of loading in `order`.
const MODULES: &str = "/modules";
/// How long a disk that is told of may take to appear.
const DISK: Duration = Duration::from_secs(20);

/// mount(2) with words.
pub fn mount(source: &str, target: &str, kind: &str, flags: MsFlags, data: &str) -> io::Result<()> {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    mount_raw(some(source).as_deref(), target, some(kind).as_deref(), flags, some(data).as_deref())
        .map_err(|error| io::Error::other(format!("mount {kind} {source} on {target}: {error}")))
}

/// `doing` before an error.
pub fn told<T>(doing: &str, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{doing}: {error}")))
}

/// Leaves the kernel's own first root, which no process can leave by pivot_root(2), for a tmpfs that holds this program
/// alone, and mounts the kernel's file systems there.
pub fn settle() -> io::Result<()> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    fs::create_dir_all("/new")?;
    mount("root", "/new", "tmpfs", MsFlags::empty(), "mode=0755,size=64m")?;
    for folder in
        ["proc", "sys", "dev", "run", "scratch", "volume", "further", "config", "images", "disk", "from"]
    {
        fs::create_dir_all(format!("/new/{folder}"))?;
    }
    fs::copy("/init", "/new/init")?;
    if Path::new(MODULES).exists() {
        fs::create_dir_all("/proc")?;
        mount("proc", "/proc", "proc", plain, "")?;
        load_modules()?;
    }
    std::env::set_current_dir("/new")?;
    mount(".", "/", "", MsFlags::MS_MOVE, "")?;
    nix::unistd::chroot(".")?;
    std::env::set_current_dir("/")?;
    // What is mounted later reaches the members that run already.
    mount("", "/", "", MsFlags::MS_REC | MsFlags::MS_SHARED, "")?;
    mount("proc", "/proc", "proc", plain, "")?;
    mount("sys", "/sys", "sysfs", plain, "")?;
    mount("dev", "/dev", "devtmpfs", MsFlags::MS_NOSUID, "")?;
    mount("run", "/run", "tmpfs", plain, "mode=0755")?;
    fs::create_dir_all("/dev/pts")?;
    mount("pts", "/dev/pts", "devpts", MsFlags::MS_NOSUID, "ptmxmode=0666,mode=0620,gid=5")?;
    for folder in ["/run/members", "/run/execs", "/run/shm", "/run/files", "/run/cgroup"] {
        fs::create_dir_all(folder)?;
    }
    mount("cgroup", "/run/cgroup", "cgroup2", plain, "")
}

fn load_modules() -> io::Result<()> {
    let order = told("the modules' order", fs::read_to_string(format!("{MODULES}/order")))?;
    for name in order.lines().filter(|line| !line.is_empty()) {
        let file = told(name, fs::File::open(format!("{MODULES}/{name}")))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(nix::Error::EEXIST) => {}
            // One that finds no device of its own, or that this processor lacks instructions for, is not missed here.
            Err(error) => crate::say(&format!("module {name} does not load: {error}")),
        }
    }
    Ok(())
}

/// The device of the disk with this serial number, once it is there.
pub fn disk(serial: &str) -> io::Result<PathBuf> {
    let deadline = Instant::now() + DISK;
    loop {
        for entry in fs::read_dir("/sys/block")?.flatten() {
            let told = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
            if told.trim_end_matches(['\0', '\n']) == serial {
                return Ok(Path::new("/dev").join(entry.file_name()));
            }
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("no disk has the serial number {serial}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The description on its disk.
pub fn description() -> io::Result<Guest> {
    let mut text = Vec::new();
    fs::File::open(disk(CONFIG_SERIAL)?)?.take(CONFIG_MAX as u64).read_to_end(&mut text)?;
    let end = text.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
    let value: serde_json::Value = serde_json::from_slice(&text[..end])?;
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    if version != Some(u64::from(VERSION)) {
        return Err(io::Error::other(format!(
            "the description has version {version:?}, this guest reads {VERSION}: install the agent's own guest kit"
        )));
    }
    Ok(serde_json::from_value(value)?)
}

/// Mounts a volume's file system, whichever of those that hosts make it is.
pub fn mount_volume(serial: &str, target: &str, read_only: bool) -> io::Result<()> {
    let device = disk(serial)?;
    let device = device.to_string_lossy();
    fs::create_dir_all(target)?;
    let mut flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    if read_only {
        flags |= MsFlags::MS_RDONLY;
    }
    let xfs = if read_only { "nouuid,norecovery" } else { "nouuid" };
    let ext4 = if read_only { "noload" } else { "" };
    mount(&device, target, "xfs", flags, xfs).or_else(|first| {
        mount(&device, target, "ext4", flags, ext4).map_err(|second| {
            io::Error::other(format!("it has no file system of a set's volume: {first}; {second}"))
        })
    })?;
    // It may have grown while nobody had it mounted.
    if !read_only {
        grow(serial, target)?;
    }
    Ok(())
}

/// Lets an XFS take all of its device.
pub fn grow(serial: &str, target: &str) -> io::Result<()> {
    let device = disk(serial)?;
    let name = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let sectors: u64 = fs::read_to_string(format!("/sys/block/{name}/size"))?.trim().parse().unwrap_or(0);
    match crate::calls::grow_xfs(fs::File::open(target)?, sectors * 512) {
        // Another file system than XFS: it has the size that it was made with.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOTTY) => Ok(()),
        other => other,
    }
}
