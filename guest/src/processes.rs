//! Owns who ends: the first process of a machine gets every orphan, so one thread waits for all and tells those who
//! asked. Refuses to start anything but this program again, which lays out what is to run and becomes it.

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::io;
use std::process::{Command, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// This program, wherever a root may have gone.
pub const SELF: &str = "/proc/self/exe";

#[derive(Default)]
struct Ends {
    /// By process; none: it runs.
    exits: Mutex<BTreeMap<i32, Option<i64>>>,
    changed: Condvar,
}

fn ends() -> &'static Ends {
    static ENDS: OnceLock<Ends> = OnceLock::new();
    ENDS.get_or_init(Ends::default)
}

fn lock() -> MutexGuard<'static, BTreeMap<i32, Option<i64>>> {
    ends().exits.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for whoever ends, for ever.
pub fn reap() {
    std::thread::spawn(|| {
        loop {
            let ended = match waitpid(None::<Pid>, None) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), i64::from(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), 128 + signal as i64),
                Err(Errno::ECHILD) => {
                    // Nobody is there: until somebody is started.
                    let none = lock();
                    drop(ends().changed.wait_timeout(none, Duration::from_millis(200)));
                    continue;
                }
                _ => continue,
            };
            // Whoever was just started is in the map before this lock can be had.
            let mut exits = lock();
            if let Some(exit) = exits.get_mut(&ended.0) {
                *exit = Some(ended.1);
                ends().changed.notify_all();
            }
        }
    });
}

/// One that was started.
pub struct Started {
    pub pid: i32,
}

/// Starts this program with these words, and these three.
pub fn start(words: &[&str], stdin: Stdio, stdout: Stdio, stderr: Stdio) -> io::Result<Started> {
    let mut command = Command::new(SELF);
    command.args(words).env_clear().stdin(stdin).stdout(stdout).stderr(stderr);
    let mut exits = lock();
    let child = command.spawn()?;
    let pid = child.id() as i32;
    exits.insert(pid, None);
    ends().changed.notify_all();
    Ok(Started { pid })
}

impl Started {
    /// Its exit code, 128 and the signal's number where one ended it. None: it still runs after so long.
    pub fn wait(&self, limit: Option<Duration>) -> Option<i64> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut exits = lock();
        loop {
            if let Some(Some(code)) = exits.get(&self.pid) {
                return Some(*code);
            }
            let left =
                deadline.map_or(Duration::from_secs(3600), |d| d.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return None;
            }
            exits = ends().changed.wait_timeout(exits, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        lock().remove(&self.pid);
    }
}
