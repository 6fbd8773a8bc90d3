//! Blobs of images, streamed: never whole in memory, as long as it takes while bytes move, given up when they stop.

use super::{CALL_TIMEOUT, Call, Client, ClientError};
use crate::image::{Blob, BlobRole, BlobsKnown, BlobsWanted};
use crate::recipe::{self, Recipe};
use crate::{ImageId, ProjectId};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use reqwest::{Method, header};
use std::io::{self, Read as _};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::AsyncSeekExt;

/// Bytes read from a file at a time.
const CHUNK: usize = 256 * 1024;
/// An upload in which nothing moves for this long is over. After the last byte the controller may still be
/// hashing and syncing, so this is longer than an ordinary call.
const STALL: Duration = Duration::from_secs(120);

/// Files from this size on are sent so that they can go on where they stopped, in bytes: 8 MiB.
const IN_PARTS: u64 = 8 << 20;
/// So many attempts in a row may bring nothing.
const IDLE_MAX: u32 = 10;
/// Before the next attempt; longer after each that brought nothing.
const PAUSE: Duration = Duration::from_secs(1);

/// Called with (bytes sent, bytes in all) as an upload moves on.
pub type Progress = Box<dyn Fn(u64, u64) + Send + Sync>;

/// Where bytes go that are sent so that they can go on where they stopped.
#[derive(Clone, Copy)]
enum Target<'a> {
    Role(ImageId, BlobRole),
    Blob(&'a str),
    /// For a project that is another controller's.
    Replica(ProjectId, &'a str),
}

impl Target<'_> {
    fn path(&self) -> String {
        match self {
            Self::Role(id, role) => format!("/images/{id}/blobs/{}", role_word(*role)),
            Self::Blob(sha256) => format!("/blobs/{sha256}"),
            Self::Replica(project, sha256) => format!("/replica-blobs/{sha256}?project={project}"),
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Role(id, role) => format!("the {} of image {id}", role_word(*role)),
            Self::Blob(sha256) | Self::Replica(_, sha256) => format!("blob {sha256}"),
        }
    }
}

/// A part of a file: where it begins, and how many bytes it has.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    pub at: u64,
    pub length: u64,
}

impl Client {
    /// Uploads a file as one blob of an image. A large one goes on where it stopped when the line is cut or the controller
    /// restarts, as long as something of it arrives now and then.
    pub async fn upload_file(
        &self,
        id: ImageId,
        role: BlobRole,
        path: &Path,
        progress: Progress,
    ) -> Result<(), ClientError> {
        let length = tokio::fs::metadata(path).await.map_err(unreadable(path))?.len();
        if length < IN_PARTS {
            let file = open(path, 0).await?;
            return self.upload_blob(id, role, length, chunks(file, length), progress).await;
        }
        self.upload_section(Target::Role(id, role), path, Section { at: 0, length }, progress).await
    }

    /// Uploads a part of a file as a blob of this digest, which an image's recipe or manifest may name for a day.
    pub async fn upload_lone_blob(
        &self,
        sha256: &str,
        path: &Path,
        section: Section,
        progress: Progress,
    ) -> Result<(), ClientError> {
        self.upload_section(Target::Blob(sha256), path, section, progress).await
    }

    /// Which of these digests the controller has blobs of that this project sees: they need not be sent for a day.
    pub async fn known_blobs(&self, sha256: &[String]) -> Result<Vec<Blob>, ClientError> {
        let (mut all, operation) = (Vec::new(), "ask which blobs are there");
        for some in sha256.chunks(BlobsWanted::MAX) {
            let wanted = BlobsWanted { sha256: some.to_vec() };
            let known: BlobsKnown =
                self.call(operation, Method::POST, "/blobs/known").json(&wanted).read().await?;
            all.extend(known.blobs);
        }
        Ok(all)
    }

    /// Gives an image a blob that is put together on the other side.
    pub async fn put_recipe(&self, id: ImageId, role: BlobRole, recipe: &Recipe) -> Result<(), ClientError> {
        let target = Target::Role(id, role);
        // What is put together is read and hashed there, at no less than 10 MiB/s.
        let limit = CALL_TIMEOUT + Duration::from_secs(recipe.size() / (10 << 20));
        self.call(format!("put together {}", target.words()), Method::PUT, &target.path())
            .map(|request| request.header(header::CONTENT_TYPE, recipe::MEDIA_TYPE))
            .json(recipe)
            .limit(limit)
            .done()
            .await
    }

