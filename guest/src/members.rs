//! Owns the members' lives: their order, their starts and ends, what is known of each. One thread per member; all that
//! they know of each other stands in one table, and whoever changes it tells everybody.

use crate::launch::{Order, order_path, pid_of_exec, pid_of_member};
use crate::logs::{Log, now_us};
use crate::processes::{Started, start};
use crate::{calls, cgroup, probes};
use amphi_guest::config::{Guest, Member, Next};
use amphi_guest::words::{Exec, MemberState};
use std::fs;
use std::io;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The wait before a second start in a row; it doubles up to the longest, as hosts do it for sets.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// One that has run so long begins anew.
const SETTLED: Duration = Duration::from_secs(60);
/// What a member has for its orderly end where a restart is ordered and its description says nothing.
const GRACE: Duration = Duration::from_secs(10);
/// How long a started process may take to tell its number.
const TELL: Duration = Duration::from_secs(30);

/// What is known of all.
#[derive(Default)]
pub struct Table {
    pub members: Vec<Row>,
    pub stopping: bool,
    pub trouble: Option<String>,
    /// Counts the changes.
    pub changes: u64,
}

#[derive(Default)]
pub struct Row {
    pub state: MemberState,
    /// The member's first process, while it runs.
    pub pid: Option<i32>,
    /// Counts its starts.
    pub run: u64,
    /// It runs, and its `post_start` is done.
    started: bool,
    /// A restart is ordered.
    again: bool,
}

pub struct Members {
    pub guest: Guest,
    pub logs: Vec<Arc<Log>>,
    table: Mutex<Table>,
    changed: Condvar,
    execs: AtomicU32,
}

impl Members {
    pub fn new(guest: Guest) -> io::Result<Arc<Self>> {
        let log = |member: &Member| Log::open(&member.name, member.log_bytes, member.log_files);
        let logs = guest.members.iter().map(log).collect::<io::Result<Vec<_>>>()?;
        let row = |member: &Member| Row {
            state: MemberState { name: member.name.clone(), index: member.index, ..MemberState::default() },
            ..Row::default()
        };
        let table = Table { members: guest.members.iter().map(row).collect(), ..Table::default() };
        Ok(Arc::new(Self {
            guest,
            logs,
            table: Mutex::new(table),
            changed: Condvar::new(),
            execs: AtomicU32::new(0),
        }))
    }

    /// The table as it is.
    pub fn look(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the table and tells everybody.
    pub fn change<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        let mut table = self.look();
        let done = change(&mut table);
        table.changes += 1;
        self.changed.notify_all();
        done
    }

