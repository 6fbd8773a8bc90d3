//! The description that a guest starts from: everything resolved, nothing left to look up but users and groups, which
//! only the member's own files know. Rendered by the host.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// One guest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Guest {
    pub version: u32,
    pub hostname: String,
    /// eth0's first.
    pub interfaces: Vec<Interface>,
    pub dns: Vec<IpAddr>,
    pub dns_search: Vec<String>,
    pub dns_options: Vec<String>,
    /// Further lines of `/etc/hosts`.
    pub hosts: Vec<(String, IpAddr)>,
    pub sysctls: BTreeMap<String, String>,
    pub shm_mib: u64,
    /// Of the member's shared volume; none: there is none.
    pub volume: Option<Disk>,
    /// Where it appears in members that have no parts of it.
    pub volume_mount: String,
    /// Further volumes: `/volumes/<name>` in every member.
    pub further: Vec<(String, Disk)>,
    /// The serial of the config drive.
    pub config_drive: String,
    /// In start order.
    pub members: Vec<Member>,
    /// What all members have for their orderly end together, in seconds.
    pub grace_s: u32,
}

/// A disk by its serial number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    pub serial: String,
    pub read_only: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Lower case, colon-separated.
    pub mac: String,
    /// 0: what the device has.
    pub mtu: u32,
    /// With their prefix lengths, the primary one first.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Default routes, one of a family at most.
    pub gateways: Vec<IpAddr>,
    pub routes: Vec<Route>,
}

/// Via nobody: the destination is a neighbour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub to: IpAddr,
    pub prefix: u8,
    pub via: Option<IpAddr>,
}

/// One member, as its image and its description together have it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Member {
    pub name: String,
    pub index: u32,
    /// The serial of the disk with its image's root file system: squashfs.
    pub root: String,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    pub directory: String,
    /// `app`, `1000:1000`; empty: root.
    pub user: String,
    /// By their names, as `nofile`: soft and hard; -1 is without limit.
    pub ulimits: BTreeMap<String, (i64, i64)>,
    /// Those that it keeps, by number (linux/capability.h).
    pub capabilities: Vec<u8>,
    pub read_only: bool,
    pub tmpfs: Vec<Tmpfs>,
    pub files: Vec<File>,
    /// Parts of the volume, in place of the whole.
    pub mounts: Vec<Part>,
    /// Bytes of one log file, and how many are kept.
    pub log_bytes: u64,
    pub log_files: u32,
    pub restart: Restart,
    pub next: Next,
    pub post_start: Option<Command>,
    pub pre_stop: Option<Command>,
    /// By number.
    pub stop_signal: i32,
    pub grace_s: Option<u32>,
    pub startup: Option<Probe>,
    pub readiness: Option<Probe>,
    pub liveness: Option<Probe>,
    /// Hundredths of a CPU.
    pub cpu_centi: u64,
    pub memory_bytes: u64,
    /// 0: no limit.
    pub pids: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    #[default]
    Always,
    OnFailure,
    Never,
}

impl Restart {
    pub fn again(self, exit_code: i64) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// What the start of the next index waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Next {
    #[default]
    Ready,
    Started,
    Finished,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    pub argv: Vec<String>,
    pub timeout_s: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub ask: Ask,
    pub initial_delay_s: u32,
    pub period_s: u32,
    pub timeout_s: u32,
    pub failures: u32,
    pub successes: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    Exec(Vec<String>),
    Http { address: IpAddr, port: u16, path: String },
    Tcp { address: IpAddr, port: u16 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    pub path: String,
    pub size_mib: u64,
    pub mode: String,
    pub exec: bool,
}

/// A file that the member finds, read-only.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    pub path: String,
    pub content: String,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Left out where the image has not the directory that it belongs in.
    pub only_into_directory: bool,
}

/// What is in it is never shown.
impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "File({}, {} bytes)", self.path, self.content.len())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub path: String,
    /// Relative; empty: the whole volume.
    pub sub_path: String,
    pub read_only: bool,
}

/// `/etc/resolv.conf` (resolv.conf(5)) as members of a set find it, whichever body the set has. Without servers none is
/// named: whoever asks then is led to 127.0.0.1.
pub fn resolv_conf(servers: &[IpAddr], search: &[String], options: &[String]) -> String {
    let mut text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    for (word, values) in [("search", search), ("options", options)] {
        if !values.is_empty() {
            text.push_str(&format!("{word} {}\n", values.join(" ")));
        }
    }
    text
}
