//! What a node sees of the machine's files: its own /run, /etc, /var and /dev/shm over the machine's read-mostly rest. Refuses to
//! let any mount travel back: everything here happens in a mount namespace cut off from the machine's first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// One line of /proc/self/mountinfo.
#[derive(Clone, Debug)]
pub struct MountLine {
    pub root: String,
    pub point: PathBuf,
    pub kind: String,
    /// Options of the file system itself.
    pub options: String,
}

pub fn mount_lines() -> Result<Vec<MountLine>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
    Ok(text.lines().filter_map(parse_line).collect())
}

/// `36 35 98:0 /root /point rw,noatime shared:1 - ext4 /dev/x rw` (proc_pid_mountinfo(5))
fn parse_line(line: &str) -> Option<MountLine> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let mut right = right.split(' ');
    let (root, point, kind) = (left.next()?, left.next()?, right.next()?);
    Some(MountLine {
        root: root.into(),
        point: point.replace("\\040", " ").into(),
        kind: kind.into(),
        options: right.nth(1)?.into(),
    })
}

pub fn mount_on(source: &str, target: &Path, kind: &str, flags: MsFlags, data: &str) -> Result<()> {
    mount(Some(source), target, Some(kind), flags, Some(data))
        .with_context(|| format!("mount {kind} ({data}) on {}", target.display()))
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("bind {} over {}", source.display(), target.display()))
}

/// Cuts the mount namespace off from the one it was copied from, and shows it its own processes.
pub fn own_namespace() -> Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("make all mounts private")?;
    mount_on(
        "proc",
        Path::new("/proc"),
        "proc",
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        "",
    )
}

/// A /run that is empty at every start, as a real machine's.
pub fn own_run() -> Result<()> {
    // Detaching the old one first lets go of network namespaces pinned by name in it; where it is no mount there is nothing to detach.
    let _ = umount2("/run", MntFlags::MNT_DETACH);
    mount_on("run", Path::new("/run"), "tmpfs", MsFlags::MS_NOSUID, "mode=755")?;
    for dir in ["/run/lock", "/run/tmp", "/run/netns"] {
        fs::create_dir_all(dir).with_context(|| format!("create {dir}"))?;
    }
    Ok(())
}

/// /sys with the network devices of the caller's own network namespace; whatever was mounted below it is gone.
pub fn own_sys() -> Result<()> {
    umount2("/sys", MntFlags::MNT_DETACH).context("detach /sys")?;
    mount_on(
        "sysfs",
        Path::new("/sys"),
        "sysfs",
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        "",
    )
}

/// Parts of /etc that engines write and expect back after a power cut, with what they start from.
const KEPT_ETC: [&str; 3] = ["libvirt", "openvswitch", "lvm"];

/// Private /etc, /var/lib, /var/log and /var/cache; `disk` is the node's mounted disk.
pub fn own_files(disk: &Path) -> Result<()> {
    for dir in ["lib", "log", "cache"] {
        let source = disk.join("var").join(dir);
        fs::create_dir_all(&source).with_context(|| format!("create {}", source.display()))?;
        bind(&source, &Path::new("/var").join(dir))?;
    }
    for dir in ["docker", "containerd", "libvirt", "openvswitch", "ovn", "amphi"] {
        fs::create_dir_all(Path::new("/var/lib").join(dir))
            .with_context(|| format!("create /var/lib/{dir}"))?;
    }
    for name in KEPT_ETC {
        let (machine, own) = (Path::new("/etc").join(name), disk.join("etc").join(name));
        if own.exists() {
            continue;
        }
        fs::create_dir_all(disk.join("etc")).context("create etc on the node's disk")?;
        if name == "openvswitch" || !machine.exists() {
            // The machine's own switch database names its own bridges; a host starts with none.
            fs::create_dir_all(&own).with_context(|| format!("create {}", own.display()))?;
        } else {
            let copied = Command::new("cp")
                .arg("-a")
                .arg(&machine)
                .arg(&own)
                .status()
                .with_context(|| format!("copy {}", machine.display()))?;
            ensure!(copied.success(), "copy {} to {}: {copied}", machine.display(), own.display());
        }
    }
    // Everything else that a daemon may write into /etc (Docker's key, for one) goes to memory.
    for dir in ["/run/etc/upper", "/run/etc/work"] {
        fs::create_dir_all(dir).with_context(|| format!("create {dir}"))?;
    }
    mount_on(
        "etc",
        Path::new("/etc"),
        "overlay",
        MsFlags::empty(),
        "lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work",
    )?;
    for name in KEPT_ETC {
        let target = Path::new("/etc").join(name);
        fs::create_dir_all(&target).with_context(|| format!("create {}", target.display()))?;
        bind(&disk.join("etc").join(name), &target)?;
    }
    mount_on("shm", Path::new("/dev/shm"), "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")
}

/// Puts a plain file that nobody may open for writing in the place of /dev/kvm.
///
/// Always, in the lab: on nested machines /dev/kvm may open and yet never get a guest past its firmware, and libvirtd hangs for 45 s
/// on its first use because it probes with it. (/dev/null in its place would open: libvirt would take it for a KVM that came and
/// went, and probe QEMU anew for 5 s at every definition.) Whether KVM works is for hostsrv's own probe to find out, on a real host.
/// libvirt gives a QEMU a /dev of its own and cannot carry this mount into it, so that is switched off.
pub fn hide_kvm() -> Result<()> {
    let config = Path::new("/etc/libvirt/qemu.conf");
    let text = fs::read_to_string(config).unwrap_or_default();
    if !text.lines().any(|line| line == NO_NAMESPACES) {
        fs::write(config, format!("{text}\n{NO_NAMESPACES}\n")).context("write libvirt's qemu.conf")?;
    }
    let kvm = Path::new("/dev/kvm");
    if !kvm.exists() {
        return Ok(());
    }
    let stand_in = Path::new("/run/no-kvm");
    fs::write(stand_in, "").context("make a stand-in for /dev/kvm")?;
    bind(stand_in, kvm)?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    nix::mount::mount(None::<&str>, kvm, None::<&str>, flags, None::<&str>).context("make /dev/kvm read-only")
}

const NO_NAMESPACES: &str = "namespaces = []";

/// Mounts the node's disk, a loop device, on `target`.
pub fn mount_disk(device: &str, target: &Path) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("create {}", target.display()))?;
    mount_on(device, target, "ext4", MsFlags::MS_NOATIME, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_are_read_past_their_optional_fields() {
        let line = parse_line(
            "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:7 master:1 - cgroup cgroup rw,cpu",
        )
        .unwrap();
        assert_eq!(
            (line.root.as_str(), line.point.to_str().unwrap(), line.kind.as_str(), line.options.as_str()),
            ("/", "/sys/fs/cgroup/cpu", "cgroup", "rw,cpu")
        );
        assert!(parse_line("garbage").is_none());
    }
}
