//! What a member's container is made with beside its image: limits of its processes, what it may, its files. Owns the
//! shapes and their rules; refuses whatever would let a member reach beyond its set.

use crate::{FieldError, validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use utoipa::ToSchema;

/// Most bytes of one config file, and of all files of a member.
pub const FILE_MAX: usize = 64 << 10;
pub const FILES_MAX: usize = 256 << 10;
/// Most files, mounts or tmpfs of one member.
pub const PLACES_MAX: usize = 64;

/// One limit of a member's processes, as setrlimit(2) has it; -1 is without limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Ulimit {
    pub soft: i64,
    pub hard: i64,
}

/// The names that the engine knows (go-units, `ulimit.go`).
const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// What a member's processes may beyond or below the engine's own set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Capabilities {
    /// `NET_ADMIN`. Only those that reach no further than the set's namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<String>,
    /// `NET_RAW`, or `ALL`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drop: Vec<String>,
}

/// Those that a member may have: Docker's own set, and what acts on its own processes or the set's namespaces alone.
const HARMLESS: [&str; 21] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
    "SYS_NICE",
    "SYS_PTRACE",
];

/// A file system in memory. Its bytes count as the member's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TmpfsSpec {
    pub path: String,
    /// In MiB: 1 to 1,048,576. Default 64.
    #[serde(default = "tmpfs_size")]
    #[schema(minimum = 1, maximum = 1048576)]
    pub size_mib: u64,
    /// Octal permissions. Default `1777`.
    #[serde(default = "tmpfs_mode")]
    pub mode: String,
    /// Programs in it can be run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exec: bool,
}

fn tmpfs_size() -> u64 {
    64
}

fn tmpfs_mode() -> String {
    "1777".to_owned()
}

/// A part of the set's volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MountSpec {
    /// Where the member sees it.
    pub path: String,
    /// A directory of the volume, `db/data`; made where it is missing. Default: the whole volume.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sub_path: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// A file that the member finds, read-only. What is in it is never logged.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    pub path: String,
    /// At most 64 KiB, and 256 KiB with the member's other files.
    pub content: String,
    /// Octal permissions. Default `0644`.
    #[serde(default = "file_mode")]
    pub mode: String,
    /// Numeric owner and group. Default 0.
    #[serde(default)]
    pub uid: u32,
    #[serde(default)]
    pub gid: u32,
}

impl std::fmt::Debug for ConfigFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ConfigFile({}, {} bytes)", self.path, self.content.len())
    }
}

fn file_mode() -> String {
    "0644".to_owned()
}

/// How much of a member's output is kept on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogSpec {
    /// Of one file, in MiB: 1 to 1,024. Default 10.
    #[serde(default = "log_size")]
    #[schema(minimum = 1, maximum = 1024)]
    pub max_size_mib: u32,
    /// 1 to 16; the oldest goes when there is one more. Default 2.
    #[serde(default = "log_files")]
    #[schema(minimum = 1, maximum = 16)]
    pub max_files: u32,
}

fn log_size() -> u32 {
    10
}

fn log_files() -> u32 {
    2
}

impl Default for LogSpec {
    fn default() -> Self {
        Self { max_size_mib: log_size(), max_files: log_files() }
    }
}

impl LogSpec {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        validate::within("max_size_mib", self.max_size_mib.into(), 1, 1024, "MiB")?;
        validate::within("max_files", self.max_files.into(), 1, 16, "")
    }
}

impl Capabilities {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it reaches no further than a set; with or without `CAP_`.
    pub fn may_be_added(name: &str) -> bool {
        HARMLESS.contains(&name.strip_prefix("CAP_").unwrap_or(name))
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        for (at, name) in self.add.iter().enumerate() {
            if !Self::may_be_added(name) {
                return Err(FieldError::new(
                    format!("add[{at}]"),
                    format!(
                        "'{name}' is not one of those that reach no further than a set: {}",
                        HARMLESS.join(", ")
                    ),
                ));
            }
        }
        for (at, name) in self.drop.iter().enumerate() {
            let name = name.strip_prefix("CAP_").unwrap_or(name);
            if name.is_empty() || name.len() > 32 || !name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
            {
                return Err(FieldError::new(
                    format!("drop[{at}]"),
                    "must be a capability, as 'NET_RAW', or 'ALL'",
                ));
            }
        }
        Ok(())
    }
}

pub(super) fn ulimits(all: &BTreeMap<String, Ulimit>) -> Result<(), FieldError> {
    for (name, limit) in all {
        let field = format!("ulimits.{name}");
        if !ULIMITS.contains(&name.as_str()) {
            return Err(FieldError::new(field, format!("must be one of {}", ULIMITS.join(", "))));
        }
        let unbound = |n: i64| if n < 0 { i64::MAX } else { n };
        if limit.soft < -1 || limit.hard < -1 || unbound(limit.soft) > unbound(limit.hard) {
            return Err(FieldError::new(field, "soft is at most hard; both 0 or more, or -1 for no limit"));
        }
    }
    Ok(())
}

