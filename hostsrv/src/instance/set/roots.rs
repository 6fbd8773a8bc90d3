//! Root file systems of members that have a limit: what they have written is counted now and then, and who is over its
//! limit is ended, with the reason, and kept ended until the limit is raised. overlayfs has no limit of its own, and the
//! file system below it only with project quotas. Limits live in memory: a fresh process is told them by the first plan.
//! Refuses to remove what a member has written.

use super::ending;
use super::observed::{Part, PartState};
use super::shared::Shared;
use super::start::{StartPlan, Step};
use crate::instance::{DriverError, folders};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often root file systems are counted; more seldom where that takes long.
const PERIOD: Duration = Duration::from_secs(2);
/// Counting may take this part of the time.
const SHARE: u32 = 20;
/// What a member has for its end.
const GRACE: Duration = Duration::from_secs(2);
/// Files of one member that are looked at in one round: beyond, what was counted so far counts.
const FILES_MAX: u64 = 2_000_000;

#[derive(Default)]
pub struct Roots(Mutex<HashMap<String, Root>>);

#[derive(Clone, Debug, Default)]
struct Root {
    limit_mib: u64,
    bytes: Option<u64>,
}

impl Root {
    fn over(&self) -> Option<String> {
        let mib = self.bytes?.div_ceil(1 << 20);
        (self.limit_mib > 0 && mib > self.limit_mib).then(|| {
            format!(
                "its root file system holds {mib} MiB, limit {} MiB: it starts again when the limit is raised",
                self.limit_mib
            )
        })
    }
}

impl Roots {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Root>> {
        // Every change is a single insert: a panic elsewhere leaves the map whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// 0: no limit.
    pub fn limit(&self, container: &str) -> u64 {
        self.lock().get(container).map_or(0, |root| root.limit_mib)
    }

    pub fn set_limit(&self, container: &str, limit_mib: u64) {
        let mut all = self.lock();
        match limit_mib {
            0 => drop(all.remove(container)),
            _ => all.entry(container.to_owned()).or_default().limit_mib = limit_mib,
        }
    }

    /// Why it must not start.
    pub fn over(&self, container: &str) -> Option<String> {
        self.lock().get(container).and_then(Root::over)
    }

    pub fn keep(&self, exists: impl Fn(&str) -> bool) {
        self.lock().retain(|container, _| exists(container));
    }

