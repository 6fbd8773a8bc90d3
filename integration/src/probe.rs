//! One voice that asks many addresses by ping, all the time, and writes down when each began to answer, fell silent,
//! answered twice, or called by itself. It runs in a guest's network namespace; everything else reads its log.
//!
//! A line of the log: `MILLISECONDS WORD ADDRESS`, the time being the machine's since its boot (`/proc/uptime`), so that
//! all processes of the machine mean the same by it.
//! - `answers`: the first answer ever, or after a silence.
//! - `silent`: no answer since this moment, and longer than [`SILENCE`].
//! - `twice`: a second answer to one question: two bodies have this address.
//! - `calls`: a question came from this address (at most one line in [`CALLS`]).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use amphi_api::InstanceId;
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recvfrom, sendto, setsockopt,
    socket, sockopt,
};

use crate::lab::{Background, Lab, own_program};
use crate::wait::{Seen, until};

/// Between two questions to one address.
pub const EVERY: Duration = Duration::from_millis(50);
/// Without an answer for so long an address counts as silent.
const SILENCE: Duration = Duration::from_millis(300);
/// Between two lines that say that an address calls.
const CALLS: Duration = Duration::from_millis(100);
/// An answer may come so much later than its question, at most.
const LATE: usize = 64;

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;

/// Milliseconds since the machine's boot.
pub fn uptime_ms() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/uptime").context("read /proc/uptime")?;
    let seconds: f64 = text.split(' ').next().unwrap_or_default().parse().context("/proc/uptime")?;
    Ok((seconds * 1000.0) as u64)
}

#[derive(Default)]
struct Heard {
    last: Option<u64>,
    answering: bool,
    called: Option<u64>,
    /// Which of the newest questions were answered, by sequence number modulo [`LATE`].
    answered: Vec<Option<u16>>,
}

/// Asks until it is killed. `log` is written a line at a time.
pub fn run(log: &Path, addresses: &[Ipv4Addr]) -> Result<()> {
    let mut log = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket =
        socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp).context("a raw socket")?;
    setsockopt(&socket, sockopt::RcvBuf, &(4 << 20)).context("room for answers")?;
    let id = std::process::id() as u16;
    let blank = || Heard { answered: vec![None; LATE], ..Heard::default() };
    let mut heard: BTreeMap<Ipv4Addr, Heard> = addresses.iter().map(|a| (*a, blank())).collect();
    let mut sequence: u16 = 0;
    loop {
        let round = Instant::now();
        for address in addresses {
            // An address whose neighbour is not known yet gives an error now and an answer later.
            let _ = ask(&socket, *address, id, sequence);
        }
        while round.elapsed() < EVERY {
            listen(&socket, id, &mut heard, &mut log)?;
            std::thread::sleep(Duration::from_millis(2));
        }
        let now = uptime_ms()?;
        for (address, heard) in heard.iter_mut().filter(|(_, h)| h.answering) {
            let last = heard.last.unwrap_or(now);
            if now.saturating_sub(last) > SILENCE.as_millis() as u64 {
                heard.answering = false;
                writeln!(log, "{last} silent {address}").context("write the log")?;
            }
        }
        sequence = sequence.wrapping_add(1);
    }
}

fn ask(socket: &OwnedFd, to: Ipv4Addr, id: u16, sequence: u16) -> nix::Result<usize> {
    let mut packet = [ECHO_REQUEST, 0, 0, 0, 0, 0, 0, 0, b'a', b'm', b'p', b'h', b'i', b'!', b'!', b'!'];
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    let sum = checksum(&packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    let address = SockaddrIn::from(SocketAddrV4::new(to, 0));
    sendto(socket.as_raw_fd(), &packet, &address, MsgFlags::MSG_DONTWAIT)
}

/// RFC 1071.
fn checksum(packet: &[u8]) -> u16 {
    let words = packet.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], *w.get(1).unwrap_or(&0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn listen(socket: &OwnedFd, id: u16, heard: &mut BTreeMap<Ipv4Addr, Heard>, log: &mut File) -> Result<()> {
    let mut buffer = [0; 2048];
    loop {
        let length = match recvfrom::<SockaddrIn>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, _)) => length,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            Err(error) => return Err(error).context("hear answers"),
        };
        let Some((from, kind, their_id, sequence)) = parse(&buffer[..length]) else { continue };
        let Some(one) = heard.get_mut(&from) else { continue };
        let now = uptime_ms()?;
        let word = match kind {
            ECHO_REQUEST if one.called.is_none_or(|at| now >= at + CALLS.as_millis() as u64) => {
                one.called = Some(now);
                "calls"
            }
            ECHO_REPLY if their_id == id => {
                let slot = &mut one.answered[usize::from(sequence) % LATE];
                let twice = slot.replace(sequence) == Some(sequence);
                one.last = Some(now);
                let first = !std::mem::replace(&mut one.answering, true);
                match (twice, first) {
                    (true, _) => "twice",
                    (false, true) => "answers",
                    (false, false) => continue,
                }
            }
            _ => continue,
        };
        writeln!(log, "{now} {word} {from}").context("write the log")?;
    }
}

