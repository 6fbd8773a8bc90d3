//! The way to a host's engines: in the same process, or over a socket, a line of JSON each way per call.

use super::calls::{Call, Reply};
use super::host::HostEngines;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

#[derive(Clone)]
pub enum EnginePort {
    Here(Arc<HostEngines>),
    There(PathBuf),
}

impl EnginePort {
    pub async fn call(&self, call: Call) -> Result<Reply> {
        match self {
            Self::Here(engines) => {
                // Done also when the caller goes away in between.
                let engines = engines.clone();
                tokio::spawn(async move { engines.call(call).await }).await.context("the engine ended")
            }
            Self::There(path) => {
                let mut stream = UnixStream::connect(path).await?;
                let mut line = serde_json::to_vec(&call)?;
                line.push(b'\n');
                stream.write_all(&line).await?;
                let mut answer = String::new();
                BufReader::new(stream).read_line(&mut answer).await?;
                serde_json::from_str(&answer).context("the engine's answer")
            }
        }
    }
}

/// Serves the engines on a socket for as long as the answer is kept.
pub fn serve(engines: Arc<HostEngines>, path: &Path) -> Result<JoinHandle<()>> {
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    Ok(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let engines = engines.clone();
            tokio::spawn(async move {
                // A caller that has gone is no trouble of the engine's.
                let _ = answer(&engines, stream).await;
            });
        }
    }))
}

async fn answer(engines: &Arc<HostEngines>, mut stream: UnixStream) -> Result<()> {
    let mut line = String::new();
    BufReader::new(&mut stream).read_line(&mut line).await?;
    let reply = engines.call(serde_json::from_str(&line)?).await;
    let mut line = serde_json::to_vec(&reply)?;
    line.push(b'\n');
    Ok(stream.write_all(&line).await?)
}
