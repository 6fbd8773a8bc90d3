//! A host's node: its switch, its engines and hostsrv, as a list of what is started and after what. Everything here is what an
//! administrator would set up on a real host; nothing knows that the host is not real, except that its volumes' disk is a loop device.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::controller::{manage, write_file};
use super::disk::{Disks, SHARED_GROUP};

use super::layout::{CONTROLLER, Layout, MANAGEMENT, OVN_SB, UNDERLAY_MTU, address, mac};
use super::processes::Processes;
use super::unit::{Ready, Unit, command, poll};

/// `binary` is absent when only the engines are wanted.
pub fn units(layout: &Layout, name: &str, disks: &Disks, binary: Option<PathBuf>) -> Result<Vec<Unit>> {
    let pv = disks.pv.clone().context("a host needs a physical volume")?;
    let shared = disks.shared.clone();
    let switch =
        Switch { name: name.to_owned(), address: address(name)?.to_string(), mac: mac(address(name)?) };
    let mut units = vec![
        Unit::step("volume-group", &[], move |p| volume_group(p, &pv, shared.as_deref())),
        Unit::step("switch-database", &[], switch_database),
        Unit::daemon(
            "ovsdb-server",
            &["switch-database"],
            &[
                "ovsdb-server",
                "-vconsole:info",
                "-vsyslog:off",
                "-vfile:off",
                "--no-chdir",
                "--remote=punix:/run/openvswitch/db.sock",
                "--remote=db:Open_vSwitch,Open_vSwitch,manager_options",
                "--pidfile=/run/openvswitch/ovsdb-server.pid",
                "/etc/openvswitch/conf.db",
            ],
            Ready::Socket("/run/openvswitch/db.sock"),
        ),
        Unit::daemon(
            "ovs-vswitchd",
            &["ovsdb-server"],
            &[
                "ovs-vswitchd",
                "-vconsole:info",
                "-vsyslog:off",
                "-vfile:off",
                "--no-chdir",
                "--pidfile=/run/openvswitch/ovs-vswitchd.pid",
                "unix:/run/openvswitch/db.sock",
            ],
            command(&["ovs-appctl", "--timeout=5", "version"]),
        ),
        Unit::step("switch", &["ovs-vswitchd"], move |p| switch.configure(p)),
        Unit::daemon(
            "ovn-controller",
            &["switch"],
            &[
                "ovn-controller",
                "-vconsole:info",
                "-vsyslog:off",
                "-vfile:off",
                "--no-chdir",
                "--pidfile=/run/ovn/ovn-controller.pid",
                "unix:/run/openvswitch/db.sock",
            ],
            command(&[
                "sh",
                "-c",
                "ovn-appctl --timeout=5 -t ovn-controller connection-status | grep -qx connected",
            ]),
        )
        // 23.03 has died by SIGSEGV in a switch's first moments, in about one lab of ten.
        .monitored(),
        Unit::step("docker-config", &[], |_| docker_config()),
        Unit::daemon(
            "containerd",
            &["docker-config"],
            &["containerd", "--config", "/run/containerd.toml"],
            Ready::Socket("/run/containerd/containerd.sock"),
        ),
        Unit::daemon(
            "dockerd",
            if binary.is_some() { &["containerd", "docker-plugin"] } else { &["containerd"] },
            &[
                "dockerd",
                "--config-file=/run/dockerd.json",
                "--host=unix:///run/docker.sock",
                "--containerd=/run/containerd/containerd.sock",
                "--bridge=none",
                "--iptables=false",
                "--live-restore",
                "--exec-opt=native.cgroupdriver=cgroupfs",
            ],
            command(&[
                "curl",
                "--silent",
                "--fail",
                "--max-time",
                "5",
                "--unix-socket",
                "/run/docker.sock",
                "http://docker/_ping",
            ]),
        ),
        Unit::daemon("virtlogd", &[], &["virtlogd"], Ready::Socket("/run/libvirt/virtlogd-sock")),
        Unit::daemon(
            "libvirtd",
            &["virtlogd"],
            &["libvirtd"],
            command(&["virsh", "--quiet", "--connect", "qemu:///system", "uri"]),
        ),
    ];
    if let Some(binary) = binary {
        let program = binary.to_string_lossy().into_owned();
        let text = config(name, disks.shared.is_some())?;
        let token = layout.join_token(name);
        let kit = binary.with_file_name("../guest-kit");
        units.push(Unit::step("config", &[], move |_| {
            install_kit(&kit)?;
            write_file(CONFIG, &text)
        }));
        units.push(Unit::daemon(
            "docker-plugin",
            &["config"],
            &[&program, "--config", CONFIG, "docker-plugin"],
            Ready::Socket("/run/docker/plugins/amphi.sock"),
        ));
        units.push(Unit::daemon(
            AGENT,
            &[JOIN, "dockerd", "libvirtd", "ovn-controller", "volume-group"],
            &[&program, "--config", CONFIG, "run"],
            Ready::Line("ready"),
        ));
        units.push(Unit::daemon(
            LEASE,
            &[JOIN],
            &[&program, "--config", CONFIG, "lease"],
            Ready::Line("ready"),
        ));
        units.push(Unit::step(JOIN, &["config", "ovn-controller"], move |p| join(p, &program, &token)));
    }
    Ok(units)
}

