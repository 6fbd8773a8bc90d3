//! Blobs as objects of a bucket in an S3-compatible store, by the same names as on a file system. What is larger than a part
//! goes up in parts, some at once; an upload that fails is ended there, and one that was left over is ended by the sweep. Refuses
//! to hold more of a blob in memory than those parts, and to call a blob kept before the store has told its size.

mod call;
mod config;
mod words;

pub use config::S3Config;

use super::{Found, Shelf, name, named};
use crate::digest::Digest;
use crate::images::error::{BlobError, io};
use crate::images::read::BlobRead;
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use call::{Ask, Bucket, Wrong};
use futures_util::{StreamExt, TryStreamExt};
use md5::{Digest as _, Md5};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG};
use rusty_s3::Method;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::Semaphore;

/// For what moves no blob: looks, removals, a page of a list, all attempts together.
const CALL: Duration = Duration::from_secs(20);
/// For one part, all attempts together: a slow line, and not one that stands still.
const PART_TIME: Duration = Duration::from_secs(300);
/// After the last byte, until the store has put the parts together.
const JOIN: Duration = Duration::from_secs(300);
/// Of an upload in parts, in bytes; a blob that is larger than so many of them goes in larger ones.
const PART: u64 = 16 << 20;
const PARTS_MAX: u64 = 9_000;
/// Parts on their way at once, of one upload.
const AT_ONCE: usize = 2;
/// The same of all uploads: what they hold in memory together.
const AT_ONCE_ALL: usize = 8;

/// A bucket, or a part of one.
pub struct S3 {
    bucket: Arc<Bucket>,
    /// Before all names; ends with a slash, or is empty.
    top: String,
    room: Semaphore,
}

