//! What all talk between hosts shares: the loop that takes connections, the handshake that says which host it is, and
//! messages of one line of JSON each. Refuses to know what is said, and which host may say it.

use crate::lease::tls::host_of;
use amphi_api::HostId;
use anyhow::{Context, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// After a connection that could not be taken.
const REST: Duration = Duration::from_millis(200);

/// Takes connections until the process ends, at most `at_once` at one time; more wait.
pub async fn take<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    at_once: usize,
    serve: impl Fn(TcpStream) -> F,
) {
    let room = Arc::new(Semaphore::new(at_once));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let tcp = match listener.accept().await {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                tracing::warn!(%error, "cannot take a host's connection");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let served = serve(tcp);
        tokio::spawn(async move {
            let _permit = permit;
            served.await;
        });
    }
}

/// The handshake, within `limit`; the host that its certificate names.
pub async fn greet(
    tcp: TcpStream,
    acceptor: &TlsAcceptor,
    limit: Duration,
) -> anyhow::Result<(BufReader<TlsStream<TcpStream>>, HostId)> {
    let stream = timeout(limit, acceptor.accept(tcp)).await??;
    let chain = stream.get_ref().1.peer_certificates();
    let host = chain.and_then(|c| c.first()).and_then(|c| host_of(c)).context("a certificate of no host")?;
    Ok((BufReader::new(stream), host))
}

pub async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    Ok(stream.flush().await?)
}

/// The next message, of at most `line_max` bytes.
pub async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncBufRead + Unpin),
    line_max: u64,
) -> anyhow::Result<T> {
    let mut line = Vec::new();
    stream.take(line_max).read_until(b'\n', &mut line).await?;
    ensure!(line.ends_with(b"\n"), "the connection has ended");
    Ok(serde_json::from_slice(&line)?)
}
