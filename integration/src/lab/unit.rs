//! What a node starts: daemons and one-off steps with what they wait for, as values; and the board that shows how far each is.
//! Refuses to restart anything by itself: whether a dead daemon comes back is the experiment's choice.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::processes::Processes;
use super::proto::{NodeStatus, UnitStatus};

/// How a daemon shows that it serves.
#[derive(Clone, Debug)]
pub enum Ready {
    /// Something accepts on this unix socket.
    Socket(&'static str),
    /// This command succeeds.
    Command(Vec<String>),
    /// The daemon has printed this line since it was started.
    Line(&'static str),
}

#[derive(Clone, Debug)]
pub struct Daemon {
    pub argv: Vec<String>,
    pub ready: Ready,
    /// Hands it the API's listening socket as file descriptor 3 (sd_listen_fds(3)).
    pub api_socket: bool,
    /// Is started again after a segmentation fault, as by the `--monitor` that Debian's units give to OVN's daemons.
    pub monitored: bool,
}

pub type Step = Box<dyn Fn(&Processes) -> Result<()> + Send + Sync>;

pub enum Work {
    Daemon(Daemon),
    Step(Step),
}

pub struct Unit {
    pub name: &'static str,
    pub after: &'static [&'static str],
    pub work: Work,
}

impl Unit {
    pub fn daemon(name: &'static str, after: &'static [&'static str], argv: &[&str], ready: Ready) -> Self {
        let argv = argv.iter().map(|a| (*a).to_owned()).collect();
        Self { name, after, work: Work::Daemon(Daemon { argv, ready, api_socket: false, monitored: false }) }
    }

    /// See [`Daemon::monitored`].
    pub fn monitored(mut self) -> Self {
        if let Work::Daemon(daemon) = &mut self.work {
            daemon.monitored = true;
        }
        self
    }

    pub fn step(
        name: &'static str,
        after: &'static [&'static str],
        step: impl Fn(&Processes) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { name, after, work: Work::Step(Box::new(step)) }
    }
}

/// `Ready::Command` from plain words.
pub fn command(argv: &[&str]) -> Ready {
    Ready::Command(argv.iter().map(|a| (*a).to_owned()).collect())
}

/// The state of each unit, in their order, and a bell that rings on every change.
#[derive(Clone)]
pub struct Board {
    node: String,
    shared: Arc<(Mutex<Vec<UnitStatus>>, Condvar)>,
}

impl Board {
    pub fn new(node: &str, units: &[Unit]) -> Self {
        let waiting = |u: &Unit| UnitStatus {
            node: node.to_owned(),
            name: u.name.to_owned(),
            state: "waiting".to_owned(),
            seconds: 0.0,
            pid: None,
            detail: String::new(),
        };
        Self {
            node: node.to_owned(),
            shared: Arc::new((Mutex::new(units.iter().map(waiting).collect()), Condvar::new())),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<UnitStatus>> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn status(&self) -> NodeStatus {
        NodeStatus { node: self.node.clone(), units: self.lock().clone() }
    }

    pub fn unit(&self, name: &str) -> Option<UnitStatus> {
        self.lock().iter().find(|u| u.name == name).cloned()
    }

    pub fn change(&self, name: &str, edit: impl FnOnce(&mut UnitStatus)) {
        if let Some(unit) = self.lock().iter_mut().find(|u| u.name == name) {
            edit(unit);
        }
        self.shared.1.notify_all();
    }

    /// Waits until all of `names` are up. False when one of them never will be.
    pub fn await_up(&self, names: &[&str]) -> bool {
        let mut units = self.lock();
        loop {
            let of_interest = || units.iter().filter(|u| names.contains(&u.name.as_str()));
            if of_interest().any(is_lost) {
                return false;
            }
            if of_interest().all(is_up) {
                return true;
            }
            units = self.shared.1.wait(units).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Hands every change to `each` until all units are up or one is lost; false in the latter case or when `each` says stop.
    pub fn follow(&self, mut each: impl FnMut(&UnitStatus) -> bool) -> bool {
        let mut seen: Vec<UnitStatus> = Vec::new();
        let mut units = self.lock();
        loop {
            let now = units.clone();
            drop(units);
            for unit in now.iter().filter(|u| !seen.contains(u)) {
                if !each(unit) {
                    return false;
                }
            }
            if now.iter().any(is_lost) {
                return false;
            }
            if now.iter().all(is_up) {
                return true;
            }
            seen = now;
            units = self.lock();
            if *units == seen {
                units = self.shared.1.wait(units).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

fn is_up(unit: &UnitStatus) -> bool {
    matches!(unit.state.as_str(), "ready" | "done")
}

fn is_lost(unit: &UnitStatus) -> bool {
    matches!(unit.state.as_str(), "failed" | "exited")
}

/// Tries `probe` until it says true. The error of `early` ends the wait.
pub fn poll(
    timeout: Duration,
    mut probe: impl FnMut() -> bool,
    mut early: impl FnMut() -> Result<()>,
) -> Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        if probe() {
            return Ok(true);
        }
        early()?;
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(15));
    }
}
