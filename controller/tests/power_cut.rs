//! The embedded store on a disk that fails: power cuts, killed processes, no space, I/O errors. An acknowledged commit
//! must be there afterwards, whole. Needs root and a loop device; mounts live in a namespace that goes with the test.

use amphi_controller::store::{Compare, Op, SledStore, Store, StoreError, Txn};
use futures_util::FutureExt as _;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

const DIR: &str = "AMPHI_TEST_WRITER_DIR";
/// Tasks that write side by side, so that batches form.
const TASKS: u64 = 6;
/// Each task keeps this many of its newest records.
const KEPT: u64 = 40;

/// The one call that stops a mounted ext4 as a power cut does.
#[allow(unsafe_code)]
mod ext4 {
    use std::os::fd::AsRawFd;

    // linux/ext4.h: EXT4_IOC_SHUTDOWN is _IOR('X', 125, __u32); the kernel only reads the number.
    nix::ioctl_read!(shutdown_ioctl, b'X', 125, u32);
    const NO_LOG_FLUSH: u32 = 2;

    pub fn power_off(mount: &std::path::Path) {
        let dir = std::fs::File::open(mount).expect("the mount point opens");
        let mut flags = NO_LOG_FLUSH;
        // SAFETY: the descriptor is open and the number outlives the call, which keeps no pointer to it.
        unsafe { shutdown_ioctl(dir.as_raw_fd(), &mut flags) }.expect("ext4 shuts down: needs root");
    }
}

fn run(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A mount point for this thread and its children only; goes with them, its loop device too.
struct Mount {
    _dir: tempfile::TempDir,
    image: PathBuf,
    at: PathBuf,
}

impl Mount {
    fn new() -> Self {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("a mount namespace: needs root");
        run("mount", &["--make-rprivate", "/"]);
        let dir = tempfile::tempdir().expect("a directory");
        let (image, at) = (dir.path().join("disk"), dir.path().join("mnt"));
        std::fs::create_dir(&at).expect("a mount point");
        Self { _dir: dir, image, at }
    }

    fn ext4() -> Self {
        let disk = Self::new();
        std::fs::File::create(&disk.image).and_then(|f| f.set_len(256 << 20)).expect("an image");
        run("mkfs.ext4", &["-q", "-F", disk.image.to_str().expect("utf-8")]);
        disk.mount();
        disk
    }

    fn mount(&self) {
        run("mount", &["-o", "loop", self.image.to_str().expect("utf-8"), self.at.to_str().expect("utf-8")]);
    }

    /// A database that failed is closed in its own time.
    fn unmount(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let out = Command::new("umount").arg(&self.at).output().expect("umount runs");
            if out.status.success() {
                return;
            }
            assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&out.stderr));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn store(&self) -> PathBuf {
        self.at.join("store")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // The namespace would take it along; the directory can only be removed without it.
        let _ =
            Command::new("umount").args(["-l".as_ref(), self.at.as_os_str()]).stderr(Stdio::null()).status();
    }
}

fn value(task: u64, n: u64) -> serde_json::Value {
    // Large ones too: by itself, sled would keep them in files that it never syncs.
    let size = if n.is_multiple_of(5) {
        40_000
    } else if n == 33 {
        600_000
    } else {
        (task * 131 + n * 977) % 3_000
    };
    serde_json::json!({ "task": task, "n": n, "fill": "x".repeat(size as usize) })
}

fn commit(task: u64, n: u64) -> Txn {
    let count = format!("/count/{task}");
    let put = |key: String, value| Op::Put { key, value, lease: None };
    let mut ops = vec![put(count.clone(), n.into()), put(format!("/record/{task}/{n}"), value(task, n))];
    if n > KEPT {
        ops.push(Op::Delete { key: format!("/record/{task}/{}", n - KEPT) });
    }
    Txn { compares: vec![Compare { key: count, version: n - 1 }], ops }
}

