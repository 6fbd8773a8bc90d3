//! Uploads of images' blobs that go on where they stopped: one per image and role, until the last byte has come.

use super::blobs::digest_of;
use super::bringing::word;
use super::list::find;
use super::{BlobStream, DIGEST_HEADER, Ops, OpsError, PushRefused, UploadId};
use crate::images::{Owner, SessionError, Spooled};
use amphi_api::image::{BlobRole, Image};
use amphi_api::{ImageId, ProjectId};
use uuid::Uuid;

/// Which bytes of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    pub from: u64,
    /// Of the whole blob.
    pub total: u64,
}

/// What has become of an upload.
#[derive(Debug)]
pub enum Appended {
    /// So many bytes are here; the rest is awaited.
    More(u64),
    Whole(Box<Image>),
}

/// What has become of an upload's bytes.
pub(super) enum Arrived {
    More(u64),
    Whole(Spooled),
}

/// The same for everybody who sends this image's blob.
fn session(scope: ProjectId, id: ImageId, role: BlobRole) -> (UploadId, Owner) {
    let role = word(role);
    let owner = Owner { project: scope, purpose: format!("image/{id}/{role}") };
    (UploadId(Uuid::new_v5(&id.0, role.as_bytes())), owner)
}

impl Ops {
    /// How many bytes of an image's blob are here: all of them, once it is the image's.
    pub async fn blob_received(
        &self,
        scope: ProjectId,
        id: ImageId,
        role: BlobRole,
    ) -> Result<u64, OpsError> {
        let there = find(&self.world().read().images, scope, id)?.blobs.get(&role).map(|blob| blob.size);
        if let Some(size) = there {
            return Ok(size);
        }
        self.taker(scope, id, role)?;
        let (upload, owner) = session(scope, id, role);
        match self.blobs.received(upload, &owner).await {
            Err(SessionError::Unknown) => Ok(0),
            received => Ok(received.map_err(|e| refused(upload, e))?),
        }
    }

    /// Takes bytes behind those that are here; with the last, the blob is the image's. What has come stays for a day.
    pub async fn append_blob(
        &self,
        scope: ProjectId,
        id: ImageId,
        role: BlobRole,
        range: ByteRange,
        bytes: BlobStream,
        expected: Option<&str>,
    ) -> Result<Appended, OpsError> {
        let format = self.taker(scope, id, role)?;
        let (upload, owner) = session(scope, id, role);
        match self.append_session(scope, upload, &owner, range, bytes, expected).await? {
            Arrived::More(here) => Ok(Appended::More(here)),
            Arrived::Whole(spooled) => {
                let brought = self.bring_file(scope, format, role, spooled).await?;
                Ok(Appended::Whole(Box::new(self.name_brought(scope, id, role, &brought).await?)))
            }
        }
    }

    /// Takes bytes of an upload that begins with its first.
    pub(super) async fn append_session(
        &self,
        scope: ProjectId,
        upload: UploadId,
        owner: &Owner,
        range: ByteRange,
        bytes: BlobStream,
        expected: Option<&str>,
    ) -> Result<Arrived, OpsError> {
        expected.map(digest_of).transpose()?;
        if range.total > self.blobs.limit() {
            return Err(OpsError::TooLarge(self.blobs.limit()));
        }
        super::image_bytes::check(&self.world().read(), scope, range.total)?;
        self.blobs.begin(upload, owner).await?;
        let here = self.blobs.append(upload, owner, Some(range.from), bytes).await;
        let here = here.map_err(|e| refused(upload, e))?;
        if here < range.total {
            return Ok(Arrived::More(here));
        }
        if here > range.total {
            self.blobs.cancel(upload).await;
            let text = format!("{here} bytes have come, more than the {} that were announced", range.total);
            return Err(OpsError::field("content-range", text));
        }
        let spooled = self.blobs.conclude(upload, owner).await.map_err(|e| refused(upload, e))?;
        if let Some(expected) = expected.filter(|e| *e != spooled.digest.to_string()) {
            let text =
                format!("the bytes are of digest {}, not {expected}; nothing was kept", spooled.digest);
            return Err(OpsError::field(DIGEST_HEADER, text));
        }
        Ok(Arrived::Whole(spooled))
    }
}

pub(super) fn refused(upload: UploadId, error: SessionError) -> OpsError {
    match error {
        SessionError::Unknown => PushRefused::NoUpload(upload).into(),
        SessionError::Blob(error) => error.into(),
        // What is here is asked for, and the sender goes on there.
        error => OpsError::conflict(error.to_string()),
    }
}
