//! lvm2's commands on one volume group: rendered by a pure function, run one at a time.
//!
//! Owns the private copy of LVM's configuration directory that the commands run with. It is the host's own
//! configuration plus `use_aio=0`: closing an aio context waits for an RCU grace period, 30 to 40 ms of pure
//! waiting at the end of each command, and lvm reads that setting before it looks at `--config`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;

use super::command::{Run, complaint};
use super::metadata::{self, Heads};
use super::placement::ExtentRange;
use super::report::{self, GroupReport};
use super::shared::{Part, SHARED_TAG};
use super::{Activation, StorageError};

/// Metadata commands take milliseconds; half a minute means that something is stuck (a dead disk, a lock).
pub const LIMIT: Duration = Duration::from_secs(30);

/// One command on LV `name` of a volume group; counts are extents.
#[derive(Debug, Clone)]
pub enum LvmCommand<'a> {
    Report,
    Create {
        name: &'a str,
        extents: u64,
        tags: &'a [String],
        range: Option<&'a ExtentRange>,
    },
    /// A temporary device-mapper snapshot; LVM freezes a mounted file system for the instant.
    Snapshot {
        name: &'a str,
        of: &'a str,
        extents: u64,
    },
    Extend {
        name: &'a str,
        more: u64,
        range: Option<&'a ExtentRange>,
    },
    Tag {
        name: &'a str,
        add: &'a [String],
        remove: &'a [String],
    },
    Activate {
        name: &'a str,
    },
    Deactivate {
        name: &'a str,
    },
    /// Takes over the LV's present size where it is active (device-mapper).
    Refresh {
        name: &'a str,
    },
    Remove {
        name: &'a str,
    },
}

impl LvmCommand<'_> {
    pub fn operation(&self) -> &'static str {
        match self {
            LvmCommand::Report => "report",
            LvmCommand::Create { .. } => "lvcreate",
            LvmCommand::Snapshot { .. } => "lvcreate --snapshot",
            LvmCommand::Extend { .. } => "lvextend",
            LvmCommand::Tag { .. } => "lvchange --addtag/--deltag",
            LvmCommand::Activate { .. } => "lvchange --activate y",
            LvmCommand::Deactivate { .. } => "lvchange --activate n",
            LvmCommand::Refresh { .. } => "lvchange --refresh",
            LvmCommand::Remove { .. } => "lvremove",
        }
    }

    /// Whether it changes the group's metadata.
    fn writes(&self) -> bool {
        match self {
            LvmCommand::Report
            | LvmCommand::Activate { .. }
            | LvmCommand::Deactivate { .. }
            | LvmCommand::Refresh { .. } => false,
            LvmCommand::Create { .. }
            | LvmCommand::Snapshot { .. }
            | LvmCommand::Extend { .. }
            | LvmCommand::Tag { .. }
            | LvmCommand::Remove { .. } => true,
        }
    }

    fn object(&self, group: &str) -> String {
        match self {
            LvmCommand::Report => group.to_owned(),
            LvmCommand::Create { name, .. }
            | LvmCommand::Snapshot { name, .. }
            | LvmCommand::Extend { name, .. }
            | LvmCommand::Tag { name, .. }
            | LvmCommand::Activate { name }
            | LvmCommand::Deactivate { name }
            | LvmCommand::Refresh { name }
            | LvmCommand::Remove { name } => format!("{group}/{name}"),
        }
    }

    /// The arguments for the `lvm` program.
    pub fn arguments(&self, group: &str, activation: Activation) -> Vec<String> {
        let mut args: Vec<String> = Vec::new();
        let mut push = |words: &[&str]| args.extend(words.iter().map(|word| (*word).to_owned()));
        let lv = self.object(group);
        match self {
            LvmCommand::Report => {
                push(&["fullreport", "--reportformat", "json", "--units", "b", "--nosuffix"]);
                push(&[
                    "--configreport",
                    "vg",
                    "-o",
                    "vg_name,vg_size,vg_free,vg_extent_size,vg_uuid,vg_tags",
                ]);
                push(&["--configreport", "pv", "-o", "pv_uuid,pv_name,pe_start,pv_pe_count"]);
                push(&["--configreport", "lv", "-o", "lv_uuid,lv_name,lv_size,lv_tags,lv_active,origin"]);
                push(&["--configreport", "pvseg", "-o", "pvseg_start,pvseg_size,pv_uuid,lv_uuid"]);
                push(&["--configreport", "seg", "-o", "lv_uuid,seg_start_pe,seg_pe_ranges"]);
            }
            LvmCommand::Create { name, extents, tags, .. } => {
                push(&["lvcreate", "--yes", "--name", name, "--extents", &extents.to_string()]);
                // Nothing is wiped here: what LVM frees was wiped when its volume was purged.
                push(&["--zero", "n", "--wipesignatures", "n", "--setautoactivation", "n"]);
                push(&["--activate", if activation == Activation::Dm { "y" } else { "n" }]);
                for tag in *tags {
                    push(&["--addtag", tag]);
                }
            }
            LvmCommand::Snapshot { name, of, extents } => {
                push(&["lvcreate", "--yes", "--snapshot", "--name", name, "--extents", &extents.to_string()]);
                push(&["--addtag", report::TAG, &format!("{group}/{of}")]);
            }
            LvmCommand::Extend { more, .. } => push(&["lvextend", "--extents", &format!("+{more}")]),
            LvmCommand::Tag { add, remove, .. } => {
                push(&["lvchange"]);
                for tag in *add {
                    push(&["--addtag", tag]);
                }
                for tag in *remove {
                    push(&["--deltag", tag]);
                }
            }
            LvmCommand::Activate { .. } => push(&["lvchange", "--activate", "y"]),
            LvmCommand::Deactivate { .. } => push(&["lvchange", "--activate", "n"]),
            LvmCommand::Refresh { .. } => push(&["lvchange", "--refresh"]),
            LvmCommand::Remove { .. } => push(&["lvremove", "--yes"]),
        }
        if activation == Activation::Loop {
            push(&["--driverloaded", "n"]);
            if matches!(self, LvmCommand::Create { .. } | LvmCommand::Extend { .. }) {
                push(&["--alloc", "contiguous"]);
            }
        }
        match self {
            LvmCommand::Report | LvmCommand::Create { .. } => push(&[group]),
            LvmCommand::Snapshot { .. } => {}
            _ => push(&[&lv]),
        }
        if let LvmCommand::Create { range: Some(range), .. } | LvmCommand::Extend { range: Some(range), .. } =
            self
        {
            push(&[&range.argument()]);
        }
        args
    }
}