impl S3 {
    /// Looks at the settings only: a store that is away is no reason not to start.
    pub fn open(config: &S3Config) -> anyhow::Result<Self> {
        let top = match config.prefix.trim_matches('/') {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        Ok(Self { bucket: Arc::new(Bucket::open(config)?), top, room: Semaphore::new(AT_ONCE_ALL) })
    }

    fn key(&self, digest: Digest, place: &str) -> String {
        format!("{}{}", self.top, name(digest, place))
    }

    /// Whether the bucket answers: for a word at the start.
    pub async fn look(&self) -> Result<(), BlobError> {
        self.page(&[("max-keys", "1")]).await.map(drop)
    }

    async fn page(&self, query: &[(&str, &str)]) -> Result<words::Page, BlobError> {
        let doing = "list blobs";
        let mut ask = Ask::of(Method::Get, "").with("list-type", "2").with("prefix", &self.top);
        for (name, value) in query {
            ask = ask.with(name, value);
        }
        let text = self.bucket.text(&ask, CALL).await.map_err(|wrong| self.bucket.away(doing, wrong))?;
        words::page(&text).map_err(|why| self.bucket.away(doing, Wrong::Odd(why)))
    }

    /// In parts. What came of an upload that fails is given up there, also when nobody waits for it any more.
    async fn keep_parts(&self, from: &Path, size: u64, key: &str) -> Result<(), BlobError> {
        let doing = "keep a blob";
        let away = |wrong| self.bucket.away(doing, wrong);
        let begin = Ask::of(Method::Post, key).with("uploads", "");
        let text = self.bucket.text(&begin, CALL).await.map_err(away)?;
        let id = words::upload_id(&text).map_err(|why| away(Wrong::Odd(why)))?;
        let mut upload = Upload { bucket: self.bucket.clone(), key: key.to_owned(), id, open: true };
        let part = PART.max(size.div_ceil(PARTS_MAX));
        let parts = (0..size.div_ceil(part)).map(|n| {
            let (upload, from) = (&upload, from.to_owned());
            async move {
                let _room = self.room.acquire().await;
                let (at, length) = (n * part, part.min(size - n * part));
                let bytes = piece(from, at, length).await?;
                let ask = Ask::of(Method::Put, &upload.key)
                    .with("partNumber", &(n + 1).to_string())
                    .with("uploadId", &upload.id)
                    .body(bytes);
                let answer =
                    self.bucket.call(&ask, PART_TIME).await.map_err(|w| self.bucket.away(doing, w))?;
                let etag = answer.headers().get(ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
                etag.ok_or_else(|| self.bucket.away(doing, Wrong::Odd("a part's answer has no ETag".into())))
            }
        });
        let etags: Vec<String> = futures_util::stream::iter(parts).buffered(AT_ONCE).try_collect().await?;
        let join = Ask::of(Method::Post, key).with("uploadId", &upload.id).body(words::join(&etags).into());
        match self.bucket.text(&join, JOIN).await {
            // It may say 200 first and what went wrong then.
            Ok(text) => words::joined(&text).map_err(|why| away(Wrong::Odd(why)))?,
            // Said again of what was joined by an attempt whose answer was lost: the size tells.
            Err(Wrong::Absent { .. }) => {}
            Err(wrong) => return Err(away(wrong)),
        }
        upload.open = false;
        Ok(())
    }
}

/// An upload in parts that is ended with this, unless it was joined.
struct Upload {
    bucket: Arc<Bucket>,
    key: String,
    id: String,
    open: bool,
}

impl Drop for Upload {
    fn drop(&mut self) {
        let (true, Ok(runtime)) = (self.open, tokio::runtime::Handle::try_current()) else { return };
        let (bucket, key, id) = (self.bucket.clone(), self.key.clone(), self.id.clone());
        runtime.spawn(async move {
            // What the store does not hear now, the sweep tells it.
            let _told = bucket.call(&Ask::of(Method::Delete, &key).with("uploadId", &id), CALL).await;
        });
    }
}

/// A piece of a file.
async fn piece(from: PathBuf, at: u64, length: u64) -> Result<Bytes, BlobError> {
    let read = tokio::task::spawn_blocking(move || {
        let mut file = std::fs::File::open(from)?;
        file.seek(SeekFrom::Start(at))?;
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        file.take(length).read_to_end(&mut bytes)?;
        Ok(Bytes::from(bytes))
    });
    read.await.unwrap_or_else(|e| Err(std::io::Error::other(e))).map_err(io("keep a blob"))
}

/// What the store holds the bytes against that it has got.
fn content_md5(bytes: &[u8]) -> String {
    STANDARD.encode(Md5::digest(bytes))
}

#[async_trait]
impl Shelf for S3 {
    async fn keep(&self, from: &Path, size: u64, digest: Digest, place: &str) -> Result<(), BlobError> {
        let (doing, key) = ("keep a blob", self.key(digest, place));
        if size > PART {
            self.keep_parts(from, size, &key).await?;
        } else {
            let _room = self.room.acquire().await;
            let ask = Ask::of(Method::Put, &key).body(piece(from.to_owned(), 0, size).await?);
            self.bucket.call(&ask, PART_TIME).await.map_err(|wrong| self.bucket.away(doing, wrong))?;
        }
        match self.size(digest, place).await? {
            Some(there) if there == size => Ok(()),
            there => {
                let text = format!("{} bytes are there of {size}", there.unwrap_or(0));
                Err(self.bucket.away(doing, Wrong::Odd(text)))
            }
        }
    }

    async fn read(&self, digest: Digest, place: &str, from: u64) -> Result<(BlobRead, u64), BlobError> {
        let (doing, key) = ("read a blob", self.key(digest, place));
        let mut ask = Ask::of(Method::Get, &key);
        if from > 0 {
            ask.range = Some(from);
        }
        let away = |wrong| self.bucket.away(doing, wrong);
        let odd = |text: &str| self.bucket.away(doing, Wrong::Odd(text.into()));
        let answer = match self.bucket.call(&ask, CALL).await {
            // A range behind the end is an error there, and nothing here.
            Err(Wrong::Outside) => {
                let size = self.size(digest, place).await?;
                let size = size.ok_or_else(|| BlobError::Unknown { sha256: digest.to_string() })?;
                return Ok((BlobRead::new(futures_util::stream::empty()), size));
            }
            Err(Wrong::Absent { bucket: false }) => {
                return Err(BlobError::Unknown { sha256: digest.to_string() });
            }
            answer => answer.map_err(away)?,
        };
        let said = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let size = match (answer.status(), from) {
            (StatusCode::OK, 0) => said(CONTENT_LENGTH).and_then(|size| size.parse().ok()),
            (StatusCode::PARTIAL_CONTENT, _) => said(CONTENT_RANGE).and_then(|range| {
                range.strip_prefix(&format!("bytes {from}-"))?.split_once('/')?.1.parse().ok()
            }),
            _ => None,
        };
        let size = size.ok_or_else(|| odd("the answer does not say which bytes it has"))?;
        let at = self.bucket.at().to_owned();
        let bytes = answer.bytes_stream();
        // Addresses hold signatures.
        let bytes = bytes.map_err(move |e| std::io::Error::other(format!("{at}: {}", call::plain(e))));
        Ok((BlobRead::new(bytes), size))
    }

    async fn size(&self, digest: Digest, place: &str) -> Result<Option<u64>, BlobError> {
        let doing = "look for a blob";
        match self.bucket.call(&Ask::of(Method::Head, &self.key(digest, place)), CALL).await {
            Ok(answer) => {
                let size =
                    answer.headers().get(CONTENT_LENGTH).and_then(|size| size.to_str().ok()?.parse().ok());
                let odd = || self.bucket.away(doing, Wrong::Odd("the answer has no length".into()));
                size.map(Some).ok_or_else(odd)
            }
            Err(Wrong::Absent { .. }) => Ok(None),
            Err(wrong) => Err(self.bucket.away(doing, wrong)),
        }
    }

    async fn remove(&self, digest: Digest, place: &str) -> Result<(), BlobError> {
        match self.bucket.call(&Ask::of(Method::Delete, &self.key(digest, place)), CALL).await {
            Ok(_) | Err(Wrong::Absent { bucket: false }) => Ok(()),
            Err(wrong) => Err(self.bucket.away("remove a blob", wrong)),
        }
    }

    async fn list(&self) -> Result<Vec<Found>, BlobError> {
        let (mut all, mut next) = (Vec::new(), None::<String>);
        loop {
            let page = match &next {
                Some(token) => self.page(&[("continuation-token", token)]).await?,
                None => self.page(&[]).await?,
            };
            for (key, modified) in page.objects {
                if let Some((digest, place)) = key.rsplit('/').next().and_then(named) {
                    all.push(Found { digest, place, modified });
                }
            }
            match page.next {
                Some(token) if Some(&token) != next.as_ref() => next = Some(token),
                _ => return Ok(all),
            }
        }
    }

    fn local(&self, _: Digest, _: &str) -> Option<PathBuf> {
        None
    }

    /// Uploads in parts that began so long ago and were never ended: of a controller that was killed, mostly.
    async fn tidy(&self, untouched: Duration) -> Result<(), BlobError> {
        let doing = "list uploads";
        let ask = Ask::of(Method::Get, "").with("uploads", "").with("prefix", &self.top);
        let text = self.bucket.text(&ask, CALL).await.map_err(|wrong| self.bucket.away(doing, wrong))?;
        // The first page: the next look finds the rest.
        let left = words::uploads(&text).map_err(|why| self.bucket.away(doing, Wrong::Odd(why)))?;
        let now = SystemTime::now();
        for (key, id, begun) in left {
            let ours = key.rsplit('/').next().and_then(named).is_some();
            if !ours || !now.duration_since(begun).is_ok_and(|age| age >= untouched) {
                continue;
            }
            tracing::info!(key, "an upload to the bucket was left over, and is ended");
            match self.bucket.call(&Ask::of(Method::Delete, &key).with("uploadId", &id), CALL).await {
                Ok(_) | Err(Wrong::Absent { bucket: false }) => {}
                Err(wrong) => return Err(self.bucket.away("end an upload", wrong)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
