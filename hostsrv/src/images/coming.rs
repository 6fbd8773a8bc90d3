//! Owns a blob's way into the cache: one task per blob, however many wait for it. It looks at what is here, fetches what is
//! not, goes on where a stream broke off or an earlier try ended, and tells how far it has got, so that bytes can be handed
//! on before the last has come. Ends with the last of those who wait; what it has by then is kept for the next try.

use super::facts::{self, Facts};
use super::trouble::Trouble;
use super::{BlobFetcher, Shelf};
use amphi_api::HostId;
use amphi_api::image::Blob;
use bytes::Bytes;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};

/// How long a stream may stand still.
const SILENCE: Duration = Duration::from_secs(30);
/// Written at once, in bytes: the pieces of a stream are far smaller.
const WRITE: usize = 1 << 20;

/// How far a blob has got.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// Nobody knows yet whether it is here.
    Looking,
    /// So many bytes are in its part.
    Coming(u64),
    /// All bytes are in its part, and they are the right ones.
    Whole,
    /// It is in its place.
    Kept,
    Failed(Trouble),
}

impl State {
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Kept | Self::Failed(_))
    }
}

/// A blob on its way.
pub(super) struct Coming {
    pub state: watch::Receiver<State>,
    task: AbortHandle,
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Coming {
    pub fn begin(shelf: Arc<Shelf>, fetcher: Arc<dyn BlobFetcher>, blob: Blob, layer: bool) -> Arc<Self> {
        let (tell, state) = watch::channel(State::Looking);
        let task = tokio::spawn(async move {
            let way = Way { shelf: &shelf, fetcher: &*fetcher, blob: &blob, layer, tell: &tell };
            let end = match way.go().await {
                Ok(()) => State::Kept,
                Err(trouble) => State::Failed(trouble),
            };
            tell.send_replace(end);
        });
        Arc::new(Self { state, task: task.abort_handle() })
    }

    /// Until it is in its place.
    pub async fn kept(&self) -> Result<(), Trouble> {
        let mut state = self.state.clone();
        match state.wait_for(State::is_over).await.map(|over| over.clone()) {
            Ok(State::Failed(trouble)) => Err(trouble),
            Ok(_) => Ok(()),
            Err(_) => {
                Err(Trouble::Down { doing: "fetch a blob".into(), message: "its task has ended".into() })
            }
        }
    }
}

struct Way<'a> {
    shelf: &'a Shelf,
    fetcher: &'a dyn BlobFetcher,
    blob: &'a Blob,
    layer: bool,
    tell: &'a watch::Sender<State>,
}

