//! Blobs from host to host, over mutual TLS on the agents' own listener: one line that names the blob, one line back, the
//! bytes. The controller says whom to ask. Few are served at once, only out of what is here or coming, never by fetching;
//! whoever takes them looks at the digest as with any other. A digest opens: hosts learn those that they may have from the
//! controller alone.

use super::ImageCache;
use crate::lease::tls::PeerPapers;
use crate::peer_wire::{read, write};
use amphi_api::image::Blob;
use amphi_api::wire::BlobPeer;
use anyhow::Context;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::io::ReaderStream;

/// Served at once; a host that is refused is served by the controller.
pub(super) const GUESTS: usize = 4;
/// Making a connection, and the words at its beginning.
const CONNECT: Duration = Duration::from_secs(5);
/// For the first bytes: the other host may be waiting for its own first.
const FIRST: Duration = Duration::from_secs(10);
/// How long a host that takes bytes may take none.
const STALL: Duration = Duration::from_secs(30);
const LINE_MAX: u64 = 4096;
const PIECE: usize = 64 << 10;

/// The line that asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    pub blob: String,
    pub size: u64,
}

type Answer = Result<(), String>;

/// Hands a blob to another host.
pub async fn serve(
    stream: &mut (impl AsyncWrite + Unpin),
    ask: &Ask,
    cache: &ImageCache,
) -> anyhow::Result<()> {
    let Ok(_guest) = cache.guests.try_acquire() else {
        return write(stream, &Answer::Err(format!("{GUESTS} are served already"))).await;
    };
    let blob = Blob { sha256: ask.blob.clone(), size: ask.size };
    let Some(mut bytes) = cache.open_here(&blob).await else {
        return write(stream, &Answer::Err("it is not here".into())).await;
    };
    write(stream, &Answer::Ok(())).await?;
    while let Some(piece) = bytes.next().await {
        let piece = piece.map_err(|trouble| anyhow::anyhow!("{trouble:?}"))?;
        timeout(STALL, stream.write_all(&piece)).await.context("it takes nothing")??;
    }
    Ok(timeout(STALL, stream.shutdown()).await.context("it does not end")??)
}

/// A blob from another host, once its first bytes are there.
pub async fn fetch(
    papers: &PeerPapers,
    peer: &BlobPeer,
    blob: &Blob,
) -> anyhow::Result<BoxStream<'static, anyhow::Result<Bytes>>> {
    let asked = async {
        let tcp = TcpStream::connect(peer.address).await?;
        crate::crossing::watch(&tcp)?;
        let name = rustls::pki_types::ServerName::from(peer.address.ip());
        let tls = tokio_rustls::TlsConnector::from(papers.client(peer.host)?).connect(name, tcp).await?;
        let mut stream = BufReader::new(tls);
        write(&mut stream, &Ask { blob: blob.sha256.clone(), size: blob.size }).await?;
        match read::<Answer>(&mut stream, LINE_MAX).await? {
            Ok(()) => Ok(stream),
            Err(refusal) => anyhow::bail!("{refusal}"),
        }
    };
    let stream = timeout(CONNECT, asked).await.context("it does not answer")??;
    let mut pieces = ReaderStream::with_capacity(stream.take(blob.size), PIECE);
    let first = timeout(FIRST, pieces.next()).await.context("nothing comes")?.context("nothing came")??;
    let rest = pieces.map(|piece| piece.map_err(anyhow::Error::from));
    Ok(stream::once(std::future::ready(Ok(first))).chain(rest).boxed())
}

#[cfg(test)]
#[path = "peers_tests.rs"]
mod tests;
