//! Uploads that go on where they stopped. Each is a directory below `uploads/` with `owner` (whose it is) and `data` (what has
//! come); they outlive the controller. The digest of what has come is kept in memory beside, and read anew from the file
//! after a restart. One request writes at a time: a newer one ends the one before, whose line hangs.

use super::BlobStore;
use super::error::{BlobError, SessionError, io};
use super::pour::Pour;
use super::spool::{Digests, Spooled};
use amphi_api::ProjectId;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::fs::{File, OpenOptions};
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use uuid::Uuid;

/// An append in which nothing comes for so long ends; what has come stays.
const STALL: Duration = Duration::from_secs(60);
/// How long a request waits until the one before has let go.
const TAKE_OVER: Duration = Duration::from_secs(10);
/// Read at a time when digests are made anew, in bytes.
const CHUNK: usize = 256 << 10;

/// Names an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UploadId(pub Uuid);

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for UploadId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

/// Whose upload it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub project: ProjectId,
    /// What it is for; empty: a blob.
    #[serde(default)]
    pub purpose: String,
}

/// What this controller knows of the uploads it has written to.
#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<UploadId, Arc<Running>>>);

struct Running {
    /// The newest request that wants to write.
    newest: watch::Sender<u64>,
    /// Held by the request that writes, and as long as anything of it is being written.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Of what has come so far; who looks at them has the turn.
    digests: Mutex<Option<Digests>>,
}

