//! `amphi cp`: files out of a set's member and into it, as tar archives. An archive out of a member is not trusted: nothing in
//! it may lead out of where it is unpacked.

mod archive;

use super::looking_in::{Ends, Play, play, speak};
use crate::failure::Failure;
use crate::session::Session;
use crate::terminal::{Escape, Typed};
use amphi_api::InstanceId;
use amphi_api::client::{BodyStream, Client, Heard, Listener, Speaker};
use amphi_api::looking::{CopySpec, CopyWay, FileFound};
use amphi_api::streams::{FromBody, PING_SECONDS, ToBody};
use archive::{Packed, Pieces, pack, unpack};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

/// Pieces that wait between the stream and the disk.
const AHEAD: usize = 16;

#[derive(clap::Args)]
#[command(
    after_help = "INSTANCE:/path is in a VM or a set's first member, INSTANCE:MEMBER:/path in another; `-` is a tar archive \
    on standard input or output.\nModes, links and, where both ends may, owners (by number) are kept."
)]
pub struct Copy {
    from: String,
    to: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    Stream,
    Here(PathBuf),
    There { instance: String, member: Option<String>, path: String },
}

fn place(text: &str) -> Place {
    if text == "-" {
        return Place::Stream;
    }
    let here = || Place::Here(PathBuf::from(text));
    if text.starts_with(['/', '.']) {
        return here();
    }
    match text.splitn(3, ':').collect::<Vec<_>>().as_slice() {
        [instance, path] if path.starts_with('/') => {
            Place::There { instance: (*instance).into(), member: None, path: (*path).into() }
        }
        [instance, member, path] if path.starts_with('/') && !member.starts_with('/') => Place::There {
            instance: (*instance).into(),
            member: Some((*member).into()),
            path: (*path).into(),
        },
        // A path that has a colon in it.
        [instance, first, rest] if first.starts_with('/') => {
            Place::There { instance: (*instance).into(), member: None, path: format!("{first}:{rest}") }
        }
        _ => here(),
    }
}

impl Copy {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let usage = |text: &str| Err(Failure::new(2, text.to_owned()));
        let client = session.client()?;
        match (place(&self.from), place(&self.to)) {
            (Place::There { instance, member, path }, to @ (Place::Here(_) | Place::Stream)) => {
                let spec = CopySpec { member, path, way: CopyWay::Out };
                spec.check()?;
                let instance = client.find_instance(&instance).await?;
                let stream = client.files(instance.id, &spec).await?;
                match to {
                    Place::Here(to) => out(stream, to).await,
                    _ => {
                        play(stream, Play { input: false, raw: false, escape: Escape::Never }).await.map(drop)
                    }
                }
            }
            (from @ (Place::Here(_) | Place::Stream), Place::There { instance, member, path }) => {
                let spec = CopySpec { member, path, way: CopyWay::In };
                spec.check()?;
                let id = client.find_instance(&instance).await?.id;
                match from {
                    Place::Here(from) => into(client, id, spec, from).await,
                    _ => {
                        let stream = client.files(id, &spec).await?;
                        play(stream, Play { input: true, raw: false, escape: Escape::Never }).await.map(drop)
                    }
                }
            }
            (Place::There { .. }, Place::There { .. }) => {
                usage("both are in instances; copy through here: amphi cp A:/x - | amphi cp - B:/y")
            }
            _ => usage("neither is in an instance; write INSTANCE:/path or INSTANCE:MEMBER:/path"),
        }
    }
}

/// How much has gone over, on a terminal.
fn progress(what: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    // The template is a constant that was tried; without it the bar is only plainer.
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {bytes} {bytes_per_sec}") {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(1, error.to_string())
}

async fn out(stream: BodyStream, to: PathBuf) -> Result<(), Failure> {
    let (mut speaker, mut listener) = stream.split();
    let (pieces, waiting) = mpsc::channel::<Bytes>(AHEAD);
    let unpack = tokio::task::spawn_blocking(move || unpack(Pieces { waiting, piece: Bytes::new() }, &to));
    let bar = progress("copied");
    let hear = async {
        let heard = hear(&mut listener, &bar, Some(&pieces)).await;
        drop(pieces);
        heard
    };
    let mut ends = Ends::new()?;
    let heard = tokio::select! {
        heard = hear => heard,
        spoken = speak(&mut speaker, None, Typed::new(Escape::Never), false) => spoken.map_err(Failure::from),
        () = ends.any() => Err(Failure::silent(130)),
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), speaker.close()).await;
    bar.finish_and_clear();
    let unpacked = unpack.await.map_err(failed)?;
    // An archive that was cut off cannot be unpacked either: why it was comes first.
    heard?;
    unpacked.map_err(|why| Failure::new(1, why))
}

/// Until the last word.
async fn hear(
    listener: &mut Listener,
    bar: &ProgressBar,
    pieces: Option<&mpsc::Sender<Bytes>>,
) -> Result<(), Failure> {
    loop {
        match listener.next().await? {
            Some(Heard::Output(_, bytes)) => {
                bar.inc(bytes.len() as u64);
                if let Some(pieces) = pieces
                    && pieces.send(bytes).await.is_err()
                {
                    // Unpacking has failed, and says why.
                    return Ok(());
                }
            }
            Some(Heard::Word(FromBody::Opened)) => {}
            Some(Heard::Word(FromBody::Ended { .. })) => return Ok(()),
            Some(Heard::Word(FromBody::Failed { code, message })) => {
                return Err(Failure::new(1, format!("{code}: {message}")));
            }
            None => return Err(Failure::new(5, "the controller let go of the stream")),
        }
    }
}

