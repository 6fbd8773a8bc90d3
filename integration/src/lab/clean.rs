//! Taking back what the kernel does not take back with a process, and finding what was forgotten. Refuses to touch anything that
//! does not carry this lab's mark: its cgroups' name, or its directory.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::layout::{CONTROLLER, Layout, host_number};
use super::mounts::mount_lines;
use super::{cgroup, disk};

/// Ends and removes everything of a lab except its logs and images. Only whoever holds the lock may call it.
pub fn sweep(layout: &Layout) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let members = cgroup::members(layout);
        if members.is_empty() {
            break;
        }
        ensure!(Instant::now() < deadline, "processes {members:?} of the lab do not end");
        for pid in members {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // The last mounts go with their namespace, a moment after the last process.
    loop {
        let devices = disk::of_lab(layout);
        if devices.is_empty() {
            break;
        }
        ensure!(Instant::now() < deadline, "loop devices {devices:?} of the lab stay busy");
        disk::detach_all(layout)?;
        std::thread::sleep(Duration::from_millis(10));
    }
    cgroup::remove(layout)?;
    for name in ["control.sock", "api-address", "env", "disks.json", "cgroups.json", "shared.img"] {
        remove(layout.root().join(name))?;
    }
    for node in nodes(layout) {
        for entry in fs::read_dir(layout.node(&node)).with_context(|| format!("list {node}"))?.flatten() {
            if entry.file_name() != "log" {
                remove(entry.path())?;
            }
        }
    }
    Ok(())
}

/// The node directories that exist.
pub fn nodes(layout: &Layout) -> Vec<String> {
    let entries = fs::read_dir(layout.root()).into_iter().flatten().flatten();
    let names = entries.filter_map(|e| e.file_name().into_string().ok());
    names.filter(|name| name == CONTROLLER || host_number(name).is_some()).collect()
}

fn remove(path: std::path::PathBuf) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// What a lab in this directory has left on the machine, in words; empty after a clean `down`. Call it with the lab down.
pub fn leftovers(layout: &Layout) -> Vec<String> {
    let mut found = Vec::new();
    for pid in cgroup::members(layout) {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        found.push(format!("process {pid}: {}", String::from_utf8_lossy(&line).replace('\0', " ")));
    }
    found.extend(cgroup::existing(layout).iter().map(|d| format!("control group {}", d.display())));
    found.extend(disk::of_lab(layout).iter().map(|d| format!("loop device {d}")));
    let mounts = mount_lines().unwrap_or_default();
    let root = layout.root();
    let of_lab = mounts
        .iter()
        .filter(|m| m.point.starts_with(root) || std::path::Path::new(&m.root).starts_with(root));
    found.extend(of_lab.map(|m| format!("mount on {}", m.point.display())));
    let mut files = vec![root.join("control.sock"), layout.env(), layout.shared_image()];
    for node in nodes(layout) {
        files.extend([layout.disk_image(&node), layout.pv_image(&node), layout.node_control(&node)]);
    }
    found.extend(files.into_iter().filter(|f| f.exists()).map(|f| format!("file {}", f.display())));
    found
}
