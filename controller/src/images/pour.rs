//! Bytes on their way into a file. What comes is gathered while what came before is written and digested on threads of their
//! own: SHA-256 behind the write on one, MD5 on another. Bounded: a sender waits when what it has sent is not yet
//! written. Refuses to hold a thread while nothing comes.

use super::spool::Digests;
use bytes::Bytes;
use sha2::Digest as _;
use std::any::Any;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Gathered at most while others are written, in bytes.
const GATHERED: usize = 2 << 20;

/// Kept as long as anything is being written: what a writer holds against others, even when it is dropped in between.
pub(super) type Hold = Option<Arc<dyn Any + Send + Sync>>;

pub(super) struct Pour {
    /// None: the bytes are digested only.
    file: Option<Arc<File>>,
    /// None: nobody has digested what is in the file, and it is done at the end.
    digests: Option<Digests>,
    gathered: Vec<Bytes>,
    waiting: usize,
    flying: Option<JoinHandle<io::Result<Option<Digests>>>>,
    hold: Hold,
}

impl Pour {
    /// Behind what is in the file. `digests`: of just that.
    pub fn new(file: Option<File>, digests: Option<Digests>, hold: Hold) -> Self {
        let file = file.map(Arc::new);
        Self { file, digests, gathered: Vec::new(), waiting: 0, flying: None, hold }
    }

    /// Takes a piece. An error may be that of an earlier one.
    pub async fn take(&mut self, piece: Bytes) -> io::Result<()> {
        self.waiting += piece.len();
        self.gathered.push(piece);
        if self.waiting >= GATHERED || self.flying.as_ref().is_none_or(JoinHandle::is_finished) {
            self.land().await?;
            self.fly();
        }
        Ok(())
    }

    /// Waits until what is gathered can be written, and begins that; for ever where nothing is to be written.
    pub async fn settle(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return std::future::pending().await;
        }
        self.land().await?;
        self.fly();
        Ok(())
    }

    /// All is in the file. The digests, where they were kept from the first byte on.
    pub async fn end(&mut self) -> io::Result<Option<Digests>> {
        self.land().await?;
        self.fly();
        self.land().await?;
        Ok(self.digests.take())
    }

    /// Not to be interrupted without harm to the digests, which are then none.
    async fn land(&mut self) -> io::Result<()> {
        if let Some(flying) = &mut self.flying {
            let landed = flying.await.map_err(io::Error::other);
            self.flying = None;
            self.digests = landed??;
        }
        Ok(())
    }

    fn fly(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        let pieces: Arc<[Bytes]> = std::mem::take(&mut self.gathered).into();
        self.waiting = 0;
        let (file, hold, digests) = (self.file.clone(), self.hold.clone(), self.digests.take());
        self.flying = Some(tokio::spawn(async move {
            let (first, second, size) = match digests {
                Some(Digests { sha256, md5, size }) => (Some(sha256), Some(md5), size),
                None => (None, None, 0),
            };
            let bytes = pieces.clone();
            let sha256 = tokio::task::spawn_blocking(move || {
                let _held = hold;
                if let Some(file) = file {
                    bytes.iter().try_for_each(|piece| (&*file).write_all(piece))?;
                }
                Ok::<_, io::Error>(
                    first.map(|sha256| bytes.iter().fold(sha256, |sha256, piece| sha256.chain_update(piece))),
                )
            });
            let added: usize = pieces.iter().map(Bytes::len).sum();
            let md5 = second.map(|md5| {
                tokio::task::spawn_blocking(move || {
                    pieces.iter().fold(md5, |md5, piece| md5.chain_update(piece))
                })
            });
            let sha256 = sha256.await.map_err(io::Error::other)??;
            let (Some(sha256), Some(md5)) = (sha256, md5) else { return Ok(None) };
            let md5 = md5.await.map_err(io::Error::other)?;
            Ok(Some(Digests { sha256, md5, size: size + added as u64 }))
        }));
    }
}
