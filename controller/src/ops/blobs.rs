//! Blobs on their way in, and who may see which: uploads that go on where they stopped, blobs that a project may name
//! without sending them again. A project sees a blob when an image or manifest that is open to it names it, or when it has
//! brought it itself lately; all others are absent for it. Refuses to know what the bytes mean.

use super::{BlobStream, Draft, Ops, OpsError, Row, View};
use crate::images::{BlobError, BlobRead, SessionError};
use crate::model::{BlobRecord, Digest, ManifestRecord};
use amphi_api::ProjectId;
use amphi_api::image::Blob;
use jiff::{SignedDuration, Timestamp};

pub use crate::images::UploadId;

/// How long a project keeps and sees a blob that it has brought or asked for, before anything names it.
pub const LENT: SignedDuration = SignedDuration::from_hours(24);

/// Why a push cannot go on. Faces translate it; all else says it as an [`OpsError`].
#[derive(Debug, thiserror::Error)]
pub enum PushRefused {
    /// No such upload of this project: it never began, was finished or given up, or has expired. Begin anew.
    #[error("there is no upload {0}; it may have expired: begin anew")]
    NoUpload(UploadId),
    /// The bytes do not begin where those that are here end.
    #[error("{received} bytes are here; go on there")]
    WrongOffset { received: u64 },
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

impl Ops {
    /// Begins an upload of the project. It lasts until it is finished or cancelled, or nothing came for a day; it outlives
    /// the controller.
    pub async fn begin_upload(&self, scope: ProjectId) -> Result<UploadId, PushRefused>;

    /// Takes bytes behind those that are here; returns how many there are now. `at`: where the sender believes that they
    /// begin; refused with the right place if it is wrong. A line that breaks leaves what has come. Whoever appends ends
    /// another append to the same upload that hangs.
    pub async fn append_upload(
        &self,
        scope: ProjectId,
        id: UploadId,
        at: Option<u64>,
        bytes: BlobStream,
    ) -> Result<u64, PushRefused>;

    /// How many bytes of an upload are here.
    pub async fn upload(&self, scope: ProjectId, id: UploadId) -> Result<u64, PushRefused>;

    /// Takes the last bytes, if any, and makes the whole a blob. `sha256`: 64 lower-case hexadecimal digits, without
    /// `sha256:`. Bytes of another digest are refused, and the upload is gone.
    pub async fn finish_upload(
        &self,
        scope: ProjectId,
        id: UploadId,
        bytes: BlobStream,
        sha256: &str,
    ) -> Result<Blob, PushRefused>;

    pub async fn cancel_upload(&self, scope: ProjectId, id: UploadId) -> Result<(), PushRefused>;

    /// The blob, if the project sees it. A mere read: for pulls.
    pub async fn visible_blob(&self, scope: ProjectId, sha256: &str) -> Result<Option<Blob>, OpsError>;

    /// The blob, if the project sees it; kept for it for a day, so that what it pushes next may name it. For the HEAD of
    /// someone who may push.
    pub async fn wanted_blob(&self, scope: ProjectId, sha256: &str) -> Result<Option<Blob>, OpsError>;

    /// Lends the project a blob that `from` sees; whether it did. The caller has made sure that whoever asks may read in
    /// `from`.
    pub async fn mount_blob(
        &self,
        scope: ProjectId,
        sha256: &str,
        from: ProjectId,
    ) -> Result<bool, OpsError>;

    /// A blob's bytes from an offset on, and the size of the whole. The caller has asked whether they may be seen.
    /// An archive that was taken apart is put together while it is read.
    pub async fn read_blob(&self, sha256: &str, from: u64) -> Result<(BlobRead, u64), OpsError>;
}
