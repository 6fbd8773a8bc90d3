//! What can be opened in a body, and the words spoken over it. A stream is a WebSocket: from the client to the controller
//! (`GET /v1/instances/{id}/exec|console|screen|logs|files|tools`), and from the host to the controller (`GET /hosts/v1/streams/{id}`)
//! once the controller has told the host to open it; the controller joins the two.
//!
//! Binary messages carry bytes: the first one is the channel ([`STDIN`] from the client, [`STDOUT`] and [`STDERR`] to it),
//! the rest is theirs. Text messages carry words as JSON: [`ToBody`] and [`FromBody`]. The last word is
//! [`FromBody::Ended`] or [`FromBody::Failed`]; a stream that ends without one was cut off.

use crate::looking::{CopySpec, ToolsSpec};
use crate::validate::label;
use crate::{FieldError, InstanceId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The WebSocket subprotocol of what is described here.
pub const SUBPROTOCOL: &str = "amphi.stream.v1";
/// The subprotocol of bytes alone, as websockify's clients speak it: no channels, no words. For consoles and screens.
pub const RAW_SUBPROTOCOL: &str = "binary";

pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;

/// Most bytes of one message that our own ends send, beside the channel.
pub const PIECE_MAX: usize = 32 << 10;
/// Largest message that is taken, in bytes.
pub const MESSAGE_MAX: usize = 1 << 20;
/// Each end says that it is there this often, unless it is held up in sending, in seconds.
pub const PING_SECONDS: u64 = 5;
/// An end from which nothing was heard for so long while it was listened to is gone, in seconds.
pub const SILENCE_SECONDS: u64 = 30;

/// Most arguments of a command, and most bytes of them.
const ARGUMENTS_MAX: usize = 1000;
const COMMAND_MAX: usize = 64 << 10;

/// What a host is told to open. It connects to `/hosts/v1/streams/{id}` with the secret as its bearer token, once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StreamOpen {
    pub id: Uuid,
    pub secret: String,
    pub instance: InstanceId,
    pub what: StreamTarget,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamTarget {
    /// A command in a set's member.
    Exec(ExecSpec),
    /// A VM's serial console, or a shell in a set's member (the first one's when none is named).
    Console { member: Option<String>, size: Option<TerminalSize> },
    /// A VM's screen, keyboard and mouse: RFB (RFC 6143).
    Screen,
    /// A member's output, or what a VM wrote on its console.
    Logs(LogsSpec),
    /// Files of a set's member, as a tar archive.
    Copy(CopySpec),
    /// A command in a container of its own that sees a member's processes, network and memory.
    Tools(Box<ToolsSpec>),
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// None: the first.
    pub member: Option<String>,
    /// The program and its arguments; no shell reads them.
    pub command: Vec<String>,
    /// `NAME=VALUE`, beside those of the member.
    pub env: Vec<String>,
    /// `user`, `user:group`, or ids. None: the member's.
    pub user: Option<String>,
    /// None: the member's.
    pub directory: Option<String>,
    /// With a terminal: input is echoed and edited, and standard error comes with standard output.
    pub tty: bool,
    /// Whether there is an input. Without one the command reads an end at once.
    pub stdin: bool,
    pub size: Option<TerminalSize>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LogsSpec {
    /// None: the first.
    pub member: Option<String>,
    /// Go on with what is written from now on, over restarts, until nothing of the body is left on its host.
    pub follow: bool,
    /// Only what was written from then on. A VM's console has no times.
    pub since: Option<Timestamp>,
    /// Begin with the last so many lines. None: all that is kept.
    pub tail: Option<u32>,
    /// Each line begins with its time (RFC 3339) and a blank. A VM's console has no times.
    #[serde(default)]
    pub timestamps: bool,
}

/// Of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// What a client says beside its input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToBody {
    Resize(TerminalSize),
    /// No more input comes; output goes on.
    InputEnd,
}

/// What a client is told beside the output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromBody {
    /// It is open: said first.
    Opened,
    /// It ended by itself. `exit_code` is the command's; none: it was no command.
    Ended { exit_code: Option<i64>, reason: Option<String> },
    /// It could not be opened, or broke. `code` is a word for machines.
    Failed { code: String, message: String },
}

impl FromBody {
    /// Whether nothing comes after it.
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Opened)
    }
}

impl ExecSpec {
    pub fn check(&self) -> Result<(), FieldError> {
        let bytes: usize = self.command.iter().chain(&self.env).map(String::len).sum();
        if self.command.first().is_none_or(String::is_empty) {
            return Err(FieldError::new("command", "what is to run? give it once for each word"));
        }
        if self.command.len() > ARGUMENTS_MAX || bytes > COMMAND_MAX {
            let limits =
                format!("at most {ARGUMENTS_MAX} words of {COMMAND_MAX} bytes, environment included");
            return Err(FieldError::new("command", limits));
        }
        let named = |pair: &String| pair.find('=').is_some_and(|at| at > 0);
        if !self.env.iter().all(named) {
            return Err(FieldError::new("env", "must be NAME=VALUE"));
        }
        let words = self.command.iter().chain(&self.env).chain(&self.user).chain(&self.directory);
        if { words }.any(|word| word.contains('\0')) {
            return Err(FieldError::new("command", "no word can hold a zero byte"));
        }
        if self.directory.as_ref().is_some_and(|path| !path.starts_with('/')) {
            return Err(FieldError::new("directory", "must be an absolute path"));
        }
        member(self.member.as_deref())
    }
}

/// What a member may be called at all.
pub fn member(name: Option<&str>) -> Result<(), FieldError> {
    name.map_or(Ok(()), |name| label("member", name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_their_forms() {
        let said = |word: &FromBody| serde_json::to_string(word).unwrap();
        assert_eq!(said(&FromBody::Opened), r#"{"type":"opened"}"#);
        assert_eq!(
            said(&FromBody::Ended { exit_code: Some(3), reason: None }),
            r#"{"type":"ended","exit_code":3,"reason":null}"#
        );
        let resize: ToBody = serde_json::from_str(r#"{"type":"resize","columns":80,"rows":24}"#).unwrap();
        assert_eq!(resize, ToBody::Resize(TerminalSize { columns: 80, rows: 24 }));
        assert_eq!(serde_json::from_str::<ToBody>(r#"{"type":"input_end"}"#).unwrap(), ToBody::InputEnd);
    }

    #[test]
    fn commands_that_cannot_be() {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let run = |command: &[&str]| ExecSpec { command: words(command), ..ExecSpec::default() };
        assert_eq!(run(&["ls", ""]).check(), Ok(()));
        for (spec, field) in [
            (run(&[]), "command"),
            (run(&[""]), "command"),
            (run(&["a\0b"]), "command"),
            (run(&["x"; 1001]), "command"),
            (ExecSpec { env: words(&["=x"]), ..run(&["ls"]) }, "env"),
            (ExecSpec { env: words(&["x"]), ..run(&["ls"]) }, "env"),
            (ExecSpec { directory: Some("tmp".into()), ..run(&["ls"]) }, "directory"),
            (ExecSpec { member: Some("../x".into()), ..run(&["ls"]) }, "member"),
        ] {
            assert_eq!(spec.check().unwrap_err().field, field, "{spec:?}");
        }
    }
}
