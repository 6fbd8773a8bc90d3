//! The nodes' disks: sparse files on loop devices, attached by the guardian in the machine's own mount namespace so that their
//! names and paths hold over a node's power cuts. Refuses to detach a device that has nothing to do with this lab's directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::layout::{CONTROLLER, Layout};
use super::processes;

/// The block devices of one node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Disks {
    /// ext4 with the node's /var.
    pub disk: String,
    /// LVM physical volume; hosts only.
    pub pv: Option<String>,
    /// This host's own way to the disk that every host sees: a loop device each over one file, past the page cache.
    #[serde(default)]
    pub shared: Option<String>,
}

/// How large disks are, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub pv: u64,
    /// 0: there is no shared disk.
    pub shared: u64,
}

/// The shared volume group of a lab that has one.
pub const SHARED_GROUP: &str = "amphi-shared";

const DISK_BYTES: u64 = 16 << 30;

fn record(layout: &Layout) -> PathBuf {
    layout.root().join("disks.json")
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = processes::output(Command::new(program).args(arguments), Duration::from_secs(60))?;
    ensure!(
        output.exit == "exit code 0",
        "{program} {}: {}: {}",
        arguments.join(" "),
        output.exit,
        output.stderr.trim()
    );
    Ok(output.stdout.trim().to_owned())
}

fn attach(image: &Path, bytes: u64) -> Result<String> {
    let file = fs::File::create(image).with_context(|| format!("create {}", image.display()))?;
    file.set_len(bytes).with_context(|| format!("size {}", image.display()))?;
    run("losetup", &["--find", "--show", &image.to_string_lossy()])
}

/// The disk that every host sees, with the group on it: as an administrator makes it, once.
fn create_shared(layout: &Layout, bytes: u64) -> Result<()> {
    let device = attach(&layout.shared_image(), bytes)?;
    let config = format!(
        "devices {{ use_devicesfile=0 obtain_device_list_from_udev=0 global_filter=[\"a|^{device}$|\",\"r|.*|\"] hints=\"none\" }} activation {{ udev_sync=0 udev_rules=0 monitoring=0 }} backup {{ backup=0 archive=0 }}"
    );
    let tag = ["--yes", "--addtag", "amphi.shared", "--setautoactivation", "n"];
    let made = run(
        "vgcreate",
        &[["--driverloaded", "n", "--config", &config].as_slice(), &tag, &[SHARED_GROUP, &device]].concat(),
    );
    run("losetup", &["--detach", &device])?;
    made.map(drop)
}

fn attach_shared(layout: &Layout) -> Result<String> {
    run("losetup", &["--find", "--show", "--direct-io=on", &layout.shared_image().to_string_lossy()])
}

/// Makes and attaches the disks of all nodes and writes down which device is whose.
pub fn create(layout: &Layout, nodes: &[String], sizes: Sizes) -> Result<()> {
    if sizes.shared > 0 {
        create_shared(layout, sizes.shared)?;
    }
    let mut all = BTreeMap::new();
    for node in nodes {
        fs::create_dir_all(layout.logs(node))
            .with_context(|| format!("create {}", layout.logs(node).display()))?;
        let image = layout.disk_image(node);
        let disk = attach(&image, DISK_BYTES)?;
        let pv = if node == CONTROLLER { None } else { Some(attach(&layout.pv_image(node), sizes.pv)?) };
        let shared = pv.is_some() && sizes.shared > 0;
        let shared = shared.then(|| attach_shared(layout)).transpose()?;
        all.insert(node.clone(), Disks { disk, pv, shared });
        fs::write(record(layout), serde_json::to_vec(&all).context("encode disks")?)
            .context("write disks.json")?;
    }
    std::thread::scope(|scope| {
        let makers: Vec<_> = all
            .values()
            .map(|d| {
                scope.spawn(|| {
                    run(
                        "mkfs.ext4",
                        &["-q", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", &d.disk],
                    )
                })
            })
            .collect();
        makers.into_iter().try_for_each(|m| m.join().unwrap_or_else(|_| bail!("mkfs panicked")).map(drop))
    })
}

pub fn of(layout: &Layout, node: &str) -> Result<Disks> {
    let text = fs::read(record(layout)).context("read disks.json")?;
    let mut all: BTreeMap<String, Disks> = serde_json::from_slice(&text).context("decode disks.json")?;
    all.remove(node).with_context(|| format!("no disks for {node}"))
}

/// One attached loop device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Loop {
    device: String,
    backing: String,
}

fn attached() -> Vec<Loop> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let loops = entries.filter_map(|e| {
        let device = e.file_name().to_str()?.strip_prefix("loop").map(|n| format!("/dev/loop{n}"))?;
        let backing = fs::read_to_string(e.path().join("loop/backing_file")).ok()?;
        Some(Loop { device, backing: backing.trim_end().to_owned() })
    });
    loops.collect()
}

/// The devices of `all` that stand on one of `roots` (devices) or on a file below `dir`, topmost first.
fn standing_on(all: &[Loop], dir: Option<&Path>, roots: &[String]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    loop {
        let next = all.iter().find(|l| {
            // The kernel names a backing device by its path below the mount it was opened through: once the host's /dev is gone,
            // /dev/loop3 reads /loop3.
            let below = |device: &String| l.backing == *device || format!("/dev{}", l.backing) == *device;
            !found.contains(&l.device)
                && (dir.is_some_and(|d| Path::new(&l.backing).starts_with(d))
                    || roots.iter().chain(&found).any(below))
        });
        match next {
            Some(l) => found.insert(0, l.device.clone()),
            None => return found,
        }
    }
}

/// The windows over a host's physical volume that outlived the host.
pub fn detach_windows(layout: &Layout, node: &str) -> Result<()> {
    let disks = of(layout, node)?;
    let Some(pv) = disks.pv else { return Ok(()) };
    let roots: Vec<String> = std::iter::once(pv).chain(disks.shared).collect();
    for device in standing_on(&attached(), None, &roots) {
        run("losetup", &["--detach", &device])?;
    }
    Ok(())
}

/// Every loop device that stands on a file of the lab.
pub fn of_lab(layout: &Layout) -> Vec<String> {
    standing_on(&attached(), Some(layout.root()), &[])
}

pub fn detach_all(layout: &Layout) -> Result<()> {
    for device in of_lab(layout) {
        run("losetup", &["--detach", &device])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(n: u8, backing: &str) -> Loop {
        Loop { device: format!("/dev/loop{n}"), backing: backing.to_owned() }
    }

    #[test]
    fn windows_come_before_what_they_stand_on_and_strangers_stay() {
        let all = [
            device(0, "/lab/h1/pv.img"),
            device(1, "/elsewhere/pv.img"),
            device(2, "/loop0"),
            device(3, "/dev/loop1"),
            device(4, "/lab-two/x"),
            device(5, "/dev/loop2"),
        ];
        assert_eq!(
            standing_on(&all, Some(Path::new("/lab")), &[]),
            ["/dev/loop5", "/dev/loop2", "/dev/loop0"]
        );
        assert_eq!(standing_on(&all, None, &["/dev/loop0".to_owned()]), ["/dev/loop5", "/dev/loop2"]);
    }
}
