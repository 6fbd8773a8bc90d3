//! Bytes on their way into a file. What comes is gathered while what came before is written and digested on threads of their
//! own: SHA-256 behind the write on one, MD5, where it is wanted, on another; and the disk begins with it meanwhile. Bounded: a
//! sender waits when what it has sent is not yet written. Refuses to hold a thread while nothing comes.

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
/// The disk is told to begin after so many bytes: whoever waits for all of them at the end waits for few.
const SYNCED: u64 = 16 << 20;

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
    /// Written since the disk was last told.
    unsynced: u64,
    syncing: Option<JoinHandle<io::Result<()>>>,
    hold: Hold,
}

impl Pour {
    /// Behind what is in the file. `digests`: of just that.
    pub fn new(file: Option<File>, digests: Option<Digests>, hold: Hold) -> Self {
        let file = file.map(Arc::new);
        let (gathered, waiting, unsynced) = (Vec::new(), 0, 0);
        Self { file, digests, gathered, waiting, flying: None, unsynced, syncing: None, hold }
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
        // What the disk refuses is told once, to whoever asks first.
        if let Some(syncing) = self.syncing.take() {
            syncing.await.map_err(io::Error::other)??;
        }
        Ok(self.digests.take())
    }

    /// Not to be interrupted without harm to the digests, which are then none.
    async fn land(&mut self) -> io::Result<()> {
        if let Some(flying) = &mut self.flying {
            let landed = flying.await.map_err(io::Error::other);
            self.flying = None;
            self.digests = landed??;
        }
        self.sync().await
    }

    /// Has the disk begin with what is written, unless it is at it.
    async fn sync(&mut self) -> io::Result<()> {
        match &mut self.syncing {
            Some(syncing) if !syncing.is_finished() => return Ok(()),
            Some(syncing) => {
                let synced = syncing.await.map_err(io::Error::other);
                self.syncing = None;
                synced??;
            }
            None => {}
        }
        if let Some(file) = self.file.clone().filter(|_| self.unsynced >= SYNCED) {
            self.unsynced = 0;
            self.syncing = Some(tokio::task::spawn_blocking(move || file.sync_data()));
        }
        Ok(())
    }

    fn fly(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        let pieces: Arc<[Bytes]> = std::mem::take(&mut self.gathered).into();
        self.unsynced += std::mem::take(&mut self.waiting) as u64;
        let (file, hold, digests) = (self.file.clone(), self.hold.clone(), self.digests.take());
        self.flying = Some(tokio::spawn(async move {
            let (first, second, size) = match digests {
                Some(Digests { sha256, md5, size }) => (Some(sha256), md5, size),
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
            let md5 = match md5 {
                Some(md5) => Some(md5.await.map_err(io::Error::other)?),
                None => None,
            };
            let Some(sha256) = sha256 else { return Ok(None) };
            Ok(Some(Digests { sha256, md5, size: size + added as u64 }))
        }));
    }
}
