//! Rates of block devices, held by control groups: version 1's blkio.throttle files, version 2's io.max. Docker cannot
//! change them of a container that runs, so they are written here, after each start. What is read and written is parsed
//! and rendered purely. Refuses to guess a device: where there is none, there is no rate.

use super::cgroup::Groups;
use amphi_api::resize::Isolation;
use amphi_api::set::{IoLimit, MemberIo};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub(super) const GROUPS: &str = "/sys/fs/cgroup";

/// Version 1's files, in the order of a limit's fields.
const FILES: [&str; 4] = [
    "blkio.throttle.read_bps_device",
    "blkio.throttle.write_bps_device",
    "blkio.throttle.read_iops_device",
    "blkio.throttle.write_iops_device",
];
/// Version 2's keys, in the same order.
const KEYS: [&str; 4] = ["rbps", "wbps", "riops", "wiops"];

/// A block device, as control groups name it: `8:0`.
pub type Device = String;

/// The devices that a member writes to; none: no block device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    pub root: Option<Device>,
    pub volume: Option<Device>,
}

fn fields(limit: &IoLimit) -> [Option<u64>; 4] {
    [limit.read_bps, limit.write_bps, limit.read_iops, limit.write_iops]
}

fn limit_of([read_bps, write_bps, read_iops, write_iops]: [Option<u64>; 4]) -> IoLimit {
    IoLimit { read_bps, write_bps, read_iops, write_iops }
}

/// The whole disk under the file system that a path is on: rates cannot be had of partitions (block/blk-cgroup.c).
pub fn device_under(path: &Path) -> Option<Device> {
    let dev = std::fs::metadata(path).ok()?.dev();
    let (major, minor) = (nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
    // Major 0: no block device stands behind it (overlayfs, tmpfs, NFS).
    if major == 0 {
        return None;
    }
    let here = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    if here.join("partition").exists() {
        let whole = std::fs::canonicalize(&here).ok()?;
        let text = std::fs::read_to_string(whole.parent()?.join("dev")).ok()?;
        return Some(text.trim().to_owned());
    }
    here.exists().then(|| format!("{major}:{minor}"))
}

/// What a device's rate in a group is now. None: the group has no such files.
fn read(groups: &Groups, device: &str) -> Option<IoLimit> {
    match groups {
        Groups::Unified(dir) => {
            let text = std::fs::read_to_string(dir.join("io.max")).ok()?;
            Some(parse_unified(&text, device))
        }
        Groups::Split(_) => {
            let dir = groups.controller("blkio")?;
            let mut all = [None; 4];
            for (slot, file) in all.iter_mut().zip(FILES) {
                *slot = parse_split(&std::fs::read_to_string(dir.join(file)).ok()?, device);
            }
            Some(limit_of(all))
        }
    }
}

/// `8:0 rbps=1048576 wbps=max riops=max wiops=max` lines.
fn parse_unified(text: &str, device: &str) -> IoLimit {
    let line = text.lines().find_map(|line| line.strip_prefix(device)?.strip_prefix(' ')).unwrap_or_default();
    limit_of(KEYS.map(|key| {
        line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
    }))
}

/// `8:0 1048576` lines.
fn parse_split(text: &str, device: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(device)?.strip_prefix(' ')?.trim().parse().ok())
}

/// What to write into which file for one device, nothing left of what was there.
fn render(unified: bool, device: &str, limit: &IoLimit) -> Vec<(&'static str, String)> {
    let rates = fields(limit);
    if unified {
        let rate = |rate: Option<u64>| rate.map_or_else(|| "max".to_owned(), |rate| rate.to_string());
        let words: Vec<String> =
            KEYS.iter().zip(rates).map(|(key, r)| format!("{key}={}", rate(r))).collect();
        return vec![("io.max", format!("{device} {}", words.join(" ")))];
    }
    // 0 takes a rule away (block/blk-throttle.c).
    FILES.iter().zip(rates).map(|(file, rate)| (*file, format!("{device} {}", rate.unwrap_or(0)))).collect()
}

/// Both devices' rates as they are; none: they cannot be had.
pub fn held(groups: &Groups, devices: &Devices) -> (Option<IoLimit>, Option<IoLimit>) {
    let of = |device: &Option<Device>| device.as_ref().and_then(|device| read(groups, device));
    (of(&devices.root), of(&devices.volume))
}

