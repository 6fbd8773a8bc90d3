//! A container's figures out of its control groups, version 1 or 2, by files alone. The parsers are pure; a file that is
//! missing means that this kernel does not say, and the figure is left out.

use crate::instance::figures::Figure;
use std::path::{Path, PathBuf};

/// A limit at least this high is none (the kernel writes the largest multiple of a page).
const NO_LIMIT: f64 = 9e18;

/// Where a process's groups are: one directory for all controllers, or one for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Groups {
    Unified(PathBuf),
    /// Below the mount point, the path of each controller.
    Split(Vec<(String, PathBuf)>),
}

impl Groups {
    /// `/proc/PID/cgroup` (cgroups(7)). Where both versions are there, version 1 has the controllers.
    pub fn parse(text: &str, root: &Path) -> Option<Self> {
        let mut unified = None;
        let mut split = Vec::new();
        for line in text.lines() {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let path = path.trim_start_matches('/');
            if controllers.is_empty() {
                unified = Some(root.join(path));
            } else if !controllers.starts_with("name=") {
                split.extend(controllers.split(',').map(|c| (c.to_owned(), root.join(c).join(path))));
            }
        }
        if split.is_empty() { unified.map(Self::Unified) } else { Some(Self::Split(split)) }
    }

    /// Version 1's directory of a controller.
    pub fn controller(&self, name: &str) -> Option<&Path> {
        match self {
            Self::Unified(_) => None,
            Self::Split(all) => all.iter().find(|(c, _)| c == name).map(|(_, dir)| dir.as_path()),
        }
    }

    /// Memory that cannot be had back without ending something, in bytes, and the processes and threads. Pages of files
    /// can be had back, but for those of shared memory.
    pub fn used(&self) -> (u64, u64) {
        let number = |dir: Option<PathBuf>, name: &str| -> u64 {
            let text = dir.and_then(|dir| std::fs::read_to_string(dir.join(name)).ok());
            text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
        };
        let (memory, pids, all, cache, shared) = match self {
            Self::Unified(dir) => (Some(dir.clone()), Some(dir.clone()), "memory.current", "file", "shmem"),
            Self::Split(_) => (
                self.controller("memory").map(Path::to_owned),
                self.controller("pids").map(Path::to_owned),
                "memory.usage_in_bytes",
                "total_cache",
                "total_shmem",
            ),
        };
        let stat = memory.as_ref().and_then(|dir| std::fs::read_to_string(dir.join("memory.stat")).ok());
        let of = |key: &str| stat.as_deref().and_then(|stat| keyed(stat, key)).unwrap_or(0.0) as u64;
        let files = of(cache).saturating_sub(of(shared));
        (number(memory, all).saturating_sub(files), number(pids, "pids.current"))
    }

    /// How often the kernel has ended something in it for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let (dir, file) = match self {
            Self::Unified(dir) => (Some(dir.as_path()), "memory.events"),
            Self::Split(_) => (self.controller("memory"), "memory.oom_control"),
        };
        let text = dir.and_then(|dir| std::fs::read_to_string(dir.join(file)).ok());
        text.and_then(|text| keyed(&text, "oom_kill")).unwrap_or(0.0) as u64
    }

    /// All that the kernel says now.
    pub fn read(&self) -> Vec<(Figure, f64)> {
        let mut out = Vec::with_capacity(12);
        match self {
            Self::Unified(dir) => {
                let file = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
                unified(&file, &mut out);
            }
            Self::Split(all) => {
                let file = |controller: &str, name: &str| {
                    let dir = all.iter().find(|(c, _)| c == controller).map(|(_, dir)| dir.join(name));
                    dir.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default()
                };
                split(&file, &mut out);
            }
        }
        out
    }
}