    /// Waits until `holds`, or so long. Whether it holds.
    pub fn wait(&self, limit: Option<Duration>, mut holds: impl FnMut(&Table) -> bool) -> bool {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut table = self.look();
        loop {
            if holds(&table) {
                return true;
            }
            let left =
                deadline.map_or(Duration::from_secs(3600), |d| d.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            table = self.changed.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The member's place; none named: the first.
    pub fn find(&self, name: Option<&str>) -> Result<usize, String> {
        let Some(name) = name else { return Ok(0) };
        let place = self.guest.members.iter().position(|member| member.name == name);
        place.ok_or_else(|| format!("the set has no member '{name}'"))
    }

    /// Lets all begin, each in its turn.
    pub fn begin(self: &Arc<Self>) {
        for at in 0..self.guest.members.len() {
            let members = self.clone();
            std::thread::spawn(move || members.live(at));
        }
    }

    /// Whether those before it let it begin.
    fn turn(&self, table: &Table, at: usize) -> bool {
        let done = |(row, member): (&Row, &Member)| match member.next {
            Next::Finished => row.state.finished && row.state.exit_code == Some(0),
            // One that has ended for good holds nobody up any more than one that runs.
            Next::Started => row.started || row.state.finished,
            Next::Ready => {
                let asked = member.startup.is_some() || member.readiness.is_some();
                if asked { row.state.ready == Some(true) } else { row.started || row.state.finished }
            }
        };
        table.members.iter().zip(&self.guest.members).take(at).all(done)
    }

    fn live(self: Arc<Self>, at: usize) {
        let member = &self.guest.members[at];
        self.wait(None, |table| table.stopping || self.turn(table, at));
        let mut wait = Duration::ZERO;
        loop {
            if self.look().stopping {
                return;
            }
            let begun = Instant::now();
            let killed = cgroup::out_of_memory(&member.name);
            let code = match self.start(at) {
                Ok(run) => self.follow(at, &run),
                Err(error) => {
                    self.change(|table| {
                        table.members[at].state.reason = Some(format!("it does not start: {error}"))
                    });
                    125
                }
            };
            // Whatever it has left behind goes with it.
            cgroup::kill(&member.name);
            let out_of_memory = cgroup::out_of_memory(&member.name) > killed;
            crate::say(&format!("member {} ended with {code}", member.name));
            let asked = member.startup.is_some() || member.readiness.is_some();
            let again = self.change(|table| {
                let stopping = table.stopping;
                let row = &mut table.members[at];
                row.pid = None;
                row.started = false;
                row.state.running = false;
                row.state.exit_code = Some(code);
                row.state.out_of_memory = out_of_memory;
                row.state.ready = asked.then_some(false);
                let ordered = std::mem::take(&mut row.again);
                row.state.finished = !ordered && !stopping && !member.restart.again(code);
                if ordered {
                    wait = Duration::ZERO
                }
                ordered
            });
            if self.look().members[at].state.finished {
                self.wait(None, |table| table.stopping || table.members[at].again);
                self.change(|table| table.members[at].again = false);
                wait = Duration::ZERO;
            } else if !again {
                wait = if begun.elapsed() > SETTLED {
                    Duration::ZERO
                } else {
                    (wait * 2).max(FIRST_WAIT).min(LONGEST_WAIT)
                };
                let early = self.wait(Some(wait), |table| table.stopping || table.members[at].again);
                if early {
                    self.change(|table| table.members[at].again = false);
                }
            }
            self.change(|table| table.members[at].state.restarts += 1);
        }
    }

    fn start(&self, at: usize) -> io::Result<Started> {
        let member = &self.guest.members[at];
        let pid_file = pid_of_member(&member.name);
        // Of its last start, or none.
        let _gone = fs::remove_file(&pid_file);
        let (out, out_end) = io::pipe()?;
        let (err, err_end) = io::pipe()?;
        let started = start(&["member", &member.name], Stdio::null(), out_end.into(), err_end.into())?;
        let log = &self.logs[at];
        log.collect(fs::File::from(std::os::fd::OwnedFd::from(out)), 1);
        log.collect(fs::File::from(std::os::fd::OwnedFd::from(err)), 2);
        let pid = told_pid(&pid_file, &started);
        self.change(|table| {
            let row = &mut table.members[at];
            row.pid = pid;
            row.run += 1;
            row.state.running = true;
            row.state.finished = false;
            row.state.started_at_us = Some(now_us());
            row.state.reason = None;
            let asked = member.startup.is_some() || member.readiness.is_some();
            row.state.ready = asked.then_some(false);
        });
        Ok(started)
    }

    /// From its start to its end.
    fn follow(self: &Arc<Self>, at: usize, run: &Started) -> i64 {
        let member = &self.guest.members[at];
        let number = self.look().members[at].run;
        if let Some(hook) = &member.post_start {
            match self.run_in(at, &hook.argv, Duration::from_secs(hook.timeout_s.into())) {
                Ok(0) => {}
                ended => {
                    let told = ended.map_or_else(|error| error, |code| format!("exit code {code}"));
                    self.end(at, number, &format!("its post_start failed: {told}"));
                    return run.wait(None).unwrap_or(137);
                }
            }
        }
        self.change(|table| table.members[at].started = true);
        probes::watch(self, at, number);
        run.wait(None).unwrap_or(137)
    }

    /// Ends a run by force, with a reason.
    pub fn end(&self, at: usize, run: u64, reason: &str) {
        let pid = self.change(|table| {
            let row = &mut table.members[at];
            if row.run != run {
                return None;
            }
            row.state.reason = Some(reason.to_owned());
            row.pid
        });
        if let Some(pid) = pid {
            // It may have ended by itself meanwhile.
            let _ended = calls::kill(pid, nix::libc::SIGKILL);
        }
    }

    /// Ends a member in an orderly way, within its grace; by force after it.
    fn stop(&self, at: usize, grace: Duration) {
        let member = &self.guest.members[at];
        let grace = member.grace_s.map_or(grace, |seconds| Duration::from_secs(seconds.into()));
        let deadline = Instant::now() + grace;
        let (pid, run) = {
            let table = self.look();
            (table.members[at].pid, table.members[at].run)
        };
        let Some(pid) = pid else { return };
        if let Some(hook) = &member.pre_stop {
            let limit = Duration::from_secs(hook.timeout_s.into()).min(grace);
            if let Err(error) = self.run_in(at, &hook.argv, limit) {
                crate::say(&format!("pre_stop of {}: {error}", member.name));
            }
        }
        // Both: it may have ended by itself meanwhile.
        let _ended = calls::kill(pid, member.stop_signal);
        let left = deadline.saturating_duration_since(Instant::now());
        if !self.wait(Some(left), |table| table.members[at].run != run || !table.members[at].state.running) {
            let _ended = calls::kill(pid, nix::libc::SIGKILL);
        }
        self.wait(Some(GRACE), |table| table.members[at].run != run || !table.members[at].state.running);
    }

    /// Ends it and lets it start again.
    pub fn restart(&self, at: usize) {
        let running = self.change(|table| {
            table.members[at].again = true;
            table.members[at].state.running
        });
        if running {
            self.stop(at, GRACE);
        }
    }

    /// Ends all, the last first. Each has its own grace, or its part of what is left for all.
    pub fn stop_all(&self) {
        if self.change(|table| std::mem::replace(&mut table.stopping, true)) {
            return;
        }
        let deadline = Instant::now() + Duration::from_secs(self.guest.grace_s.into());
        for at in (0..self.guest.members.len()).rev() {
            let left = deadline.saturating_duration_since(Instant::now());
            self.stop(at, left / (at as u32 + 1));
        }
    }

    /// Runs a command in a member, to its end. A word tells why there is no exit code.
    pub fn run_in(&self, at: usize, argv: &[String], limit: Duration) -> Result<i64, String> {
        let exec = Exec { argv: argv.to_vec(), ..Exec::default() };
        let (id, started) = self
            .start_in(at, &exec, Stdio::null(), Stdio::null(), Stdio::null())
            .map_err(|error| error.to_string())?;
        let code = started.wait(Some(limit));
        if code.is_none() {
            end_exec(&id, &started);
        }
        forget_exec(&id);
        code.ok_or_else(|| format!("it took longer than {} s", limit.as_secs()))
    }

    /// Starts a command in a member that runs. Its name, for [`end_exec`].
    pub fn start_in(
        &self,
        at: usize,
        exec: &Exec,
        stdin: Stdio,
        stdout: Stdio,
        stderr: Stdio,
    ) -> io::Result<(String, Started)> {
        let member = self.guest.members[at].name.clone();
        let pid = self.look().members[at].pid;
        let pid = pid.ok_or_else(|| io::Error::other(format!("member '{member}' does not run")))?;
        let id = self.execs.fetch_add(1, Ordering::Relaxed).to_string();
        let order = Order { member, pid, exec: exec.clone() };
        fs::write(order_path(&id), serde_json::to_vec(&order)?)?;
        let started = start(&["exec", &id], stdin, stdout, stderr)?;
        Ok((id, started))
    }
}

/// The number that a starting process writes down for the one that it has started.
fn told_pid(path: &str, started: &Started) -> Option<i32> {
    let deadline = Instant::now() + TELL;
    loop {
        if let Some(pid) = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()) {
            return Some(pid);
        }
        if Instant::now() > deadline || started.wait(Some(Duration::from_millis(5))).is_some() {
            return fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
        }
    }
}

/// Ends a command with all of its session's group.
pub fn end_exec(id: &str, started: &Started) {
    // What has ended by itself is not there to be ended.
    if let Some(pid) = told_pid(&pid_of_exec(id), started) {
        let _ended = calls::kill(-pid, nix::libc::SIGKILL);
        let _ended = calls::kill(pid, nix::libc::SIGKILL);
    }
    let _ended = calls::kill(started.pid, nix::libc::SIGKILL);
}

/// Removes what its start needed.
pub fn forget_exec(id: &str) {
    for path in [order_path(id), pid_of_exec(id)] {
        // The second one is there only if it was started.
        let _gone = fs::remove_file(path);
    }
}