impl Way<'_> {
    async fn go(&self) -> Result<(), Trouble> {
        if self.shelf.holds(self.blob, self.layer).await? {
            return Ok(());
        }
        let folder = &self.shelf.folder;
        tokio::fs::create_dir_all(folder).await.map_err(Trouble::io("make the image cache"))?;
        let (path, size) = (self.shelf.part(&self.blob.sha256), self.blob.size);
        let opened = blocking("write a blob", move || Part::open(path, size)).await?;
        // One before this may have given it its place while this one waited for the part: who was handed the last byte left
        // it, and its last step goes on.
        if self.shelf.holds(self.blob, self.layer).await? {
            opened.discard();
            return Ok(());
        }
        let begun = opened.size;
        let (mut writing, mut peer) = (Writing { part: Some(opened), flying: None, tell: self.tell }, None);
        let poured = self.pour(&mut writing, &mut peer).await;
        // What has come counts whatever went wrong, and is not left being written.
        let poured = poured.and(writing.land().await);
        let Some(part) = writing.part else { return poured };
        match poured {
            // What has come is the beginning of the next try; on a full disk, it is in the way.
            Err(trouble) => {
                if !matches!(trouble, Trouble::Down { .. }) {
                    part.discard();
                }
                Err(trouble)
            }
            Ok(()) => self.keep(part, begun, peer).await,
        }
    }

    /// Fetches until all is there. A stream that broke after it had brought something is taken up again at once.
    /// `peer`: a host that some of it came from.
    async fn pour(&self, writing: &mut Writing<'_>, peer: &mut Option<HostId>) -> Result<(), Trouble> {
        loop {
            let from = writing.size();
            self.tell.send_replace(State::Coming(from));
            if from == self.blob.size {
                return Ok(());
            }
            let poured = self.pour_once(writing, from, peer).await;
            writing.land().await?;
            let Err(trouble) = poured else { return Ok(()) };
            match trouble {
                Trouble::Down { message, .. } if writing.size() > from => {
                    tracing::info!(blob = self.blob.sha256, at = writing.size(), "taken up again: {message}");
                }
                trouble => return Err(trouble),
            }
        }
    }

    async fn pour_once(
        &self,
        writing: &mut Writing<'_>,
        from: u64,
        peer: &mut Option<HostId>,
    ) -> Result<(), Trouble> {
        let down =
            |message: String| Trouble::Down { doing: format!("fetch blob {}", self.blob.sha256), message };
        let silent = || down(format!("nothing came for {} s", SILENCE.as_secs()));
        let begun = tokio::time::timeout(SILENCE, self.fetcher.fetch(self.blob, from)).await;
        let incoming = begun.map_err(|_| silent())?.map_err(|e| down(format!("{e:#}")))?;
        let mut stream = incoming.bytes;
        *peer = incoming.peer.or(*peer);
        let mut pieces: Vec<Bytes> = Vec::new();
        let (mut waiting, mut size) = (0, from);
        let broke = loop {
            let piece = tokio::select! {
                biased;
                landed = writing.land(), if writing.flying.is_some() => {
                    landed?;
                    continue;
                }
                piece = tokio::time::timeout(SILENCE, stream.next()) => piece,
            };
            let piece = match piece {
                Ok(Some(Ok(piece))) => piece,
                Ok(Some(Err(error))) => break Some(format!("{error:#}")),
                Ok(None) => break None,
                Err(_) => break Some(format!("nothing came for {} s", SILENCE.as_secs())),
            };
            size += piece.len() as u64;
            if size > self.blob.size {
                let message = format!("blob {} has more than its {} bytes", self.blob.sha256, self.blob.size);
                return Err(spoilt(*peer, message));
            }
            waiting += piece.len();
            pieces.push(piece);
            if waiting >= WRITE {
                waiting = 0;
                writing.write(std::mem::take(&mut pieces)).await?;
            }
        };
        writing.write(pieces).await?;
        match broke {
            // All had come before: what it is, the digest tells.
            Some(_) if size == self.blob.size => Ok(()),
            Some(message) => Err(down(message)),
            None if size < self.blob.size => {
                Err(down(format!("the stream ended after {size} of {} bytes", self.blob.size)))
            }
            None => Ok(()),
        }
    }

    /// Compares the digest, and gives the part its place.
    async fn keep(&self, part: Part, begun: u64, peer: Option<HostId>) -> Result<(), Trouble> {
        let (path, folder, layer) =
            (self.shelf.path(&self.blob.sha256), self.shelf.folder.clone(), self.layer);
        let found = hex::encode(part.digest.clone().finalize());
        if found != self.blob.sha256 {
            part.discard();
            return Err(match begun {
                0 => spoilt(peer, format!("blob {} arrived with the digest {found}", self.blob.sha256)),
                _ => Trouble::Changed(format!(
                    "blob {} was taken up after {begun} bytes of an earlier try and has the digest {found}; it is \
                     fetched anew",
                    self.blob.sha256
                )),
            });
        }
        self.tell.send_replace(State::Whole);
        blocking("keep a blob", move || {
            // A layer's bytes are on their way into the engine's own store, and all that it writes there would wait for the
            // disk together with these. Whether they got to the disk matters after a power cut alone: see `Facts`.
            if !layer {
                part.file.sync_all()?;
            }
            std::fs::rename(&part.path, &path)?;
            facts::write(&path, &Facts::now(&std::fs::metadata(&path)?, layer))?;
            if !layer {
                std::fs::File::open(&folder)?.sync_all()?;
            }
            Ok(())
        })
        .await?;
        self.shelf.grown.notify_one();
        Ok(())
    }
}

