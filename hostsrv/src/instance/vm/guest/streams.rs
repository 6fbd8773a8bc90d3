//! Owns what is opened in a guest's members: commands and output, over the guest's line.

use super::line::{Event, Guest};
use crate::instance::DriverError;
use crate::instance::streams::{Inside, Opened, Piece};
use amphi_api::InstanceId;
use amphi_api::streams::{ExecSpec, LogsSpec, STDERR, STDOUT, StreamTarget, TerminalSize};
use amphi_guest::words::{Bytes as Data, Exec, Logs, Open, PIECE_MAX, ToGuest, WINDOW};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::sync::{Semaphore, mpsc, watch};

/// How long a guest may take to open something: its processor is shared, perhaps emulated.
const OPEN: Duration = Duration::from_secs(30);
/// What is kept of input on this side.
const INPUT: usize = 32 << 10;
/// Most bytes of output that are read at once.
const TAIL_MAX: usize = 1 << 20;
/// A terminal whose size nobody has told.
const TERMINAL: TerminalSize = TerminalSize { columns: 80, rows: 24 };

fn refused(instance: InstanceId, message: impl Into<String>) -> DriverError {
    DriverError::EngineRefused {
        engine: "the guest",
        doing: format!("look into the VM of {instance}"),
        message: message.into(),
    }
}

/// What a guest can open of it, and whether that takes input. None: it is the machine's own, or nothing of a guest's.
pub fn target(what: &StreamTarget) -> Option<(Open, bool)> {
    match what {
        StreamTarget::Exec(spec) => Some((exec(spec), spec.stdin || spec.tty)),
        // Without a member it is the machine's serial line.
        StreamTarget::Console { member: Some(member), size } => {
            let shell = "exec $(command -v bash || command -v ash || echo /bin/sh) -l";
            let spec = ExecSpec {
                member: Some(member.clone()),
                command: ["/bin/sh", "-c", shell].map(str::to_owned).to_vec(),
                tty: true,
                stdin: true,
                size: *size,
                ..ExecSpec::default()
            };
            Some((exec(&spec), true))
        }
        StreamTarget::Logs(spec) => Some((logs(spec), false)),
        StreamTarget::Console { member: None, .. }
        | StreamTarget::Screen
        | StreamTarget::Copy(_)
        | StreamTarget::Tools(_) => None,
    }
}

/// The last lines of a member's output.
pub async fn tail(
    guest: &Arc<Guest>,
    instance: InstanceId,
    member: &str,
    lines: u32,
) -> Result<String, DriverError> {
    let what = Logs { member: Some(member.to_owned()), tail: Some(lines), ..Logs::default() };
    let mut opened = open(guest, instance, Open::Logs(what), false).await?;
    let mut text = Vec::new();
    let read = async {
        while let Some(piece) = opened.output.next().await {
            text.extend_from_slice(&piece?.bytes);
            if text.len() > TAIL_MAX {
                break;
            }
        }
        Ok::<(), DriverError>(())
    };
    let doing = format!("read the output of member {member} of instance {instance}");
    tokio::time::timeout(OPEN, read).await.map_err(|_| DriverError::EngineTimeout {
        engine: "the guest",
        doing,
        limit: OPEN,
    })??;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A command in a member.
fn exec(spec: &ExecSpec) -> Open {
    let size = spec.size.unwrap_or(TERMINAL);
    Open::Exec(Exec {
        member: spec.member.clone(),
        argv: spec.command.clone(),
        env: spec.env.clone(),
        user: spec.user.clone(),
        directory: spec.directory.clone(),
        stdin: spec.stdin,
        terminal: spec.tty.then_some((size.columns, size.rows)),
    })
}

/// A member's output.
fn logs(spec: &LogsSpec) -> Open {
    Open::Logs(Logs {
        member: spec.member.clone(),
        follow: spec.follow,
        since_us: spec.since.map(|since| since.as_microsecond()),
        tail: spec.tail,
        timestamps: spec.timestamps,
    })
}

/// Opens it. `input`: it takes one.
pub async fn open(
    guest: &Arc<Guest>,
    instance: InstanceId,
    what: Open,
    input: bool,
) -> Result<Opened, DriverError> {
    if !guest.told().heard {
        return Err(refused(instance, "its guest is not heard yet; try again"));
    }
    let (number, mut events) = guest.stream();
    // From here on it ends when nobody holds it.
    let stream = Arc::new(Stream { guest: guest.clone(), number, code: watch::Sender::new(None) });
    let opens = async {
        if !guest.say(ToGuest::Open { stream: number, what }).await {
            return Err(refused(instance, "its guest is gone"));
        }
        match events.recv().await {
            Some(Event::Opened) => Ok(()),
            Some(Event::Refused(message)) => Err(refused(instance, message)),
            _ => Err(refused(instance, "its guest was cut off")),
        }
    };
    let doing = format!("open a stream in instance {instance}");
    let limit = OPEN;
    tokio::time::timeout(OPEN, opens).await.map_err(|_| DriverError::EngineTimeout {
        engine: "the guest",
        doing,
        limit,
    })??;
    let room = Arc::new(Semaphore::new(WINDOW as usize));
    let writer = input.then(|| feed(stream.clone(), room.clone()));
    let output = futures_util::stream::unfold(
        Reader { stream: stream.clone(), events, room, outstanding: 0, instance, over: false },
        Reader::next,
    );
    Ok(Opened {
        input: writer.map(|writer| Box::pin(writer) as _),
        output: output.boxed(),
        inside: Box::new(Looked(stream)),
    })
}

struct Stream {
    guest: Arc<Guest>,
    number: u32,
    code: watch::Sender<Option<i64>>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.guest.forget(self.number);
        // Nothing of it is there any more where it has ended by itself.
        self.guest.try_say(ToGuest::Close { stream: self.number });
    }
}