/// The agent's settings.
pub const CONFIG: &str = "/etc/amphi/hostsrv.toml";
/// The unit that joins, and the one that runs from then on.
pub const JOIN: &str = "join";
pub const AGENT: &str = "hostsrv";
/// The process that keeps the host's lease.
pub const LEASE: &str = "lease";
/// How long a host waits for its join token. Whoever starts a lab to join by hand has the other hosts' start in between.
const TOKEN_LIMIT: Duration = Duration::from_secs(300);

/// Where a host has its guest kit.
const KIT: &str = "/var/lib/amphi-guest";

/// The kit that scripts/make-guest-kit.sh has made, on the host's own disk, where QEMU's user gets at it. Without one the
/// host says that no set runs as a VM there.
fn install_kit(from: &Path) -> Result<()> {
    if !from.join("initramfs").exists() {
        return Ok(());
    }
    std::fs::create_dir_all(KIT).context("the guest kit's folder")?;
    for name in ["kernel", "initramfs", "convert-initramfs", "boot.img", "mbr.bin"] {
        std::fs::copy(from.join(name), Path::new(KIT).join(name))
            .with_context(|| format!("the guest kit's {name}"))?;
    }
    Ok(())
}

fn config(name: &str, shared: bool) -> Result<String> {
    let shared =
        if shared { format!("shared_volume_groups = [\"{SHARED_GROUP}\"]\n") } else { String::new() };
    Ok(format!(
        "name = \"{name}\"\naddress = \"{}\"\nstate_dir = \"/var/lib/amphi\"\nrun_dir = \"/run/amphi\"\ndocker = \"unix:///run/docker.sock\"\nlibvirt = \"qemu:///system\"\novsdb = \"unix:/run/openvswitch/db.sock\"\nintegration_bridge = \"br-int\"\nvolume_group = \"amphi\"\nguest_kit = \"{KIT}\"\n{shared}",
        address(name)?
    ))
}

/// Exchanges the token for a certificate, the first time only: a certificate survives power cuts.
fn join(processes: &Processes, program: &str, token: &Path) -> Result<()> {
    let pki = Path::new("/var/lib/amphi/pki");
    if std::fs::read_dir(pki).is_ok_and(|mut entries| entries.next().is_some()) {
        return Ok(());
    }
    let written = poll(TOKEN_LIMIT, || token.exists(), || Ok(()))?;
    ensure!(written, "no join token at {} within {TOKEN_LIMIT:?}", token.display());
    let text = std::fs::read_to_string(token).context("read the join token")?;
    processes.run(&[program, "--config", CONFIG, "join", text.trim()])?;
    std::fs::remove_file(token).context("remove the used join token")
}

/// LVM that looks at this host's own physical volume, and at the shared disk if there is one, and waits for no udev.
fn lvm_config(pv: &str, shared: Option<&str>) -> String {
    let shared = shared.map(|device| format!("\"a|^{device}$|\", ")).unwrap_or_default();
    format!(
        "devices {{\n  dir = \"/dev\"\n  scan = [ \"/dev\" ]\n  use_devicesfile = 0\n  obtain_device_list_from_udev = 0\n  external_device_info_source = \"none\"\n  global_filter = [ \"a|^{pv}$|\", {shared}\"r|.*|\" ]\n}}\nactivation {{\n  udev_sync = 0\n  udev_rules = 0\n  monitoring = 0\n}}\nbackup {{\n  backup = 0\n  archive = 0\n}}\n"
    )
}

fn volume_group(processes: &Processes, pv: &str, shared: Option<&str>) -> Result<()> {
    write_file("/etc/lvm/lvm.conf", &lvm_config(pv, shared))?;
    // Without --driverloaded n every command waits for a device-mapper that this kernel may not have.
    let listed = processes.run(&["vgs", "--driverloaded", "n", "--noheadings", "-o", "vg_name"])?;
    if listed.split_whitespace().any(|vg| vg == "amphi") {
        return Ok(());
    }
    processes.run(&["vgcreate", "--driverloaded", "n", "--yes", "amphi", pv]).map(drop)
}