    async fn upload_section(
        &self,
        target: Target<'_>,
        path: &Path,
        section: Section,
        progress: Progress,
    ) -> Result<(), ClientError> {
        let progress: Arc<Progress> = Arc::new(progress);
        let length = section.length;
        let (mut at, mut idle) = (0, 0);
        loop {
            let file = open(path, section.at + at).await?;
            let sent = self.append(target, at, length, chunks(file, length - at), progress.clone()).await;
            let Err(error) = sent else { return Ok(()) };
            if !error.is_passing() {
                return Err(error);
            }
            // What has arrived counts, not what was sent.
            let now = loop {
                tokio::time::sleep(PAUSE * (idle + 1)).await;
                match self.offset(target).await {
                    Ok(now) => break now,
                    Err(asking) if asking.is_passing() && idle < IDLE_MAX => idle += 1,
                    Err(_) => return Err(error),
                }
            };
            if now == length {
                return Ok(());
            }
            idle = if now > at { 0 } else { idle + 1 };
            if idle > IDLE_MAX {
                return Err(error);
            }
            at = now;
        }
    }

    /// How many bytes of a blob the controller has.
    pub async fn blob_offset(&self, id: ImageId, role: BlobRole) -> Result<u64, ClientError> {
        self.offset(Target::Role(id, role)).await
    }

    async fn offset(&self, target: Target<'_>) -> Result<u64, ClientError> {
        let operation = format!("ask how far the upload of {} is", target.words());
        let headers = self.call(operation.clone(), Method::HEAD, &target.path()).headers().await?;
        let offset = headers.get("upload-offset").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
        offset.ok_or(ClientError::Protocol { operation, message: "the answer has no upload-offset".into() })
    }

    async fn append(
        &self,
        target: Target<'_>,
        at: u64,
        length: u64,
        chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        progress: Arc<Progress>,
    ) -> Result<(), ClientError> {
        let operation = format!("upload {}", target.words());
        let (counted, sent) = counted(chunks, move |now| progress(at + now, length));
        let call =
            self.call(operation.clone(), Method::PATCH, &target.path()).limit(Duration::MAX).map(|request| {
                request
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .header(header::CONTENT_LENGTH, length - at)
                    .header(header::CONTENT_RANGE, format!("bytes {at}-{}/{length}", length - 1))
                    .body(reqwest::Body::wrap_stream(counted))
            });
        watched(call, operation, sent, length - at).await
    }

    /// Sends a replica's blob from a byte on, in one go: whoever sends asks what has arrived before it goes on.
    pub async fn send_replica_blob(
        &self,
        project: ProjectId,
        blob: &Blob,
        from: u64,
        bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        progress: Progress,
    ) -> Result<(), ClientError> {
        self.append(Target::Replica(project, &blob.sha256), from, blob.size, bytes, Arc::new(progress)).await
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
        let target = Target::Role(id, role);
        let operation = format!("upload {}", target.words());
        let (counted, sent) = counted(chunks, move |now| progress(now, length));
        let call =
            self.call(operation.clone(), Method::PUT, &target.path()).limit(Duration::MAX).map(|request| {
                request
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .header(header::CONTENT_LENGTH, length)
                    .body(reqwest::Body::wrap_stream(counted))
            });
        watched(call, operation, sent, length).await
    }
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> ClientError + '_ {
    move |e| ClientError::File {
        operation: format!("upload {}", path.display()),
        message: format!("cannot be read: {e}"),
    }
}

async fn open(path: &Path, at: u64) -> Result<std::fs::File, ClientError> {
    let mut file = tokio::fs::File::open(path).await.map_err(unreadable(path))?;
    file.seek(io::SeekFrom::Start(at)).await.map_err(unreadable(path))?;
    Ok(file.into_std().await)
}

/// So many bytes of a file, from where it stands. The next ones are read while these go.
fn chunks(file: std::fs::File, length: u64) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let read = |mut file: io::Take<std::fs::File>| {
        tokio::task::spawn_blocking(move || {
            let mut chunk = Vec::with_capacity(CHUNK);
            file.by_ref().take(CHUNK as u64).read_to_end(&mut chunk)?;
            Ok::<_, io::Error>((chunk, file))
        })
    };
    stream::try_unfold(read(file.take(length)), move |reading| async move {
        let (chunk, file) = reading.await.map_err(io::Error::other)??;
        Ok((!chunk.is_empty()).then(|| (Bytes::from(chunk), read(file))))
    })
}

/// The same bytes, and how many of them have gone.
fn counted(
    chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    told: impl Fn(u64) + Send + 'static,
) -> (impl Stream<Item = io::Result<Bytes>> + Send + 'static, Arc<AtomicU64>) {
    let sent = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&sent);
    let counted = chunks.inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            told(count.fetch_add(chunk.len() as u64, Ordering::Relaxed) + chunk.len() as u64);
        }
    });
    (counted, sent)
}

/// A call that may take as long as it likes while something moves.
async fn watched(
    call: Call,
    operation: String,
    sent: Arc<AtomicU64>,
    length: u64,
) -> Result<(), ClientError> {
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
