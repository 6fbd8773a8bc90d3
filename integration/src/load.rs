//! Clients that ask HTTP servers all the time, one after another request each, and write down every outcome. They run in a
//! guest's network namespace; everything else reads their log.
//!
//! A line of the log: `MILLISECONDS ok|fails ADDRESS:PORT [WHY]`, the time being the machine's since its boot when the request
//! began.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use amphi_api::InstanceId;
use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::lab::{Background, Lab};
use crate::probe::{own_or_lab_program, uptime_ms};
use crate::wait::{Seen, until};

/// Between two requests to one server.
pub const EVERY: Duration = Duration::from_millis(15);
/// Each server is called from so many ports in turn: the switch's own connection tracking does not take it well when a port
/// calls again whose last connection was reset (an assertion of ovs-vswitchd's).
const PORTS: u16 = 12_000;
const FIRST_PORT: u16 = 12_000;
/// One that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(1);

/// Asks until it is killed.
pub fn run(log: &Path, servers: &[SocketAddrV4]) -> Result<()> {
    let log = Mutex::new(File::create(log).with_context(|| format!("create {}", log.display()))?);
    let log = &log;
    std::thread::scope(|scope| {
        for (nth, server) in (0u16..).zip(servers) {
            scope.spawn(move || {
                for turn in (0..PORTS).cycle() {
                    let Ok(at) = uptime_ms() else { return };
                    let line = match ask(*server, FIRST_PORT + nth * PORTS + turn) {
                        Ok(()) => format!("{at} ok {server}\n"),
                        Err(why) => format!("{at} fails {server} {}\n", why.to_string().replace(' ', "_")),
                    };
                    let Ok(mut log) = log.lock() else { return };
                    if log.write_all(line.as_bytes()).is_err() {
                        return;
                    }
                    drop(log);
                    std::thread::sleep(EVERY);
                }
            });
        }
    });
    Ok(())
}

fn ask(server: SocketAddrV4, port: u16) -> std::io::Result<()> {
    let own = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&own, sockopt::ReuseAddr, &true)?;
    // Bounds connecting as well.
    setsockopt(&own, sockopt::SendTimeout, &TimeVal::seconds(LIMIT.as_secs() as i64))?;
    bind(own.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
    connect(own.as_raw_fd(), &SockaddrIn::from(server))?;
    let mut stream = TcpStream::from(own);
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    match answer.starts_with(b"HTTP/1.") && answer.windows(5).any(|w| w == b" 200 ") {
        true => Ok(()),
        false => Err(std::io::Error::new(ErrorKind::InvalidData, "no 200")),
    }
}

/// Clients that ask.
pub struct Load {
    log: PathBuf,
    _process: Background,
}

/// What one server answered in a while.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub good: usize,
    pub bad: usize,
    /// From the first request that failed to the first later one that was answered, in milliseconds.
    pub gap_ms: u64,
    pub why: Option<String>,
}

impl Load {
    /// Starts to ask from within a set that runs on `host`.
    pub fn start(lab: &Lab, host: &str, from: InstanceId, pid: i64, servers: &[String]) -> Result<Self> {
        let log = lab.layout().root().join(format!("load-{from}.log"));
        let _ = std::fs::remove_file(&log);
        let (namespace, program) = (format!("--net=/proc/{pid}/ns/net"), own_or_lab_program()?);
        let (path, program) = (log.to_string_lossy().into_owned(), program.to_string_lossy().into_owned());
        let mut argv = vec!["nsenter", &namespace, "--", &program, "load", &path];
        argv.extend(servers.iter().map(String::as_str));
        let load = Self { _process: lab.background(host, &argv)?, log };
        until("every server answers", Duration::from_secs(30), || {
            let silent: Vec<_> =
                servers.iter().filter(|s| load.tally(s, 0).is_ok_and(|t| t.good == 0)).collect();
            Ok(if silent.is_empty() { Seen::Enough(()) } else { Seen::Not(format!("{silent:?}")) })
        })?;
        Ok(load)
    }

    /// What came of requests that began at this moment or later.
    pub fn tally(&self, server: &str, since: u64) -> Result<Tally> {
        let text =
            std::fs::read_to_string(&self.log).with_context(|| format!("read {}", self.log.display()))?;
        Ok(tally(&text, server, since))
    }
}

fn tally(text: &str, server: &str, since: u64) -> Tally {
    let (mut found, mut from) = (Tally::default(), None);
    for line in text.lines() {
        let mut words = line.split(' ');
        let (Some(at), Some(word), Some(of)) = (words.next(), words.next(), words.next()) else { continue };
        let Ok(at) = at.parse::<u64>() else { continue };
        if of != server || at < since {
            continue;
        }
        if word == "ok" {
            found.good += 1;
            let gap = from.take().map_or(0, |from| at.saturating_sub(from));
            found.gap_ms = found.gap_ms.max(gap);
        } else {
            found.bad += 1;
            from.get_or_insert(at);
            found.why = words.next().map(str::to_owned);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_add_up() {
        let text = "1 ok a:80\n2 fails a:80 refused\n3 ok b:80\n4 fails a:80 reset\n9 ok a:80\n10 fa";
        let found = tally(text, "a:80", 0);
        assert_eq!(found, Tally { good: 2, bad: 2, gap_ms: 7, why: Some("reset".into()) });
        assert_eq!(tally(text, "b:80", 0).bad, 0);
        assert_eq!(tally(text, "a:80", 9), Tally { good: 1, ..Tally::default() });
    }
}
