//! Owns what members are asked while they run, and what follows: one thread per run and probe, which ends with the run.

use crate::members::Members;
use amphi_guest::config::{Ask, Probe};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// Most bytes of an HTTP answer's first line.
const HEAD_MAX: usize = 256;

/// Counts answers: a change of mind takes so many in a row.
#[derive(Debug)]
struct Counted {
    failures: u32,
    successes: u32,
    row: u32,
    last: bool,
    pub holds: Option<bool>,
}

impl Counted {
    fn new(probe: &Probe) -> Self {
        let (failures, successes) = (probe.failures.max(1), probe.successes.max(1));
        Self { failures, successes, row: 0, last: false, holds: None }
    }

    /// Takes an answer; what holds now, if this changed it.
    fn take(&mut self, good: bool) -> Option<bool> {
        self.row = if self.row > 0 && self.last == good { self.row.saturating_add(1) } else { 1 };
        self.last = good;
        let enough = if good { self.successes } else { self.failures };
        if self.row < enough || self.holds == Some(good) {
            return None;
        }
        self.holds = Some(good);
        Some(good)
    }
}

/// Begins to ask about this run of a member.
pub fn watch(members: &Arc<Members>, at: usize, run: u64) {
    let members = members.clone();
    std::thread::spawn(move || {
        let member = &members.guest.members[at];
        if let Some(startup) = &member.startup {
            let mut held = false;
            repeat(&members, at, run, startup, |holds, why| {
                held = holds;
                if !holds {
                    members.end(at, run, &format!("its startup probe never held: {why}"));
                }
                false
            });
            if !held {
                return;
            }
        }
        if member.liveness.is_some() {
            let members = members.clone();
            std::thread::spawn(move || {
                let Some(liveness) = &members.guest.members[at].liveness else { return };
                repeat(&members, at, run, liveness, |holds, why| {
                    if !holds {
                        members.end(at, run, &format!("its liveness probe failed: {why}"));
                    }
                    holds
                });
            });
        }
        let ready = |holds: bool, why: &str| {
            members.change(|table| {
                let row = &mut table.members[at];
                if row.run == run && row.state.running {
                    row.state.ready = Some(holds);
                    row.state.reason = (!holds).then(|| format!("its readiness probe fails: {why}"));
                }
            });
            true
        };
        match &member.readiness {
            Some(readiness) => repeat(&members, at, run, readiness, ready),
            None if member.startup.is_some() => {
                ready(true, "");
            }
            None => {}
        }
    });
}

/// Asks as long as the run lasts and `told`, which is called whenever the answer has changed, says so.
fn repeat(members: &Members, at: usize, run: u64, probe: &Probe, mut told: impl FnMut(bool, &str) -> bool) {
    let over = |wait: Duration| {
        members.wait(Some(wait), |table| {
            table.stopping || table.members[at].run != run || !table.members[at].state.running
        })
    };
    let mut counted = Counted::new(probe);
    if over(Duration::from_secs(probe.initial_delay_s.into())) {
        return;
    }
    loop {
        let answer = ask(members, at, probe);
        // What ended while it was asked has not failed.
        if over(Duration::ZERO) {
            return;
        }
        let why = answer.as_ref().err().cloned().unwrap_or_default();
        if let Some(holds) = counted.take(answer.is_ok())
            && !told(holds, &why)
        {
            return;
        }
        if over(Duration::from_secs(probe.period_s.into())) {
            return;
        }
    }
}

fn ask(members: &Members, at: usize, probe: &Probe) -> Result<(), String> {
    let limit = Duration::from_secs(probe.timeout_s.into());
    match &probe.ask {
        Ask::Exec(argv) => match members.run_in(at, argv, limit)? {
            0 => Ok(()),
            code => Err(format!("exit code {code}")),
        },
        Ask::Tcp { address, port } => connect(*address, *port, limit).map(drop),
        Ask::Http { address, port, path } => http(*address, *port, path, limit),
    }
}

fn connect(address: IpAddr, port: u16, limit: Duration) -> Result<TcpStream, String> {
    let stream =
        TcpStream::connect_timeout(&SocketAddr::new(address, port), limit).map_err(|e| e.to_string())?;
    for set in [stream.set_read_timeout(Some(limit)), stream.set_write_timeout(Some(limit))] {
        set.map_err(|error| error.to_string())?;
    }
    Ok(stream)
}

/// A status from 200 to 399 holds.
fn http(address: IpAddr, port: u16, path: &str, limit: Duration) -> Result<(), String> {
    let mut stream = connect(address, port, limit)?;
    let host = SocketAddr::new(address, port);
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: amphi\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
    let mut head = Vec::new();
    let mut piece = [0; 64];
    while !head.contains(&b'\n') && head.len() < HEAD_MAX {
        match stream.read(&mut piece).map_err(|error| error.to_string())? {
            0 => break,
            length => head.extend_from_slice(&piece[..length]),
        }
    }
    status(&String::from_utf8_lossy(&head))
}

fn status(head: &str) -> Result<(), String> {
    let line = head.lines().next().unwrap_or_default();
    let code = line
        .strip_prefix("HTTP/")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|c| c.parse::<u16>().ok());
    match code {
        Some(200..=399) => Ok(()),
        Some(code) => Err(format!("status {code}")),
        None => Err("no HTTP answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_mind_takes_so_many_in_a_row() {
        let probe = Probe {
            ask: Ask::Exec(Vec::new()),
            initial_delay_s: 0,
            period_s: 1,
            timeout_s: 1,
            failures: 2,
            successes: 2,
        };
        let mut counted = Counted::new(&probe);
        let told: Vec<_> = [true, false, true, true, true, false, true, false, false, false]
            .map(|good| counted.take(good))
            .into();
        let nothing = None;
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(told, [nothing, nothing, nothing, yes, nothing, nothing, nothing, nothing, no, nothing]);
    }

    #[test]
    fn statuses() {
        for (head, good) in [
            ("HTTP/1.1 200 OK\r\n", true),
            ("HTTP/1.0 399\r\n", true),
            ("HTTP/1.1 404 Not Found", false),
            ("HTTP/1.1", false),
            ("SSH-2.0-x\r\n", false),
            ("", false),
        ] {
            assert_eq!(status(head).is_ok(), good, "{head:?}");
        }
    }
}