fn switch_database(processes: &Processes) -> Result<()> {
    for dir in ["/run/openvswitch", "/run/ovn"] {
        std::fs::create_dir_all(dir).with_context(|| format!("create {dir}"))?;
    }
    if Path::new("/etc/openvswitch/conf.db").exists() {
        return Ok(());
    }
    processes
        .run(&[
            "ovsdb-tool",
            "create",
            "/etc/openvswitch/conf.db",
            "/usr/share/openvswitch/vswitch.ovsschema",
        ])
        .map(drop)
}

fn docker_config() -> Result<()> {
    write_file(
        "/run/containerd.toml",
        "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.devmapper\"]\n",
    )?;
    write_file("/run/dockerd.json", "{}\n")?;
    std::fs::create_dir_all("/run/docker/plugins").context("create Docker's plug-in directory")
}

struct Switch {
    name: String,
    address: String,
    mac: String,
}

impl Switch {
    /// br-ex carries the uplink and the tunnel's address, and stands for the physical network `external`: a tunnel's local address on a bare device carries nothing in the
    /// userspace datapath. br-int is made beforehand, so that ovn-controller finds it with the right datapath.
    fn configure(&self, processes: &Processes) -> Result<()> {
        processes.run(&["ip", "link", "set", "dev", "lo", "up"])?;
        processes.run(&["ip", "link", "set", "dev", "uplink", "mtu", &UNDERLAY_MTU.to_string(), "up"])?;
        processes.run(&["ethtool", "-K", "uplink", "tx", "off"])?;
        let system_id = format!("external_ids:system-id={}", self.name);
        let hostname = format!("external_ids:hostname={}", self.name);
        let remote = format!("external_ids:ovn-remote={OVN_SB}");
        let encap = format!("external_ids:ovn-encap-ip={}", self.address);
        let hwaddr = format!("other_config:hwaddr=\"{}\"", self.mac);
        let mtu = format!("mtu_request={UNDERLAY_MTU}");
        // ovs-ctl, which starts the switch on a real host, writes the version that agents read.
        let program = processes.run(&["ovs-vswitchd", "--version"])?;
        let version =
            program.lines().next().and_then(|l| l.split_whitespace().last()).context("no version")?;
        let version = format!("ovs_version={version}");
        #[rustfmt::skip]
        let arguments = [
            "ovs-vsctl", "--timeout=20",
            "set", "Open_vSwitch", ".", &version, &system_id, &hostname, &remote, &encap,
            "external_ids:ovn-encap-type=geneve", "external_ids:ovn-bridge=br-int", "external_ids:ovn-bridge-datapath-type=netdev",
            "external_ids:ovn-bridge-mappings=external:br-ex",
            "--", "--may-exist", "add-br", "br-ex", "--", "set", "Bridge", "br-ex", "datapath_type=netdev", "fail_mode=standalone", &hwaddr,
            "--", "--may-exist", "add-port", "br-ex", "uplink",
            "--", "set", "Interface", "br-ex", &mtu,
            "--", "--may-exist", "add-br", "br-int", "--", "set", "Bridge", "br-int", "datapath_type=netdev", "fail_mode=secure",
        ];
        processes.run(&arguments)?;
        // Where the database says all that already (after a power cut), ovs-vsctl does not wait for ovs-vswitchd to follow.
        let made = poll(Duration::from_secs(20), || Path::new("/sys/class/net/br-ex").exists(), || Ok(()))?;
        ensure!(made, "ovs-vswitchd does not make br-ex within 20 s");
        processes.run(&["ip", "addr", "replace", &format!("{}/24", self.address), "dev", "br-ex"])?;
        processes.run(&["ip", "link", "set", "dev", "br-ex", "up"])?;
        // The controller has one address; it is near by the management network, past the switch.
        manage(processes, &self.name)?;
        let controller = format!("{}/32", address(CONTROLLER)?);
        processes.run(&["ip", "route", "replace", &controller, "dev", MANAGEMENT]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lvm_sees_only_the_hosts_own_disk() {
        let text = lvm_config("/dev/loop7", None);
        assert!(text.contains(r#"global_filter = [ "a|^/dev/loop7$|", "r|.*|" ]"#), "{text}");
    }

    #[test]
    fn every_unit_waits_for_units_that_exist() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::at(directory.path()).unwrap();
        let disks = Disks { disk: "/dev/loop1".into(), pv: Some("/dev/loop2".into()), shared: None };
        for binary in [None, Some(PathBuf::from("/x"))] {
            let units = units(&layout, "h1", &disks, binary.clone())
                .unwrap()
                .into_iter()
                .chain(super::super::controller::units(binary));
            let units: Vec<_> = units.collect();
            for unit in &units {
                for after in unit.after {
                    assert!(units.iter().any(|u| u.name == *after), "{} waits for {after}", unit.name);
                }
            }
        }
    }
}
