//! Owns how a blob's bytes are handed on: out of the cache, their digest taken on the way and the last of them held back
//! until it is seen to be right; or out of a part, as far as it has come. Whoever reads to the end has the right bytes;
//! whoever does not, has been told why.

use super::Shelf;
use super::coming::{Coming, State};
use super::trouble::Trouble;
use amphi_api::image::Blob;
use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;

/// Handed on at once, in bytes: below what the allocator maps for itself (`amphi_api::lean`).
const PIECE: usize = 128 << 10;

pub type Bytestream = BoxStream<'static, Result<Bytes, Trouble>>;

struct Handing {
    shelf: Arc<Shelf>,
    blob: Blob,
    file: File,
    at: u64,
    source: Source,
}

enum Source {
    Kept(Sha256),
    Part { state: watch::Receiver<State>, _coming: Arc<Coming> },
}

/// Of a blob in its place.
pub(super) fn kept(shelf: Arc<Shelf>, blob: Blob, file: File) -> Bytestream {
    stream(Handing { shelf, blob, file, at: 0, source: Source::Kept(Sha256::new()) })
}

/// Of a blob that comes; `file` is its part.
pub(super) fn part(shelf: Arc<Shelf>, blob: Blob, file: File, coming: Arc<Coming>) -> Bytestream {
    let state = coming.state.clone();
    stream(Handing { shelf, blob, file, at: 0, source: Source::Part { state, _coming: coming } })
}

fn stream(handing: Handing) -> Bytestream {
    Box::pin(futures_util::stream::unfold(Some(handing), |handing| async {
        let mut handing = handing?;
        match handing.next().await {
            Ok(Some(piece)) => Some((Ok(piece), Some(handing))),
            Ok(None) => None,
            Err(trouble) => Some((Err(trouble), None)),
        }
    }))
}

impl Handing {
    async fn next(&mut self) -> Result<Option<Bytes>, Trouble> {
        let size = self.blob.size;
        if self.at == size {
            return Ok(None);
        }
        let until = match &mut self.source {
            Source::Kept(_) => size,
            Source::Part { state, .. } => {
                let at = self.at;
                // The last byte waits for the digest.
                let reached = |state: &State| match state {
                    State::Looking => None,
                    State::Coming(there) => Some((*there).min(size - 1)).filter(|until| *until > at).map(Ok),
                    State::Whole | State::Kept => Some(Ok(size)),
                    State::Failed(trouble) => Some(Err(trouble.clone())),
                };
                let over = state.wait_for(|state| reached(state).is_some()).await;
                over.ok().and_then(|state| reached(&state)).unwrap_or_else(|| {
                    Err(Trouble::Down { doing: "fetch a blob".into(), message: "its task has ended".into() })
                })?
            }
        };
        let want = usize::try_from(until - self.at).unwrap_or(PIECE).min(PIECE);
        let mut piece = BytesMut::zeroed(want);
        let mut filled = 0;
        while filled < want {
            match self.file.read(&mut piece[filled..]).await.map_err(Trouble::io("read a blob"))? {
                0 => return Err(self.changed("it is shorter")),
                read => filled += read,
            }
        }
        self.at += want as u64;
        if let Source::Kept(digest) = &mut self.source {
            digest.update(&piece);
            if self.at == size {
                let found = hex::encode(digest.finalize_reset());
                if found != self.blob.sha256 {
                    return Err(self.changed(&format!("its digest is {found}")));
                }
            }
        }
        Ok(Some(piece.freeze()))
    }

    /// Of a part that is shorter than was told, somebody has cut it: its task finds that by the digest.
    fn changed(&self, why: &str) -> Trouble {
        match self.source {
            Source::Kept(_) => self.shelf.discard(&self.blob.sha256, why),
            Source::Part { .. } => Trouble::Changed(format!("the part of blob {}: {why}", self.blob.sha256)),
        }
    }
}
