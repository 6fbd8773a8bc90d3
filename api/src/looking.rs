//! Words of looking into bodies beside streams themselves: which files are copied, which tools come along, what is used.

use crate::image::Image;
use crate::instance::Instance;
use crate::streams::{ExecSpec, member};
use crate::{FieldError, InstanceId};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Most bytes of a path (Linux, `PATH_MAX`).
const PATH_MAX: usize = 4096;

/// Which way files go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CopyWay {
    /// What is at the path comes as a tar archive whose entries begin with the path's last name.
    Out,
    /// The input is a tar archive, unpacked in the directory at the path.
    In,
    /// Only what is there: one line of JSON, a [`FileFound`] or `null`.
    Look,
}

/// Files of a member that are copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopySpec {
    /// None: the first.
    pub member: Option<String>,
    /// Absolute, in the member.
    pub path: String,
    pub way: CopyWay,
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFound {
    pub directory: bool,
    /// In bytes.
    pub size: u64,
}

impl CopySpec {
    pub fn check(&self) -> Result<(), FieldError> {
        let bad = |what: &str| Err(FieldError::new("path", what.to_owned()));
        if !self.path.starts_with('/') {
            return bad("must be absolute");
        }
        if self.path.len() > PATH_MAX || self.path.contains('\0') {
            return bad("at most 4096 bytes, none of them zero");
        }
        if self.path.split('/').any(|name| name == "..") {
            return bad("must not go up (`..`)");
        }
        member(self.member.as_deref())
    }
}

/// A command in a container of its own, beside a member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolsSpec {
    /// What runs, and whose processes it sees.
    pub exec: ExecSpec,
    /// Where its programs come from: a container image.
    pub image: Image,
}

/// What one member of a set, or a VM, uses. Counters grow from its start on: two answers make a rate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Use {
    /// CPU time, all CPUs together, in seconds.
    pub cpu_seconds: f64,
    /// Time in which it was held at its ceiling, in seconds.
    pub throttled_seconds: f64,
    /// The working set, in bytes.
    pub memory_bytes: f64,
    /// None: no limit that the host knows of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<f64>,
    pub oom_kills: f64,
    /// Processes and threads; none: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<f64>,
    pub disk_read_bytes: f64,
    pub disk_written_bytes: f64,
    pub net_received_bytes: f64,
    pub net_sent_bytes: f64,
}

/// Whose use it is, and when it was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UseRow {
    pub instance: InstanceId,
    /// Of a set: one member; none: what is the whole set's (its network). Of a VM none.
    pub member: Option<String>,
    pub at: Timestamp,
    #[serde(rename = "use")]
    pub used: Use,
}

/// What the bodies of a project use, as their hosts' agents read it from the kernel and libvirt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Usage {
    pub rows: Vec<InstanceUse>,
    /// Hosts that did not answer, and why.
    pub silent: Vec<SilentHost>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct InstanceUse {
    #[schemars(with = "uuid::Uuid")]
    #[schema(value_type = uuid::Uuid)]
    pub instance: InstanceId,
    pub name: String,
    /// `set` or `vm`.
    pub kind: String,
    /// The host's name.
    pub host: String,
    /// Of a set: one member; none: what is the whole set's (its network). Of a VM none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// When the host read it, by its clock.
    #[schemars(with = "String")]
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    #[serde(rename = "use")]
    pub used: Use,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct SilentHost {
    /// Its name.
    pub host: String,
    pub why: String,
}

/// A set to be looked into while its programs do nothing: the same description without probes and hooks, and one member with
/// another command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DebugCreate {
    /// Whose command is another. Default: the first member's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// What it runs. Default: a shell that waits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// In the place of the instance's own members, with its addresses and its volume, until it is ended; else beside it, as an
    /// instance with an address and an empty volume of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub instead: bool,
    /// Of the instance beside. Default: the instance's with `-debug` after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What became of the order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Debugging {
    /// What is to be looked into: the instance beside, or the instance itself.
    pub instance: Instance,
    /// What it has of the volume, in words.
    pub volume: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_cannot_be() {
        let copy = |path: &str| CopySpec { member: None, path: path.into(), way: CopyWay::Out }.check();
        assert_eq!(copy("/"), Ok(()));
        assert_eq!(copy("/etc/..conf/x"), Ok(()));
        for path in ["", "etc", "/a/../b", "/..", "/a\0b", &format!("/{}", "x".repeat(4096))] {
            assert_eq!(copy(path).unwrap_err().field, "path", "{path:?}");
        }
    }
}
