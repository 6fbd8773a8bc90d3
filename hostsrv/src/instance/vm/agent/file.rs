//! A file in a guest that is read or written from one end to the other, by the guest agent's handle. Where an answer was lost it
//! is not known where the guest is: then it is told, before anything goes on. So no byte is lost, and none comes twice.

use super::talk::{Unsaid, nonsense};
use super::words::{self, Whence};
use super::{AGAIN, Agent, PATIENCE};
use crate::instance::DriverError;
use tokio::time::Instant;

/// Read at once: 256 KiB are some 350 KiB of text, of which libvirt takes 4 MiB.
pub const PIECE: usize = 256 << 10;
/// Written at once: 64 KiB of text; see [`super::talk::SAID_MAX`].
const WRITTEN: usize = 48 << 10;

pub struct GuestFile {
    handle: i64,
    /// Read or written so far.
    pub at: u64,
    /// The guest may be elsewhere.
    stray: bool,
}

impl GuestFile {
    /// `mode`: as fopen(3) takes it.
    pub async fn open(agent: &Agent, path: &str, mode: &str) -> Result<Self, DriverError> {
        let handle = agent.once(words::open(path, mode), |answer| answer.as_i64()).await?;
        Ok(Self { handle, at: 0, stray: false })
    }

    /// What comes next; empty where there is nothing (yet).
    pub async fn read(&mut self, agent: &Agent, most: usize) -> Result<Vec<u8>, DriverError> {
        let answer = self.say(agent, words::read(self.handle, most.min(PIECE))).await?;
        let bytes = words::piece(&answer).ok_or_else(|| agent.failed(nonsense("a piece of a file")))?;
        self.at += bytes.len() as u64;
        Ok(bytes)
    }

    pub async fn write(&mut self, agent: &Agent, mut bytes: &[u8]) -> Result<(), DriverError> {
        while !bytes.is_empty() {
            let piece = &bytes[..bytes.len().min(WRITTEN)];
            let answer = self.say(agent, words::write(self.handle, piece)).await?;
            let written = words::written(&answer).filter(|written| (1..=piece.len()).contains(written));
            let written = written.ok_or_else(|| agent.failed(nonsense("how much was written")))?;
            self.at += written as u64;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// How long it is now.
    pub async fn length(&mut self, agent: &Agent) -> Result<u64, DriverError> {
        self.stray = true;
        agent.again(words::seek(self.handle, 0, Whence::End), words::position).await
    }

    /// What was written is in the file.
    pub async fn flush(&self, agent: &Agent) -> Result<(), DriverError> {
        agent.again(words::flush(self.handle), |_| Some(())).await
    }

    pub async fn close(self, agent: &Agent) {
        if let Err(error) = agent.once(words::close(self.handle), |_| Some(())).await {
            tracing::debug!(instance = %agent.instance, %error, "a guest keeps a file open");
        }
    }

    /// Says what moves the guest on.
    async fn say(
        &mut self,
        agent: &Agent,
        command: serde_json::Value,
    ) -> Result<serde_json::Value, DriverError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.stray {
                agent.again(words::seek(self.handle, self.at, Whence::Begin), words::position).await?;
                self.stray = false;
            }
            match agent.talk.say(command.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(Unsaid::Silent(_)) if Instant::now() < deadline => {
                    self.stray = true;
                    tokio::time::sleep(AGAIN).await;
                }
                Err(unsaid) => return Err(agent.failed(unsaid)),
            }
        }
    }
}
