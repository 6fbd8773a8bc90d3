//! VMs' serial lines, read and written. Each line that somebody looks at is read by one task of its own, whoever is slow:
//! a line that is not read holds up its guest. What a reader has no room for is left out, and told so.

use super::link::ENGINE;
use crate::instance::DriverError;
use crate::instance::streams::{Bare, Opened, Piece};
use amphi_api::InstanceId;
use amphi_api::streams::STDOUT;
use bytes::Bytes;
use futures_util::StreamExt;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::unix::pipe;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::task::AbortHandle;

/// How far a reader may stay behind, in pieces of up to 4 KiB.
const BEHIND: usize = 256;
const PIECE: usize = 4 << 10;

/// Lines that are open, for as long as somebody looks.
#[derive(Default)]
pub struct Consoles(Mutex<BTreeMap<InstanceId, Weak<Line>>>);

struct Line {
    path: PathBuf,
    pty: File,
    /// Never read: others are made of it.
    output: broadcast::Receiver<Bytes>,
    reader: AbortHandle,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Consoles {
    /// Looks at a serial line, beside others who do.
    pub fn open(&self, instance: InstanceId, path: &Path) -> Result<Opened, DriverError> {
        let line = {
            let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            lines.retain(|_, line| line.strong_count() > 0);
            let open = lines.get(&instance).and_then(Weak::upgrade);
            match open.filter(|line| line.path == path && !line.reader.is_finished()) {
                Some(line) => line,
                None => {
                    let line = Arc::new(Line::open(path).map_err(|source| DriverError::Io {
                        doing: format!("open the serial line of instance {instance}"),
                        source,
                    })?);
                    lines.insert(instance, Arc::downgrade(&line));
                    line
                }
            }
        };
        let output = futures_util::stream::unfold(line.output.resubscribe(), |mut output| async {
            let bytes = match output.recv().await {
                Ok(bytes) => bytes,
                Err(RecvError::Lagged(pieces)) => {
                    Bytes::from(format!("\r\n[{pieces} pieces of output were left out]\r\n"))
                }
                Err(RecvError::Closed) => return None,
            };
            Some((Ok(Piece { channel: STDOUT, bytes }), output))
        });
        let writer = line.writer().map_err(|source| DriverError::Io {
            doing: format!("write to the serial line of instance {instance}"),
            source,
        })?;
        let input = Some(Box::pin(Writer { pty: writer, _line: line }) as _);
        Ok(Opened { input, output: output.boxed(), inside: Box::new(Bare) })
    }
}

impl Line {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY;
        let file = std::fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        let (sender, output) = broadcast::channel(BEHIND);
        let reader = tokio::spawn(read(pipe::Receiver::from_file_unchecked(file.try_clone()?)?, sender));
        Ok(Self { path: path.to_owned(), pty: file, output, reader: reader.abort_handle() })
    }

    fn writer(&self) -> io::Result<pipe::Sender> {
        pipe::Sender::from_file_unchecked(self.pty.try_clone()?)
    }
}

/// Until QEMU lets go of the other end.
async fn read(mut pty: pipe::Receiver, output: broadcast::Sender<Bytes>) {
    let mut buffer = vec![0; PIECE];
    // EIO is how a pseudo-terminal says that nobody holds its other end.
    while let Ok(length @ 1..) = pty.read(&mut buffer).await {
        // Nobody listens for a moment: that is no end.
        let _ = output.send(Bytes::copy_from_slice(&buffer[..length]));
    }
}

/// Keeps the line open, too.
struct Writer {
    pty: pipe::Sender,
    _line: Arc<Line>,
}

impl AsyncWrite for Writer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pty).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A VM's screen, on the socket that QEMU serves.
pub async fn screen(socket: &str) -> io::Result<Opened> {
    let (read, write) = tokio::net::UnixStream::connect(socket).await?.into_split();
    let pieces = tokio_util::io::ReaderStream::with_capacity(read, 32 << 10);
    let output = pieces.map(|bytes| {
        let broken = |source| DriverError::Io { doing: "read a VM's screen".to_owned(), source };
        bytes.map(|bytes| Piece { channel: STDOUT, bytes }).map_err(broken)
    });
    Ok(Opened { input: Some(Box::pin(write)), output: output.boxed(), inside: Box::new(Bare) })
}

/// Something that a VM does not have, or not now.
pub fn refused(instance: InstanceId, message: &str) -> DriverError {
    let doing = format!("look into the VM of {instance}");
    DriverError::EngineRefused { engine: ENGINE, doing, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::openpty;
    use std::io::{Read, Write};
    use std::time::Duration;
    use tokio::io::AsyncWriteExt;

    const LIMIT: Duration = Duration::from_secs(10);

    async fn next(opened: &mut Opened) -> Option<Piece> {
        tokio::time::timeout(LIMIT, opened.output.next()).await.unwrap().map(Result::unwrap)
    }

    #[tokio::test]
    async fn two_look_at_one_line_until_its_end() {
        let pair = openpty(None, None).unwrap();
        let mut raw = nix::sys::termios::tcgetattr(&pair.slave).unwrap();
        nix::sys::termios::cfmakeraw(&mut raw);
        nix::sys::termios::tcsetattr(&pair.slave, nix::sys::termios::SetArg::TCSANOW, &raw).unwrap();
        let path = nix::unistd::ttyname(&pair.slave).unwrap();
        drop(pair.slave);
        let mut qemu = File::from(pair.master);
        let (consoles, instance) = (Consoles::default(), InstanceId::new());
        let mut first = consoles.open(instance, &path).unwrap();
        let mut second = consoles.open(instance, &path).unwrap();
        qemu.write_all(b"login: \0").unwrap();
        for opened in [&mut first, &mut second] {
            assert_eq!(&next(opened).await.unwrap().bytes[..], b"login: \0");
        }
        second.input.as_mut().unwrap().write_all(b"root\r").await.unwrap();
        let mut read = [0; 5];
        qemu.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"root\r");
        drop(qemu);
        assert_eq!(next(&mut first).await, None);
    }
}
