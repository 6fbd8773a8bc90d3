//! A control group of its own for each node, in every hierarchy of the machine (version 1 or 2), so that the engines of two hosts
//! never meet in `/docker` or `/machine`. Refuses to leave the group the lab was started in: under version 1 the lab's groups are
//! made below it, so that whatever limits the caller has hold for the lab as well.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::mount::MsFlags;
use serde::{Deserialize, Serialize};

use super::layout::Layout;
use super::mounts::{MountLine, mount_lines, mount_on};

/// What a lab and a node may use of each second for real time, in microseconds on each processor; machines have 950,000.
const LAB_REAL_TIME_US: u32 = 400_000;
const NODE_REAL_TIME_US: u32 = 50_000;

/// One hierarchy of the machine and the lab's directory in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hierarchy {
    mountpoint: PathBuf,
    /// What to mount it with: `cpu,cpuacct`, `none,name=systemd`; None for version 2.
    v1: Option<String>,
    lab: PathBuf,
}

/// The hierarchies as seen by a process whose memberships are `own` (the text of /proc/self/cgroup).
fn hierarchies(mounts: &[MountLine], own: &str, id: &str) -> Vec<Hierarchy> {
    let mut found = Vec::new();
    for mount in mounts.iter().filter(|m| m.root == "/") {
        let (v1, wanted) = match mount.kind.as_str() {
            "cgroup2" => (None, String::new()),
            "cgroup" => {
                let options: Vec<&str> = mount
                    .options
                    .split(',')
                    .filter(|o| !matches!(*o, "rw" | "ro" | "xattr") && !o.starts_with("release_agent="))
                    .collect();
                let named = options.iter().any(|o| o.starts_with("name="));
                let joined = options.join(",");
                (Some(if named { format!("none,{joined}") } else { joined.clone() }), joined)
            }
            _ => continue,
        };
        // Lines read ID:CONTROLLERS:PATH.
        let membership = own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            (controllers == wanted).then(|| path.trim_start_matches('/').to_owned())
        });
        let Some(membership) = membership else { continue };
        // Version 2 hands controllers down only from groups without processes, which the caller's own group is not.
        let base = if v1.is_some() { mount.point.join(membership) } else { mount.point.clone() };
        found.push(Hierarchy { mountpoint: mount.point.clone(), v1, lab: base.join(id) });
    }
    found
}

fn record(layout: &Layout) -> PathBuf {
    layout.root().join("cgroups.json")
}

/// Makes the lab's groups and writes down where they are, for the nodes and for the sweep.
pub fn create(layout: &Layout, nodes: &[String]) -> Result<()> {
    let own = fs::read_to_string("/proc/self/cgroup").context("read own control groups")?;
    let found = hierarchies(&mount_lines()?, &own, &layout.id());
    let text = serde_json::to_vec(&found).context("encode control groups")?;
    fs::write(record(layout), text).context("write cgroups.json")?;
    for hierarchy in &found {
        if hierarchy.v1.is_none() {
            hand_down(&hierarchy.mountpoint);
        }
        // A lab at this place whose directory was deleted under it has left groups that no record names, and that take no
        // process: their controllers are handed down.
        remove_tree(&hierarchy.lab)?;
        make(&hierarchy.lab)?;
        allow_real_time(&hierarchy.lab, LAB_REAL_TIME_US);
        if hierarchy.v1.is_none() {
            hand_down(&hierarchy.lab);
        }
        for node in nodes {
            make_node(&hierarchy.lab.join(node))?;
        }
    }
    Ok(())
}

fn make(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create control group {}", dir.display()))?;
    // A version 1 cpuset takes no process before it has processors and memory nodes.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (own, parents) = (dir.join(file), dir.parent().map(|p| p.join(file)));
        if let (true, Some(Ok(value))) = (own.exists(), parents.map(fs::read_to_string)) {
            let _ = fs::write(own, value.trim());
        }
    }
    Ok(())
}

fn make_node(dir: &Path) -> Result<()> {
    make(dir)?;
    allow_real_time(dir, NODE_REAL_TIME_US);
    Ok(())
}

/// Version 1, on kernels that ration real time by group: none is given unless it is said. Two labs share what there is, and a
/// third goes without: the lease process then makes do with niceness.
fn allow_real_time(dir: &Path, us: u32) {
    let _ = fs::write(dir.join("cpu.rt_runtime_us"), us.to_string());
}