    /// Nobody starts that is over its limit, nor ends for one that must not start.
    pub fn hold(&self, plan: &mut StartPlan) {
        for step in &mut plan.members {
            let (id, instead) = match &*step {
                Step::Start { id, .. } | Step::Wait { id, .. } | Step::Return { id } => (id, Step::Rest),
                Step::Swap { made: Some(id), .. } => (id, Step::Keep),
                _ => continue,
            };
            if self.over(id).is_some() {
                *step = instead;
            }
        }
    }
}

/// Counts for as long as the driver lives.
pub async fn watch(shared: Arc<Shared>) {
    let mut pause = PERIOD;
    loop {
        tokio::time::sleep(pause).await;
        if shared.roots.lock().is_empty() {
            pause = PERIOD;
            continue;
        }
        let began = Instant::now();
        if let Err(error) = round(&shared).await {
            tracing::debug!(%error, "root file systems are not counted");
        }
        pause = PERIOD.max(began.elapsed() * SHARE);
    }
}

async fn round(shared: &Arc<Shared>) -> Result<(), DriverError> {
    for part in shared.collect(None).await? {
        let limit = shared.roots.limit(&part.id);
        let Some(upper) = part.detail.upper.clone().filter(|_| limit > 0) else { continue };
        let bytes = written(upper).await?;
        if let Some(root) = shared.roots.lock().get_mut(&part.id) {
            root.bytes = Some(bytes);
        }
        if let Some(why) = shared.roots.over(&part.id).filter(|_| part.state == PartState::Running) {
            tracing::info!(container = part.id, why, "a member is ended");
            shared.health.note_end(&part.id, &why);
            ending::end(shared, &part, GRACE).await?;
            shared.bell.notify_one();
        }
    }
    Ok(())
}

/// What a member has written into its root, in bytes as they lie on disk.
pub async fn written(upper: PathBuf) -> Result<u64, DriverError> {
    folders::blocking("count a root file system", move || Ok(count(&upper))).await
}

/// What cannot be read counts nothing: files come and go while they are counted. A guest may put a link where a directory
/// was: nothing is looked at but what lies below the directory itself.
fn count(top: &Path) -> u64 {
    let (mut bytes, mut files) = (0, 0);
    let Ok(top) = nix::fcntl::open(top, DIRECTORY, Mode::empty()) else { return 0 };
    let mut next = vec![PathBuf::from(".")];
    while let Some(below) = next.pop() {
        let Ok(dir) = open_below(&top, &below) else { continue };
        let opened = format!("/proc/self/fd/{}", dir.as_raw_fd());
        for entry in std::fs::read_dir(opened).into_iter().flatten().flatten() {
            // Asked of the open directory, by name; a link is not followed.
            let Ok(meta) = entry.metadata() else { continue };
            // A file of several names lies there once.
            bytes += meta.blocks() * 512 / if meta.is_dir() { 1 } else { meta.nlink().max(1) };
            if meta.is_dir() {
                next.push(below.join(entry.file_name()));
            }
            files += 1;
            if files >= FILES_MAX {
                return bytes;
            }
        }
    }
    bytes
}

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// A directory, on a way that has no link in it.
fn open_below(top: &OwnedFd, below: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new().flags(DIRECTORY).resolve(
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV,
    );
    openat2(top, below, how)
}

/// Why a part does not run that is over its limit.
pub fn trouble(shared: &Shared, part: &Part) -> Option<String> {
    shared.roots.over(&part.id).filter(|_| part.state == PartState::Ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_counted_as_they_lie() {
        let dir = tempfile::tempdir().expect("a directory");
        let below = dir.path().join("a/b");
        std::fs::create_dir_all(&below).expect("directories");
        let empty = count(dir.path());
        std::fs::write(below.join("x"), vec![1; 1 << 20]).expect("a file");
        let one = count(dir.path());
        assert!(one >= empty + (1 << 20) && one < empty + (2 << 20), "{empty} {one}");
        std::fs::hard_link(below.join("x"), below.join("y")).expect("a link");
        assert_eq!(count(dir.path()), one, "a second name is no second file");
        std::fs::File::create(below.join("hole")).and_then(|f| f.set_len(1 << 30)).expect("a sparse file");
        assert!(count(dir.path()) < one + (1 << 20), "a hole takes no room");
    }

    #[test]
    fn nothing_outside_is_counted() {
        let (dir, outside) =
            (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        std::fs::create_dir_all(dir.path().join("a/b")).expect("directories");
        std::fs::create_dir(outside.path().join("b")).expect("a directory");
        std::fs::write(outside.path().join("b/x"), vec![1; 1 << 20]).expect("a file");
        let top = nix::fcntl::open(dir.path(), DIRECTORY, Mode::empty()).expect("opens");
        open_below(&top, Path::new("./a/b")).expect("a directory in it");
        // Between its finding and its opening, a directory on the way becomes a link.
        std::fs::rename(dir.path().join("a"), dir.path().join("was")).expect("renamed");
        std::os::unix::fs::symlink(outside.path(), dir.path().join("a")).expect("a link");
        open_below(&top, Path::new("./a/b")).expect_err("a link on the way");
        open_below(&top, Path::new("./a")).expect_err("a link at its end");
        assert!(count(dir.path()) < 1 << 20, "what a link leads to does not count");
    }

    #[test]
    fn who_is_over_stays_ended_until_the_limit_is_raised() {
        let roots = Roots::default();
        let swap = |made: Option<&str>| Step::Swap {
            made: made.map(str::to_owned),
            old: "old".into(),
            keep: false,
            overlap: false,
        };
        let plan = || StartPlan {
            members: vec![
                Step::Start { id: "a".into(), again: None },
                Step::Keep,
                Step::Return { id: "a".into() },
                swap(Some("a")),
                swap(Some("b")),
                swap(None),
            ],
            ..StartPlan::default()
        };
        let held = |roots: &Roots| {
            let mut plan = plan();
            roots.hold(&mut plan);
            plan.members
        };
        assert_eq!(held(&roots), plan().members, "nobody has a limit");
        roots.set_limit("a", 8);
        roots.lock().get_mut("a").expect("it").bytes = Some((8 << 20) + 1);
        let stays = [Step::Rest, Step::Keep, Step::Rest, Step::Keep, swap(Some("b")), swap(None)];
        assert_eq!(held(&roots), stays);
        assert!(roots.over("a").expect("over").contains("holds 9 MiB, limit 8 MiB"));
        roots.set_limit("a", 9);
        assert_eq!((held(&roots), roots.limit("a")), (plan().members, 9));
        roots.set_limit("a", 0);
        assert_eq!(roots.limit("a"), 0);
    }
}
