//! What a driver opens in a body: bytes out, perhaps bytes in, and a handle on what runs there. Refuses to know where the
//! bytes go.

use super::{CachedImage, DriverError};
use amphi_api::InstanceId;
use amphi_api::streams::{ExecSpec, StreamTarget, TerminalSize};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncWrite, DuplexStream};

/// Looks into bodies of one kind.
#[async_trait]
pub trait BodyStreams: Send + Sync {
    /// Opens something in the instance's body as it is now. Bounded in time.
    async fn open(&self, instance: InstanceId, what: &StreamTarget) -> Result<Opened, DriverError>;

    /// Runs a command of another image beside a member, for as long as it is looked at.
    async fn open_tools(
        &self,
        instance: InstanceId,
        _: &ExecSpec,
        _: &CachedImage,
    ) -> Result<Opened, DriverError> {
        Err(DriverError::EngineRefused {
            engine: "the agent",
            doing: format!("bring tools to instance {instance}"),
            message: "its body has no members".into(),
        })
    }
}

/// Something that is open.
pub struct Opened {
    /// None: it takes no input.
    pub input: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    /// Ends when it has ended by itself.
    pub output: BoxStream<'static, Result<Piece, DriverError>>,
    pub inside: Box<dyn Inside>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// [`amphi_api::streams::STDOUT`] or [`amphi_api::streams::STDERR`].
    pub channel: u8,
    pub bytes: Bytes,
}

/// What runs behind something that is open.
#[async_trait]
pub trait Inside: Send + Sync {
    async fn resize(&self, _: TerminalSize) -> Result<(), DriverError> {
        Ok(())
    }

    /// How it ended, once its output has: a command's exit code.
    async fn exit_code(&self) -> Result<Option<i64>, DriverError> {
        Ok(None)
    }

    /// Nobody looks any more: whatever was started for it ends, with all that it started.
    async fn end(&self) {}
}

/// Nothing runs behind it.
pub struct Bare;

impl Inside for Bare {}

/// Input for something that has to know whether its end was said, or the client has only left; at most `ahead` bytes wait.
pub fn input(ahead: usize) -> (Input, Fed) {
    let (to, pipe) = tokio::io::duplex(ahead);
    let whole = Arc::new(AtomicBool::new(false));
    (Input { pipe: to, whole: whole.clone() }, Fed { pipe, whole })
}

/// The client's bytes; whole when it has said that no more come.
pub struct Input {
    pipe: DuplexStream,
    whole: Arc<AtomicBool>,
}

/// The end at which they come out.
pub struct Fed {
    pub pipe: DuplexStream,
    whole: Arc<AtomicBool>,
}

impl Fed {
    /// At the end of the bytes: it was said, too.
    pub fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }
}

impl AsyncWrite for Input {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.whole.store(true, Ordering::Release);
        Pin::new(&mut self.pipe).poll_shutdown(context)
    }
}