/// Version 2: lets the children of `dir` have its controllers, as far as the machine allows.
fn hand_down(dir: &Path) {
    let controllers = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn recorded(layout: &Layout) -> Vec<Hierarchy> {
    fs::read(record(layout)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Moves the calling process, and so all it will start, into the group of `node`. Returns what [`remount`] needs.
pub fn enter(layout: &Layout, node: &str) -> Result<Vec<Hierarchy>> {
    let found = recorded(layout);
    for hierarchy in &found {
        let dir = hierarchy.lab.join(node);
        make_node(&dir)?;
        fs::write(dir.join("cgroup.procs"), "0")
            .with_context(|| format!("enter control group {}", dir.display()))?;
    }
    Ok(found)
}

/// Shows the node its own groups as roots. Call in a new mount and cgroup namespace, after /sys was mounted anew.
pub fn remount(found: &[Hierarchy]) -> Result<()> {
    for hierarchy in found {
        let at = &hierarchy.mountpoint;
        if at == Path::new("/sys/fs/cgroup") {
            mount_on("cgroup2", at, "cgroup2", MsFlags::empty(), "")?;
        } else {
            if !Path::new("/sys/fs/cgroup/.lab").exists() {
                mount_on("cgroup", Path::new("/sys/fs/cgroup"), "tmpfs", MsFlags::empty(), "mode=755")?;
                fs::write("/sys/fs/cgroup/.lab", "").context("mark /sys/fs/cgroup")?;
            }
            fs::create_dir_all(at).with_context(|| format!("create {}", at.display()))?;
            match &hierarchy.v1 {
                Some(options) => mount_on("cgroup", at, "cgroup", MsFlags::empty(), options)?,
                None => mount_on("cgroup2", at, "cgroup2", MsFlags::empty(), "")?,
            }
        }
        if hierarchy.v1.is_none()
            && fs::read_to_string(at.join("cgroup.controllers")).is_ok_and(|c| !c.trim().is_empty())
        {
            // No process may stay in a group that hands controllers down.
            fs::create_dir_all(at.join("init")).context("create init control group")?;
            fs::write(at.join("init/cgroup.procs"), "0").context("enter init control group")?;
            hand_down(at);
        }
    }
    let _ = fs::remove_file("/sys/fs/cgroup/.lab");
    Ok(())
}

/// Removes the node's group with all that its engines made below it; [`enter`] makes it anew.
pub fn drop_node(layout: &Layout, node: &str) -> Result<()> {
    recorded(layout).iter().try_for_each(|hierarchy| remove_tree(&hierarchy.lab.join(node)))
}

/// Removes all groups of the lab.
pub fn remove(layout: &Layout) -> Result<()> {
    for hierarchy in recorded(layout) {
        remove_tree(&hierarchy.lab)?;
    }
    Ok(())
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn remove_tree(dir: &Path) -> Result<()> {
    for child in subdirectories(dir) {
        remove_tree(&child)?;
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    // A group stays busy for a moment after its last process was reaped.
    while dir.exists() {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("remove control group {}", dir.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    Ok(())
}

/// The processes of a node, by the caller's ids, each with the groups below the node's that it sits in (`docker/…`).
pub fn processes(layout: &Layout, node: &str) -> Vec<(i32, PathBuf)> {
    let Some(hierarchy) = recorded(layout).into_iter().next() else { return Vec::new() };
    let root = hierarchy.lab.join(node);
    let mut found = Vec::new();
    let mut next = vec![root.clone()];
    while let Some(dir) = next.pop() {
        let listed = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        let below = dir.strip_prefix(&root).unwrap_or(&dir).to_owned();
        found.extend(listed.lines().filter_map(|pid| Some((pid.parse().ok()?, below.clone()))));
        next.extend(subdirectories(&dir));
    }
    found
}

/// Directories of the lab that still exist.
pub fn existing(layout: &Layout) -> Vec<PathBuf> {
    recorded(layout).into_iter().map(|h| h.lab).filter(|dir| dir.exists()).collect()
}

/// Processes, by the caller's ids, that sit in any group of the lab.
pub fn members(layout: &Layout) -> Vec<i32> {
    let marks = [format!("/{}/", layout.id()), format!("/{}\n", layout.id())];
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .is_ok_and(|text| marks.iter().any(|m| text.contains(m)))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, point: &str, options: &str) -> MountLine {
        MountLine { root: "/".into(), point: point.into(), kind: kind.into(), options: options.into() }
    }

    #[test]
    fn version_1_groups_are_made_below_the_callers_own() {
        let mounts = [
            mount("cgroup", "/cg/memory", "rw,memory"),
            mount("cgroup", "/cg/systemd", "rw,xattr,name=systemd"),
            mount("tmpfs", "/cg", "rw"),
        ];
        let found = hierarchies(&mounts, "4:memory:/jobs/7\n9:name=systemd:/\n0::/\n", "lab-x");
        let seen: Vec<_> = found.iter().map(|h| (h.v1.as_deref(), h.lab.to_str())).collect();
        assert_eq!(
            seen,
            [
                (Some("memory"), Some("/cg/memory/jobs/7/lab-x")),
                (Some("none,name=systemd"), Some("/cg/systemd/lab-x"))
            ]
        );
    }

    #[test]
    fn version_2_groups_are_made_at_the_root() {
        let found = hierarchies(
            &[mount("cgroup2", "/sys/fs/cgroup", "rw,nsdelegate")],
            "0::/user.slice/a.scope\n",
            "lab-x",
        );
        assert_eq!(found[0].lab, Path::new("/sys/fs/cgroup/lab-x"));
        assert!(found[0].v1.is_none());
    }
}
