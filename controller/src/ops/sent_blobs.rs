//! Blobs on their own by the native face: what a project need not send, what it sends before an image names it, and blobs of
//! images that are put together of such. All of it goes the ways of [`super::bringing`]: a recipe saves the line, not the look.

use super::blobs::digest_of;
use super::bringing::{Brought, word};
use super::resuming::{Arrived, ByteRange};
use super::{BlobStream, Ops, OpsError, PushRefused, UploadId};
use crate::images::{BlobRead, Owner, SessionError};
use crate::model::BlobRecord;
use amphi_api::disk::{self, DiskFormat};
use amphi_api::image::{Blob, BlobRole, BlobsWanted, Image, ImageFormat};
use amphi_api::recipe::{LITERAL_MAX, Piece, Recipe};
use amphi_api::{ImageId, ProjectId};
use futures_util::StreamExt;
use uuid::Uuid;

/// Most pieces of a recipe: each entry of an archive makes two.
const PIECES_MAX: usize = 8192;

/// The same for everybody of the project who sends this blob.
fn session(scope: ProjectId, sha256: &str) -> (UploadId, Owner) {
    let owner = Owner { project: scope, purpose: format!("blob/{sha256}") };
    (UploadId(Uuid::new_v5(&scope.0, sha256.as_bytes())), owner)
}

impl Ops {
    /// Those blobs of these that the project sees and that lie here as they are; they stay for it for a day.
    pub async fn known_blobs(&self, scope: ProjectId, wanted: &BlobsWanted) -> Result<Vec<Blob>, OpsError> {
        if wanted.sha256.len() > BlobsWanted::MAX {
            return Err(OpsError::field("sha256", format!("at most {} at a time", BlobsWanted::MAX)));
        }
        let mut known = Vec::new();
        for sha256 in &wanted.sha256 {
            known.extend(self.whole_blob(scope, sha256).await?);
        }
        Ok(known)
    }

    /// An archive has no bytes of its own: it is made of others.
    pub(super) async fn whole_blob(&self, scope: ProjectId, sha256: &str) -> Result<Option<Blob>, OpsError> {
        let digest = digest_of(sha256)?;
        if self.world().read().blobs.get(digest).is_none_or(|row| row.archive.is_some()) {
            return Ok(None);
        }
        self.wanted_blob(scope, sha256).await
    }

    /// How many bytes of a blob are here for the project: all of them, where it sees it.
    pub async fn lone_blob_received(&self, scope: ProjectId, sha256: &str) -> Result<u64, OpsError> {
        if let Some(blob) = self.whole_blob(scope, sha256).await? {
            return Ok(blob.size);
        }
        let (upload, owner) = session(scope, sha256);
        match self.blobs.received(upload, &owner).await {
            Err(SessionError::Unknown) => Ok(0),
            received => Ok(received.map_err(|e| super::resuming::refused(upload, e))?),
        }
    }

    /// Takes bytes of a blob behind those that are here: how many there are then, or the blob.
    pub async fn append_lone_blob(
        &self,
        scope: ProjectId,
        sha256: &str,
        range: ByteRange,
        bytes: BlobStream,
    ) -> Result<Result<Blob, u64>, OpsError> {
        digest_of(sha256)?;
        let (upload, owner) = session(scope, sha256);
        match self.append_session(scope, upload, &owner, range, bytes, Some(sha256)).await? {
            Arrived::More(here) => Ok(Err(here)),
            Arrived::Whole(spooled) => {
                Ok(Ok(self.keep(scope, self.settings.blobs.lent, spooled, None).await?))
            }
        }
    }

    /// The blob's bytes from an offset on, and how many it has, if the project sees it.
    pub async fn read_lone_blob(
        &self,
        scope: ProjectId,
        sha256: &str,
        from: u64,
    ) -> Result<(BlobRead, u64), OpsError> {
        let blob = self.visible_blob(scope, sha256).await?;
        let blob = blob.ok_or_else(|| OpsError::NotFound { noun: "blob", id: sha256.to_owned() })?;
        if from > blob.size {
            return Err(OpsError::field("range", format!("the blob has {} bytes", blob.size)));
        }
        self.read_blob(sha256, from).await
    }

    /// Gives an image a blob that is put together of what is here.
    pub async fn put_recipe(
        &self,
        scope: ProjectId,
        id: ImageId,
        role: BlobRole,
        recipe: Recipe,
        expected: Option<&str>,
    ) -> Result<Image, OpsError> {
        let format = self.taker(scope, id, role)?;
        if recipe.literals() > LITERAL_MAX || recipe.pieces.len() > PIECES_MAX {
            let text = format!("at most {LITERAL_MAX} bytes and {PIECES_MAX} pieces");
            return Err(OpsError::field("pieces", text));
        }
        let mut missing = Vec::new();
        for (n, piece) in recipe.pieces.iter().enumerate() {
            let Piece::Blob { sha256, size } = piece else { continue };
            match self.whole_blob(scope, sha256).await? {
                Some(blob) if blob.size == *size => {}
                Some(blob) => {
                    let text = format!("the blob has {} bytes, not {size}", blob.size);
                    return Err(OpsError::field(format!("pieces[{n}].blob.size"), text));
                }
                None => missing.push(sha256.clone()),
            }
        }
        if !missing.is_empty() {
            return Err(OpsError::conflict(PushRefused::BlobsMissing(missing).to_string()));
        }
        let one = match &recipe.pieces[..] {
            [Piece::Blob { sha256, .. }] if expected.is_none_or(|expected| expected == sha256) => {
                self.as_it_lies(format, role, sha256).await?
            }
            _ => None,
        };
        let brought = match one {
            Some(brought) => brought,
            None => {
                let bytes = self.blobs.read_parts(self.placed(recipe)?, 0).stream().boxed();
                self.bring(scope, format, role, bytes, expected, self.settings.blobs.brief).await?
            }
        };
        self.name_brought(scope, id, role, &brought).await
    }

    /// A blob that is an image's without being written again; none: it has to be looked at as it passes.
    pub(super) async fn as_it_lies(
        &self,
        format: ImageFormat,
        role: BlobRole,
        sha256: &str,
    ) -> Result<Option<Brought>, OpsError> {
        if matches!(role, BlobRole::Archive | BlobRole::Manifest) {
            return Ok(None);
        }
        let record: Option<BlobRecord> =
            self.world().read().blobs.get(digest_of(sha256)?).map(|row| (*row.record).clone());
        let Some(record) = record else { return Ok(None) };
        let virtual_size = match DiskFormat::of(format).filter(|_| role == BlobRole::Disk) {
            Some(disk) => {
                let ends = self.blobs.ends(record.digest, &record.place, disk).await?;
                Some(disk::look(disk, &ends).map_err(|why| OpsError::field(word(role), why))?)
            }
            None => None,
        };
        let blob = Blob { sha256: sha256.to_owned(), size: record.size };
        Ok(Some(Brought { blob, md5: record.md5, virtual_size, container: None }))
    }
}
