//! Blobs on their way in, and who may see which: uploads that go on where they stopped, blobs that a project may name
//! without sending them again. A project sees a blob when an image or manifest that is open to it names it, or when it has
//! brought it itself lately; all others are absent for it. Refuses to know what the bytes mean.

use super::named::Namer;
use super::{BlobStream, Draft, Ops, OpsError, View};
use crate::images::{BlobError, BlobRead, Owner, Placed, SessionError, Spooled, Stored};
use crate::model::{BlobRecord, Digest, LayerFacts};
use amphi_api::ProjectId;
use amphi_api::image::Blob;
use amphi_api::recipe::{Piece, Recipe};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use uuid::Uuid;

pub use crate::images::UploadId;

/// How long blobs stay that nothing names.
#[derive(Clone, Copy, Debug)]
pub struct BlobTerms {
    /// A project keeps and sees a blob that it has pushed or asked for in a push.
    pub lent: SignedDuration,
    /// The same for what is named within the request that brings it.
    pub brief: SignedDuration,
    /// From when a blob was found unnamed until it goes.
    pub grace: Duration,
    /// Until an upload goes to which nothing comes.
    pub upload: Duration,
}

impl Default for BlobTerms {
    fn default() -> Self {
        Self {
            lent: SignedDuration::from_hours(24),
            brief: SignedDuration::from_mins(10),
            grace: Duration::from_secs(600),
            upload: Duration::from_secs(24 * 3600),
        }
    }
}

/// Why a push cannot go on. Faces translate it; all else says it as an [`OpsError`].
#[derive(Debug, thiserror::Error)]
pub enum PushRefused {
    /// No such upload of this project: it never began, was finished or given up, or has expired. Begin anew.
    #[error("there is no upload {0}; it may have expired: begin anew")]
    NoUpload(UploadId),
    /// The bytes do not begin where those that are here end.
    #[error("{received} bytes are here; go on there")]
    WrongOffset { received: u64 },
    /// The line broke, or another request took the upload over; what has come stays.
    #[error("{reason}; {received} bytes are here: go on there")]
    Cut { received: u64, reason: String },
    /// The bytes are not what they should be, or cannot be kept.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The manifest says something that cannot be, or that is not taken; which field, and what to do.
    #[error("{field}: {message}")]
    Manifest { field: String, message: String },
    /// It names blobs (or an index's manifests) that are not here for this project: push them first.
    #[error("these are not here; push them first: {}", .0.join(", "))]
    BlobsMissing(Vec<String>),
    #[error(transparent)]
    Ops(#[from] OpsError),
}

impl From<PushRefused> for OpsError {
    fn from(refused: PushRefused) -> Self {
        let text = refused.to_string();
        match refused {
            PushRefused::NoUpload(id) => OpsError::NotFound { noun: "upload", id: id.to_string() },
            PushRefused::WrongOffset { .. } => OpsError::field("content-range", text),
            PushRefused::Cut { .. } | PushRefused::BlobsMissing(_) => OpsError::field("", text),
            PushRefused::Blob(error) => error.into(),
            PushRefused::Manifest { field, message } => OpsError::field(field, message),
            PushRefused::Ops(error) => error,
        }
    }
}

fn refused(id: UploadId) -> impl Fn(SessionError) -> PushRefused {
    move |error| match error {
        SessionError::Unknown => PushRefused::NoUpload(id),
        SessionError::WrongOffset { received } => PushRefused::WrongOffset { received },
        SessionError::Superseded { received } => {
            PushRefused::Cut { received, reason: "another request writes to this upload".into() }
        }
        SessionError::Cut { received, reason } => {
            PushRefused::Cut { received, reason: format!("the line broke: {reason}") }
        }
        SessionError::Blob(error) => error.into(),
    }
}

fn of_push(project: ProjectId) -> Owner {
    Owner { project, purpose: String::new() }
}

impl Ops {
    /// Begins an upload of the project. It lasts until it is finished or cancelled, or nothing came for a day; it outlives
    /// the controller.
    pub async fn begin_upload(&self, scope: ProjectId) -> Result<UploadId, PushRefused> {
        super::image_bytes::check(&self.world().read(), scope, 1)?;
        let id = UploadId(Uuid::new_v4());
        self.blobs.begin(id, &of_push(scope)).await?;
        Ok(id)
    }