/// Not a test: the process that writes until it is killed. Says `ack TASK N` for every commit that was acknowledged.
#[test]
#[ignore = "a role that the other tests start"]
fn writer() {
    let dir = PathBuf::from(std::env::var(DIR).expect("started by a test of this file"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Arc::new(SledStore::open(&dir).unwrap());
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..TASKS {
            let store = store.clone();
            tasks.spawn(async move {
                let held = store.get(&format!("/count/{task}")).await.unwrap();
                let mut n = held.map_or(0, |e| e.value.as_u64().expect("a number"));
                loop {
                    n += 1;
                    store.commit(commit(task, n)).await.unwrap();
                    // One write per line; when the reader is gone, so is this process.
                    std::io::stdout().write_all(format!("ack {task} {n}\n").as_bytes()).unwrap();
                }
            });
        }
        tasks.join_next().await.unwrap().unwrap();
    });
}

struct Writer {
    child: Child,
    acks: mpsc::Receiver<(u64, u64)>,
}

impl Writer {
    fn start(store: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["writer", "--exact", "--ignored", "--nocapture"])
            .env(DIR, store)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the writer starts");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, acks) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                // The harness writes lines of its own, and may begin one of ours.
                let Some((_, ack)) = line.split_once("ack ") else { continue };
                let Some((task, n)) = ack.split_once(' ') else { continue };
                let (Ok(task), Ok(n)) = (task.parse(), n.parse()) else { continue };
                if sender.send((task, n)).is_err() {
                    return;
                }
            }
        });
        Self { child, acks }
    }

    fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id() as i32)
    }

    /// Takes this many acknowledgements, then those that come until the process is dead by `end`.
    fn acknowledged(mut self, least: usize, end: impl FnOnce(&Self)) -> BTreeMap<u64, u64> {
        let mut newest = BTreeMap::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        for seen in 0..least {
            let left = deadline.saturating_duration_since(Instant::now());
            let (task, n) = self.acks.recv_timeout(left).unwrap_or_else(|e| {
                panic!("{seen} of {least} acknowledgements in 20 s: {e}; {:?}", self.child.try_wait())
            });
            newest.insert(task, n);
        }
        end(&self);
        kill(self.pid(), Signal::SIGKILL).expect("the writer is killed");
        self.child.wait().expect("it is gone");
        newest.extend(self.acks.iter());
        newest
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Opens the store and compares it with what was acknowledged.
fn verify(store: &Path, acknowledged: &BTreeMap<u64, u64>, round: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let names = |dir: &Path| -> Vec<_> {
            std::fs::read_dir(dir).unwrap().filter_map(|e| e.ok()?.file_name().into_string().ok()).collect()
        };
        let store_names = names(store);
        let opened = SledStore::open(store).unwrap_or_else(|e| panic!("{round}: {e}; {store_names:?}"));
        let broken: Vec<_> = names(store).into_iter().filter(|n| n.contains("broken")).collect();
        assert!(broken.is_empty(), "{round}: the database had to be made again: {broken:?}");
        let mut total = 0;
        for task in 0..TASKS {
            let count = opened.get(&format!("/count/{task}")).await.unwrap();
            let found = count.map_or(0, |e| e.value.as_u64().expect("a number"));
            let promised = acknowledged.get(&task).copied().unwrap_or(0);
            assert!(found >= promised, "{round}: task {task} was promised {promised}, {found} is there");
            let (records, _) = opened.range(&format!("/record/{task}/")).await.unwrap();
            let there: BTreeMap<_, _> = records.into_iter().map(|e| (e.key, e.value)).collect();
            let kept = found.saturating_sub(KEPT) + 1..=found;
            let expected = kept.map(|n| (format!("/record/{task}/{n}"), value(task, n)));
            assert_eq!(there, expected.collect(), "{round}: task {task}, commits are whole");
            total += found;
        }
        let (_, revision) = opened.range("/none/").await.unwrap();
        assert!(revision >= total, "{round}: revision {revision} after {total} commits");
    });
}

#[test]
fn acknowledged_commits_survive_power_cuts() {
    let disk = Mount::ext4();
    for (round, least) in [1, 40, 400, 7, 900, 150, 3, 250, 600, 80].into_iter().enumerate() {
        let writer = Writer::start(&disk.store());
        let acknowledged = writer.acknowledged(least, |writer| {
            // Stopped first: what it says after the cut would be no promise.
            kill(writer.pid(), Signal::SIGSTOP).expect("the writer stops");
            let stopped = waitpid(writer.pid(), Some(WaitPidFlag::WUNTRACED));
            assert!(matches!(stopped, Ok(WaitStatus::Stopped(..))), "{stopped:?}");
            ext4::power_off(&disk.at);
        });
        disk.unmount();
        disk.mount();
        verify(&disk.store(), &acknowledged, &format!("cut {round} after {least}"));
    }
    disk.unmount();
}