async fn look(client: &Client, id: InstanceId, spec: &CopySpec) -> Result<Option<FileFound>, Failure> {
    let (_speaker, mut listener) = client.files(id, spec).await?.split();
    let mut text = Vec::new();
    loop {
        match listener.next().await? {
            Some(Heard::Output(_, bytes)) => text.extend_from_slice(&bytes),
            Some(Heard::Word(FromBody::Opened)) => {}
            Some(Heard::Word(FromBody::Ended { .. })) => {
                return serde_json::from_slice(&text).map_err(failed);
            }
            Some(Heard::Word(FromBody::Failed { code, message })) => {
                return Err(Failure::new(1, format!("{code}: {message}")));
            }
            None => return Err(Failure::new(5, "the controller let go of the stream")),
        }
    }
}

/// The directory that takes the archive, and the name that the thing has there.
fn target(found: Option<&FileFound>, path: &str, own: &str) -> Result<(String, String), String> {
    if found.is_some_and(|found| found.directory) {
        return Ok((path.to_owned(), own.to_owned()));
    }
    if path.ends_with('/') {
        return Err(format!("{path}: there is no such directory"));
    }
    match path.rsplit_once('/') {
        Some(("", name)) => Ok(("/".to_owned(), name.to_owned())),
        Some((parent, name)) => Ok((parent.to_owned(), name.to_owned())),
        None => Err(format!("{path}: not absolute")),
    }
}

async fn into(client: &Client, id: InstanceId, spec: CopySpec, from: PathBuf) -> Result<(), Failure> {
    let told = |error: io::Error| Failure::new(2, format!("{}: {error}", from.display()));
    let own = match from.file_name() {
        Some(name) => name.to_owned(),
        None => from.canonicalize().map_err(told)?.file_name().unwrap_or_default().to_owned(),
    };
    from.symlink_metadata().map_err(told)?;
    let found = look(client, id, &CopySpec { way: CopyWay::Look, ..spec.clone() }).await?;
    let (path, name) =
        target(found.as_ref(), &spec.path, &own.to_string_lossy()).map_err(|why| Failure::new(1, why))?;
    let (mut speaker, mut listener) = client.files(id, &CopySpec { path, ..spec }).await?.split();
    let (pieces, waiting) = mpsc::channel::<io::Result<Vec<u8>>>(AHEAD);
    let pack = tokio::task::spawn_blocking(move || {
        if let Err(error) = pack(&from, &name, Packed { pieces: pieces.clone() }) {
            let _ = pieces.blocking_send(Err(error));
        }
    });
    let bar = progress("copied");
    let mut ends = Ends::new()?;
    let outcome = tokio::select! {
        heard = hear(&mut listener, &bar, None) => heard,
        spoken = send(&mut speaker, waiting, &bar) => spoken,
        () = ends.any() => Err(Failure::silent(130)),
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), speaker.close()).await;
    bar.finish_and_clear();
    pack.await.map_err(failed)?;
    outcome
}

/// Hands an archive on, and says its end; returns only when it cannot.
async fn send(
    speaker: &mut Speaker,
    waiting: mpsc::Receiver<io::Result<Vec<u8>>>,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let mut pings = tokio::time::interval(Duration::from_secs(PING_SECONDS));
    pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut waiting = Some(waiting);
    loop {
        let next = async {
            match &mut waiting {
                Some(waiting) => waiting.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            piece = next => match piece {
                Some(Ok(piece)) => {
                    speaker.input(&piece).await?;
                    bar.inc(piece.len() as u64);
                }
                // Without an end that was said, nothing of it counts as whole.
                Some(Err(error)) => return Err(failed(error)),
                None => {
                    waiting = None;
                    speaker.say(&ToBody::InputEnd).await?;
                }
            },
            _ = pings.tick() => speaker.ping().await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let there = |instance: &str, member: Option<&str>, path: &str| Place::There {
            instance: instance.into(),
            member: member.map(str::to_owned),
            path: path.into(),
        };
        for (text, wanted) in [
            ("-", Place::Stream),
            ("web:/etc", there("web", None, "/etc")),
            ("web:log:/var/x", there("web", Some("log"), "/var/x")),
            ("web:/a:b", there("web", None, "/a:b")),
            ("web:log:/a:b", there("web", Some("log"), "/a:b")),
            ("./web:/etc", Place::Here("./web:/etc".into())),
            ("/x:y", Place::Here("/x:y".into())),
            ("file", Place::Here("file".into())),
            ("web:etc", Place::Here("web:etc".into())),
        ] {
            assert_eq!(place(text), wanted, "{text}");
        }
    }

    #[test]
    fn what_a_thing_is_called_there() {
        let found = |directory| FileFound { directory, size: 0 };
        let pair = |a: &str, b: &str| Ok((a.to_owned(), b.to_owned()));
        assert_eq!(target(Some(&found(true)), "/data", "own"), pair("/data", "own"));
        assert_eq!(target(Some(&found(false)), "/data/x", "own"), pair("/data", "x"));
        assert_eq!(target(None, "/data/new", "own"), pair("/data", "new"));
        assert_eq!(target(None, "/new", "own"), pair("/", "new"));
        assert!(target(None, "/new/", "own").is_err());
    }
}