/// Runs commands on one volume group.
pub struct Lvm {
    group: String,
    activation: Activation,
    /// Of a group that other hosts see too: this host's part in it.
    part: Option<Part>,
    env: Vec<(OsString, OsString)>,
    /// Changes of the group's metadata follow one another; LVM's own lock would make them queue anyway,
    /// but choosing extents and taking them has to be one step.
    pub(super) changes: Mutex<()>,
    last: std::sync::Mutex<Option<Last>>,
    ran: AtomicU64,
}

/// What LVM said last, and the metadata that it said it of. None: they may have changed meanwhile, or cannot be told apart.
struct Last {
    report: GroupReport,
    heads: Option<Heads>,
}

impl Lvm {
    /// `private` is a directory of ours for the adapted configuration; `system` the host's configuration.
    pub fn new(
        group: &str,
        activation: Activation,
        system: &Path,
        private: &Path,
    ) -> Result<Self, StorageError> {
        adapt_configuration(system, private)
            .map_err(StorageError::io("adapting the LVM configuration in", private.display()))?;
        Ok(Lvm {
            group: group.to_owned(),
            activation,
            part: None,
            env: vec![("LVM_SYSTEM_DIR".into(), private.into())],
            changes: Mutex::new(()),
            last: std::sync::Mutex::default(),
            ran: AtomicU64::new(0),
        })
    }

    /// For a group that other hosts see too.
    pub fn shared(self, part: Part) -> Self {
        Lvm { part: Some(part), ..self }
    }

    pub fn part(&self) -> Option<&Part> {
        self.part.as_ref()
    }

    pub fn group(&self) -> &str {
        &self.group
    }

    pub fn activation(&self) -> Activation {
        self.activation
    }

