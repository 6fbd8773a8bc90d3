//! `amphi logs`: what members write, on this terminal. Of several, each line whole, with its member's name in front.

use super::looking_in::{Ends, Play, play, since, speak};
use crate::failure::Failure;
use crate::session::Session;
use crate::terminal::{Escape, Typed};
use amphi_api::client::{BodyStream, Heard};
use amphi_api::instance::BodyKind;
use amphi_api::streams::{FromBody, LogsSpec, STDERR};
use jiff::Timestamp;
use std::io::Write;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Lines that wait for standard output.
const AHEAD: usize = 64;
/// Longest line that is kept whole, in bytes.
const LINE_MAX: usize = 8 << 20;

#[derive(clap::Args)]
pub struct Logs {
    instance: String,
    /// Go on with what is written from now on.
    #[arg(short, long)]
    follow: bool,
    /// The set's member, any number of times; default: its first.
    #[arg(short, long)]
    member: Vec<String>,
    /// All members of the set.
    #[arg(short, long, conflicts_with = "member")]
    all: bool,
    /// Begin with the last so many lines (of each member).
    #[arg(long, value_name = "LINES")]
    tail: Option<u32>,
    /// Only what is younger than this (`90s`, `10m`, `2h`), or than a time (RFC 3339).
    #[arg(long, value_parser = since)]
    since: Option<Timestamp>,
    /// Put its time in front of each line.
    #[arg(short, long)]
    timestamps: bool,
}

impl Logs {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        let instance = client.find_instance(&self.instance).await?;
        let Self { follow, member, all, tail, since, timestamps, .. } = self;
        let spec = |member: Option<String>| LogsSpec { member, follow, since, tail, timestamps };
        let members = match all && instance.body != BodyKind::Vm {
            true => instance.members.iter().map(|member| member.name.clone()).collect(),
            false => member,
        };
        if members.len() < 2 {
            let stream = client.logs(instance.id, &spec(members.into_iter().next())).await?;
            let play_as = Play { input: false, raw: false, escape: Escape::Never };
            return play(stream, play_as).await.map(drop);
        }
        let mut streams = Vec::new();
        for name in members {
            let stream = client.logs(instance.id, &spec(Some(name.clone()))).await?;
            streams.push((name, stream));
        }
        together(streams).await
    }
}

/// A line that is whole, of a channel.
type Line = (u8, Vec<u8>);

async fn together(streams: Vec<(String, BodyStream)>) -> Result<(), Failure> {
    let width = streams.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let (to, mut lines) = mpsc::channel::<Line>(AHEAD);
    let mut all = JoinSet::new();
    for (name, stream) in streams {
        let prefix = format!("{name:width$} | ");
        all.spawn(one(prefix, stream, to.clone()));
    }
    drop(to);
    // A pipe that nobody reads holds up this thread and no other.
    let (done, written) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut outcome = Ok(());
        while let Some((channel, line)) = lines.blocking_recv() {
            outcome = match channel {
                STDERR => std::io::stderr().write_all(&line),
                _ => std::io::stdout().lock().write_all(&line),
            };
            if outcome.is_err() {
                break;
            }
        }
        let _ = done.send(outcome.and_then(|()| std::io::stdout().flush()));
    });
    let mut ends = Ends::new()?;
    let mut outcome = Ok(());
    loop {
        tokio::select! {
            ended = all.join_next() => match ended {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(failure))) => outcome = Err(failure),
                Some(Err(error)) => outcome = Err(Failure::new(1, error.to_string())),
                None => break,
            },
            () = ends.any() => return Err(Failure::silent(130)),
        }
    }
    match written.await {
        Ok(Err(error)) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(1, format!("stdout: {error}")))
        }
        _ => outcome,
    }
}

async fn one(prefix: String, stream: BodyStream, to: mpsc::Sender<Line>) -> Result<(), Failure> {
    let (mut speaker, mut listener) = stream.split();
    let mut channels = [Lines::default(), Lines::default()];
    let hear = async {
        loop {
            match listener.next().await? {
                Some(Heard::Output(channel, bytes)) => {
                    for line in channels[usize::from(channel == STDERR)].take(&prefix, &bytes) {
                        if to.send((channel, line)).await.is_err() {
                            return Ok(());
                        }
                    }
                }
                Some(Heard::Word(FromBody::Opened)) => {}
                Some(Heard::Word(FromBody::Ended { .. })) => return Ok(()),
                Some(Heard::Word(FromBody::Failed { code, message })) => {
                    return Err(Failure::new(1, format!("{prefix}{code}: {message}")));
                }
                None => return Err(Failure::new(5, format!("{prefix}the controller let go of the stream"))),
            }
        }
    };
    let outcome = tokio::select! {
        heard = hear => heard,
        spoken = speak(&mut speaker, None, Typed::new(Escape::Never), false) => spoken.map_err(Failure::from),
    };
    for (channel, lines) in channels.iter_mut().enumerate() {
        if let Some(line) = lines.rest(&prefix) {
            let _ = to.send((if channel == 1 { STDERR } else { 0 }, line)).await;
        }
    }
    outcome
}

/// The beginning of a line whose end has not come.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// What is whole now, the prefix in front of each.
    fn take(&mut self, prefix: &str, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut whole = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.0.extend_from_slice(part);
            if part.ends_with(b"\n") || self.0.len() > LINE_MAX {
                whole.extend(self.rest(prefix));
            }
        }
        whole
    }

    /// What is there of a line; one that has no end is given one.
    fn rest(&mut self, prefix: &str) -> Option<Vec<u8>> {
        let mut line = std::mem::take(&mut self.0);
        if line.is_empty() {
            return None;
        }
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        Some([prefix.as_bytes(), &line].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_come() {
        let text = b"one\ntwo \xff\0three\n\nlast";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let mut out: Vec<Vec<u8>> =
                text.chunks(size).flat_map(|part| lines.take("web | ", part)).collect();
            out.extend(lines.rest("web | "));
            let whole: [&[u8]; 4] =
                [b"web | one\n", b"web | two \xff\0three\n", b"web | \n", b"web | last\n"];
            assert_eq!(out, whole, "in pieces of {size}");
            assert_eq!(lines.rest("x"), None);
        }
    }
}
