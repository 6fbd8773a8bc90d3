//! What lives where, as the kernel says it: no engine is asked, since engines are frozen, cut off or dead when it matters.
//! Refuses to judge.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use amphi_api::InstanceId;

use crate::lab::{Lab, processes};

/// A process of a body.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    pub host: String,
    pub instance: InstanceId,
    /// By the machine's count; with `started` it is never another one's.
    pub pid: i32,
    /// Clock ticks since the machine's boot.
    pub started: u64,
}

/// What was seen at one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Frozen ones are left out: they do nothing.
    pub processes: BTreeSet<Process>,
    /// Who has which volume mounted.
    pub writers: BTreeSet<(String, String)>,
}

impl Look {
    /// The hosts on which each instance lives.
    pub fn hosts(&self) -> BTreeMap<InstanceId, BTreeSet<&str>> {
        let mut found: BTreeMap<_, BTreeSet<&str>> = BTreeMap::new();
        for process in &self.processes {
            found.entry(process.instance).or_default().insert(&process.host);
        }
        found
    }

    pub fn on(&self, host: &str) -> BTreeSet<&Process> {
        self.processes.iter().filter(|p| p.host == host).collect()
    }
}

/// Looks, and remembers whose a container is.
pub struct Eyes {
    lab: Lab,
    hosts: Vec<String>,
    containers: BTreeMap<String, Option<InstanceId>>,
}

impl Eyes {
    pub fn new(lab: Lab, hosts: Vec<String>) -> Self {
        Self { lab, hosts, containers: BTreeMap::new() }
    }

    pub fn look(&mut self) -> Look {
        let mut seen = Look::default();
        for host in self.hosts.clone() {
            // Without power there is nobody.
            let Ok(first) = self.lab.first_process(&host) else { continue };
            let root = PathBuf::from(format!("/proc/{first}/root"));
            for (pid, group) in processes(self.lab.layout(), &host) {
                let Some((running, started)) = state(pid) else { continue };
                let instance = match container(&group) {
                    Some(id) => self.container(&root, id),
                    None => machine(pid),
                };
                if let (true, Some(instance)) = (running, instance) {
                    seen.processes.insert(Process { host: host.clone(), instance, pid, started });
                }
            }
            let mounts = std::fs::read_to_string(format!("/proc/{first}/mounts")).unwrap_or_default();
            seen.writers.extend(mounted(&mounts).map(|volume| (volume.to_owned(), host.clone())));
        }
        seen
    }

    fn container(&mut self, root: &Path, id: &str) -> Option<InstanceId> {
        if let Some(known) = self.containers.get(id) {
            return *known;
        }
        let path = root.join("var/lib/docker/containers").join(id).join("config.v2.json");
        let text: serde_json::Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        let whose = whose(text["Name"].as_str()?.trim_start_matches('/'));
        self.containers.insert(id.to_owned(), whose);
        whose
    }
}

/// `amphi-<uuid>` and what follows.
fn whose(name: &str) -> Option<InstanceId> {
    name.strip_prefix("amphi-")?.get(..36)?.parse().ok()
}

/// Docker's id, of a group like `docker/<id>` or `…/docker-<id>.scope`.
fn container(group: &Path) -> Option<&str> {
    group.components().find_map(|part| {
        let part = part.as_os_str().to_str()?;
        let id = part.strip_prefix("docker-").map_or(part, |scope| scope.trim_end_matches(".scope"));
        (id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())).then_some(id)
    })
}

/// QEMU of an instance, by the name that libvirt gives it.
fn machine(pid: i32) -> Option<InstanceId> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    if !line.starts_with(b"/usr/bin/qemu") {
        return None;
    }
    let text = String::from_utf8_lossy(&line).into_owned();
    whose(text.split_once("guest=")?.1)
}

/// Whether it can run, and when it was started. None: it has ended.
fn state(pid: i32) -> Option<(bool, u64)> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// proc(5): after the name in brackets the state, and 19 fields later the start.
fn parse(stat: &str) -> Option<(bool, u64)> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let running = match *fields.first()? {
        "Z" | "X" | "x" => return None,
        state => !matches!(state, "T" | "t"),
    };
    Some((running, fields.get(19)?.parse().ok()?))
}

/// The volumes in a list of mounts.
fn mounted(mounts: &str) -> impl Iterator<Item = &str> {
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    points.filter_map(|point| point.strip_prefix("/var/lib/amphi/volumes/")).filter(|id| !id.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_and_mounts_are_read() {
        let id = "0199aaaa-0000-7000-8000-000000000001";
        assert_eq!(whose(&format!("amphi-{id}-anchor")).unwrap().to_string(), id);
        assert!(whose("amphi-short").is_none() && whose("other").is_none());
        let hex = "a".repeat(64);
        assert_eq!(container(Path::new(&format!("docker/{hex}/below"))), Some(hex.as_str()));
        assert_eq!(container(Path::new(&format!("x/docker-{hex}.scope"))), Some(hex.as_str()));
        assert!(container(Path::new("machine/qemu-1")).is_none());
        let stat = |state: &str| format!("42 (a b) c) {state}{} 77 0", " 1".repeat(18));
        assert_eq!(parse(&stat("S")), Some((true, 77)));
        assert_eq!(parse(&stat("T")), Some((false, 77)));
        assert_eq!(parse(&stat("Z")), None);
        let mounts = "/dev/loop1 /var/lib/amphi/volumes/v1 xfs rw 0 0\n/dev/loop2 /data xfs rw 0 0\nx /var/lib/amphi/volumes t r";
        assert_eq!(mounted(mounts).collect::<Vec<_>>(), ["v1"]);
    }
}
