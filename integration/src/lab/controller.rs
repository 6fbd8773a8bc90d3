//! The controller's node: OVN's two databases and its translator, and the controller itself. Only what is started, in what order.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::layout::{CONTROLLER, MANAGEMENT, OVN_NB, OVN_SB, UNDERLAY_MTU, address, management_address};
use super::processes::Processes;
use super::unit::{Daemon, Ready, Unit, Work, command};

/// Where the controller keeps its records, on its node's own disk.
pub const STATE_DIR: &str = "/var/lib/amphi-controller";

/// `binary` is absent when only the engines are wanted.
pub fn units(binary: Option<PathBuf>) -> Vec<Unit> {
    let database = |name, socket: &'static str, port: &str, file: &str| {
        let remote = format!("--remote=ptcp:{port}:10.99.0.1");
        let local = format!("--remote=punix:{socket}");
        let argv = [
            "ovsdb-server",
            "-vconsole:info",
            "-vsyslog:off",
            "-vfile:off",
            "--no-chdir",
            &remote,
            &local,
            &format!("--unixctl=/run/ovn/{name}.ctl"),
            file,
        ];
        Unit::daemon(name, &["address", "databases"], &argv, Ready::Socket(socket))
    };
    let mut units = vec![
        Unit::step("address", &[], own_address),
        Unit::step("databases", &[], make_databases),
        database("ovn-nb", "/run/ovn/ovnnb_db.sock", "6641", "/var/lib/ovn/nb.db"),
        database("ovn-sb", "/run/ovn/ovnsb_db.sock", "6642", "/var/lib/ovn/sb.db"),
        Unit::daemon(
            "ovn-northd",
            &["ovn-nb", "ovn-sb"],
            &[
                "ovn-northd",
                "-vconsole:info",
                "-vsyslog:off",
                "-vfile:off",
                "--ovnnb-db=unix:/run/ovn/ovnnb_db.sock",
                "--ovnsb-db=unix:/run/ovn/ovnsb_db.sock",
                "--unixctl=/run/ovn/ovn-northd.ctl",
            ],
            // It has created the first row of the southbound database when it has taken its lock and done its first round.
            command(&[
                "sh",
                "-c",
                "test -n \"$(ovn-sbctl --timeout=5 --no-leader-only --bare --columns=_uuid list SB_Global)\"",
            ]),
        ),
    ];
    if let Some(binary) = binary {
        let argv = vec![binary.to_string_lossy().into_owned(), "--config".to_owned(), CONFIG.to_owned()];
        let daemon = Daemon { argv, ready: Ready::Line("ready"), api_socket: true, monitored: false };
        units.push(Unit { name: "controller", after: &["ovn-northd", "config"], work: Work::Daemon(daemon) });
        units.push(Unit::step("config", &[], |_| write_config()));
    }
    units
}

const CONFIG: &str = "/etc/amphi/controller.toml";

/// `AMPHI_RECYCLE_HOURS` says how long deleted volumes are kept: 0 where a long list of tests runs on a small disk.
fn config() -> String {
    let keep = std::env::var("AMPHI_RECYCLE_HOURS").ok().and_then(|text| text.parse::<u32>().ok());
    let keep = keep.map(|hours| format!("recycle_hours = {hours}\n")).unwrap_or_default();
    format!(
        "state_dir = \"{STATE_DIR}\"\nlisten = \"127.0.0.1:8774\"\nhosts_listen = \"10.99.0.1:7443\"\nhosts_url = \"https://10.99.0.1:7443\"\novn_nb = \"{OVN_NB}\"\novn_sb = \"{OVN_SB}\"\n{keep}"
    )
}

fn write_config() -> Result<()> {
    std::fs::create_dir_all(STATE_DIR).context("create the controller's state directory")?;
    write_file(CONFIG, &config())
}

/// Writes a file and the directories above it.
pub fn write_file(path: &str, text: &str) -> Result<()> {
    if let Some(parent) = Path::new(path).parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("write {path}"))
}

fn own_address(processes: &Processes) -> Result<()> {
    processes.run(&["ip", "link", "set", "dev", "lo", "up"])?;
    processes.run(&["ip", "link", "set", "dev", "uplink", "mtu", &UNDERLAY_MTU.to_string(), "up"])?;
    // Hosts read these packets through their userspace switch, which does not finish checksums.
    processes.run(&["ethtool", "-K", "uplink", "tx", "off"])?;
    processes.run(&["ip", "addr", "replace", &format!("{}/24", address(CONTROLLER)?), "dev", "uplink"])?;
    manage(processes, CONTROLLER)
}

/// Brings a party onto the management network.
pub fn manage(processes: &Processes, name: &str) -> Result<()> {
    let address = format!("{}/24", management_address(name)?);
    processes.run(&["ip", "addr", "replace", &address, "dev", MANAGEMENT])?;
    processes.run(&["ip", "link", "set", "dev", MANAGEMENT, "up"]).map(drop)
}

fn make_databases(processes: &Processes) -> Result<()> {
    std::fs::create_dir_all("/run/ovn").context("create /run/ovn")?;
    for (file, schema) in [
        ("/var/lib/ovn/nb.db", "/usr/share/ovn/ovn-nb.ovsschema"),
        ("/var/lib/ovn/sb.db", "/usr/share/ovn/ovn-sb.ovsschema"),
    ] {
        if !Path::new(file).exists() {
            processes.run(&["ovsdb-tool", "create", file, schema])?;
        }
    }
    Ok(())
}
