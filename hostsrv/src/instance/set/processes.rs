//! Ends what a command started. Docker has no such call, so it is done by the host's own process table: a command that is
//! run in a member is the leader of a session of its own, and what it starts is in that session, or below it. Refuses to
//! touch anything that began at another time than was written down: process ids are used again.

use crate::facts::boot;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

/// After a hang-up, processes have this long to end by themselves.
const GRACE: Duration = Duration::from_secs(1);
/// And then this long until the kernel has taken them.
const KILL: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// The first process of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leader {
    pub pid: i32,
    /// In the kernel's ticks since it started (proc(5), `starttime`).
    pub began: u64,
}

/// One line of the process table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    parent: i32,
    session: i32,
    began: u64,
    zombie: bool,
}

impl Process {
    /// `/proc/PID/stat` (proc(5)): the name may hold anything, so fields are counted from its last parenthesis.
    fn read(stat: &str) -> Option<Self> {
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(Self {
            zombie: matches!(*fields.first()?, "Z" | "X"),
            parent: fields.get(1)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            began: fields.get(19)?.parse().ok()?,
        })
    }
}

impl Leader {
    /// None: there is no such process.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, began: Process::read(&stat)?.began })
    }

    /// As it is written down, with the boot that it is of.
    pub fn write(&self) -> String {
        format!("{} {} {}\n", boot(), self.pid, self.began)
    }

    /// None: of another boot, or not written by us.
    pub fn read(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let same = words.next()? == boot();
        let (pid, began) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        same.then_some(Self { pid, began })
    }

    /// Ends its session and all below it: a hang-up first, as when a terminal goes away, then by force.
    pub async fn end_session(self) {
        let looked = |at: tokio::time::Instant| tokio::time::Instant::now() < at;
        for (signals, limit) in [([Signal::SIGHUP, Signal::SIGCONT], GRACE), ([Signal::SIGKILL; 2], KILL)] {
            let until = tokio::time::Instant::now() + limit;
            let mut told = BTreeSet::new();
            while looked(until) {
                let found = tokio::task::spawn_blocking(move || members(&table(), self)).await;
                let Ok(found) = found else { return };
                if found.is_empty() {
                    return;
                }
                for pid in found {
                    // A hang-up is heard once; force is used until nothing is left, for what was forked meanwhile.
                    if told.insert(pid) || signals[0] == Signal::SIGKILL {
                        for signal in signals {
                            let _ = kill(Pid::from_raw(pid), signal);
                        }
                    }
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        tracing::warn!(pid = self.pid, "what a command started does not end");
    }
}

fn table() -> BTreeMap<i32, Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let read = |pid: i32| std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok();
    pids.filter_map(|pid| Some((pid, Process::read(&read(pid)?)?))).collect()
}

/// Those of the leader's session, and all below any of them, that still run.
fn members(table: &BTreeMap<i32, Process>, leader: Leader) -> Vec<i32> {
    // The number of a session is not given to another process while one of the session lives; without its leader it is
    // still the same session. With another leader of the same number it is not.
    if table.get(&leader.pid).is_some_and(|process| process.began != leader.began) {
        return Vec::new();
    }
    let mut found: BTreeSet<i32> =
        table.iter().filter(|(_, process)| process.session == leader.pid).map(|(pid, _)| *pid).collect();
    loop {
        let below =
            table.iter().filter(|(pid, process)| !found.contains(pid) && found.contains(&process.parent));
        let below: Vec<i32> = below.map(|(pid, _)| *pid).collect();
        if below.is_empty() {
            break;
        }
        found.extend(below);
    }
    found.into_iter().filter(|pid| !table[pid].zombie).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_whatever_the_name() {
        let stat = "12 (a) b) (c) S 7 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        let process = Process::read(stat).unwrap();
        assert_eq!(process, Process { parent: 7, session: 12, began: 4711, zombie: false });
        assert_eq!(Process::read("12 (x"), None);
    }

    #[test]
    fn a_session_is_what_is_in_it_and_below() {
        let process = |parent, session, zombie| Process { parent, session, began: 100, zombie };
        let table = BTreeMap::from([
            (1, process(0, 1, false)),
            (10, process(1, 10, false)),
            (11, process(10, 10, false)),
            (12, process(11, 12, false)),
            (13, process(12, 12, true)),
            // Its parent ended: it belongs to the session still.
            (14, process(1, 10, false)),
            (20, process(1, 20, false)),
        ]);
        let leader = Leader { pid: 10, began: 100 };
        assert_eq!(members(&table, leader), [10, 11, 12, 14]);
        assert_eq!(members(&table, Leader { began: 99, ..leader }), [0; 0], "another process of that number");
        let mut orphaned = table.clone();
        orphaned.remove(&10);
        assert_eq!(members(&orphaned, leader), [11, 12, 14], "the leader has ended");
    }

    #[test]
    fn what_is_written_down_is_of_this_boot() {
        let leader = Leader::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert_eq!(Leader::read(&leader.write()), Some(leader));
        assert_eq!(Leader::read("other-boot 1 2\n"), None);
        assert_eq!(Leader::read(""), None);
    }

    #[tokio::test]
    async fn a_session_ends_even_if_it_does_not_listen() {
        let script = "trap '' HUP; sleep 1000 & (trap '' HUP; sleep 1001) & wait";
        let mut child =
            tokio::process::Command::new("setsid").args(["/bin/sh", "-c", script]).spawn().unwrap();
        let pid = i32::try_from(child.id().unwrap()).unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while members(&table(), Leader::of(pid).unwrap()).len() < 3 {
            assert!(tokio::time::Instant::now() < deadline, "it does not begin");
            tokio::time::sleep(LOOK).await;
        }
        let leader = Leader::of(pid).unwrap();
        leader.end_session().await;
        child.wait().await.unwrap();
        assert_eq!(members(&table(), leader), [0; 0]);
    }
}
