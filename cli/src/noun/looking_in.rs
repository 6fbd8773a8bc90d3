//! `amphi exec`, `amphi console`: what runs in an instance, on this terminal. A command's exit code becomes
//! this program's.

use crate::failure::Failure;
use crate::session::Session;
use crate::terminal::{Escape, Raw, Typed, size};
use amphi_api::client::{BodyStream, ClientError, Heard, Listener, Speaker};
use amphi_api::streams::{ExecSpec, FromBody, PING_SECONDS, STDERR, ToBody};
use jiff::{SignedDuration, Timestamp};
use std::io::{IsTerminal, Read, Write, stdin};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Read of standard input at once, in bytes.
const PIECE: usize = 32 << 10;
/// Output that waits for standard output, in messages.
const AHEAD: usize = 32;
/// A command that says no exit code, or one beyond a byte.
const UNKNOWN: u8 = 255;

#[derive(clap::Args)]
#[command(
    after_help = "Exit code: the command's. With -t, `~.` on a fresh line leaves, and ends the command."
)]
pub struct Exec {
    /// Give it this terminal's input.
    #[arg(short = 'i', long)]
    interactive: bool,
    /// With a terminal.
    #[arg(short = 't', long)]
    tty: bool,
    /// The set's member; default: its first.
    #[arg(short, long)]
    member: Option<String>,
    /// Beside the member's own: NAME=VALUE.
    #[arg(short, long)]
    env: Vec<String>,
    /// `user`, `user:group` or ids.
    #[arg(short, long)]
    user: Option<String>,
    /// Where it runs.
    #[arg(short = 'w', long, value_name = "PATH")]
    directory: Option<String>,
    instance: String,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(clap::Args)]
#[command(after_help = "Ctrl-] leaves.")]
pub struct Console {
    instance: String,
    /// The set's member; default: its first.
    #[arg(short, long)]
    member: Option<String>,
}

pub(super) fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let age: SignedDuration = text.parse().map_err(|_| "neither an age (`10m`) nor a time (RFC 3339)")?;
    Timestamp::now().checked_sub(age).map_err(|_| "too long ago".to_owned())
}

impl Exec {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        let terminal = self.tty && stdin().is_terminal();
        let spec = ExecSpec {
            member: self.member,
            command: self.command,
            env: match std::env::var("TERM") {
                Ok(kind) if self.tty => [vec![format!("TERM={kind}")], self.env].concat(),
                _ => self.env,
            },
            user: self.user,
            directory: self.directory,
            tty: self.tty,
            stdin: self.interactive,
            size: self.tty.then(size).flatten(),
        };
        spec.check()?;
        let instance = client.find_instance(&self.instance).await?;
        let stream = client.exec(instance.id, &spec).await?;
        let escape = if terminal { Escape::Tilde } else { Escape::Never };
        let end = play(stream, Play { input: self.interactive, raw: terminal, escape }).await?;
        exit_as(end)
    }
}

/// A command's exit code becomes this program's.
pub(super) fn exit_as(code: Option<i64>) -> Result<(), Failure> {
    let code = code.and_then(|code| u8::try_from(code).ok()).unwrap_or(UNKNOWN);
    if code == 0 { Ok(()) } else { Err(Failure::silent(code)) }
}

impl Console {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        let instance = client.find_instance(&self.instance).await?;
        let stream = client.console(instance.id, self.member.as_deref(), size()).await?;
        if stdin().is_terminal() {
            eprintln!("console of {}; Ctrl-] leaves", instance.name);
        }
        play(stream, Play { input: true, raw: true, escape: Escape::Key }).await.map(drop)
    }
}

pub(super) struct Play {
    pub input: bool,
    pub raw: bool,
    pub escape: Escape,
}

/// Moves bytes between the stream and standard input and output until either ends; the exit code, if there is one. None
/// too when the user left.
pub(super) async fn play(stream: BodyStream, play: Play) -> Result<Option<i64>, Failure> {
    let raw = if play.raw { Raw::enter()? } else { None };
    let (mut speaker, mut listener) = stream.split();
    let input = play.input.then(typed);
    let mut ends = Ends::new()?;
    let ended = {
        let typed = Typed::new(if raw.is_some() { play.escape } else { Escape::Never });
        let speak = speak(&mut speaker, input, typed, raw.is_some());
        let listen = listen(&mut listener);
        tokio::select! {
            heard = listen => heard,
            spoken = speak => spoken.map(|()| None).map_err(Failure::from),
            () = ends.any() => Err(Failure::silent(130)),
        }
    };
    // What ran there ends with the goodbye; a controller that does not listen any more does the same when we are gone.
    let _ = tokio::time::timeout(Duration::from_secs(1), speaker.close()).await;
    drop(raw);
    ended
}

