//! Looks at a root file system as it would boot: which init it has, what it does at boot that a container cannot, and what
//! is written into the image in the place of that.

use super::services;
use super::tree::Added;
use super::within::{lines, names, resolve};
use amphi_guest::conversion::{self, Init, Report};
use std::path::Path;

/// The init that is written for a machine of systemd's.
const OWN_INIT: &str = "etc/amphi-init";
const FSTAB: &str = "etc/fstab";

/// Fills the report; answers what is put into the image.
pub fn look(root: &Path, report: &mut Report) -> Vec<Added> {
    let system = lines(root, "etc/os-release");
    let name = system.iter().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    report.system = conversion::text(name.unwrap_or("unknown").trim_matches(['"', '\'']));
    modules(root, report);
    network(root, report);
    kernel(root, report);
    let mut added = Vec::new();
    if resolve(root, FSTAB).is_some() && resolve(root, "etc").is_some_and(|etc| etc == root.join("etc")) {
        // What it mounts is in the image, or not on this disk; an init that tried to would stop there.
        let content = b"# Emptied when this machine's disk became a container image.\n".to_vec();
        added.push(Added { path: FSTAB.into(), mode: 0o644, content });
    }
    report.init = init(root);
    match report.init.kind.as_str() {
        "systemd" => {
            let found = services::of(root);
            report.services = services::told(&found);
            for one in
                report.services.clone().iter().filter(|one| !one.started && one.why != services::OF_BOOT)
            {
                report.note("service", &one.name, &one.why);
            }
            report.note(
                "service",
                "systemd",
                "needs control groups and mounts of its own: /etc/amphi-init starts its services in its place, without their order, sockets and timers",
            );
            let content = services::script(&found).into_bytes();
            added.push(Added { path: OWN_INIT.into(), mode: 0o755, content });
            report.init.argv = vec![format!("/{OWN_INIT}")];
            report.init.stop_signal = "SIGPWR".into();
        }
        "none" => {
            report.note("service", "init", "it has none: say in the set what its member runs ('command')")
        }
        _ => {}
    }
    added
}

/// What its kernel would start.
fn init(root: &Path) -> Init {
    let of = |kind: &str, argv: &[&str], signal: &str| Init {
        kind: kind.into(),
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        stop_signal: signal.into(),
    };
    for path in ["sbin/init", "usr/lib/systemd/systemd", "lib/systemd/systemd", "bin/init", "etc/init"] {
        let Some(found) = resolve(root, path).filter(|found| found.is_file()) else { continue };
        let name = found.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let argv = [format!("/{path}")];
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        return match name.as_str() {
            "systemd" => of("systemd", &argv, "SIGRTMIN+3"),
            // Its signal for switching off.
            "busybox" => of("busybox", &argv, "SIGUSR2"),
            "openrc-init" => of("openrc", &argv, "SIGINT"),
            // powerfail, in its inittab.
            _ if resolve(root, "etc/inittab").is_some() => of("sysvinit", &argv, "SIGPWR"),
            _ => of("other", &argv, "SIGPWR"),
        };
    }
    of("none", &["/bin/sh"], "SIGTERM")
}

/// Files of a directory whose names end so.
fn files(root: &Path, folder: &str, end: &str) -> Vec<String> {
    names(root, folder)
        .into_iter()
        .filter(|name| name.ends_with(end))
        .map(|name| format!("{folder}/{name}"))
        .collect()
}

fn modules(root: &Path, report: &mut Report) {
    let mut all = vec!["etc/modules".to_owned()];
    all.extend(files(root, "etc/modules-load.d", ".conf"));
    for path in all {
        for module in lines(root, &path) {
            report.note(
                "kernel_module",
                &module,
                &format!("/{path} loads it: the host's kernel has to have it"),
            );
        }
    }
}

