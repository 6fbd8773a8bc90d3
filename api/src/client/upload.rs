//! Blobs of images, streamed: never whole in memory, as long as it takes while bytes move, given up when they stop.

use super::{CALL_TIMEOUT, Client, ClientError};
use crate::ImageId;
use crate::image::BlobRole;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use reqwest::{Method, header};
use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// Bytes read from a file at a time.
const CHUNK: usize = 256 * 1024;
/// An upload in which nothing moves for this long is over. After the last byte the controller may still be
/// hashing and syncing, so this is longer than an ordinary call.
const STALL: Duration = Duration::from_secs(120);

/// Called with (bytes sent, bytes in all) as an upload moves on.
pub type Progress = Box<dyn Fn(u64, u64) + Send + Sync>;

impl Client {
    /// Uploads a file as one blob of an image.
    pub async fn upload_file(
        &self,
        id: ImageId,
        role: BlobRole,
        path: &Path,
        progress: Progress,
    ) -> Result<(), ClientError> {
        let failed = |e: io::Error| ClientError::File {
            operation: format!("upload {}", path.display()),
            message: format!("cannot be read: {e}"),
        };
        let file = tokio::fs::File::open(path).await.map_err(failed)?;
        let length = file.metadata().await.map_err(failed)?.len();
        let chunks = stream::try_unfold(file, |mut file| async move {
            let mut chunk = vec![0; CHUNK];
            let got = file.read(&mut chunk).await?;
            chunk.truncate(got);
            Ok::<_, io::Error>((got > 0).then(|| (Bytes::from(chunk), file)))
        });
        self.upload_blob(id, role, length, chunks, progress).await
    }

    /// Uploads `length` bytes as one blob of an image.
    pub async fn upload_blob(
        &self,
        id: ImageId,
        role: BlobRole,
        length: u64,
        chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        progress: Progress,
    ) -> Result<(), ClientError> {
        let role = role_word(role);
        let operation = format!("upload the {role} of image {id}");
        let sent = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&sent);
        let counted = chunks.inspect(move |chunk| {
            if let Ok(chunk) = chunk {
                let now = count.fetch_add(chunk.len() as u64, Ordering::Relaxed) + chunk.len() as u64;
                progress(now, length);
            }
        });
        let call = self
            .call(operation.clone(), Method::PUT, &format!("/images/{id}/blobs/{role}"))
            .limit(Duration::MAX)
            .map(|request| {
                request
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .header(header::CONTENT_LENGTH, length)
                    .body(reqwest::Body::wrap_stream(counted))
            });
        let mut transfer = pin!(call.done());
        let mut seen = 0;
        loop {
            match tokio::time::timeout(STALL, &mut transfer).await {
                Ok(done) => return done,
                Err(_) => {
                    let now = sent.load(Ordering::Relaxed);
                    if now == seen {
                        let saw = Some(format!("{now} of {length} bytes sent"));
                        return Err(ClientError::Timeout { operation, after: STALL.max(CALL_TIMEOUT), saw });
                    }
                    seen = now;
                }
            }
        }
    }
}

/// The role as the route spells it.
fn role_word(role: BlobRole) -> &'static str {
    match role {
        BlobRole::Archive => "archive",
        BlobRole::Disk => "disk",
        BlobRole::Kernel => "kernel",
        BlobRole::Initramfs => "initramfs",
        BlobRole::Description => "description",
        BlobRole::Manifest => "manifest",
        BlobRole::Config => "config",
    }
}
