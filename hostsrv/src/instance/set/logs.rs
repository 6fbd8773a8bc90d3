//! A member's output as it is written, over its restarts: Docker's own following ends with each, so it is begun again
//! after the last line that was seen, until nothing of the member is left.

use super::observed::{Part, PartState};
use super::shared::Shared;
use super::succession::standing;
use crate::instance::DriverError;
use crate::instance::streams::{Bare, Opened, Piece};
use amphi_api::InstanceId;
use amphi_api::streams::{LogsSpec, STDERR, STDOUT};
use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptionsBuilder;
use bytes::Bytes;
use futures_util::StreamExt;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often a member that does not run is looked for.
const LOOK: Duration = Duration::from_millis(300);
/// Read ahead, in lines.
const AHEAD: usize = 64;

type Pieces = mpsc::Sender<Result<Piece, DriverError>>;

/// `part` is the member's as it is now.
pub fn open(shared: &Arc<Shared>, instance: InstanceId, part: Part, spec: &LogsSpec) -> Opened {
    let (pieces, output) = mpsc::channel(AHEAD);
    let follow = Follow {
        shared: shared.clone(),
        instance,
        spec: spec.clone(),
        seen: Seen::default(),
        lines: Lines::default(),
    };
    // Ends when nobody takes the pieces.
    tokio::spawn(async move {
        let closed = pieces.clone();
        tokio::select! {
            () = follow.run(part, pieces) => {}
            () = closed.closed() => {}
        }
    });
    let output =
        futures_util::stream::unfold(output, |mut output| async { Some((output.recv().await?, output)) });
    Opened { input: None, output: output.boxed(), inside: Box::new(Bare) }
}

struct Follow {
    shared: Arc<Shared>,
    instance: InstanceId,
    spec: LogsSpec,
    seen: Seen,
    lines: Lines,
}

/// How far the reading has come. Docker gives all parts of a long line the time of its first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// Of the last part that was handed on.
    last: Option<Timestamp>,
    /// How many parts of that time were handed on.
    parts: usize,
}

/// Begins again after what was seen: which of the parts that are told once more are new.
struct Again {
    from: Seen,
}

impl Again {
    fn is_new(&mut self, time: Timestamp) -> bool {
        match self.from.last {
            Some(last) if time < last => false,
            Some(last) if time == last && self.from.parts > 0 => {
                self.from.parts -= 1;
                false
            }
            _ => true,
        }
    }
}

impl Seen {
    fn note(&mut self, time: Timestamp) {
        self.parts = if self.last == Some(time) { self.parts + 1 } else { 1 };
        self.last = Some(time);
    }
}

/// Which channels are in the middle of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lines {
    within: [bool; 3],
}

impl Lines {
    /// The part with its time in front, where a line begins.
    fn timed(&mut self, channel: u8, time: Option<Timestamp>, part: Bytes) -> Bytes {
        let within = &mut self.within[usize::from(channel.min(2))];
        let begins = !std::mem::replace(within, !part.ends_with(b"\n"));
        match time {
            Some(time) if begins => [format!("{time:.9} ").as_bytes(), &part].concat().into(),
            _ => part,
        }
    }
}

