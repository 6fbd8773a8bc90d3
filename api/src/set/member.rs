//! One container of a set as it is ordered. Owns its shape and its rules; refuses to know its siblings.

use super::container::{self, Capabilities, ConfigFile, LogSpec, MountSpec, TmpfsSpec, Ulimit};
use super::lifecycle::{Hooks, NextWhen, RestartPolicy, StopSpec};
use super::limits::MemberIo;
use super::probe::Probes;
use super::update::UpdateSpec;
use super::{HEADROOM_DEFAULT, LIST_MAX};
use crate::{FieldError, validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// One container of a set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemberSpec {
    /// Unique in the set; letters, digits, `-`, `_`, `.`; at most 63. Default: `member-INDEX`.
    #[serde(default)]
    pub name: String,
    /// Start order: lower starts first. Unique in the set.
    pub index: u32,
    /// Name or id of a container image in the catalogue.
    #[schema(min_length = 1, max_length = 255)]
    pub image: String,
    /// Replaces the image's entry point and command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 512)]
    pub command: Vec<String>,
    /// Replaces the image's command and keeps its entry point; not beside `command`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 512)]
    pub args: Vec<String>,
    /// Environment variables beside the image's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Where it starts. Default: the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// `app`, `1000`, `1000:1000`. Default: the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default)]
    pub options: MemberOptions,
    /// By name, as `nofile`: core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, nproc, rss, rtprio, rttime,
    /// sigpending, stack.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ulimits: BTreeMap<String, Ulimit>,
    #[serde(default, skip_serializing_if = "Capabilities::is_default")]
    pub capabilities: Capabilities,
    /// Nothing of its root file system can be written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// At most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub tmpfs: Vec<TmpfsSpec>,
    /// At most 64, of 64 KiB each and 256 KiB in all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub files: Vec<ConfigFile>,
    /// Parts of the set's volume, in place of the whole at `volume_mount`. At most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub mounts: Vec<MountSpec>,
    #[serde(default, skip_serializing_if = "LogSpec::is_default")]
    pub log: LogSpec,
    /// Default `always`.
    #[serde(default, skip_serializing_if = "RestartPolicy::is_default")]
    pub restart: RestartPolicy,
    /// Default `ready`.
    #[serde(default, skip_serializing_if = "NextWhen::is_default")]
    pub next_when: NextWhen,
    #[serde(default, skip_serializing_if = "Hooks::is_default")]
    pub hooks: Hooks,
    #[serde(default, skip_serializing_if = "StopSpec::is_default")]
    pub stop: StopSpec,
    #[serde(default, skip_serializing_if = "Probes::is_default")]
    pub probes: Probes,
    /// How the running one gives way to the next one.
    #[serde(default, skip_serializing_if = "UpdateSpec::is_default")]
    pub update: UpdateSpec,
}

/// A member's share of its set. What nobody names is divided among those that named nothing
/// (see [`SetSpec::normalized`](super::SetSpec::normalized)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemberOptions {
    /// CPU, percent of the set's: 80 in a set of 4 vCPU is 3.2 cores. 1 to 100; all members together at most 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub cpu: Option<u32>,
    /// Memory, percent of the set's. 1 to 100; all members together at most 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub mem: Option<u32>,
    /// In place of `mem`: the managed heap that its program is told to take, in MiB. Its limit is that with the headroom;
    /// what other members name in percent stays a part of the whole set, and all together is at most the set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 16777216)]
    pub heap_mib: Option<u64>,
    /// What such a program needs beside its heap, percent of the heap: 0 to 400. Default 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 400)]
    pub headroom: Option<u32>,
    /// Processes and threads at most: 8 to 4,194,304. Default: as many as the host lets be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 8, maximum = 4194304)]
    pub pids: Option<u64>,
    /// What it may have written into its root file system, in MiB: 1 to 16,777,216. A member that has more is ended, and
    /// starts again when the limit is raised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 16777216)]
    pub root_mib: Option<u64>,
    #[serde(default, skip_serializing_if = "MemberIo::is_none")]
    pub io: MemberIo,
}