/// A part to which pieces are written on a thread of its own, while the next ones come.
struct Writing<'a> {
    /// None while they are written; and for good where the caller is dropped meanwhile: then it is on disk, and nobody's.
    part: Option<Part>,
    flying: Option<JoinHandle<(Part, io::Result<()>)>>,
    tell: &'a watch::Sender<State>,
}

impl Writing<'_> {
    fn size(&self) -> u64 {
        self.part.as_ref().map_or(0, |part| part.size)
    }

    /// Begins to write these, behind the ones before.
    async fn write(&mut self, pieces: Vec<Bytes>) -> Result<(), Trouble> {
        self.land().await?;
        let Some(mut part) = self.part.take() else {
            return Err(Trouble::io("write a blob")(io::Error::other("its part is not open")));
        };
        self.flying = Some(tokio::task::spawn_blocking(move || {
            let written = part.write(&pieces);
            (part, written)
        }));
        Ok(())
    }

    /// Until what was given is written. May be dropped and asked for again.
    async fn land(&mut self) -> Result<(), Trouble> {
        let Some(flying) = &mut self.flying else { return Ok(()) };
        let landed = flying.await;
        self.flying = None;
        let (part, written) = landed.map_err(|e| Trouble::io("write a blob")(io::Error::other(e)))?;
        let size = part.size;
        self.part = Some(part);
        written.map_err(Trouble::io("write a blob"))?;
        self.tell.send_replace(State::Coming(size));
        Ok(())
    }
}

/// What came is not what was asked for. Where another host handed it on, the controller's may be right.
fn spoilt(peer: Option<HostId>, message: String) -> Trouble {
    match peer {
        None => Trouble::Broken(message),
        Some(host) => {
            tracing::error!(%host, "{message}, from that host");
            Trouble::Changed(format!("{message}, from host {host}; it is fetched anew"))
        }
    }
}

/// A blob's beginning on disk, with the digest of what is there.
struct Part {
    path: PathBuf,
    file: std::fs::File,
    digest: Sha256,
    size: u64,
}

impl Part {
    /// What an earlier try has left counts, as far as it can be read. Waits for an earlier one that is still writing.
    fn open(path: PathBuf, max: u64) -> io::Result<Self> {
        let mut file = loop {
            let file =
                std::fs::File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
            file.lock()?;
            // The earlier one may have given it its place meanwhile.
            match std::fs::metadata(&path) {
                Ok(named) if named.ino() == file.metadata()?.ino() => break file,
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        };
        if file.metadata()?.len() > max {
            file.set_len(0)?;
        }
        let (digest, size) = digest_of(&mut file, Duration::ZERO)?;
        file.seek(io::SeekFrom::Start(size))?;
        Ok(Self { path, file, digest, size })
    }

    fn write(&mut self, pieces: &[Bytes]) -> io::Result<()> {
        for piece in pieces {
            self.file.write_all(piece)?;
            self.digest.update(piece);
            self.size += piece.len() as u64;
        }
        Ok(())
    }

    fn discard(self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!("{} stays: {error}", self.path.display());
        }
    }
}

/// With a pause after each piece.
fn digest_of(file: &mut impl Read, pause: Duration) -> io::Result<(Sha256, u64)> {
    let (mut digest, mut size) = (Sha256::new(), 0);
    let mut buffer = vec![0; WRITE];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((digest, size)),
            Ok(read) => {
                digest.update(&buffer[..read]);
                size += read as u64;
                if !pause.is_zero() {
                    std::thread::sleep(pause);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The digest of a file, lower-case hexadecimal, and its size in bytes.
pub(super) fn digest_of_file(path: &Path, pause: Duration) -> io::Result<(String, u64)> {
    let (digest, size) = digest_of(&mut std::fs::File::open(path)?, pause)?;
    Ok((hex::encode(digest.finalize()), size))
}

pub(super) async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Trouble> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(Trouble::io(doing))
}
