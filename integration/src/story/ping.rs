//! A ping that goes on until it is stopped, and what was lost of it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::guest::{DOCKER, Member};
use super::stage::SOON;
use crate::lab::Background;
use crate::wait::{Seen, until};

/// Between two packets.
pub const INTERVAL: Duration = Duration::from_millis(50);

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A ping that runs in a member.
pub struct Ping<'a> {
    from: Member<'a>,
    process: Background,
    file: String,
}

/// What became of its packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinged {
    pub sent: u32,
    pub received: u32,
    /// Packets without an answer, but for the very last one, whose answer may have been under way.
    pub lost: u32,
    /// Most packets lost in a row.
    pub longest: u32,
}

impl Pinged {
    /// How long at most no answer came.
    pub fn outage(&self) -> Duration {
        INTERVAL * self.longest
    }
}

impl<'a> Ping<'a> {
    /// Returns when the first packet is on its way.
    pub fn start(from: Member<'a>, address: &str) -> Result<Self> {
        let file = format!("/tmp/ping-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let script =
            format!("echo $$ >{file}.pid; exec ping -i {:.2} {address} >{file} 2>&1", INTERVAL.as_secs_f32());
        let argv = [DOCKER.as_slice(), &["exec", &from.container, "/bin/sh", "-c", &script]].concat();
        let process = from.lab.background(&from.host, &argv)?;
        until("the ping has begun", SOON, || {
            from.run(&format!("test -e {file}"))?;
            Ok(Seen::Enough(()))
        })?;
        Ok(Self { from, process, file })
    }

    /// Waits until this many more packets were answered: a while that is measured in the thing itself.
    pub fn hear(&self, more: u32) -> Result<()> {
        let heard = || -> Result<u32> {
            // grep fails when it counts none.
            let count = self.from.run(&format!("grep -c seq= {} || true", self.file))?;
            count.trim().parse().context("count answers")
        };
        let goal = heard()? + more;
        until(&format!("{goal} answers to the ping"), SOON, || {
            let now = heard()?;
            Ok(if now >= goal { Seen::Enough(()) } else { Seen::Not(format!("{now} answers")) })
        })
    }

    /// Ends it and counts.
    pub fn stop(self) -> Result<Pinged> {
        let (pid, file) = (format!("$(cat {}.pid)", self.file), &self.file);
        self.from.run(&format!("kill -INT {pid}"))?;
        let output = self.process.finish(SOON).context("the ping should end")?;
        let text = self.from.run(&format!("cat {file}"))?;
        parse(&text).with_context(|| format!("ping ended with {:?}", output.code))
    }
}

fn parse(text: &str) -> Result<Pinged> {
    let summary = text.lines().find(|l| l.contains("packets transmitted"));
    let summary = summary.with_context(|| {
        let tail: Vec<&str> = text.lines().rev().take(3).collect();
        format!("no statistics: {}", tail.join(" / "))
    })?;
    let sent: u32 = summary.split(' ').next().unwrap_or_default().parse().context("packets transmitted")?;
    let mut answered = vec![false; sent as usize];
    for line in text.lines() {
        let Some((_, rest)) = line.split_once("seq=") else { continue };
        let number: usize = rest.split(' ').next().unwrap_or_default().parse().context("sequence number")?;
        if let Some(slot) = answered.get_mut(number) {
            *slot = true;
        }
    }
    ensure!(sent > 0, "nothing was sent");
    let received = answered.iter().filter(|a| **a).count() as u32;
    // The last packet was perhaps sent as the ping was told to end.
    if answered.last() == Some(&false) {
        answered.pop();
    }
    let lost = answered.iter().filter(|a| !**a).count() as u32;
    let longest = answered.split(|a| *a).map(|gap| gap.len() as u32).max().unwrap_or(0);
    Ok(Pinged { sent, received, lost, longest })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(seqs: &[u32], sent: u32) -> String {
        let lines: Vec<String> =
            seqs.iter().map(|n| format!("64 bytes from 10.8.0.1: seq={n} ttl=64 time=0.045 ms")).collect();
        format!(
            "PING 10.8.0.1\n{}\n\n{sent} packets transmitted, {} packets received, 0% packet loss\n",
            lines.join("\n"),
            seqs.len()
        )
    }

    #[test]
    fn losses_are_counted_and_the_longest_is_the_outage() {
        let pinged = parse(&output(&[0, 1, 3, 7, 8], 10)).unwrap();
        assert_eq!(pinged, Pinged { sent: 10, received: 5, lost: 4, longest: 3 });
        assert_eq!(pinged.outage(), Duration::from_millis(150));
        assert_eq!(parse(&output(&[0, 1, 2], 3)).unwrap().lost, 0);
        // Only the last packet may be under way.
        assert_eq!(parse(&output(&[0, 1], 4)).unwrap().lost, 1);
        assert!(parse("ping: bad address").is_err());
    }
}
