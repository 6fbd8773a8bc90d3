//! The lines over the serial port: one JSON document each, bytes in them as base64. The host speaks first, with a number
//! of its own choice; the guest's answer carries that number, and what comes before it is a former connection's rest.
//! Nothing is sent that the other end has not made room for: each direction of a stream has a window of [`WINDOW`] bytes,
//! which the taker opens again by what it has taken.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes on their way in one direction of a stream.
pub const WINDOW: u64 = 128 << 10;
/// Most bytes of one piece.
pub const PIECE_MAX: usize = 16 << 10;
/// Longest line that is taken, in bytes: what is longer is no line of ours.
pub const LINE_MAX: usize = 1 << 20;

/// What the host says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum ToGuest {
    /// First. Every stream of a former connection ends.
    Hello {
        number: u64,
        version: u32,
    },
    Open {
        stream: u32,
        what: Open,
    },
    Input {
        stream: u32,
        data: Bytes,
    },
    InputEnd {
        stream: u32,
    },
    Resize {
        stream: u32,
        columns: u16,
        rows: u16,
    },
    /// So many bytes of output have been taken.
    Taken {
        stream: u32,
        bytes: u64,
    },
    /// Nobody looks any more: what was started for it ends.
    Close {
        stream: u32,
    },
    /// End this member in an orderly way and start it again.
    Restart {
        member: String,
    },
    /// The members' volume, or a further one, has grown.
    Grown {
        serial: String,
    },
    /// The members' limits from now on, in place of those in the description.
    Limits {
        members: Vec<MemberLimits>,
    },
}

/// What a member is held to of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberLimits {
    pub name: String,
    /// Hundredths of a CPU.
    pub cpu_centi: u64,
    pub memory_bytes: u64,
}

/// What the guest says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum FromGuest {
    /// The answer to [`ToGuest::Hello`], with its number.
    Hello {
        number: u64,
        version: u32,
    },
    /// All members, whenever something of them changed, and after a hello.
    Members {
        members: Vec<MemberState>,
        trouble: Option<String>,
    },
    Opened {
        stream: u32,
    },
    Refused {
        stream: u32,
        message: String,
    },
    /// Channel 1 is standard output, 2 standard error.
    Output {
        stream: u32,
        channel: u8,
        data: Bytes,
    },
    /// So many bytes of input have been taken.
    Taken {
        stream: u32,
        bytes: u64,
    },
    /// All output was told. `exit_code`: a command's.
    Ended {
        stream: u32,
        exit_code: Option<i64>,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Open {
    Exec(Exec),
    Logs(Logs),
}

/// A command in a member; none named: the first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    pub member: Option<String>,
    pub argv: Vec<String>,
    /// `NAME=VALUE`, beside the member's.
    pub env: Vec<String>,
    pub user: Option<String>,
    pub directory: Option<String>,
    pub stdin: bool,
    /// Columns and rows; none: no terminal.
    pub terminal: Option<(u16, u16)>,
}

/// A member's output; none named: the first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logs {
    pub member: Option<String>,
    pub follow: bool,
    /// Microseconds since the epoch.
    pub since_us: Option<i64>,
    pub tail: Option<u32>,
    pub timestamps: bool,
}

/// One member as the guest sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberState {
    pub name: String,
    pub index: u32,
    pub running: bool,
    pub restarts: u32,
    pub exit_code: Option<i64>,
    /// Microseconds since the epoch.
    pub started_at_us: Option<i64>,
    /// None: nobody asks.
    pub ready: Option<bool>,
    pub finished: bool,
    pub out_of_memory: bool,
    pub reason: Option<String>,
}

/// Bytes, as base64 in a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map(Bytes).map_err(serde::de::Error::custom)
    }
}

/// One line with its end.
pub fn line<T: Serialize>(word: &T) -> Vec<u8> {
    // None of the words has a map with keys that are no strings: nothing else can fail.
    let mut bytes = serde_json::to_vec(word).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Puts lines together out of pieces. What is longer than [`LINE_MAX`] is left out whole.
#[derive(Debug, Default)]
pub struct Lines {
    begun: Vec<u8>,
    too_long: bool,
}

impl Lines {
    /// The lines that end in this piece, without their ends.
    pub fn take(&mut self, piece: &[u8]) -> Vec<Vec<u8>> {
        let mut whole = Vec::new();
        for part in piece.split_inclusive(|b| *b == b'\n') {
            let (text, ends) = part.strip_suffix(b"\n").map_or((part, false), |text| (text, true));
            if self.begun.len() + text.len() > LINE_MAX {
                self.too_long = true;
                self.begun = Vec::new();
            }
            if !self.too_long {
                self.begun.extend_from_slice(text);
            }
            if ends {
                let line = std::mem::take(&mut self.begun);
                if !std::mem::take(&mut self.too_long) && !line.is_empty() {
                    whole.push(line);
                }
            }
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_together_and_overlong_ones_are_left_out() {
        let mut lines = Lines::default();
        assert_eq!(lines.take(b"\nab"), Vec::<Vec<u8>>::new());
        assert_eq!(lines.take(b"c\nd\n"), [b"abc".to_vec(), b"d".to_vec()]);
        assert!(lines.take(&vec![b'x'; LINE_MAX]).is_empty());
        assert!(lines.take(b"xx").is_empty());
        assert_eq!(lines.take(b"x\ny\n"), [b"y".to_vec()]);
    }

    #[test]
    fn words_are_read_back() {
        let word = ToGuest::Input { stream: 3, data: Bytes(b"\0\xff\n".to_vec()) };
        let text = line(&word);
        assert_eq!(text, b"{\"say\":\"input\",\"stream\":3,\"data\":\"AP8K\"}\n");
        assert_eq!(serde_json::from_slice::<ToGuest>(&text).unwrap(), word);
        for junk in ["{}", "{\"say\":\"input\",\"stream\":-1,\"data\":\"\"}", "[]", "{\"say\":\"what\"}"] {
            assert!(serde_json::from_str::<ToGuest>(junk).is_err(), "{junk}");
        }
    }
}
