//! A volume's bytes as a new image: the record at once, its bytes when the host has handed them over.

use super::list::find;
use super::volume_edit::doings;
use super::{Draft, Ops, OpsError};
use crate::model::*;
use amphi_api::image::ImageFormat;
use amphi_api::wire::ExportSource;
use amphi_api::{ImageId, ProjectId, VolumeId};
use jiff::Timestamp;

/// What is asked of the image.
#[derive(Clone, Debug)]
pub struct UploadWish {
    pub name: String,
    /// `raw` or `qcow2`.
    pub disk_format: String,
    pub visibility: Visibility,
    pub protected: bool,
    /// While an instance has the volume, too.
    pub force: bool,
}

impl Ops {
    pub async fn upload_volume(
        &self,
        scope: ProjectId,
        id: VolumeId,
        wish: &UploadWish,
    ) -> Result<ImageId, OpsError> {
        let now = Timestamp::now();
        let format = format_of(Some("bare"), Some(&wish.disk_format));
        if !matches!(format, ImageFormat::Raw | ImageFormat::Qcow2) {
            return Err(OpsError::field("disk_format", "must be raw or qcow2"));
        }
        let image = ImageId::new();
        self.transact(|view| {
            let row = find(&view.volumes, scope, id)?;
            super::volumes::usable(row)?;
            super::move_volumes::refuse_moving(view, row)?;
            super::volume_groups::refuse_copies(view, row)?;
            let word = row.word(doings(view, row));
            if word != "available" && !(word == "in-use" && wish.force) {
                return Err(OpsError::conflict(format!(
                    "Invalid volume: Volume {id} status must be available, but current status is: {word}."
                )));
            }
            // The image's own numbers come with its bytes; what the volume was made from is said again.
            let own = |key: &str| {
                ["image_id", "image_name", "checksum", "size", "min_disk", "min_ram"].contains(&key)
                    || key.ends_with("_format")
            };
            let mut properties = row.traits.image.clone();
            properties.retain(|key, _| !own(key));
            let record = ImageRecord {
                id: image,
                project: scope,
                name: wish.name.clone(),
                format,
                cmdline: String::new(),
                blobs: Default::default(),
                layers: Vec::new(),
                traits: ImageTraits {
                    container_format: Some("bare".into()),
                    disk_format: Some(wish.disk_format.clone()),
                    visibility: wish.visibility,
                    protected: wish.protected,
                    properties,
                    updated_at: Some(now),
                    ..ImageTraits::default()
                },
                export: Some(ImageExport {
                    host: row.host,
                    source: ExportSource::Volume(id),
                    instance: None,
                    fault: None,
                }),
                closing: false,
                created_at: now,
            };
            let mut draft = Draft::default();
            draft.touch(row);
            draft.create(&record);
            Ok((draft, ()))
        })
        .await?;
        Ok(image)
    }
}
