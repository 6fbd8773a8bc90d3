//! Enters the private host: outside, runs this very test again under unshare(1) and cleans up
//! after it; inside, lays private directories over the machine's and calls the test's body.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};

use super::{PrivateHost, run};

/// Set inside: the private host's directory.
const INSIDE: &str = "AMPHI_PRIVATE_HOST";

/// Where the engines keep state; each is covered by an empty directory.
const COVERED: &[&str] = &[
    "/run",
    "/etc/openvswitch",
    "/etc/ovn",
    "/etc/docker",
    "/var/log/openvswitch",
    "/var/log/ovn",
    "/var/lib/openvswitch",
    "/var/lib/ovn",
    "/var/lib/docker",
    "/var/lib/libvirt",
    "/var/cache/libvirt",
    "/var/log/libvirt",
];

/// `test`: the test function's own name, by which the test binary finds it again.
pub fn on_private_host(test: &str, body: impl FnOnce(&mut PrivateHost)) {
    if let Some(dir) = std::env::var_os(INSIDE) {
        let dir = PathBuf::from(dir);
        let cgroup = cgroup_of(&dir);
        isolate(&dir);
        body(&mut PrivateHost { dir, cgroup, daemons: Vec::new() });
        return;
    }
    let dir = tempfile::Builder::new()
        .prefix("host-")
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
        .expect("a directory");
    let status = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--"])
        .arg(std::env::current_exe().expect("this binary's path"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, dir.path())
        .status()
        .expect("unshare runs");
    remove_cgroups(&cgroup_of(dir.path()));
    if !status.success() {
        show_logs(dir.path());
        panic!("{test} failed on its private host: {status}");
    }
}

fn isolate(dir: &Path) {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).expect("a /proc of its own");
    for covered in COVERED.iter().filter(|covered| Path::new(covered).is_dir()) {
        let cover = dir.join("covers").join(covered.trim_start_matches('/'));
        std::fs::create_dir_all(&cover).expect("a private directory");
        mount(Some(&cover), *covered, none, MsFlags::MS_BIND, none).expect("a bind mount");
    }
    if Path::new("/dev/kvm").exists() {
        mount(Some("/dev/null"), "/dev/kvm", none, MsFlags::MS_BIND, none).expect("a bind mount");
    }
    run("ip", &["link", "set", "lo", "up"]);
}

fn cgroup_of(dir: &Path) -> String {
    format!("amphi-{}", dir.file_name().and_then(|name| name.to_str()).unwrap_or("test"))
}

/// The kernel keeps a dead container's cgroups until somebody removes them, innermost first.
fn remove_cgroups(name: &str) {
    let Ok(hierarchies) = std::fs::read_dir("/sys/fs/cgroup") else { return };
    for top in hierarchies.flatten().map(|hierarchy| hierarchy.path().join(name)) {
        remove_tree(&top);
    }
    remove_tree(&Path::new("/sys/fs/cgroup").join(name));
}

fn remove_tree(group: &Path) {
    let Ok(entries) = std::fs::read_dir(group) else { return };
    entries.flatten().filter(|entry| entry.path().is_dir()).for_each(|entry| remove_tree(&entry.path()));
    if let Err(error) = std::fs::remove_dir(group) {
        eprintln!("left behind: {}: {error}", group.display());
    }
}

fn show_logs(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let text = std::fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {}\n{}", path.display(), lines[lines.len().saturating_sub(30)..].join("\n"));
        }
    }
}