fn unified(file: &impl Fn(&str) -> String, out: &mut Vec<(Figure, f64)>) {
    let cpu = file("cpu.stat");
    put(out, Figure::Cpu, keyed(&cpu, "usage_usec").map(|us| us / 1e6));
    put(out, Figure::CpuThrottled, keyed(&cpu, "throttled_usec").map(|us| us / 1e6));
    let stat = file("memory.stat");
    let idle = keyed(&stat, "inactive_file").unwrap_or(0.0);
    put(out, Figure::Memory, number(&file("memory.current")).map(|all| (all - idle).max(0.0)));
    put(out, Figure::MemoryCache, keyed(&stat, "file"));
    put(out, Figure::MemoryLimit, number(&file("memory.max")).filter(|max| *max < NO_LIMIT));
    put(out, Figure::OomKills, keyed(&file("memory.events"), "oom_kill"));
    put(out, Figure::Processes, number(&file("pids.current")));
    let io = file("io.stat");
    for (figure, key) in [
        (Figure::DiskRead, "rbytes="),
        (Figure::DiskWritten, "wbytes="),
        (Figure::DiskReads, "rios="),
        (Figure::DiskWrites, "wios="),
    ] {
        let found = io.split_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<f64>().ok());
        out.push((figure, found.sum()));
    }
}

fn split(file: &impl Fn(&str, &str) -> String, out: &mut Vec<(Figure, f64)>) {
    put(out, Figure::Cpu, number(&file("cpuacct", "cpuacct.usage")).map(|ns| ns / 1e9));
    put(out, Figure::CpuThrottled, keyed(&file("cpu", "cpu.stat"), "throttled_time").map(|ns| ns / 1e9));
    let stat = file("memory", "memory.stat");
    let idle = keyed(&stat, "total_inactive_file").unwrap_or(0.0);
    let used = number(&file("memory", "memory.usage_in_bytes"));
    put(out, Figure::Memory, used.map(|all| (all - idle).max(0.0)));
    put(out, Figure::MemoryCache, keyed(&stat, "total_cache"));
    let limit = number(&file("memory", "memory.limit_in_bytes"));
    put(out, Figure::MemoryLimit, limit.filter(|max| *max < NO_LIMIT));
    put(out, Figure::OomKills, keyed(&file("memory", "memory.oom_control"), "oom_kill"));
    put(out, Figure::Processes, number(&file("pids", "pids.current")));
    for (name, read, written) in [
        ("blkio.throttle.io_service_bytes", Figure::DiskRead, Figure::DiskWritten),
        ("blkio.throttle.io_serviced", Figure::DiskReads, Figure::DiskWrites),
    ] {
        let text = file("blkio", name);
        if !text.is_empty() {
            out.push((read, by_device(&text, "Read")));
            out.push((written, by_device(&text, "Write")));
        }
    }
}

fn put(out: &mut Vec<(Figure, f64)>, figure: Figure, value: Option<f64>) {
    out.extend(value.map(|value| (figure, value)));
}

fn number(text: &str) -> Option<f64> {
    text.trim().parse().ok()
}