#[test]
fn acknowledged_commits_survive_a_killed_process() {
    let dir = tempfile::tempdir().unwrap();
    for (round, least) in [1, 300, 20, 700, 5].into_iter().enumerate() {
        let acknowledged = Writer::start(dir.path()).acknowledged(least, |_| {});
        verify(dir.path(), &acknowledged, &format!("kill {round} after {least}"));
    }
}

/// Commits until one is refused; how many were acknowledged.
async fn until_refused(store: &SledStore, from: u64) -> (u64, StoreError) {
    for n in from..from + 10_000 {
        let put = Op::Put { key: format!("/k/{n}"), value: "y".repeat(20_000).into(), lease: None };
        if let Err(error) = store.commit(Txn { compares: vec![], ops: vec![put] }).await {
            return (n, error);
        }
    }
    panic!("10,000 commits and the disk never refused");
}

async fn keys(store: &SledStore) -> usize {
    store.range("/k/").await.unwrap().0.len()
}

#[tokio::test]
async fn a_full_disk_refuses_and_goes_on_when_there_is_space() {
    let disk = Mount::new();
    let at = disk.at.to_str().unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=48m", "tmpfs", at]);
    let store = SledStore::open(&disk.store()).unwrap();
    let ballast = disk.at.join("ballast");
    std::fs::write(&ballast, vec![0; 24 << 20]).unwrap();
    let (acknowledged, error) = until_refused(&store, 0).await;
    assert!(acknowledged > 0 && error.to_string().contains("free"), "{acknowledged}: {error}");
    let held = store.range("/").await.unwrap();
    assert_eq!(keys(&store).await as u64, acknowledged, "reads go on, of what was acknowledged");
    let put = || Op::Put { key: "/after".into(), value: 1.into(), lease: None };
    // A large commit asks for more room than a small one: fill what that leaves.
    std::fs::write(disk.at.join("more"), vec![0; 4 << 20]).unwrap();
    let still = store.commit(Txn { compares: vec![], ops: vec![put()] }).await;
    assert!(matches!(still, Err(StoreError::Unavailable { .. })), "{still:?}");
    assert_eq!(store.range("/").await.unwrap(), held);

    std::fs::remove_file(&ballast).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let revision = loop {
        match store.commit(Txn { compares: vec![], ops: vec![put()] }).await {
            Ok(revision) => break revision,
            Err(error) => assert!(Instant::now() < deadline, "still refused: {error}"),
        }
    };
    assert_eq!(revision, held.1 + 1);
    assert!(store.failed().now_or_never().is_none(), "what passes is no failure for good");
    let before = store.range("/").await.unwrap();
    drop(store);
    assert_eq!(SledStore::open(&disk.store()).unwrap().range("/").await.unwrap(), before);
}

#[tokio::test]
async fn a_disk_that_is_gone_is_refused_for_good_and_loses_nothing() {
    let disk = Mount::ext4();
    let store = SledStore::open(&disk.store()).unwrap();
    for n in 0..20u64 {
        let put = Op::Put { key: format!("/k/{n}"), value: n.into(), lease: None };
        store.commit(Txn { compares: vec![], ops: vec![put] }).await.unwrap();
    }
    ext4::power_off(&disk.at);
    for _ in 0..3 {
        let (n, error) = until_refused(&store, 20).await;
        assert!(n == 20 && matches!(error, StoreError::Unavailable { .. }), "{n} {error}");
    }
    assert_eq!(keys(&store).await, 20);
    let told = tokio::time::timeout(Duration::from_secs(10), store.failed()).await;
    assert!(matches!(told, Ok(StoreError::Unavailable { .. })), "{told:?}");
    drop(store);
    disk.unmount();
    disk.mount();
    let found = keys(&SledStore::open(&disk.store()).unwrap()).await;
    assert!((20..=21).contains(&found), "{found}");
}
