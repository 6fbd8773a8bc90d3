//! What a driver opens in a body: bytes out, perhaps bytes in, and a handle on what runs there. Refuses to know where the
//! bytes go.

use super::{CachedImage, DriverError};
use amphi_api::InstanceId;
use amphi_api::streams::{ExecSpec, StreamTarget, TerminalSize};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use std::pin::Pin;
use tokio::io::AsyncWrite;

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
