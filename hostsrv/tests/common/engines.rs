//! Starts the real engines on a private host, on the default paths that are private there.

use std::process::Command;

use super::{PrivateHost, eventually, exists, run, run_refused};

pub const SWITCH_ENDPOINT: &str = "unix:/run/openvswitch/db.sock";
pub const OVN_NORTHBOUND: &str = "unix:/run/ovn/ovnnb_db.sock";
pub const OVN_SOUTHBOUND: &str = "unix:/run/ovn/ovnsb_db.sock";
pub const DOCKER_SOCKET: &str = "unix:///run/docker.sock";
/// An image with busybox and nothing else.
pub const BUSYBOX: &str = "busybox:test";

/// Debian's own client: another one on the PATH may be too new for the daemon.
const DOCKER: &str = "/usr/bin/docker";

impl PrivateHost {
    /// ovsdb-server and ovs-vswitchd, with an empty database.
    pub fn start_switch(&mut self) {
        std::fs::create_dir_all("/run/openvswitch").expect("a directory");
        run(
            "ovsdb-tool",
            &["create", "/etc/openvswitch/conf.db", "/usr/share/openvswitch/vswitch.ovsschema"],
        );
        self.start_switch_database();
        run("ovs-vsctl", &["--no-wait", "init"]);
        self.start("ovs-vswitchd", Command::new("ovs-vswitchd").arg("--pidfile").arg(SWITCH_ENDPOINT));
    }

    pub fn start_switch_database(&mut self) {
        self.start(
            "ovsdb-server",
            Command::new("ovsdb-server").args([
                "--remote=punix:/run/openvswitch/db.sock",
                "--pidfile",
                "/etc/openvswitch/conf.db",
            ]),
        );
        eventually("ovsdb-server listens", || {
            self.assert_alive("ovsdb-server");
            exists("/run/openvswitch/db.sock")
        });
    }

    /// OVN whole: both databases, ovn-northd, and this host's ovn-controller. The switch runs already
    /// and names `OVN_SOUTHBOUND` as its ovn-remote.
    pub fn start_ovn(&mut self) {
        std::fs::create_dir_all("/run/ovn").expect("a directory");
        for (name, short) in [("ovn-nb", "ovnnb"), ("ovn-sb", "ovnsb")] {
            let file = format!("/etc/ovn/{short}_db.db");
            run("ovsdb-tool", &["create", &file, &format!("/usr/share/ovn/{name}.ovsschema")]);
            let socket = format!("/run/ovn/{short}_db.sock");
            self.start(
                name,
                Command::new("ovsdb-server")
                    .arg(format!("--remote=punix:{socket}"))
                    .arg(format!("--unixctl=/run/ovn/{short}_db.ctl"))
                    .arg(file),
            );
            eventually(&format!("{name} listens"), || {
                self.assert_alive(name);
                exists(&socket)
            });
        }
        run("ovn-nbctl", &[&format!("--db={OVN_NORTHBOUND}"), "init"]);
        self.start(
            "ovn-northd",
            Command::new("ovn-northd")
                .arg(format!("--ovnnb-db={OVN_NORTHBOUND}"))
                .arg(format!("--ovnsb-db={OVN_SOUTHBOUND}")),
        );
        // ovn-controller 23.03 dies of SIGSEGV in one of several first starts, while northd still
        // fills the southbound database; `--monitor`, as in OVN's own init scripts, starts it again.
        self.start("ovn-controller", Command::new("ovn-controller").arg("--monitor").arg(SWITCH_ENDPOINT));
    }

    /// dockerd without a bridge and without iptables, whose restart leaves containers running, with the busybox image imported.
    pub fn start_docker(&mut self) {
        self.start_dockerd();
        let root = self.path("busybox");
        for dir in ["bin", "tmp", "proc", "sys", "dev"] {
            std::fs::create_dir_all(root.join(dir)).expect("a directory");
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
        run("chroot", &[&root.display().to_string(), "/bin/busybox", "--install", "-s", "/bin"]);
        let archive = self.path("busybox.tar").display().to_string();
        run("tar", &["-C", &root.display().to_string(), "-cf", &archive, "."]);
        self.docker(&["import", &archive, BUSYBOX]);
    }

    pub fn start_dockerd(&mut self) {
        let data = self.path("docker");
        let cgroup = format!("--cgroup-parent=/{}", self.cgroup);
        self.start(
            "dockerd",
            Command::new("/usr/sbin/dockerd")
                .arg("--live-restore")
                .args(["-H", DOCKER_SOCKET, "--bridge=none", "--iptables=false", "--pidfile=/run/docker.pid"])
                .arg(cgroup)
                .arg("--data-root")
                .arg(data),
        );
        eventually("dockerd answers", || {
            self.assert_alive("dockerd");
            let info =
                Command::new(DOCKER).args(["-H", DOCKER_SOCKET, "version"]).output().expect("docker runs");
            if info.status.success() {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&info.stderr).into_owned())
            }
        });
    }

    pub fn docker(&self, args: &[&str]) -> String {
        run(DOCKER, &[&["-H", DOCKER_SOCKET], args].concat())
    }

    pub fn docker_refused(&self, args: &[&str]) -> String {
        run_refused(DOCKER, &[&["-H", DOCKER_SOCKET], args].concat())
    }
}