/// Sender, type, identifier and sequence number of an echo.
fn parse(packet: &[u8]) -> Option<(Ipv4Addr, u8, u16, u16)> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let from: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    let echo = packet.get(header..header + 8)?;
    let number = |at: usize| u16::from_be_bytes([echo[at], echo[at + 1]]);
    Some((from.into(), echo[0], number(4), number(6)))
}

/// A probe that runs.
pub struct Probe {
    log: PathBuf,
    _process: Background,
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub at: u64,
    pub word: String,
    pub address: String,
}

impl Probe {
    /// Starts to ask from within a set that runs on `host`.
    pub fn start(
        lab: &Lab,
        host: &str,
        instance: InstanceId,
        member: &str,
        addresses: &[String],
    ) -> Result<Self> {
        let container = format!("amphi-{instance}-{member}");
        let pid = lab.run(
            host,
            &[
                "/usr/bin/docker",
                "-H",
                "unix:///run/docker.sock",
                "inspect",
                "-f",
                "{{.State.Pid}}",
                &container,
            ],
        )?;
        let log = lab.layout().root().join(format!("probe-{instance}.log"));
        let _ = std::fs::remove_file(&log);
        let (namespace, program) = (format!("--net=/proc/{}/ns/net", pid.trim()), own_or_lab_program()?);
        let (path, program) = (log.to_string_lossy().into_owned(), program.to_string_lossy().into_owned());
        let mut argv = vec!["nsenter", &namespace, "--", &program, "probe", &path];
        argv.extend(addresses.iter().map(String::as_str));
        let process = lab.background(host, &argv)?;
        let probe = Self { log, _process: process };
        until("the probe has begun", Duration::from_secs(20), || {
            Ok(if probe.log.exists() { Seen::Enough(()) } else { Seen::Not("no log".to_owned()) })
        })?;
        Ok(probe)
    }

    pub fn lines(&self) -> Result<Vec<Line>> {
        let text =
            std::fs::read_to_string(&self.log).with_context(|| format!("read {}", self.log.display()))?;
        // The last line may be half written.
        let whole = &text[..text.rfind('\n').map_or(0, |at| at + 1)];
        whole.lines().map(line).collect()
    }

    /// Waits until all of these answer; said by the last word about each.
    pub fn all_answer(&self, addresses: &[String], limit: Duration) -> Result<()> {
        until("every address answers", limit, || {
            let lines = self.lines()?;
            let last = |address: &String| {
                let mut of = lines.iter().filter(|l| l.address == *address);
                of.rfind(|l| matches!(l.word.as_str(), "answers" | "silent")).map(|l| l.word.clone())
            };
            let missing: Vec<_> =
                addresses.iter().filter(|a| last(a).as_deref() != Some("answers")).cloned().collect();
            Ok(if missing.is_empty() { Seen::Enough(()) } else { Seen::Not(format!("silent: {missing:?}")) })
        })
    }

    /// When the address answered again for the first time after it fell silent later than `since` (or shortly before it:
    /// its last answer may be a little older). None: it has not.
    pub fn answered_after(&self, address: &str, since: u64) -> Result<Option<u64>> {
        let lines = self.lines()?;
        let own: Vec<&Line> = lines.iter().filter(|l| l.address == address).collect();
        let silent =
            own.iter().position(|l| l.word == "silent" && l.at + SILENCE.as_millis() as u64 >= since);
        let Some(silent) = silent else { return Ok(None) };
        Ok(own[silent..].iter().find(|l| l.word == "answers").map(|l| l.at))
    }

    /// Words of this kind about an address from a moment on.
    pub fn count(&self, word: &str, address: &str, since: u64) -> Result<usize> {
        let lines = self.lines()?;
        Ok(lines.iter().filter(|l| l.word == word && l.address == address && l.at >= since).count())
    }
}

/// The lab's program, also from a test's process: both lie in the same directory, or one above.
fn own_or_lab_program() -> Result<PathBuf> {
    let own = own_program()?;
    let name = "amphi-lab";
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not beside {}", own.display()))
}

fn line(text: &str) -> Result<Line> {
    let mut words = text.split(' ');
    let (at, word, address) = (words.next(), words.next(), words.next());
    ensure!(address.is_some(), "a line of the probe that is none: {text}");
    Ok(Line {
        at: at.unwrap_or_default().parse().with_context(|| format!("the time of {text:?}"))?,
        word: word.unwrap_or_default().to_owned(),
        address: address.unwrap_or_default().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echoes_are_read_and_summed() {
        let mut packet = vec![0x45; 20];
        packet[12..16].copy_from_slice(&[10, 9, 0, 7]);
        packet.extend([ECHO_REPLY, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(parse(&packet), Some((Ipv4Addr::new(10, 9, 0, 7), ECHO_REPLY, 0x102, 0x304)));
        assert_eq!(parse(&packet[..24]), None);
        // RFC 1071's own example.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(line("12 silent 10.0.0.1").unwrap().at, 12);
        assert!(line("12 silent").is_err());
    }
}
