//! Bytes to and from the controller, beside the link and with the same papers: images that come, exports that go. Refuses
//! to look at them: whoever asks checks digests. Where the controller names another host that has a blob, that one is asked.

use crate::images::{BlobFetcher, Incoming, peers};
use crate::lease::tls::PeerPapers;
use crate::link::{CONNECT, Papers};
use crate::reconcile::exports::BlobSink;
use amphi_api::ImageId;
use amphi_api::image::Blob;
use amphi_api::wire::{BlobPeer, PEERS_HEADER};
use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures_util::StreamExt;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, RANGE};
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::io::ReaderStream;

/// No part of a blob for this long: the transfer is given up.
const BLOB_STALL: Duration = Duration::from_secs(30);
/// The same for an upload: a controller that syncs many bytes may be slow to take more.
const UPLOAD_STALL: Duration = Duration::from_secs(120);
/// Read ahead of an upload, in bytes.
const UPLOAD_PIECE: usize = 256 << 10;

/// Fetches and hands over blobs with the same papers.
pub struct ControllerBlobs {
    url: String,
    http: reqwest::Client,
    /// Without a bound on reading: the answer to an upload comes after its last byte.
    uploads: reqwest::Client,
    /// For blobs that other hosts hand on.
    peers: Option<PeerPapers>,
}

impl ControllerBlobs {
    pub fn new(papers: &Papers) -> anyhow::Result<Self> {
        let client = || {
            reqwest::Client::builder()
                .tls_backend_preconfigured((*papers.tls).clone())
                .connect_timeout(CONNECT)
        };
        let http = client().read_timeout(BLOB_STALL).build()?;
        Ok(Self { url: papers.url.clone(), http, uploads: client().build()?, peers: None })
    }

    /// Takes blobs from other hosts too, where the controller names one; and is named to others.
    pub fn with_peers(self, papers: PeerPapers) -> Self {
        Self { peers: Some(papers), ..self }
    }

    async fn ask(&self, blob: &Blob, from: u64, peers: bool) -> anyhow::Result<reqwest::Response> {
        let url = format!("{}/hosts/v1/blobs/{}", self.url, blob.sha256);
        let mut request = self.http.get(&url);
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        if peers {
            request = request.header(PEERS_HEADER, "yes");
        }
        request.send().await.with_context(|| format!("cannot fetch {url}"))
    }
}

#[async_trait::async_trait]
impl BlobFetcher for ControllerBlobs {
    async fn fetch(&self, blob: &Blob, from: u64) -> anyhow::Result<Incoming> {
        let papers = self.peers.as_ref().filter(|_| from == 0);
        let mut answer = self.ask(blob, from, papers.is_some()).await?;
        if let (StatusCode::MULTIPLE_CHOICES, Some(papers)) = (answer.status(), papers) {
            let peer: BlobPeer = answer.json().await.context("the controller names no host")?;
            match peers::fetch(papers, &peer, blob).await {
                Ok(bytes) => return Ok(Incoming { bytes, peer: Some(peer.host) }),
                Err(error) => {
                    tracing::info!(host = %peer.host, blob = blob.sha256, "not from that host: {error:#}");
                    answer = self.ask(blob, from, false).await?;
                }
            }
        }
        let url = answer.url().clone();
        let mut skip = match answer.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = answer.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
                let begins = range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")));
                ensure!(begins, "{url} answered with the bytes {range:?}, not those from {from} on");
                0
            }
            // A controller that knows no ranges.
            StatusCode::OK => from,
            status => bail!("{url} answered {status}"),
        };
        let mut rest = move |mut part: Bytes| {
            let over = usize::try_from(skip).unwrap_or(usize::MAX).min(part.len());
            skip -= over as u64;
            part.split_off(over)
        };
        let bytes = answer.bytes_stream().map(move |part| part.map(&mut rest).map_err(anyhow::Error::from));
        Ok(Incoming { bytes: bytes.boxed(), peer: None })
    }
}

#[async_trait::async_trait]
impl BlobSink for ControllerBlobs {
    async fn put(&self, image: ImageId, blob: &Blob, file: &Path) -> anyhow::Result<()> {
        let url = format!("{}/hosts/v1/blobs/{}?export={image}", self.url, blob.sha256);
        let bytes = tokio::fs::File::open(file).await?;
        let moved = watch::Sender::new(());
        let mut moves = moved.subscribe();
        let pieces = ReaderStream::with_capacity(bytes, UPLOAD_PIECE).inspect(move |_| {
            moved.send_replace(());
        });
        let request = self
            .uploads
            .put(&url)
            .header(reqwest::header::CONTENT_LENGTH, blob.size)
            .body(reqwest::Body::wrap_stream(pieces))
            .send();
        let mut request = std::pin::pin!(request);
        let answer = loop {
            // As long as bytes move, and then as long again for the controller to write them to its disk.
            tokio::select! {
                answer = &mut request => break answer.with_context(|| format!("cannot upload to {url}"))?,
                moved = tokio::time::timeout(UPLOAD_STALL, moves.changed()) => match moved {
                    Ok(Ok(())) => {}
                    // All pieces are gone, and with them whoever told of them.
                    Ok(Err(_)) => {
                        let answer = tokio::time::timeout(UPLOAD_STALL, &mut request).await;
                        let answer = answer.with_context(|| format!("{url} does not answer"))?;
                        break answer.with_context(|| format!("cannot upload to {url}"))?;
                    }
                    Err(_) => bail!("{url} took nothing for {} s", UPLOAD_STALL.as_secs()),
                }
            }
        };
        if !answer.status().is_success() {
            let status = answer.status();
            bail!("{url} answered {status}: {}", answer.text().await.unwrap_or_default());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::extract::{Query, State};
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::put;
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    /// Uploads: path and length as told, the image, the bytes.
    type Taken = Arc<Mutex<Vec<(String, String, usize)>>>;

    async fn take(
        State(taken): State<Taken>,
        Query(query): Query<BTreeMap<String, String>>,
        headers: HeaderMap,
        body: Bytes,
    ) -> (StatusCode, &'static str) {
        let length = headers["content-length"].to_str().unwrap().to_owned();
        taken.lock().unwrap().push((query["export"].clone(), length, body.len()));
        if body.is_empty() { (StatusCode::FORBIDDEN, "not asked for") } else { (StatusCode::CREATED, "") }
    }

    #[tokio::test]
    async fn a_file_goes_up_whole_and_a_refusal_is_told() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let taken = Taken::default();
        let router = Router::new()
            .route("/hosts/v1/blobs/{sha256}", put(take))
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(taken.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let tls = rustls::ClientConfig::builder()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let papers = Papers { url, host: amphi_api::HostId::new(), tls: Arc::new(tls) };
        let blobs = ControllerBlobs::new(&papers).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let put = async |size: usize| {
            let file = dir.path().join("bytes");
            std::fs::write(&file, vec![7; size]).unwrap();
            let (image, sha256) = (ImageId::new(), "0".repeat(64));
            let done = blobs.put(image, &Blob { sha256, size: size as u64 }, &file).await;
            (image, done)
        };
        let (image, done) = put(3 << 20).await;
        done.unwrap();
        assert_eq!(*taken.lock().unwrap(), [(image.to_string(), (3 << 20).to_string(), 3 << 20)]);
        let error = format!("{:#}", put(0).await.1.unwrap_err());
        assert!(error.contains("403") && error.contains("not asked for"), "{error}");
    }
}