impl MemberOptions {
    /// The limit that its heap makes, in bytes.
    pub fn heap_limit(&self) -> Option<u64> {
        let headroom = u64::from(self.headroom.unwrap_or(HEADROOM_DEFAULT));
        self.heap_mib.map(|heap| (heap << 20) * (100 + headroom) / 100)
    }

    pub(crate) fn check(&self) -> Result<(), FieldError> {
        super::limits::check(self.pids, self.root_mib)?;
        self.io.check().map_err(|e| e.under("io"))?;
        for (what, share) in [("cpu", self.cpu), ("mem", self.mem)] {
            if let Some(share) = share {
                validate::within(what, u64::from(share), 1, 100, "percent")?;
            }
        }
        match (self.heap_mib, self.mem, self.headroom) {
            (Some(_), Some(_), _) => {
                Err(FieldError::new("heap_mib", "either 'mem' or 'heap_mib' says what its memory is"))
            }
            (Some(heap), None, headroom) => {
                validate::within("heap_mib", heap, 1, 1 << 24, "MiB")?;
                validate::within("headroom", headroom.unwrap_or(0).into(), 0, 400, "percent")
            }
            (None, _, Some(_)) => {
                Err(FieldError::new("headroom", "is of a heap, and 'heap_mib' is not given"))
            }
            (None, _, None) => Ok(()),
        }
    }
}

impl MemberSpec {
    /// The name given, or `member-INDEX`.
    pub fn effective_name(&self) -> String {
        if self.name.is_empty() { format!("member-{}", self.index) } else { self.name.clone() }
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        if !self.name.is_empty() {
            validate::label("name", &self.name)?;
            if self.name == "anchor" {
                return Err(FieldError::new("name", "'anchor' is the set's own"));
            }
        }
        validate::name("image", &self.image)?;
        self.options.check().map_err(|e| e.under("options"))?;
        arguments("command", &self.command, false)?;
        if self.command.first().is_some_and(String::is_empty) {
            return Err(FieldError::new("command[0]", "must name a program"));
        }
        arguments("args", &self.args, false)?;
        if !self.args.is_empty() && !self.command.is_empty() {
            return Err(FieldError::new("args", "'command' holds all arguments already"));
        }
        if self.env.len() > LIST_MAX {
            return Err(FieldError::new("env", format!("at most {LIST_MAX} variables")));
        }
        for (key, value) in &self.env {
            if key.is_empty()
                || key.contains('=')
                || key.chars().any(char::is_control)
                || value.contains('\0')
            {
                return Err(FieldError::new(
                    format!("env.{key}"),
                    "names need one character or more, no '='; no NUL",
                ));
            }
        }
        if let Some(directory) = self.directory.as_deref().filter(|directory| *directory != "/") {
            validate::guest_path("directory", directory)?;
        }
        if let Some(user) = &self.user {
            container::user("user", user)?;
        }
        container::ulimits(&self.ulimits)?;
        self.capabilities.check().map_err(|e| e.under("capabilities"))?;
        container::places(&self.files, &self.tmpfs, &self.mounts)?;
        self.log.check().map_err(|e| e.under("log"))?;
        if self.next_when == NextWhen::Finished && self.restart == RestartPolicy::Always {
            return Err(FieldError::new(
                "next_when",
                "it never stays finished: 'restart' has to be 'on_failure' or 'never'",
            ));
        }
        self.hooks.check().map_err(|e| e.under("hooks"))?;
        self.stop.check().map_err(|e| e.under("stop"))?;
        self.update.check().map_err(|e| e.under("update"))?;
        self.probes.check().map_err(|e| e.under("probes"))
    }
}

/// A command line: `program`: its first word names a program.
pub(super) fn arguments(field: &str, words: &[String], program: bool) -> Result<(), FieldError> {
    if words.len() > LIST_MAX || words.iter().any(|a| a.contains('\0') || a.len() > 65_536) {
        return Err(FieldError::new(field, format!("at most {LIST_MAX} arguments of 64 KiB, without NUL")));
    }
    if program && words.first().is_none_or(String::is_empty) {
        return Err(FieldError::new(field, "must name a program"));
    }
    Ok(())
}
