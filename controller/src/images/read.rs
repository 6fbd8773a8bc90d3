//! A blob's bytes on their way out: a file, or an archive that is put together while it is read.

use super::BlobStore;
use crate::digest::Digest;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio_util::io::{ReaderStream, StreamReader};

/// Read ahead, in bytes.
const CHUNK: usize = 256 << 10;

/// Bytes to read.
pub struct BlobRead(Pin<Box<dyn AsyncRead + Send>>);

impl AsyncRead for BlobRead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_read(context, into)
    }
}

impl BlobRead {
    pub(super) fn new(read: impl AsyncRead + Send + 'static) -> Self {
        Self(Box::pin(read))
    }

    /// In pieces as a face sends them.
    pub fn stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        ReaderStream::with_capacity(self, CHUNK)
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
        let opened = futures_util::stream::iter(rest).then(move |(part, skip)| {
            let store = store.clone();
            async move {
                match part {
                    Placed::Bytes(bytes) => {
                        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
                        let bytes = bytes.slice(skip..);
                        Ok(futures_util::stream::iter([Ok::<_, io::Error>(bytes)]).left_stream())
                    }
                    Placed::Blob { digest, place, size } => {
                        let (read, there) =
                            store.read(digest, &place, skip).await.map_err(io::Error::other)?;
                        if there != size {
                            return Err(io::Error::other(format!(
                                "blob {digest} has {there} bytes, not {size}"
                            )));
                        }
                        Ok(ReaderStream::with_capacity(read.take(size - skip), CHUNK).right_stream())
                    }
                }
            }
        });
        BlobRead(Box::pin(StreamReader::new(Box::pin(opened.try_flatten()))))
    }
}
