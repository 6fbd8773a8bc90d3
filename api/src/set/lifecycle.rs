//! A member's life: when it starts again, what runs beside its start and its end, how it is told to end. Owns the words
//! and their rules; refuses to decide: that is the host's.

use super::member::arguments;
use crate::{FieldError, validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Longest orderly end and longest hook, in seconds.
pub const LIFECYCLE_MAX_S: u32 = 600;

/// Whether a member that ended by itself starts again. Each start after the first waits longer, up to a minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    #[default]
    Always,
    /// Unless its exit code was 0.
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether one that ended with this code starts again.
    pub fn restarts(self, exit_code: i64) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }

    /// As `always`, `on_failure`, `never`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::OnFailure => "on_failure",
            Self::Never => "never",
        }
    }
}

/// What the start of the next index waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NextWhen {
    /// Its startup and readiness probes hold; where it has none, as `started`.
    #[default]
    Ready,
    /// It runs, and its `post_start` is done.
    Started,
    /// It has ended with exit code 0. Needs a restart policy under which it stays so.
    Finished,
}

impl NextWhen {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Commands that run inside the member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Hooks {
    /// Right after its start; the next index waits for its end. When it fails, the member is ended and counts as failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_start: Option<Hook>,
    /// Before it is told to end, within its grace. Its failure is logged and changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_stop: Option<Hook>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    #[schema(min_items = 1, max_items = 512)]
    pub command: Vec<String>,
    /// Ended by force after that many seconds, and failed: 1 to 600. Default 30.
    #[serde(default = "hook_timeout")]
    #[schema(minimum = 1, maximum = 600)]
    pub timeout_s: u32,
}

fn hook_timeout() -> u32 {
    30
}

/// How a member is told to end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopSpec {
    /// `SIGTERM`, `SIGRTMIN+3`. Default: the image's own, else SIGTERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Ended by force after that many seconds: 0 to 600. Default: its part of what the whole set is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 600)]
    pub grace_s: Option<u32>,
}

impl Hooks {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        for (name, hook) in [("post_start", &self.post_start), ("pre_stop", &self.pre_stop)] {
            let Some(hook) = hook else { continue };
            arguments(&format!("{name}.command"), &hook.command, true)?;
            validate::within(
                &format!("{name}.timeout_s"),
                hook.timeout_s.into(),
                1,
                LIFECYCLE_MAX_S.into(),
                "seconds",
            )?;
        }
        Ok(())
    }
}

/// The kernel's names for signals that a process can be sent, without `SIG` (signal(7)).
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

impl StopSpec {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        if let Some(signal) = &self.signal {
            let name = signal.strip_prefix("SIG").unwrap_or(signal);
            // glibc keeps two real-time signals for itself: 30 are left.
            let real_time = name.strip_prefix("RTMIN").is_some_and(|rest| {
                rest.is_empty()
                    || rest
                        .strip_prefix('+')
                        .and_then(|n| n.parse::<u8>().ok())
                        .is_some_and(|n| (1..=30).contains(&n))
            });
            if !SIGNALS.contains(&name) && !real_time {
                return Err(FieldError::new(
                    "signal",
                    "must be a signal's name, as 'SIGTERM' or 'SIGRTMIN+3'",
                ));
            }
        }
        let grace = u64::from(self.grace_s.unwrap_or(0));
        validate::within("grace_s", grace, 0, LIFECYCLE_MAX_S.into(), "seconds")
    }
}