impl Follow {
    async fn run(mut self, mut part: Part, pieces: Pieces) {
        let mut tail = self.spec.tail;
        loop {
            match self.read(&part.id, tail, &pieces).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) if !self.spec.follow => {
                    let _ = pieces.send(Err(error)).await;
                    return;
                }
                // A dockerd that restarts, a container that is just being replaced: what is there next tells.
                Err(error) => tracing::debug!(%error, "output is followed again"),
            }
            if !self.spec.follow {
                return;
            }
            tail = None;
            match self.next(&part).await {
                Ok(Some(next)) => part = next,
                Ok(None) => return,
                Err(error) => {
                    let _ = pieces.send(Err(error)).await;
                    return;
                }
            }
        }
    }

    /// Everything after the last line, until the container ends. False: nobody listens.
    async fn read(&mut self, id: &str, tail: Option<u32>, pieces: &Pieces) -> Result<bool, DriverError> {
        let engine = &self.shared.engine;
        let doing = format!("follow the output of container {id}");
        // Whole seconds: lines of the same second are told apart below.
        let from = self.seen.last.or(self.spec.since);
        let since = from.map_or(0, |from| i32::try_from(from.as_second()).unwrap_or(i32::MAX));
        let mut again = Again { from: self.seen };
        let options = LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .timestamps(true)
            .follow(self.spec.follow)
            .since(since)
            .tail(&tail.map_or("all".to_owned(), |n| n.to_string()))
            .build();
        let client = engine.client(&doing)?;
        let mut lines = std::pin::pin!(client.logs(id, Some(options)));
        while let Some(line) = lines.next().await {
            let line = line.map_err(|error| super::engine::refusal(&doing, error))?;
            let channel = if matches!(line, LogOutput::StdErr { .. }) { STDERR } else { STDOUT };
            let (time, bytes) = stamped(line.into_bytes());
            if let Some(time) = time {
                if self.spec.since.is_some_and(|since| time < since) || !again.is_new(time) {
                    continue;
                }
                self.seen.note(time);
            }
            let bytes = if self.spec.timestamps { self.lines.timed(channel, time, bytes) } else { bytes };
            if pieces.send(Ok(Piece { channel, bytes })).await.is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until the member runs again, perhaps as another container. None: nothing of it is left.
    async fn next(&self, before: &Part) -> Result<Option<Part>, DriverError> {
        let name = before.tag.role.member().map(|(_, name)| name.to_owned());
        let mut errors = 0;
        loop {
            match self.shared.collect(Some(self.instance)).await {
                Ok(parts) => {
                    errors = 0;
                    let same = |part: &&Part| {
                        part.is_rescuer() == before.is_rescuer()
                            && part.tag.role.member().map(|(_, name)| name) == name.as_deref()
                    };
                    let newest = parts.iter().filter(same).map(|part| part.tag.epoch).max();
                    let mine: Vec<&Part> =
                        parts.iter().filter(same).filter(|part| Some(part.tag.epoch) == newest).collect();
                    let Some(part) = standing(&mine).present else { return Ok(None) };
                    let again = part.id != before.id || part.detail.started_us != before.detail.started_us;
                    if part.state == PartState::Running || (again && part.state == PartState::Ended) {
                        return Ok(Some(part.clone()));
                    }
                }
                // As long as an engine may take to restart.
                Err(error) if errors > 100 => return Err(error),
                Err(_) => errors += 1,
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// A line's time, and the line without it. Docker puts it in front, with a blank.
fn stamped(mut line: Bytes) -> (Option<Timestamp>, Bytes) {
    let at = line.iter().take(40).position(|b| *b == b' ');
    let time = at.and_then(|at| std::str::from_utf8(&line[..at]).ok()?.parse().ok());
    if let (Some(_), Some(at)) = (time, at) {
        line = line.slice(at + 1..);
    }
    (time, line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_handed_on_is_not_told_again_and_no_part_is_lost() {
        let time = |second| Timestamp::from_second(second).unwrap();
        let mut seen = Seen::default();
        // A line of three parts, of one time; the reading breaks off after two of them.
        for second in [1, 2, 2] {
            assert!(Again { from: Seen::default() }.is_new(time(second)));
            seen.note(time(second));
        }
        let mut again = Again { from: seen };
        let new: Vec<bool> = [1, 2, 2, 2, 3, 3].map(|second| again.is_new(time(second))).to_vec();
        assert_eq!(new, [false, false, false, true, true, true]);
    }

    #[test]
    fn a_line_has_one_time_whatever_its_parts() {
        let mut lines = Lines::default();
        let time = "2026-01-02T03:04:05Z".parse().ok();
        let mut told = |channel, part: &'static str| {
            String::from_utf8(lines.timed(channel, time, Bytes::from_static(part.as_bytes())).to_vec())
                .unwrap()
        };
        assert_eq!(told(STDOUT, "a"), "2026-01-02T03:04:05.000000000Z a");
        assert_eq!(told(STDERR, "x\n"), "2026-01-02T03:04:05.000000000Z x\n", "another channel's line");
        assert_eq!(told(STDOUT, "b\n"), "b\n");
        assert_eq!(told(STDOUT, "c\n"), "2026-01-02T03:04:05.000000000Z c\n");
    }

    #[test]
    fn times_in_front_of_lines() {
        let (time, line) = stamped(Bytes::from_static(b"2026-01-02T03:04:05.123456789Z a line\n"));
        assert_eq!((time.map(|t| t.subsec_nanosecond()), &line[..]), (Some(123_456_789), &b"a line\n"[..]));
        let (time, line) = stamped(Bytes::from_static(b"no time here\n"));
        assert_eq!((time, &line[..]), (None, &b"no time here\n"[..]));
        let (time, line) = stamped(Bytes::from_static(b"2026-01-02T03:04:05Z \n"));
        assert!(time.is_some() && &line[..] == b"\n");
    }
}