/// Writes both devices' rates, where they can be had.
pub fn hold(groups: &Groups, devices: &Devices, io: &MemberIo) -> std::io::Result<()> {
    for (device, limit) in [(&devices.root, &io.root), (&devices.volume, &io.volume)] {
        let Some(device) = device else { continue };
        let (unified, dir) = match groups {
            // Without the controller there is no such file: what is not wanted need not be written, the rest is refused.
            Groups::Unified(dir) if !dir.join("io.max").exists() && limit.is_none() => continue,
            Groups::Unified(dir) if !dir.join("io.max").exists() => {
                let why = "rates of devices need the kernel's io controller, which containers of this host do not have";
                return Err(std::io::Error::new(std::io::ErrorKind::Unsupported, why));
            }
            Groups::Unified(dir) => (true, dir.as_path()),
            Groups::Split(_) => match groups.controller("blkio") {
                Some(dir) => (false, dir),
                None => continue,
            },
        };
        for (file, text) in render(unified, device, limit) {
            std::fs::write(dir.join(file), text)?;
        }
    }
    Ok(())
}

/// What this host's kernel can hold members to. `docker_root`: where their root file systems are.
pub fn isolation(docker_root: &Path) -> Isolation {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let root = Path::new(GROUPS);
    let root_device = device_under(docker_root);
    match Groups::parse(&own, root) {
        None => Isolation { root_device, ..Isolation::default() },
        Some(Groups::Unified(_)) => {
            let controllers = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
            let has = |name: &str| controllers.split_whitespace().any(|word| word == name);
            Isolation {
                cgroups: 2,
                cpu: has("cpu"),
                memory: has("memory"),
                pids: has("pids"),
                io: has("io"),
                io_buffered: has("io") && has("memory"),
                root_device,
                root_quota: false,
            }
        }
        Some(Groups::Split(_)) => Isolation {
            cgroups: 1,
            cpu: root.join("cpu/cpu.cfs_quota_us").exists()
                || root.join("cpu/docker").exists()
                || root.join("cpu/cpu.shares").exists(),
            memory: root.join("memory/memory.usage_in_bytes").exists(),
            pids: root.join("pids").exists(),
            io: root.join("blkio").join(FILES[0]).exists(),
            io_buffered: false,
            root_device,
            root_quota: false,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: IoLimit =
        IoLimit { read_bps: Some(1 << 20), write_bps: None, read_iops: None, write_iops: Some(50) };

    #[test]
    fn version_2_says_all_in_one_line() {
        assert_eq!(
            render(true, "8:0", &LIMIT),
            [("io.max", "8:0 rbps=1048576 wbps=max riops=max wiops=50".to_owned())]
        );
        let text = "7:1 rbps=5 wbps=max riops=max wiops=max\n8:0 rbps=1048576 wbps=max riops=max wiops=50\n";
        assert_eq!(parse_unified(text, "8:0"), LIMIT);
        assert_eq!(parse_unified(text, "8:16"), IoLimit::default());
        assert_eq!(parse_unified("", "8:0"), IoLimit::default());
    }

    #[test]
    fn version_1_has_a_file_for_each() {
        let lines = render(false, "8:0", &LIMIT);
        assert_eq!(lines[0], (FILES[0], "8:0 1048576".to_owned()));
        assert_eq!(lines[1], (FILES[1], "8:0 0".to_owned()), "0 takes a rule away");
        assert_eq!(parse_split("8:0 1048576\n8:16 7\n", "8:16"), Some(7));
        assert_eq!(parse_split("8:01 7\n", "8:0"), None);
    }

    #[test]
    fn rates_come_back_as_they_were_written() {
        let dir = tempfile::tempdir().expect("a directory");
        for file in FILES {
            std::fs::write(dir.path().join(file), "").expect("a file");
        }
        let groups = Groups::Split(vec![("blkio".to_owned(), dir.path().to_owned())]);
        let devices = Devices { root: Some("8:0".into()), volume: None };
        let io = MemberIo { root: LIMIT, volume: LIMIT };
        hold(&groups, &devices, &io).expect("written");
        assert_eq!(std::fs::read_to_string(dir.path().join(FILES[3])).expect("a file"), "8:0 50");
        assert_eq!(held(&groups, &devices).0.expect("told").read_bps, LIMIT.read_bps);
        assert_eq!(held(&groups, &devices).1, None, "no device, no rate");
        let none = Groups::Split(vec![("memory".to_owned(), dir.path().to_owned())]);
        assert_eq!(held(&none, &devices), (None, None), "no blkio, no rate");
    }

    #[test]
    fn without_the_io_controller_a_rate_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let groups = Groups::Unified(dir.path().to_owned());
        let devices = Devices { root: Some("8:0".into()), volume: Some("8:16".into()) };
        hold(&groups, &devices, &MemberIo::default()).expect("nothing is wanted");
        let io = MemberIo { volume: LIMIT, ..MemberIo::default() };
        let refused = hold(&groups, &devices, &io).expect_err("it cannot be held");
        assert!(refused.to_string().contains("io controller"), "{refused}");
        std::fs::write(dir.path().join("io.max"), "").expect("a file");
        hold(&groups, &devices, &io).expect("written");
    }

    #[test]
    fn memory_has_no_block_device() {
        assert_eq!(device_under(Path::new("/proc")), None);
        assert_eq!(device_under(Path::new("/nonexistent")), None);
    }
}
