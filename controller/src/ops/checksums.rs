//! Glance's checksum of images that came by a way that takes none: MD5 costs an upload more than all that is done to be sure
//! of its bytes, and only the image API shows it. So the bytes are read for it afterwards. Refuses to hurry.

use super::{Draft, Ops, OpsError};
use amphi_api::ImageId;
use amphi_api::image::{Blob, ImageFormat, ImageState};
use futures_util::StreamExt;
use md5::{Digest as _, Md5};
use std::time::Duration;

/// After each piece of 256 KiB: at most some 150 MiB/s, and a fifth of a CPU.
const PAUSE: Duration = Duration::from_millis(1);

impl Ops {
    /// Reads the images that have no checksum yet; one that cannot be read keeps none of the others from theirs.
    pub async fn fill_checksums(&self) -> Result<(), OpsError> {
        let without: Vec<(ImageId, Blob)> = {
            let view = self.world().read();
            let rows = view.images.iter().filter(|row| {
                let file = row.format != ImageFormat::Oci && row.state() == ImageState::Active;
                file && row.traits.md5.is_none()
            });
            rows.filter_map(|row| Some((row.id, row.blobs.get(row.format.roles().first()?)?.clone())))
                .collect()
        };
        let mut all = Ok(());
        for (id, blob) in without {
            if let Err(error) = self.fill_checksum(id, &blob).await {
                all = Err(error);
            }
        }
        all
    }

    async fn fill_checksum(&self, id: ImageId, blob: &Blob) -> Result<(), OpsError> {
        let unread = |why: String| OpsError::Unavailable(format!("read image {id} for its checksum: {why}"));
        let (bytes, _) = self.read_blob(&blob.sha256, 0).await?;
        let mut bytes = std::pin::pin!(bytes.stream());
        let mut md5 = Md5::new();
        while let Some(piece) = bytes.next().await {
            let piece = piece.map_err(|e| unread(e.to_string()))?;
            let further = tokio::task::spawn_blocking(move || md5.chain_update(piece)).await;
            md5 = further.map_err(|e| unread(e.to_string()))?;
            tokio::time::sleep(PAUSE).await;
        }
        let md5 = hex::encode(md5.finalize());
        self.transact(|view| {
            let mut draft = Draft::default();
            // It may have gone meanwhile; its bytes stay what they are.
            if let Some(row) = view.images.get(id).filter(|row| row.traits.md5.is_none()) {
                let mut record = (*row.record).clone();
                record.traits.md5 = Some(md5.clone());
                draft.update(row, &record);
            }
            Ok((draft, ()))
        })
        .await
    }
}