impl Running {
    fn digests(&self) -> MutexGuard<'_, Option<Digests>> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sessions {
    fn of(&self, id: UploadId) -> Arc<Running> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || {
            let (turn, digests) = Default::default();
            Arc::new(Running { newest: watch::Sender::new(0), turn, digests })
        };
        all.entry(id).or_insert_with(fresh).clone()
    }

    fn forget(&self, id: UploadId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

impl BlobStore {
    fn dir_of(&self, id: UploadId) -> PathBuf {
        self.uploads.join(id.0.to_string())
    }

    /// Begins an upload. One of this id that is there already is the same one, and stays its owner's.
    pub async fn begin(&self, id: UploadId, owner: &Owner) -> Result<(), BlobError> {
        let dir = self.dir_of(id);
        if tokio::fs::try_exists(&dir).await.map_err(io("begin an upload"))? {
            return Ok(());
        }
        // Whole before it has its name: half an upload is none.
        let draft = self.uploads.join(format!("{}.part", Uuid::new_v4()));
        tokio::fs::create_dir(&draft).await.map_err(io("begin an upload"))?;
        let text = serde_json::to_vec(owner)
            .map_err(|e| BlobError::Io { doing: "begin an upload", source: std::io::Error::other(e) })?;
        let made = async {
            tokio::fs::write(draft.join("owner"), text).await?;
            File::create(draft.join("data")).await?;
            tokio::fs::rename(&draft, &dir).await
        };
        let made = made.await;
        if made.is_err() {
            let _ = tokio::fs::remove_dir_all(&draft).await;
        }
        match made {
            // Another request was as fast.
            Err(_) if tokio::fs::try_exists(&dir).await.unwrap_or(false) => Ok(()),
            made => made.map_err(io("begin an upload")),
        }
    }

    /// How many bytes have come. Another's upload is none.
    pub async fn received(&self, id: UploadId, owner: &Owner) -> Result<u64, SessionError> {
        let dir = self.dir_of(id);
        let text = match tokio::fs::read(dir.join("owner")).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(SessionError::Unknown),
            text => text.map_err(io("read an upload"))?,
        };
        if serde_json::from_slice::<Owner>(&text).ok().as_ref() != Some(owner) {
            return Err(SessionError::Unknown);
        }
        match tokio::fs::metadata(dir.join("data")).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(SessionError::Unknown),
            metadata => Ok(metadata.map_err(io("read an upload"))?.len()),
        }
    }

    /// The file that an upload's bytes go to, for those who read behind the one that writes.
    pub async fn open_upload(&self, id: UploadId) -> Result<File, BlobError> {
        File::open(self.dir_of(id).join("data")).await.map_err(io("read an upload"))
    }

    /// Takes bytes behind those that are here; how many there are then. `at`: where they begin, by the sender.
    pub async fn append<E: fmt::Display>(
        &self,
        id: UploadId,
        owner: &Owner,
        at: Option<u64>,
        bytes: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<u64, SessionError> {
        let mut here = self.received(id, owner).await?;
        let running = self.sessions.of(id);
        let mut ticket = 0;
        running.newest.send_modify(|newest| {
            *newest += 1;
            ticket = *newest;
        });
        let mut newest = running.newest.subscribe();
        let turn = tokio::time::timeout(TAKE_OVER, running.turn.clone().lock_owned()).await;
        let turn = turn.map_err(|_| SessionError::Superseded { received: here })?;
        here = self.received(id, owner).await?;
        if at.is_some_and(|at| at != here) {
            return Err(SessionError::WrongOffset { received: here });
        }
        // Digests that do not cover just what is here are made anew at the end.
        let known = running.digests().take().filter(|d| d.size == here);
        let digests = known.or_else(|| (here == 0).then(Digests::default));
        let path = self.dir_of(id).join("data");
        let file = OpenOptions::new().append(true).open(&path).await.map_err(io("write an upload"))?;
        // What is still being written holds the turn, also when this request is dropped.
        let mut pour = Pour::new(Some(file.into_std().await), digests, Some(Arc::new(turn)));
        let mut bytes = pin!(bytes);
        let mut quiet = pin!(tokio::time::sleep(STALL));
        let ended = loop {
            let cut = |reason: String| Err(SessionError::Cut { received: here, reason });
            let part = tokio::select! {
                biased;
                () = superseded(&mut newest, ticket) => break Err(SessionError::Superseded { received: here }),
                part = bytes.next() => part,
                settled = pour.settle() => match settled {
                    Ok(()) => continue,
                    Err(error) => return Err(self.unwritten(id, error).await),
                },
                () = &mut quiet => break cut(format!("nothing came for {} s", STALL.as_secs())),
            };
            let part = match part {
                Some(Ok(part)) => part,
                None => break Ok(()),
                Some(Err(error)) => break cut(error.to_string()),
            };
            let size = part.len() as u64;
            if here.saturating_add(size) > self.limit {
                drop(pour);
                self.cancel(id).await;
                return Err(BlobError::TooLarge { limit: self.limit }.into());
            }
            if let Err(error) = pour.take(part).await {
                // How much of it came to the disk is not known: digests of the whole are made anew.
                return Err(self.unwritten(id, error).await);
            }
            here += size;
            quiet.as_mut().reset(tokio::time::Instant::now() + STALL);
        };
        match pour.end().await {
            Ok(digests) => *running.digests() = digests,
            Err(error) => return Err(self.unwritten(id, error).await),
        }
        ended.map(|()| here)
    }

    /// Bytes could not be written. Where there is no room, those that have come go too: they hold the room that is missing.
    async fn unwritten(&self, id: UploadId, error: std::io::Error) -> SessionError {
        let error = io("write an upload")(error);
        if matches!(error, BlobError::Full { .. }) {
            self.cancel(id).await;
        }
        error.into()
    }

    /// The whole of an upload as a file that can be kept. The upload is no more, whatever follows.
    pub async fn conclude(&self, id: UploadId, owner: &Owner) -> Result<Spooled, SessionError> {
        let here = self.received(id, owner).await?;
        let running = self.sessions.of(id);
        let turn = tokio::time::timeout(TAKE_OVER, running.turn.lock()).await;
        let _turn = turn.map_err(|_| SessionError::Superseded { received: here })?;
        let here = self.received(id, owner).await?;
        let data = self.dir_of(id).join("data");
        let file = File::open(&data).await.map_err(io("read an upload"))?;
        file.sync_all().await.map_err(io("write an upload to the disk"))?;
        let known = running.digests().take().filter(|d| d.size == here);
        let digests = match known {
            Some(digests) => digests,
            None => digests_of(file).await?,
        };
        let path = self.uploads.join(format!("{}.part", Uuid::new_v4()));
        tokio::fs::rename(&data, &path).await.map_err(io("keep an upload"))?;
        let spooled = Spooled::whole(path, digests);
        self.cancel(id).await;
        Ok(spooled)
    }

    /// Gives an upload up; one that is not there is no error.
    pub async fn cancel(&self, id: UploadId) {
        self.sessions.forget(id);
        if let Err(error) = tokio::fs::remove_dir_all(self.dir_of(id)).await
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(upload = %id, %error, "an upload stays behind until it expires");
        }
    }

    /// Uploads to which nothing came for so long go, and whatever else was left behind there.
    pub async fn expire(&self, untouched: Duration) -> Result<(), BlobError> {
        let now = SystemTime::now();
        let mut entries = tokio::fs::read_dir(&self.uploads).await.map_err(io("list uploads"))?;
        while let Some(entry) = entries.next_entry().await.map_err(io("list uploads"))? {
            let path = entry.path();
            // Of a directory, what counts is when its data last grew.
            let touched = match tokio::fs::metadata(path.join("data")).await {
                Ok(metadata) => metadata.modified(),
                Err(_) => entry.metadata().await.and_then(|m| m.modified()),
            };
            let age = touched.map(|at| now.duration_since(at).unwrap_or_default());
            if !age.is_ok_and(|age| age >= untouched) {
                continue;
            }
            tracing::info!(path = %path.display(), "an upload has expired");
            if let Some(id) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok()) {
                self.sessions.forget(id);
            }
            remove(&path).await;
        }
        self.shelf.tidy(untouched).await
    }
}

async fn remove(path: &Path) {
    if tokio::fs::remove_file(path).await.is_err()
        && let Err(error) = tokio::fs::remove_dir_all(path).await
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove an expired upload");
    }
}

/// Returns when a newer request than this one wants to write.
async fn superseded(newest: &mut watch::Receiver<u64>, ticket: u64) {
    if newest.wait_for(|newest| *newest != ticket).await.is_err() {
        // The upload is forgotten: nobody else writes.
        std::future::pending::<()>().await;
    }
}

async fn digests_of(mut file: File) -> Result<Digests, BlobError> {
    let mut digests = Digests::default();
    let mut chunk = vec![0; CHUNK];
    loop {
        let got = file.read(&mut chunk).await.map_err(io("read an upload"))?;
        if got == 0 {
            return Ok(digests);
        }
        digests.update(&chunk[..got]);
    }
}