/// A user as the engine takes it: `app`, `1000`, `1000:1000`, `app:www-data`.
pub(super) fn user(field: &str, text: &str) -> Result<(), FieldError> {
    let part = |part: &str| {
        (1..=32).contains(&part.len())
            && !part.starts_with('-')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.$".contains(c))
            && (!part.chars().all(|c| c.is_ascii_digit()) || part.parse::<i32>().is_ok())
    };
    let mut parts = text.split(':');
    if parts.by_ref().take(2).all(part) && parts.next().is_none() {
        return Ok(());
    }
    Err(FieldError::new(field, "must be a user, or user and group, as 'app', '1000' or '1000:1000'"))
}

/// Three or four octal digits; programs that take another's identity are refused in files (`most`).
fn mode(field: &str, text: &str, most: u32) -> Result<(), FieldError> {
    let digits = (3..=4).contains(&text.len()) && text.chars().all(|c| c.is_digit(8));
    if digits && u32::from_str_radix(text, 8).is_ok_and(|mode| mode <= most) {
        return Ok(());
    }
    Err(FieldError::new(field, format!("must be octal permissions up to {most:04o}, as '0640'")))
}

/// What `mode` says; rules have been kept.
pub fn permissions(mode: &str) -> u32 {
    u32::from_str_radix(mode, 8).unwrap_or(0)
}

/// Directories of a member that are the kernel's or the set's own.
const TAKEN: [&str; 5] = ["/config-drive", "/volumes", "/proc", "/sys", "/dev"];

pub(super) fn place(field: &str, path: &str) -> Result<(), FieldError> {
    validate::guest_path(field, path)?;
    if let Some(taken) = TAKEN.iter().find(|taken| Path::new(path).starts_with(taken)) {
        return Err(FieldError::new(field, format!("{taken} is not the member's own")));
    }
    if Path::new(path) == Path::new("/root/.ssh/authorized_keys") {
        return Err(FieldError::new(
            field,
            "this is where the instance's own keys are: give them to the instance",
        ));
    }
    Ok(())
}

/// A relative path below the volume, without `.` and `..`; empty: all of it.
fn sub_path(field: &str, path: &str) -> Result<(), FieldError> {
    if path.is_empty() {
        return Ok(());
    }
    let part = |part: &str| !part.is_empty() && part.len() <= 255 && part != "." && part != "..";
    let plain = !path.chars().any(|c| c.is_control() || c == ':');
    if path.len() <= 1024 && plain && path.split('/').all(part) {
        return Ok(());
    }
    Err(FieldError::new(field, "must be a relative path, without '.', '..', ':' or control characters"))
}

/// The places of a member: files, tmpfs and parts of the volume, none at the place of another.
pub(super) fn places(
    files: &[ConfigFile],
    tmpfs: &[TmpfsSpec],
    mounts: &[MountSpec],
) -> Result<(), FieldError> {
    let counts = [("files", files.len()), ("tmpfs", tmpfs.len()), ("mounts", mounts.len())];
    if let Some((what, count)) = counts.into_iter().find(|(_, count)| *count > PLACES_MAX) {
        return Err(FieldError::new(what, format!("at most {PLACES_MAX}, has {count}")));
    }
    let mut taken = BTreeSet::new();
    let mut claim = |field: String, path: &str| {
        place(&field, path)?;
        let path = Path::new(path).components().collect::<std::path::PathBuf>();
        match taken.insert(path) {
            true => Ok(()),
            false => Err(FieldError::new(field, "something else is at this place")),
        }
    };
    let mut bytes = 0;
    for (at, file) in files.iter().enumerate() {
        claim(format!("files[{at}].path"), &file.path)?;
        bytes += file.content.len();
        if file.content.len() > FILE_MAX || bytes > FILES_MAX {
            return Err(FieldError::new(
                format!("files[{at}].content"),
                "at most 64 KiB each and 256 KiB in all files of a member",
            ));
        }
        mode(&format!("files[{at}].mode"), &file.mode, 0o777)?;
        for (what, owner) in [("uid", file.uid), ("gid", file.gid)] {
            validate::within(&format!("files[{at}].{what}"), owner.into(), 0, i32::MAX as u64, "")?;
        }
    }
    for (at, one) in tmpfs.iter().enumerate() {
        claim(format!("tmpfs[{at}].path"), &one.path)?;
        validate::within(&format!("tmpfs[{at}].size_mib"), one.size_mib, 1, 1 << 20, "MiB")?;
        mode(&format!("tmpfs[{at}].mode"), &one.mode, 0o1777)?;
    }
    for (at, mount) in mounts.iter().enumerate() {
        claim(format!("mounts[{at}].path"), &mount.path)?;
        sub_path(&format!("mounts[{at}].sub_path"), &mount.sub_path)?;
    }
    Ok(())
}