    /// How many commands it has run.
    pub fn ran(&self) -> u64 {
        self.ran.load(Ordering::Relaxed)
    }

    /// The group as it is. LVM is asked only when its metadata have changed since it was asked last.
    pub async fn report(&self) -> Result<GroupReport, StorageError> {
        let before = self.heads().await;
        if before.is_some()
            && let Some(last) = &*self.last()
            && last.heads == before
        {
            return Ok(last.report.clone());
        }
        let report = self.ask().await?;
        let devices =
            |report: &GroupReport| -> Vec<String> { report.pvs.iter().map(|pv| pv.name.clone()).collect() };
        let same = self.last().as_ref().is_some_and(|last| devices(&last.report) == devices(&report));
        let after = self.heads().await;
        let heads = before.filter(|before| same && after.as_ref() == Some(before));
        *self.last() = Some(Last { report: report.clone(), heads });
        Ok(report)
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<Last>> {
        self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Of the devices that the last report named. None: what they say is not all that a report does (device-mapper knows
    /// which volumes are active), other hosts write to them too, or they say nothing.
    async fn heads(&self) -> Option<Heads> {
        if self.activation != Activation::Loop || self.part.is_some() {
            return None;
        }
        let devices: Vec<String> =
            self.last().as_ref()?.report.pvs.iter().map(|pv| pv.name.clone()).collect();
        let read = move || metadata::heads(devices.iter().map(Path::new));
        tokio::time::timeout(LIMIT, tokio::task::spawn_blocking(read)).await.ok()?.ok()?.ok()?
    }

    async fn ask(&self) -> Result<GroupReport, StorageError> {
        let bytes = self.run(LvmCommand::Report).await?;
        let wrong =
            |detail: String| StorageError::Lvm { operation: "report", object: self.group.clone(), detail };
        let report = report::parse(&bytes, &self.group).map_err(wrong)?;
        match &self.part {
            Some(part) if report.shared => part.learn(&report.uuid),
            None if !report.shared => {}
            Some(_) => return Err(wrong(format!("the group is not marked as shared (tag {SHARED_TAG})"))),
            None => {
                return Err(wrong(format!(
                    "the group is marked as shared (tag {SHARED_TAG}): it is no host's own"
                )));
            }
        }
        Ok(report)
    }

    /// Standard output of a command that succeeded.
    pub async fn run(&self, command: LvmCommand<'_>) -> Result<Vec<u8>, StorageError> {
        let object = command.object(&self.group);
        let mut args = command.arguments(&self.group, self.activation);
        if let Some(part) = &self.part {
            if command.writes() {
                let group = self.group.clone();
                part.may_write().map_err(|why| StorageError::NotKeeper { group, why })?;
            } else {
                // lvm.conf(5): metadata in need of repair is read as if it had been repaired, and nothing is written.
                args.extend(["--config".to_owned(), "global/metadata_read_only=1".to_owned()]);
            }
        }
        let run = Run {
            operation: command.operation(),
            object: &object,
            program: "lvm",
            args,
            env: &self.env,
            limit: LIMIT,
        };
        let started = std::time::Instant::now();
        self.ran.fetch_add(1, Ordering::Relaxed);
        let output = run.output().await?;
        tracing::debug!(operation = command.operation(), object, elapsed = ?started.elapsed(), "lvm");
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(StorageError::Lvm { operation: command.operation(), object, detail: complaint(&output) })
    }

    /// lvm2's own version, such as `2.03.16(2)`.
    pub async fn version(&self) -> Result<String, StorageError> {
        let args = vec!["lvs".to_owned(), "--version".to_owned()];
        let run =
            Run { operation: "version", object: "lvm", program: "lvm", args, env: &self.env, limit: LIMIT };
        let output = run.output().await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.lines().find_map(|line| line.trim().strip_prefix("LVM version:"));
        version.and_then(|rest| rest.split_whitespace().next()).map(str::to_owned).ok_or_else(|| {
            StorageError::Lvm { operation: "version", object: "lvm".to_owned(), detail: complaint(&output) }
        })
    }
}

/// Links to everything in `system`, with the local overrides copied and ours put behind them.
fn adapt_configuration(system: &Path, private: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(private)?;
    for entry in ["lvm.conf", "profile", "devices", "backup", "archive", "cache"] {
        let (from, to) = (system.join(entry), private.join(entry));
        match std::os::unix::fs::symlink(&from, &to) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                if std::fs::read_link(&to)? != from {
                    std::fs::remove_file(&to)?;
                    std::os::unix::fs::symlink(&from, &to)?;
                }
            }
            other => other?,
        }
    }
    // Without these, LVM would make them through a dangling link and fail.
    for entry in ["backup", "archive"] {
        std::fs::create_dir_all(system.join(entry))?;
    }
    let local: PathBuf = system.join("lvmlocal.conf");
    let mut text = match std::fs::read_to_string(&local) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    text.push_str("\nglobal/use_aio=0\n");
    let (draft, file) =
        (private.join(format!("lvmlocal.conf.{}", std::process::id())), private.join("lvmlocal.conf"));
    std::fs::write(&draft, text)?;
    std::fs::rename(draft, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_exactly_these() {
        let range = ExtentRange { pv: "/dev/loop0".into(), start: 300, count: 256 };
        let tags = ["amphi".to_owned(), "amphi.making".to_owned()];
        let create = LvmCommand::Create { name: "vol-x", extents: 256, tags: &tags, range: Some(&range) };
        let plain = LvmCommand::Create { name: "vol-x", extents: 256, tags: &tags, range: None };
        let extend = LvmCommand::Extend { name: "vol-x", more: 9, range: Some(&range) };
        let tag = LvmCommand::Tag { name: "vol-x", add: &tags[..1], remove: &tags[1..] };
        let snapshot = LvmCommand::Snapshot { name: "tmp-x", of: "vol-x", extents: 12 };
        use Activation::{Dm, Loop};
        let cases = [
            (
                &create,
                Loop,
                "lvcreate --yes --name vol-x --extents 256 --zero n --wipesignatures n --setautoactivation n --activate n --addtag amphi --addtag amphi.making --driverloaded n --alloc contiguous vg /dev/loop0:300-555",
            ),
            (
                &plain,
                Dm,
                "lvcreate --yes --name vol-x --extents 256 --zero n --wipesignatures n --setautoactivation n --activate y --addtag amphi --addtag amphi.making vg",
            ),
            (
                &extend,
                Loop,
                "lvextend --extents +9 --driverloaded n --alloc contiguous vg/vol-x /dev/loop0:300-555",
            ),
            (&tag, Loop, "lvchange --addtag amphi --deltag amphi.making --driverloaded n vg/vol-x"),
            (&snapshot, Dm, "lvcreate --yes --snapshot --name tmp-x --extents 12 --addtag amphi vg/vol-x"),
            (&LvmCommand::Activate { name: "vol-x" }, Dm, "lvchange --activate y vg/vol-x"),
            (&LvmCommand::Deactivate { name: "vol-x" }, Dm, "lvchange --activate n vg/vol-x"),
            (&LvmCommand::Remove { name: "vol-x" }, Loop, "lvremove --yes --driverloaded n vg/vol-x"),
        ];
        for (command, activation, want) in cases {
            assert_eq!(command.arguments("vg", activation).join(" "), want);
        }
        let report = LvmCommand::Report.arguments("vg", Loop).join(" ");
        assert!(report.starts_with("fullreport --reportformat json --units b --nosuffix --configreport vg"));
        assert!(report.ends_with("--driverloaded n vg"), "{report}");
    }

    #[test]
    fn the_host_s_configuration_stays_and_ours_comes_last() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (system, private) = (dir.path().join("etc"), dir.path().join("run"));
        std::fs::create_dir_all(&system).expect("mkdir");
        std::fs::write(system.join("lvm.conf"), "devices { }").expect("write");
        std::fs::write(system.join("lvmlocal.conf"), "local { host_id=1 }").expect("write");
        for _ in 0..2 {
            adapt_configuration(&system, &private).expect("adapts");
        }
        let local = std::fs::read_to_string(private.join("lvmlocal.conf")).expect("read");
        assert_eq!(local, "local { host_id=1 }\nglobal/use_aio=0\n");
        assert_eq!(std::fs::read_to_string(private.join("lvm.conf")).expect("read"), "devices { }");
    }
}