struct Reader {
    stream: Arc<Stream>,
    events: mpsc::UnboundedReceiver<Event>,
    room: Arc<Semaphore>,
    /// Handed on and not yet told as taken.
    outstanding: u64,
    instance: InstanceId,
    over: bool,
}

impl Reader {
    async fn next(mut self) -> Option<(Result<Piece, DriverError>, Self)> {
        if self.over {
            return None;
        }
        if self.outstanding > 0 {
            // Who asks for the next piece has taken the last one.
            let taken = ToGuest::Taken { stream: self.stream.number, bytes: self.outstanding };
            self.outstanding = 0;
            self.stream.guest.say(taken).await;
        }
        loop {
            match self.events.recv().await {
                Some(Event::Output(channel, data)) => {
                    self.outstanding = data.len() as u64;
                    let channel = if channel == 2 { STDERR } else { STDOUT };
                    return Some((Ok(Piece { channel, bytes: Bytes::from(data) }), self));
                }
                Some(Event::Taken(bytes)) => {
                    // No more than the whole window, whatever the guest says.
                    let missing = (WINDOW as usize).saturating_sub(self.room.available_permits());
                    self.room.add_permits(missing.min(bytes as usize));
                }
                Some(Event::Ended(code)) => {
                    self.stream.code.send_replace(code);
                    return None;
                }
                Some(Event::Opened) => {}
                Some(Event::Refused(message)) => {
                    self.over = true;
                    return Some((Err(refused(self.instance, message)), self));
                }
                None => {
                    self.over = true;
                    return Some((Err(refused(self.instance, "its guest was cut off")), self));
                }
            }
        }
    }
}

/// The end that takes input; what is written goes as the guest makes room.
fn feed(stream: Arc<Stream>, room: Arc<Semaphore>) -> tokio::io::DuplexStream {
    let (writer, mut reader) = tokio::io::duplex(INPUT);
    let number = stream.number;
    let weak = Arc::downgrade(&stream);
    let guest = stream.guest.clone();
    tokio::spawn(async move {
        let mut piece = vec![0; PIECE_MAX];
        loop {
            let length = reader.read(&mut piece).await.unwrap_or(0);
            if weak.upgrade().is_none() {
                return;
            }
            if length == 0 {
                guest.say(ToGuest::InputEnd { stream: number }).await;
                return;
            }
            let Ok(permits) = room.acquire_many(length as u32).await else { return };
            permits.forget();
            let data = Data(piece[..length].to_vec());
            if !guest.say(ToGuest::Input { stream: number, data }).await {
                return;
            }
        }
    });
    writer
}

struct Looked(Arc<Stream>);

#[async_trait]
impl Inside for Looked {
    async fn resize(&self, size: TerminalSize) -> Result<(), DriverError> {
        let (columns, rows) = (size.columns, size.rows);
        self.0.guest.say(ToGuest::Resize { stream: self.0.number, columns, rows }).await;
        Ok(())
    }

    async fn exit_code(&self) -> Result<Option<i64>, DriverError> {
        Ok(*self.0.code.borrow())
    }

    async fn end(&self) {
        self.0.guest.say(ToGuest::Close { stream: self.0.number }).await;
    }
}