    /// Takes bytes behind those that are here; returns how many there are now. `at`: where the sender believes that they
    /// begin; refused with the right place if it is wrong. A line that breaks leaves what has come. Whoever appends ends
    /// another append to the same upload that hangs.
    pub async fn append_upload(
        &self,
        scope: ProjectId,
        id: UploadId,
        at: Option<u64>,
        bytes: BlobStream,
    ) -> Result<u64, PushRefused> {
        self.blobs.append(id, &of_push(scope), at, bytes).await.map_err(refused(id))
    }

    /// How many bytes of an upload are here.
    pub async fn upload(&self, scope: ProjectId, id: UploadId) -> Result<u64, PushRefused> {
        self.blobs.received(id, &of_push(scope)).await.map_err(refused(id))
    }

    /// Takes the last bytes, if any, and makes the whole a blob. `sha256`: 64 lower-case hexadecimal digits, without
    /// `sha256:`. Bytes of another digest are refused, and the upload is gone.
    pub async fn finish_upload(
        &self,
        scope: ProjectId,
        id: UploadId,
        bytes: BlobStream,
        sha256: &str,
    ) -> Result<Blob, PushRefused> {
        let expected = digest_of(sha256)?;
        let owner = of_push(scope);
        let size = self.blobs.append(id, &owner, None, bytes).await.map_err(refused(id))?;
        super::image_bytes::check(&self.world().read(), scope, size)?;
        let spooled = self.blobs.conclude(id, &owner).await.map_err(refused(id))?;
        if spooled.digest != expected {
            let found = spooled.digest.to_string();
            return Err(BlobError::WrongDigest { expected: sha256.to_owned(), found }.into());
        }
        Ok(self.keep(scope, self.settings.blobs.lent, spooled, None).await?)
    }

    pub async fn cancel_upload(&self, scope: ProjectId, id: UploadId) -> Result<(), PushRefused> {
        self.blobs.received(id, &of_push(scope)).await.map_err(refused(id))?;
        self.blobs.cancel(id).await;
        Ok(())
    }

    /// The blob, if the project sees it. A mere read: for pulls.
    pub async fn visible_blob(&self, scope: ProjectId, sha256: &str) -> Result<Option<Blob>, OpsError> {
        let Ok(digest) = sha256.parse::<Digest>() else { return Ok(None) };
        let record = {
            let view = self.world().read();
            if !view.sees_blob(scope, digest, Timestamp::now()) {
                return Ok(None);
            }
            view.blobs.get(digest).map(|row| row.record.clone())
        };
        let size = match &record {
            Some(record) if record.archive.is_some() => Some(record.size),
            record => self.blobs.has(digest, record.as_ref().map_or("", |r| r.place.as_str())).await?,
        };
        Ok(size.map(|size| Blob { sha256: sha256.to_owned(), size }))
    }

    /// The blob, if the project sees it; kept for it for a day, so that what it pushes next may name it. For the HEAD of
    /// someone who may push.
    pub async fn wanted_blob(&self, scope: ProjectId, sha256: &str) -> Result<Option<Blob>, OpsError> {
        let Some(blob) = self.visible_blob(scope, sha256).await? else { return Ok(None) };
        Ok(self.lend(scope, &blob).await?.then_some(blob))
    }

    /// Lends the project a blob that `from` sees; whether it did. The caller has made sure that whoever asks may read in
    /// `from`.
    pub async fn mount_blob(
        &self,
        scope: ProjectId,
        sha256: &str,
        from: ProjectId,
    ) -> Result<bool, OpsError> {
        match self.visible_blob(from, sha256).await? {
            Some(blob) => self.lend(scope, &blob).await,
            None => Ok(false),
        }
    }

