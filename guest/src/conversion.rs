//! What the guest that turns one kind of image into the other says to its host: lines of JSON over its port, progress first,
//! at last how it ended. All of it comes from a disk that nobody trusts: the host takes it as words, in these bounds.

use serde::{Deserialize, Serialize};

/// In the kernel's command line: this machine converts, and runs no members.
pub const WORD: &str = "amphi.convert";
/// The disk that is read.
pub const SOURCE_SERIAL: &str = "source";
/// The disk that what comes out is written to: a tar from its first byte on, or a disk's file system.
pub const RESULT_SERIAL: &str = "result";
/// Longest line, in bytes.
pub const LINE_MAX: usize = 1 << 20;
/// Most notes of one report, and most characters of one text in it.
pub const NOTES_MAX: usize = 400;
pub const TEXT_MAX: usize = 300;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum Told {
    Progress {
        entries: u64,
        bytes: u64,
    },
    /// The tar is whole and on its disk.
    Done {
        tar_bytes: u64,
        report: Box<Report>,
    },
    /// A disk is whole.
    Filled {
        entries: u64,
        bytes: u64,
    },
    /// There is nothing that trying again would change.
    Refused {
        message: String,
    },
}

/// What was found, and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// As its os-release calls it.
    pub system: String,
    /// The device that it was found on, and the file system's kind.
    pub root: String,
    /// Further file systems of the disk that are in the image: path, device.
    pub mounted: Vec<(String, String)>,
    pub init: Init,
    pub services: Vec<Service>,
    pub notes: Vec<Note>,
    pub entries: u64,
    /// Of files, as long as they say they are.
    pub bytes: u64,
    pub hard_links: u64,
    pub sparse_files: u64,
    /// Files with capabilities.
    pub capabilities: u64,
    /// Files that run as their owner or group.
    pub set_ids: u64,
}

/// What the image starts with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Init {
    /// `systemd`, `sysvinit`, `busybox`, `openrc`, `other`, `none`.
    pub kind: String,
    pub argv: Vec<String>,
    pub stop_signal: String,
}

/// A service that the machine starts at boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    pub started: bool,
    /// Why it is not.
    pub why: String,
}

/// What will not be in a container as it was in the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// `kernel_module`, `mount`, `network`, `sysctl`, `swap`, `security`, `service`, `unread`, `left_out`.
    pub kind: String,
    pub what: String,
    pub why: String,
}

/// Text of a disk, as it may stand in a report.
pub fn text(raw: &str) -> String {
    raw.chars().map(|c| if c.is_control() { '?' } else { c }).take(TEXT_MAX).collect()
}

impl Report {
    /// One more note, if there is room.
    pub fn note(&mut self, kind: &str, what: &str, why: &str) {
        let note = Note { kind: kind.to_owned(), what: text(what), why: text(why) };
        if self.notes.len() < NOTES_MAX && !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

/// In the kernel's command line of a disk that was made of a container image: its root file system's UUID.
pub const ROOT_WORD: &str = "amphi.root";
/// On such a disk's first partition, as JSON: how its system starts.
pub const START_FILE: &str = "start.jsn";
/// Largest of these, in bytes.
pub const START_MAX: u64 = 256 << 10;

/// How a disk's system starts: what the container image's configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Start {
    /// Its first process, where the command is an init. None: the command is run by ours.
    pub init: Option<String>,
    pub argv: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    pub directory: String,
    /// `app`, `1000:1000`; empty: root.
    pub user: String,
    /// By number.
    pub stop_signal: i32,
}
