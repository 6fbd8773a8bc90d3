//! A blob's bytes on their way out: a file, or an archive that is put together while it is read.

use super::BlobStore;
use crate::digest::Digest;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt, TryStreamExt};
use std::fs::File;
use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::StreamReader;

/// Read ahead, in bytes: below what the allocator maps for itself (`amphi_api::lean`).
const CHUNK: usize = 128 << 10;

/// Bytes to read.
pub struct BlobRead(StreamReader<BoxStream<'static, io::Result<Bytes>>, Bytes>);

impl AsyncRead for BlobRead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, into)
    }
}

impl BlobRead {
    pub(super) fn new(bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        Self(StreamReader::new(bytes.boxed()))
    }

    /// A file from where it stands. The next piece is read while one goes.
    pub(super) fn file(file: File) -> Self {
        let read = |mut file: File| {
            tokio::task::spawn_blocking(move || {
                let mut chunk = Vec::with_capacity(CHUNK);
                file.by_ref().take(CHUNK as u64).read_to_end(&mut chunk)?;
                Ok::<_, io::Error>((chunk, file))
            })
        };
        Self::new(stream::try_unfold(read(file), move |reading| async move {
            let (chunk, file) = reading.await.map_err(io::Error::other)??;
            Ok((!chunk.is_empty()).then(|| (Bytes::from(chunk), read(file))))
        }))
    }

    /// In pieces as a face sends them.
    pub fn stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        let (rest, begun) = self.0.into_inner_with_chunk();
        stream::iter(begun.map(Ok)).chain(rest)
    }

    /// The same, of so many bytes.
    pub fn stream_of(self, length: u64) -> impl Stream<Item = io::Result<Bytes>> + Send {
        self.stream().scan(length, |left, piece| {
            let piece = piece.map(|mut piece| {
                piece.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= piece.len() as u64;
                piece
            });
            std::future::ready(Some(piece).filter(|piece| !piece.as_ref().is_ok_and(Bytes::is_empty)))
        })
    }
}

/// A part of what is read: bytes, or a blob with its place.
#[derive(Clone, Debug)]
pub enum Placed {
    Bytes(Bytes),
    Blob { digest: Digest, place: String, size: u64 },
}

impl Placed {
    fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Blob { size, .. } => *size,
        }
    }
}

impl BlobStore {
    /// The parts' bytes one after the other, from an offset on. A part that is missing breaks the stream where it begins.
    pub fn read_parts(self: &std::sync::Arc<Self>, parts: Vec<Placed>, from: u64) -> BlobRead {
        let mut skip = from;
        let mut rest = Vec::new();
        for part in parts {
            let size = part.size();
            if skip < size {
                rest.push((part, skip));
                skip = 0;
            } else {
                skip -= size;
            }
        }
        let store = self.clone();
        let opened = stream::iter(rest).then(move |(part, skip)| {
            let store = store.clone();
            async move {
                match part {
                    Placed::Bytes(bytes) => {
                        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
                        let bytes = bytes.slice(skip..);
                        Ok(stream::iter([Ok::<_, io::Error>(bytes)]).left_stream())
                    }
                    Placed::Blob { digest, place, size } => {
                        let (read, there) =
                            store.read(digest, &place, skip).await.map_err(io::Error::other)?;
                        if there != size {
                            return Err(io::Error::other(format!(
                                "blob {digest} has {there} bytes, not {size}"
                            )));
                        }
                        Ok(read.stream().right_stream())
                    }
                }
            }
        });
        BlobRead::new(opened.try_flatten())
    }
}