    /// A blob's bytes from an offset on, and the size of the whole. The caller has asked whether they may be seen.
    /// An archive that was taken apart is put together while it is read.
    pub async fn read_blob(&self, sha256: &str, from: u64) -> Result<(BlobRead, u64), OpsError> {
        let digest = digest_of(sha256)?;
        let record = self.world().read().blobs.get(digest).map(|row| row.record.clone());
        let Some(parts) = record.as_ref().and_then(|record| record.archive.as_ref()) else {
            let place = record.as_ref().map_or("", |record| record.place.as_str());
            return Ok(self.blobs.read(digest, place, from).await?);
        };
        let recipe = self.document(&parts.recipe.sha256).await?;
        let recipe: Recipe = serde_json::from_slice(&recipe)
            .map_err(|e| OpsError::Internal(format!("the recipe of archive {sha256}: {e}")))?;
        let size = recipe.size();
        Ok((self.blobs.read_parts(self.placed(recipe)?, from), size))
    }

    /// Where a recipe's pieces lie.
    pub(super) fn placed(&self, recipe: Recipe) -> Result<Vec<Placed>, BlobError> {
        let view = self.world().read();
        let place = |piece| match piece {
            Piece::Bytes(bytes) => Ok(Placed::Bytes(bytes.into())),
            Piece::Blob { sha256, size } => {
                let digest = digest_of(&sha256)?;
                let place = view.blobs.get(digest).map_or(String::new(), |row| row.place.clone());
                Ok(Placed::Blob { digest, place, size })
            }
        };
        recipe.pieces.into_iter().map(place).collect()
    }

    /// All bytes of a blob that is known to be small.
    pub(super) async fn document(&self, sha256: &str) -> Result<Bytes, OpsError> {
        let digest = digest_of(sha256)?;
        let place = self.world().read().blobs.get(digest).map_or(String::new(), |row| row.place.clone());
        let (mut read, _) = self.blobs.read(digest, &place, 0).await?;
        let mut bytes = Vec::new();
        let failed = |e: std::io::Error| OpsError::Unavailable(format!("blob {sha256}: {e}"));
        read.read_to_end(&mut bytes).await.map_err(failed)?;
        Ok(bytes.into())
    }

    /// Keeps a document as a blob.
    pub(super) async fn keep_document(
        &self,
        scope: ProjectId,
        lent: SignedDuration,
        bytes: Bytes,
    ) -> Result<Blob, OpsError> {
        let one = futures_util::stream::iter([Ok::<_, std::io::Error>(bytes)]);
        let stored = self.blobs.put(one, None).await?;
        self.record_blob(scope, lent, stored, None).await
    }

    /// Keeps a finished file as a blob that is lent to the project.
    pub(super) async fn keep(
        &self,
        scope: ProjectId,
        lent: SignedDuration,
        spooled: Spooled,
        layer: Option<LayerFacts>,
    ) -> Result<Blob, OpsError> {
        let stored = self.blobs.keep(spooled).await?;
        self.record_blob(scope, lent, stored, layer).await
    }

    /// Makes a blob known whose file lies where it belongs. Where one of the same bytes is there already, this one goes.
    pub(super) async fn record_blob(
        &self,
        scope: ProjectId,
        lent: SignedDuration,
        stored: Stored,
        layer: Option<LayerFacts>,
    ) -> Result<Blob, OpsError> {
        let digest = stored.digest;
        let known = self.world().read().blobs.get(digest).map(|row| row.record.clone());
        // A record whose file has been lost gets this one.
        let lost = match &known {
            Some(known) if known.archive.is_none() => {
                (self.blobs.has(digest, &known.place).await? != Some(known.size)).then(|| known.place.clone())
            }
            _ => None,
        };
        let now = Timestamp::now();
        let place = self.transact(|view| {
            let row = view.blobs.get(digest);
            let mut record = match row {
                Some(row) => (*row.record).clone(),
                None => blank(digest, stored.size, stored.place.clone()),
            };
            if lost.as_ref() == Some(&record.place) {
                record.place.clone_from(&stored.place);
            }
            record.md5 = stored.md5.clone().or(record.md5);
            record.layer = record.layer.or(layer);
            lend(&mut record, scope, now, lent);
            let mut draft = Draft::default();
            draft.put_record(row, &record);
            Ok((draft, record.place))
        });
        let place = place.await;
        if place.as_ref().ok() != Some(&stored.place)
            && let Err(error) = self.blobs.remove(digest, &stored.place).await
        {
            tracing::warn!(sha256 = %digest, %error, "a second file of a blob stays behind until it is swept");
        }
        place?;
        Ok(Blob { sha256: digest.to_string(), size: stored.size })
    }

