//! One voice that asks many addresses by ping, all the time, and writes down when each began to answer, fell silent,
//! answered twice, or called by itself. It runs in a guest's network namespace; everything else reads its log.
//!
//! A line of the log: `MILLISECONDS WORD ADDRESS`, the time being the machine's since its boot, so that all processes of the
//! machine mean the same by it.
//! - `answers`: the first answer ever, or after a silence.
//! - `silent`: no answer since this moment, and longer than [`SILENCE`].
//! - `twice`: a second answer to one question: two bodies have this address.
//! - `calls`: a question came from this address; the number after it is the voice (see [`Voice`]).

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
use nix::time::{ClockId, clock_gettime};

use crate::lab::{Background, Lab, own_program};
use crate::wait::{Seen, until};

/// Between two questions to one address.
pub const EVERY: Duration = Duration::from_millis(50);
/// Without an answer for so long an address counts as silent.
const SILENCE: Duration = Duration::from_millis(300);
/// An answer may come so much later than its question, at most.
const LATE: usize = 64;

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;

/// Milliseconds since the machine's boot.
pub fn uptime_ms() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).context("ask the clock")?;
    Ok(time.tv_sec() as u64 * 1000 + time.tv_nsec() as u64 / 1_000_000)
}

#[derive(Default)]
struct Heard {
    last: Option<u64>,
    answering: bool,
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
        let Some(echo) = parse(&buffer[..length]) else { continue };
        let Some(one) = heard.get_mut(&echo.from) else { continue };
        let now = uptime_ms()?;
        let word = match echo.kind {
            ECHO_REQUEST => {
                writeln!(log, "{now} calls {} {}", echo.from, echo.voice).context("write the log")?;
                continue;
            }
            ECHO_REPLY if echo.id == id => {
                let slot = &mut one.answered[usize::from(echo.sequence) % LATE];
                let twice = slot.replace(echo.sequence) == Some(echo.sequence);
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
        writeln!(log, "{now} {word} {}", echo.from).context("write the log")?;
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Echo {
    from: Ipv4Addr,
    kind: u8,
    id: u16,
    sequence: u16,
    voice: u32,
}

fn parse(packet: &[u8]) -> Option<Echo> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let from: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    let echo = packet.get(header..)?;
    let number = |at: usize| Some(u16::from_be_bytes([*echo.get(at)?, *echo.get(at + 1)?]));
    let said = u32::try_from(echo.len().checked_sub(8)?).ok()?;
    let voice = said << 8 | u32::from(*packet.get(8)?);
    Some(Echo { from: from.into(), kind: echo[0], id: number(4)?, sequence: number(6)?, voice })
}

/// Who calls from an address: a number that each body draws when it starts (the length of what it says, times 256, and
/// the packet's time to live), so that two bodies of one address are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voice {
    pub number: u32,
    /// When it was heard, first and last, in milliseconds since the machine's boot.
    pub first: u64,
    pub last: u64,
    pub times: usize,
    /// How often it was heard after a later voice had begun, and how long after.
    pub late: usize,
    pub late_ms: u64,
}

/// The voices of an address, in the order in which they began.
fn voices(lines: &[Line], address: &str) -> Vec<Voice> {
    let mut found: Vec<Voice> = Vec::new();
    for line in lines.iter().filter(|l| l.word == "calls" && l.address == address) {
        let Some(number) = line.voice else { continue };
        let known = found.iter().position(|v| v.number == number);
        let next = known.and_then(|at| found.get(at + 1)).map(|v| v.first);
        match known {
            Some(at) => {
                let voice = &mut found[at];
                (voice.last, voice.times) = (line.at, voice.times + 1);
                if let Some(next) = next {
                    (voice.late, voice.late_ms) = (voice.late + 1, line.at.saturating_sub(next).max(1));
                }
            }
            None => {
                found.push(Voice { number, first: line.at, last: line.at, times: 1, late: 0, late_ms: 0 })
            }
        }
    }
    found
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
    /// Of a call.
    pub voice: Option<u32>,
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

    /// Those of them that do not answer now: said by the last word about each.
    pub fn silent(&self, addresses: &[String]) -> Result<Vec<String>> {
        let lines = self.lines()?;
        let last = |address: &String| {
            let mut of = lines.iter().filter(|l| l.address == *address);
            of.rfind(|l| matches!(l.word.as_str(), "answers" | "silent")).map(|l| l.word.clone())
        };
        Ok(addresses.iter().filter(|a| last(a).as_deref() != Some("answers")).cloned().collect())
    }

    /// Waits until all of these answer.
    pub fn all_answer(&self, addresses: &[String], limit: Duration) -> Result<()> {
        until("every address answers", limit, || {
            let missing = self.silent(addresses)?;
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

    /// Who has called from the address, the first one first.
    pub fn voices(&self, address: &str) -> Result<Vec<Voice>> {
        Ok(voices(&self.lines()?, address))
    }

    /// The longest silence of an address that began later than `since`, in milliseconds; one that lasts counts until now.
    pub fn longest_silence(&self, address: &str, since: u64) -> Result<u64> {
        let (lines, now) = (self.lines()?, uptime_ms()?);
        let own = || lines.iter().filter(|l| l.address == address && l.word != "calls" && l.word != "twice");
        let silences = own().enumerate().filter(|(_, l)| l.word == "silent" && l.at >= since);
        let lasted = |at: usize, from: u64| own().nth(at + 1).map_or(now, |l| l.at).saturating_sub(from);
        Ok(silences.map(|(at, line)| lasted(at, line.at)).max().unwrap_or(0))
    }

    /// Words of this kind about an address from a moment on.
    pub fn count(&self, word: &str, address: &str, since: u64) -> Result<usize> {
        let lines = self.lines()?;
        Ok(lines.iter().filter(|l| l.word == word && l.address == address && l.at >= since).count())
    }
}

/// The lab's program, also from a test's process: both lie in the same directory, or one above.
pub(crate) fn own_or_lab_program() -> Result<PathBuf> {
    let own = own_program()?;
    let name = "amphi-lab";
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not beside {}", own.display()))
}

fn line(text: &str) -> Result<Line> {
    let mut words = text.split(' ');
    let (at, word, address, voice) = (words.next(), words.next(), words.next(), words.next());
    ensure!(address.is_some(), "a line of the probe that is none: {text}");
    Ok(Line {
        at: at.unwrap_or_default().parse().with_context(|| format!("the time of {text:?}"))?,
        word: word.unwrap_or_default().to_owned(),
        address: address.unwrap_or_default().to_owned(),
        voice: voice.map(str::parse).transpose().with_context(|| format!("the voice of {text:?}"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echoes_are_read_and_summed() {
        let mut packet = vec![0x45; 20];
        packet[12..16].copy_from_slice(&[10, 9, 0, 7]);
        packet[8] = 5;
        packet.extend([ECHO_REPLY, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0]);
        let (from, voice) = (Ipv4Addr::new(10, 9, 0, 7), 3 << 8 | 5);
        let echo = Echo { from, kind: ECHO_REPLY, id: 0x102, sequence: 0x304, voice };
        assert_eq!(parse(&packet), Some(echo));
        assert_eq!(parse(&packet[..24]), None);
        // RFC 1071's own example.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(line("12 silent 10.0.0.1").unwrap().at, 12);
        assert!(line("12 silent").is_err());
    }

    #[test]
    fn a_voice_that_is_heard_after_its_successor_is_late() {
        let lines = |text: &str| text.lines().map(|l| line(l).unwrap()).collect::<Vec<_>>();
        let told = |text: &str| {
            let found = voices(&lines(text), "a");
            found.iter().map(|v| (v.number, v.times, v.late, v.late_ms)).collect::<Vec<_>>()
        };
        assert_eq!(told("1 calls a 7\n2 calls a 7\n2 calls b 7\n2 calls a 8"), [(7, 2, 0, 0), (8, 1, 0, 0)]);
        let overlapping = "1 calls a 7\n2 calls a 8\n2 calls a 7\n9 answers a\n9 calls a 7\n10 calls a 8";
        assert_eq!(told(overlapping), [(7, 3, 2, 7), (8, 2, 0, 0)]);
    }
}