fn network(root: &Path, report: &mut Report) {
    let why = "the network of a set is there before its members start: its address is the instance's";
    let mut own = files(root, "etc/netplan", ".yaml");
    own.extend(files(root, "etc/NetworkManager/system-connections", ""));
    own.extend(files(root, "etc/systemd/network", ".network"));
    own.extend(files(root, "etc/sysconfig/network-scripts", ""));
    own.retain(|path| {
        !path.contains("/network-scripts/") || path.contains("/ifcfg-") && !path.ends_with("-lo")
    });
    let mut interfaces = vec!["etc/network/interfaces".to_owned()];
    interfaces.extend(files(root, "etc/network/interfaces.d", ""));
    for path in interfaces {
        let set = |line: &String| line.starts_with("iface ") && !line.contains(" loopback");
        own.extend(lines(root, &path).iter().any(set).then_some(path));
    }
    for path in own {
        report.note("network", &format!("/{path}"), why);
    }
    if resolve(root, "etc/cloud/cloud.cfg").is_some() {
        report.note("network", "cloud-init", "it is not run: keys and user data are in /config-drive");
    }
    for (path, what) in [
        ("etc/nftables.conf", "nftables"),
        ("etc/ufw/ufw.conf", "ufw"),
        ("etc/iptables/rules.v4", "iptables"),
    ] {
        if resolve(root, path).is_some() {
            report.note(
                "network",
                &format!("/{path}"),
                &format!("the rules of {what} are not loaded: give the instance security groups"),
            );
        }
    }
}

fn kernel(root: &Path, report: &mut Report) {
    let mut all = vec!["etc/sysctl.conf".to_owned()];
    all.extend(files(root, "etc/sysctl.d", ".conf"));
    for path in all {
        for line in lines(root, &path) {
            report.note(
                "sysctl",
                &line,
                &format!("/{path} sets it: those of the network and of IPC can be the set's ('sysctls')"),
            );
        }
    }
    let mode = lines(root, "etc/selinux/config");
    if mode.iter().any(|line| line == "SELINUX=enforcing") {
        report.note("security", "SELinux", "its labels are not in the image, and its policy is not loaded");
    }
    if resolve(root, "etc/crypttab").is_some() && !lines(root, "etc/crypttab").is_empty() {
        report.note("mount", "/etc/crypttab", "nothing that is encrypted is opened");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_a_machine_does_at_boot() {
        let root = std::env::temp_dir().join(format!("amphi-look-{}", std::process::id()));
        let _old = fs::remove_dir_all(&root);
        for folder in ["etc/network", "etc/sysctl.d", "etc/netplan", "sbin", "bin", "lib/systemd"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for (path, text) in [
            ("etc/os-release", "PRETTY_NAME=\"Some\u{1b}Linux 1\"\n"),
            ("etc/modules", "# none\nnf_conntrack\n"),
            ("etc/network/interfaces", "auto lo\niface lo inet loopback\niface ens3 inet dhcp\n"),
            ("etc/sysctl.d/a.conf", "net.core.somaxconn = 9\n"),
            ("etc/netplan/50.yaml", ""),
            ("etc/fstab", "x"),
            ("bin/busybox", ""),
            ("lib/systemd/systemd", ""),
        ] {
            fs::write(root.join(path), text).unwrap();
        }
        let told = |report: &Report| -> Vec<(String, String)> {
            report.notes.iter().map(|note| (note.kind.clone(), note.what.clone())).collect()
        };
        symlink("../bin/busybox", root.join("sbin/init")).unwrap();
        let mut report = Report::default();
        let added = look(&root, &mut report);
        assert_eq!(report.system, "Some?Linux 1");
        assert_eq!(
            (report.init.kind.as_str(), report.init.argv.as_slice()),
            ("busybox", &["/sbin/init".to_owned()][..])
        );
        assert_eq!(added.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), ["etc/fstab"]);
        let notes = told(&report);
        for (kind, what) in [
            ("kernel_module", "nf_conntrack"),
            ("network", "/etc/netplan/50.yaml"),
            ("network", "/etc/network/interfaces"),
            ("sysctl", "net.core.somaxconn = 9"),
        ] {
            assert!(notes.contains(&(kind.into(), what.into())), "{what}: {notes:?}");
        }
        fs::remove_file(root.join("sbin/init")).unwrap();
        symlink("/lib/systemd/systemd", root.join("sbin/init")).unwrap();
        let mut report = Report::default();
        let added = look(&root, &mut report);
        assert_eq!((report.init.kind.as_str(), report.init.argv[0].as_str()), ("systemd", "/etc/amphi-init"));
        assert_eq!((added[1].path.as_str(), added[1].mode), ("etc/amphi-init", 0o755));
        fs::remove_dir_all(&root).unwrap();
    }
}