    /// Keeps a blob for the project; whether it is still there.
    async fn lend(&self, scope: ProjectId, blob: &Blob) -> Result<bool, OpsError> {
        let digest = digest_of(&blob.sha256)?;
        let terms = self.settings.blobs;
        let now = Timestamp::now();
        self.transact(|view| {
            let mut draft = Draft::default();
            let Some(row) = view.blobs.get(digest) else { return Ok((draft, false)) };
            // Half of the time is enough for another while: not every question is a commit.
            let kept = row.lent.get(&scope).is_some_and(|until| *until > now + terms.lent / 2);
            if row.doomed || !kept {
                let mut record = (*row.record).clone();
                lend(&mut record, scope, now, terms.lent);
                draft.update(row, &record);
            }
            Ok((draft, true))
        })
        .await
    }
}

/// A record of a blob that nobody knows yet.
pub(super) fn blank(digest: Digest, size: u64, place: String) -> BlobRecord {
    BlobRecord {
        digest,
        size,
        md5: None,
        place,
        lent: Default::default(),
        doomed: false,
        layer: None,
        archive: None,
    }
}

/// The project has it for so long from now, if not longer.
pub(super) fn lend(record: &mut BlobRecord, scope: ProjectId, now: Timestamp, lent: SignedDuration) {
    record.doomed = false;
    record.lent.retain(|_, until| *until > now);
    let until = record.lent.entry(scope).or_insert(now);
    *until = (*until).max(now + lent);
}

/// In a transaction that names a blob: if somebody finds it unnamed in the meantime, the transaction is decided anew.
/// Refused when it has gone.
pub(super) fn hold(view: &View, draft: &mut Draft, sha256: &str) -> Result<(), OpsError> {
    let row = view.blobs.get(digest_of(sha256)?);
    let row =
        row.ok_or_else(|| OpsError::Unavailable(format!("blob {sha256} has gone meanwhile; send it again")))?;
    if draft.writes(&crate::model::Record::key(&*row.record)) {
        return Ok(());
    }
    if row.doomed {
        draft.update(row, &BlobRecord { doomed: false, ..(*row.record).clone() });
    } else {
        draft.guard(row);
    }
    Ok(())
}

pub(super) fn digest_of(sha256: &str) -> Result<Digest, BlobError> {
    sha256.parse().map_err(|e: crate::model::NoDigest| BlobError::NoDigest { text: e.text })
}

impl View {
    /// Whether the project sees a blob of this digest, if there is one.
    pub fn sees_blob(&self, scope: ProjectId, digest: Digest, now: Timestamp) -> bool {
        let lent = |digest| {
            let row = self.blobs.get(digest);
            row.is_some_and(|row| row.lent.get(&scope).is_some_and(|until| *until > now))
        };
        let open = |image| self.images.get(image).is_some_and(|image| !image.closing && image.open_to(scope));
        let names = |namer| match namer {
            Namer::Image(id) => open(id),
            Namer::Manifest(key) => {
                let image = self.manifests.get(key).and_then(|row| row.image);
                key.project == scope || image.is_some_and(open)
            }
            Namer::Archive(_) => false,
            Namer::Mirror(key) => {
                let link = self.links.get(key);
                let repository = link.and_then(|link| self.repositories.get(link.repository));
                repository.is_some_and(|repository| repository.project == scope)
            }
        };
        lent(digest)
            || self.named.by(digest).any(|namer| match namer {
                Namer::Archive(whole) => lent(whole) || self.named.by(whole).any(names),
                namer => names(namer),
            })
    }
}