/// The signals that end this program: the terminal has to be put back before they do.
pub(super) struct Ends(Vec<Signal>);

impl Ends {
    pub fn new() -> Result<Self, Failure> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let signals = kinds.into_iter().map(signal).collect::<Result<_, _>>();
        signals.map(Self).map_err(|error| Failure::new(1, format!("no signals: {error}")))
    }

    pub async fn any(&mut self) {
        let [interrupt, terminate, hangup] = self.0.as_mut_slice() else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Standard input by a thread of its own, which nobody has to wait for at the end. Its channel holds little: what is not
/// taken there is not read here.
fn typed() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(2);
    std::thread::spawn(move || {
        let mut buffer = vec![0; PIECE];
        while let Ok(length) = stdin().lock().read(&mut buffer) {
            if length == 0 || sender.blocking_send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Until the user leaves.
pub(super) async fn speak(
    speaker: &mut Speaker,
    mut input: Option<mpsc::Receiver<Vec<u8>>>,
    mut typed: Typed,
    terminal: bool,
) -> Result<(), ClientError> {
    let mut pings = tokio::time::interval(Duration::from_secs(PING_SECONDS));
    pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut resized = signal(SignalKind::window_change()).ok();
    loop {
        let next = async {
            match &mut input {
                Some(input) => input.recv().await,
                None => std::future::pending().await,
            }
        };
        let window = async {
            match &mut resized {
                Some(resized) if terminal => drop(resized.recv().await),
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            bytes = next => match bytes {
                Some(bytes) => {
                    let (on, leave) = typed.take(&bytes);
                    speaker.input(&on).await?;
                    if leave {
                        return Ok(());
                    }
                }
                None => {
                    input = None;
                    speaker.say(&ToBody::InputEnd).await?;
                }
            },
            () = window => if let Some(size) = size() {
                speaker.say(&ToBody::Resize(size)).await?;
            },
            _ = pings.tick() => speaker.ping().await?,
        }
    }
}

/// Until the last word; the exit code.
async fn listen(listener: &mut Listener) -> Result<Option<i64>, Failure> {
    let (sender, mut waiting) = mpsc::channel::<(u8, bytes::Bytes)>(AHEAD);
    // A pipe that nobody reads holds up this thread and no other.
    let (done, written) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut outcome = Ok(());
        while let Some((channel, bytes)) = waiting.blocking_recv() {
            outcome = write(channel, &bytes);
            if outcome.is_err() {
                break;
            }
        }
        let _ = done.send(outcome);
    });
    let heard = async {
        loop {
            match listener.next().await? {
                Some(Heard::Output(channel, bytes)) => {
                    if sender.send((channel, bytes)).await.is_err() {
                        // A reader that has left has what it wanted.
                        return Ok(None);
                    }
                }
                Some(Heard::Word(FromBody::Opened)) => {}
                Some(Heard::Word(FromBody::Ended { exit_code, reason })) => {
                    if let Some(reason) = reason {
                        eprintln!("{reason}");
                    }
                    return Ok(exit_code);
                }
                Some(Heard::Word(FromBody::Failed { code, message })) => {
                    return Err(Failure::new(1, format!("{code}: {message}")));
                }
                None => return Err(Failure::new(5, "the controller let go of the stream")),
            }
        }
    }
    .await;
    drop(sender);
    match written.await {
        Ok(Err(error)) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(1, format!("stdout: {error}")))
        }
        _ => heard,
    }
}

fn write(channel: u8, bytes: &[u8]) -> std::io::Result<()> {
    if channel == STDERR {
        return std::io::stderr().write_all(bytes);
    }
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_times() {
        assert_eq!(since("2026-01-02T03:04:05Z").unwrap().to_string(), "2026-01-02T03:04:05Z");
        let age = Timestamp::now().duration_since(since("10m").unwrap());
        assert!((599..602).contains(&age.as_secs()), "{age:?}");
        assert!(since("yesterday").is_err());
    }
}