/// `key value` lines.
fn keyed(text: &str, key: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `8:0 Read 4096` lines, all devices together.
fn by_device(text: &str, operation: &str) -> f64 {
    let of = |line: &str| {
        let mut words = line.split_whitespace();
        (words.nth(1)? == operation).then_some(())?;
        words.next()?.parse::<f64>().ok()
    };
    text.lines().filter_map(of).sum()
}

/// An interface's counters in `/proc/PID/net/dev` (proc(5)), but for loopback's.
pub fn interfaces(text: &str) -> Vec<(String, [(Figure, f64); 6])> {
    let read = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let numbers: Vec<f64> = rest.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let name = name.trim();
        let at = |index: usize| numbers.get(index).copied();
        (name != "lo").then_some(())?;
        Some((
            name.to_owned(),
            [
                (Figure::NetReceived, at(0)?),
                (Figure::NetReceivedPackets, at(1)?),
                (Figure::NetReceivedDropped, at(3)?),
                (Figure::NetSent, at(8)?),
                (Figure::NetSentPackets, at(9)?),
                (Figure::NetSentDropped, at(11)?),
            ],
        ))
    };
    text.lines().skip(2).filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_either_version_are_found() {
        let root = Path::new("/sys/fs/cgroup");
        let v1 = "9:name=systemd:/docker/ab\n4:cpu,cpuacct:/docker/ab\n3:memory:/docker/ab\n";
        let Some(Groups::Split(all)) = Groups::parse(v1, root) else { panic!("no split groups") };
        assert_eq!(all.len(), 3);
        assert!(all.contains(&("cpuacct".into(), root.join("cpuacct/docker/ab"))));
        let v2 = Groups::parse("0::/system.slice/docker-ab.scope\n", root);
        assert_eq!(v2, Some(Groups::Unified(root.join("system.slice/docker-ab.scope"))));
        let hybrid = Groups::parse("1:memory:/x\n0::/x\n", root);
        assert_eq!(hybrid, Some(Groups::Split(vec![("memory".into(), root.join("memory/x"))])));
        assert_eq!(Groups::parse("", root), None);
    }

    #[test]
    fn version_2_is_read() {
        let file = |name: &str| {
            match name {
                "cpu.stat" => "usage_usec 1500000\nuser_usec 1\nthrottled_usec 250000\n",
                "memory.current" => "5000\n",
                "memory.max" => "max\n",
                "memory.stat" => "anon 1\nfile 3000\ninactive_file 1000\n",
                "memory.events" => "low 0\noom 2\noom_kill 1\n",
                "pids.current" => "7\n",
                "io.stat" => "8:0 rbytes=10 wbytes=20 rios=1 wios=2\n8:16 rbytes=1 wbytes=2 rios=3 wios=4\n",
                _ => "",
            }
            .to_owned()
        };
        let mut out = Vec::new();
        unified(&file, &mut out);
        assert_eq!(
            out,
            [
                (Figure::Cpu, 1.5),
                (Figure::CpuThrottled, 0.25),
                (Figure::Memory, 4000.0),
                (Figure::MemoryCache, 3000.0),
                (Figure::OomKills, 1.0),
                (Figure::Processes, 7.0),
                (Figure::DiskRead, 11.0),
                (Figure::DiskWritten, 22.0),
                (Figure::DiskReads, 4.0),
                (Figure::DiskWrites, 6.0),
            ]
        );
    }

    #[test]
    fn version_1_is_read() {
        let file = |_: &str, name: &str| {
            match name {
                "cpuacct.usage" => "2500000000\n",
                "cpu.stat" => "nr_periods 3\nnr_throttled 1\nthrottled_time 500000000\n",
                "memory.usage_in_bytes" => "5000\n",
                "memory.limit_in_bytes" => "1048576\n",
                "memory.stat" => "cache 1\ninactive_file 1\ntotal_cache 3000\ntotal_inactive_file 1000\n",
                "memory.oom_control" => "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
                "pids.current" => "7\n",
                "blkio.throttle.io_service_bytes" => "8:0 Read 10\n8:0 Write 20\n8:16 Read 1\nTotal 31\n",
                _ => "",
            }
            .to_owned()
        };
        let mut out = Vec::new();
        split(&file, &mut out);
        assert_eq!(
            out,
            [
                (Figure::Cpu, 2.5),
                (Figure::CpuThrottled, 0.5),
                (Figure::Memory, 4000.0),
                (Figure::MemoryCache, 3000.0),
                (Figure::MemoryLimit, 1_048_576.0),
                (Figure::OomKills, 4.0),
                (Figure::Processes, 7.0),
                (Figure::DiskRead, 11.0),
                (Figure::DiskWritten, 20.0),
            ]
        );
        let mut none = Vec::new();
        split(&|_: &str, _: &str| "9223372036854771712\n".to_owned(), &mut none);
        assert!(none.iter().all(|(figure, _)| *figure != Figure::MemoryLimit), "no limit is no figure");
    }

    #[test]
    fn interfaces_are_read() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  \
                    eth0: 100 2 0 3 0 0 0 0 50 4 0 5 0 0 0 0\n";
        let all = interfaces(text);
        assert_eq!(all.len(), 1);
        let (name, figures) = &all[0];
        assert_eq!(name, "eth0");
        let values: Vec<f64> = figures.iter().map(|(_, value)| *value).collect();
        assert_eq!(values, [100.0, 2.0, 3.0, 50.0, 4.0, 5.0]);
    }
}
