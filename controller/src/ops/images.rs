//! Images: a record first, then its blobs, role by role. The bytes live in the blob store, by digest.

use super::list::find;
use super::{Draft, ListQuery, Ops, OpsError, View};
use crate::images::{BLOB_MAX, BlobError};
use crate::model::ImageRecord;
use amphi_api::image::{Blob, BlobRole, Image, ImageCreate};
use amphi_api::{ImageId, ProjectId};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use jiff::Timestamp;

/// Bytes on their way in.
pub type BlobStream = BoxStream<'static, std::io::Result<Bytes>>;

/// The header that carries the digest a client expects.
pub const DIGEST_HEADER: &str = "x-amphi-sha256";

impl From<BlobError> for OpsError {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::WrongDigest { .. } | BlobError::NoDigest { .. } => {
                OpsError::field(DIGEST_HEADER, error.to_string())
            }
            BlobError::Interrupted { .. } => OpsError::field("", error.to_string()),
            BlobError::TooLarge => OpsError::TooLarge(BLOB_MAX),
            BlobError::Unknown { .. } => OpsError::Internal(error.to_string()),
            BlobError::Io { .. } => OpsError::Unavailable(error.to_string()),
        }
    }
}

impl Ops {
    pub async fn create_image(&self, scope: ProjectId, request: &ImageCreate) -> Result<Image, OpsError> {
        request.check()?;
        let record = ImageRecord {
            id: ImageId::new(),
            project: scope,
            name: request.name.clone(),
            format: request.format,
            cmdline: request.cmdline.clone(),
            blobs: Default::default(),
            closing: false,
            created_at: Timestamp::now(),
        };
        self.transact(|_| {
            let mut draft = Draft::default();
            draft.create(&record);
            Ok((draft, ()))
        })
        .await?;
        Ok(record.view())
    }

    pub fn image(&self, scope: ProjectId, id: ImageId) -> Result<Image, OpsError> {
        Ok(find(&self.world().read().images, scope, id)?.view())
    }

    pub fn images(&self, scope: ProjectId, query: &ListQuery) -> Result<Vec<Image>, OpsError> {
        let view = self.world().read();
        Ok(query.rows(&view.images, scope, |_| true)?.into_iter().map(|row| row.view()).collect())
    }

    /// Takes the bytes of one role. A role is filled once: a body made from the image must be the same tomorrow.
    pub async fn put_blob(
        &self,
        scope: ProjectId,
        id: ImageId,
        role: BlobRole,
        bytes: BlobStream,
        expected: Option<String>,
    ) -> Result<Image, OpsError> {
        let check = |record: &ImageRecord| {
            if !record.format.roles().contains(&role) {
                return Err(OpsError::field("role", format!("{:?} images have no such blob", record.format)));
            }
            if record.closing {
                return Err(OpsError::conflict("the image is being deleted"));
            }
            Ok(())
        };
        if let Some(text) = &expected
            && (text.len() != 64 || text.chars().any(|c| !matches!(c, '0'..='9' | 'a'..='f')))
        {
            return Err(OpsError::field(DIGEST_HEADER, "must be 64 lower-case hexadecimal digits"));
        }
        check(find(&self.world().read().images, scope, id)?)?;
        // From here until a record names the blob, nobody removes one.
        let _kept = self.uploads.read().await;
        let put = self.blobs.put(bytes, expected.as_deref()).await?;
        let blob = Blob { sha256: put.sha256, size: put.size };
        self.transact(|view| {
            let row = find(&view.images, scope, id)?;
            check(row)?;
            let mut draft = Draft::default();
            match row.blobs.get(&role) {
                Some(there) if *there == blob => {}
                Some(there) => {
                    return Err(OpsError::conflict(format!(
                        "the blob is there already, with digest {}",
                        there.sha256
                    )));
                }
                None => {
                    let mut record = (*row.record).clone();
                    record.blobs.insert(role, blob.clone());
                    draft.update(row, &record);
                }
            }
            Ok((draft, ()))
        })
        .await?;
        self.image(scope, id)
    }

    /// Refused while a body uses it. Its blobs go when no other image names them.
    pub async fn delete_image(&self, scope: ProjectId, id: ImageId) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = find(&view.images, scope, id)?;
            refuse_used(view, id)?;
            let mut draft = Draft::default();
            if !row.closing {
                draft.update(row, &ImageRecord { closing: true, ..(*row.record).clone() });
            }
            Ok((draft, ()))
        })
        .await?;
        let (refusal, blobs) = self
            .transact(|view| {
                let row = find(&view.images, scope, id)?;
                let mut draft = Draft::default();
                let used = refuse_used(view, id);
                match &used {
                    Ok(()) => draft.delete(row),
                    Err(_) => draft.update(row, &ImageRecord { closing: false, ..(*row.record).clone() }),
                }
                Ok((draft, (used, row.blobs.values().map(|b| b.sha256.clone()).collect::<Vec<_>>())))
            })
            .await?;
        refusal?;
        // An upload of the same bytes may take minutes: what it waits for is not this request.
        let (world, store, uploads) = (self.world.clone(), self.blobs.clone(), self.uploads.clone());
        tokio::spawn(async move {
            let _alone = uploads.write().await;
            for sha256 in blobs {
                let named = |i: &crate::ops::Row<ImageRecord>| i.blobs.values().any(|b| b.sha256 == sha256);
                if world.read().images.iter().any(named) {
                    continue;
                }
                // The record is gone; bytes that stay behind cost room, nothing else.
                if let Err(error) = store.remove(&sha256).await {
                    tracing::warn!(%sha256, %error, "a blob stays behind");
                }
            }
        });
        Ok(())
    }
}

fn refuse_used(view: &View, id: ImageId) -> Result<(), OpsError> {
    let uses = |images: &[ImageId]| images.contains(&id);
    if let Some(user) = view.instances.iter().find(|i| i.bodies.iter().any(|b| uses(&b.images))) {
        return Err(OpsError::conflict(format!("instance {} ('{}') uses it", user.id, user.name)));
    }
    match view.exchanges.iter().find(|e| !e.ended() && uses(&e.body.images)) {
        Some(user) => Err(OpsError::conflict(format!("exchange {} uses it", user.id))),
        None => Ok(()),
    }
}
