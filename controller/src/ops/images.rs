//! Images: a record first, then its blobs, role by role. The bytes live in the blob store, by digest; how they come there is
//! [`super::bringing`]'s business.

use super::blobs::hold;
use super::bringing::Brought;
use super::list::find;
use super::{Draft, ListQuery, Ops, OpsError, View};
use crate::images::BlobError;
use crate::model::{
    ChangeRefused, ImageChange, ImageExport, ImageRecord, ImageTraits, InstanceRecord, Intent, ManifestKind,
    ManifestRecord, Record, StagedBlob, VolumeRecord, change_image, format_of,
};
use amphi_api::image::{BlobRole, Image, ImageCreate, ImageFormat, ImageState};
use amphi_api::set::SetSpec;
use amphi_api::validate::BODY_MAX;
use amphi_api::{ImageId, ProjectId};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use std::collections::BTreeMap;
use tokio::io::AsyncReadExt;

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
            BlobError::Interrupted { .. } | BlobError::Broken(_) => OpsError::field("", error.to_string()),
            BlobError::TooLarge { limit } => OpsError::TooLarge(limit),
            BlobError::Full { .. } => OpsError::StorageFull(error.to_string()),
            BlobError::Unknown { sha256 } => OpsError::NotFound { noun: "blob", id: sha256 },
            BlobError::Away { .. } | BlobError::Io { .. } => OpsError::Unavailable(error.to_string()),
        }
    }
}

impl From<ChangeRefused> for OpsError {
    fn from(refused: ChangeRefused) -> Self {
        match refused {
            ChangeRefused::State(message) => Self::conflict(message),
            ChangeRefused::Absent(id) => Self::NotFound { noun: ImageRecord::NOUN, id },
            ChangeRefused::Limit(_) => Self::TooLarge(0),
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
            layers: Vec::new(),
            traits: Default::default(),
            export: None,
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

    /// An image with everything that is said of it; a given id must be free.
    pub async fn register_image(
        &self,
        scope: ProjectId,
        id: Option<ImageId>,
        name: &str,
        traits: ImageTraits,
    ) -> Result<ImageId, OpsError> {
        let now = Timestamp::now();
        let record = ImageRecord {
            id: id.unwrap_or_else(ImageId::new),
            project: scope,
            name: name.to_owned(),
            format: format_of(traits.container_format.as_deref(), traits.disk_format.as_deref()),
            cmdline: String::new(),
            blobs: Default::default(),
            layers: Vec::new(),
            traits: ImageTraits { updated_at: Some(now), ..traits },
            export: None,
            closing: false,
            created_at: now,
        };
        self.transact(|view| {
            if view.images.get(record.id).is_some() {
                return Err(OpsError::taken("id", format!("image {} exists", record.id)));
            }
            let mut draft = Draft::default();
            draft.create(&record);
            Ok((draft, ()))
        })
        .await?;
        Ok(record.id)
    }

    /// All changes or none.
    pub async fn change_image(
        &self,
        scope: ProjectId,
        id: ImageId,
        changes: &[ImageChange],
    ) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = find(&view.images, scope, id)?;
            let mut record = (*row.record).clone();
            for change in changes {
                change_image(&mut record, change, Timestamp::now())?;
            }
            let mut draft = Draft::default();
            draft.update(row, &record);
            Ok((draft, ()))
        })
        .await
    }

    /// Takes bytes that wait for [`Self::import_staged`].
    pub async fn stage_image(
        &self,
        scope: ProjectId,
        id: ImageId,
        bytes: BlobStream,
    ) -> Result<(), OpsError> {
        let format = {
            let view = self.world().read();
            let row = find(&view.images, scope, id)?;
            if row.state() != ImageState::Queued || row.traits.staged.is_some() {
                return Err(OpsError::conflict("the image has bytes, or bytes that wait, already"));
            }
            row.format
        };
        let Some(role) = format.roles().first() else {
            return Err(OpsError::conflict("the image's format takes no bytes"));
        };
        let brought = self.bring(scope, format, *role, bytes, None, self.settings.blobs.brief).await?;
        let staged = StagedBlob { virtual_size: brought.virtual_size, blob: brought.blob, md5: brought.md5 };
        self.transact(|view| {
            let row = find(&view.images, scope, id)?;
            let mut record = (*row.record).clone();
            change_image(&mut record, &ImageChange::Stage(staged.clone()), Timestamp::now())?;
            let mut draft = Draft::default();
            hold(view, &mut draft, &staged.blob.sha256)?;
            draft.update(row, &record);
            Ok((draft, ()))
        })
        .await
    }

    /// Bytes that waited become the image's.
    pub async fn import_staged(&self, scope: ProjectId, id: ImageId) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = find(&view.images, scope, id)?;
            let mut record = (*row.record).clone();
            let Some(staged) = record.traits.staged.take() else {
                return Err(OpsError::conflict("no bytes wait for the import; stage them first"));
            };
            let Some(role) = record.format.roles().first() else {
                return Err(OpsError::Internal("a format without bytes".into()));
            };
            if let Some(parts) = view.archive_parts(&staged.blob.sha256) {
                record.take_parts(parts);
            }
            record.blobs.insert(*role, staged.blob);
            record.traits.md5 = staged.md5;
            record.traits.virtual_size = staged.virtual_size;
            record.traits.updated_at = Some(Timestamp::now());
            let mut draft = Draft::default();
            draft.update(row, &record);
            Ok((draft, ()))
        })
        .await
    }

    /// The set that an image describes; none: it is an image of another kind, or not there.
    pub(super) async fn described_set(&self, id: ImageId) -> Result<Option<SetSpec>, OpsError> {
        let blob = {
            let view = self.world().read();
            let row = view.images.get(id).filter(|row| row.format == ImageFormat::SetDescription);
            row.and_then(|row| row.blobs.get(&BlobRole::Description).cloned())
        };
        let Some(blob) = blob.filter(|blob| blob.size <= BODY_MAX as u64) else { return Ok(None) };
        let (mut file, _) = self.read_blob(&blob.sha256, 0).await?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).await.map_err(|e| OpsError::Unavailable(format!("image {id}: {e}")))?;
        let wrong = |why: String| OpsError::field("imageRef", format!("Image {id} describes no set: {why}"));
        let set: SetSpec = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        set.check().map_err(|e| wrong(e.to_string()))?;
        Ok(Some(set))
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
        if let Some(text) = &expected
            && (text.len() != 64 || text.chars().any(|c| !matches!(c, '0'..='9' | 'a'..='f')))
        {
            return Err(OpsError::field(DIGEST_HEADER, "must be 64 lower-case hexadecimal digits"));
        }
        let format = self.taker(scope, id, role)?;
        let brought =
            self.bring(scope, format, role, bytes, expected.as_deref(), self.settings.blobs.brief).await?;
        self.name_brought(scope, id, role, &brought).await
    }

    /// The format of an image that takes such a blob.
    pub(super) fn taker(
        &self,
        scope: ProjectId,
        id: ImageId,
        role: BlobRole,
    ) -> Result<ImageFormat, OpsError> {
        let view = self.world().read();
        let row = find(&view.images, scope, id)?;
        takes(row, role)?;
        Ok(row.format)
    }

    /// What was brought is the image's from now on.
    pub(super) async fn name_brought(
        &self,
        scope: ProjectId,
        id: ImageId,
        role: BlobRole,
        brought: &Brought,
    ) -> Result<Image, OpsError> {
        self.transact(|view| {
            let row = find(&view.images, scope, id)?;
            takes(row, role)?;
            let mut draft = Draft::default();
            match row.blobs.get(&role) {
                Some(there) if *there == brought.blob => {}
                Some(there) => {
                    return Err(OpsError::conflict(format!(
                        "the blob is there already, with digest {}",
                        there.sha256
                    )));
                }
                None => {
                    let mut record = (*row.record).clone();
                    hold(view, &mut draft, &brought.blob.sha256)?;
                    if let Some(parts) = view.archive_parts(&brought.blob.sha256) {
                        record.take_parts(parts);
                    }
                    if let Some(container) = &brought.container {
                        container.fill(view, &mut draft, &mut record)?;
                    }
                    record.blobs.insert(role, brought.blob.clone());
                    record.traits.md5.clone_from(&brought.md5);
                    record.traits.virtual_size = brought.virtual_size;
                    record.traits.updated_at = Some(Timestamp::now());
                    draft.update(row, &record);
                }
            }
            Ok((draft, ()))
        })
        .await?;
        self.image(scope, id)
    }

    /// Refused while a body uses it. Its blobs go some time after, unless somebody else names them; manifests that were
    /// pushed for it go with it.
    pub async fn delete_image(&self, scope: ProjectId, id: ImageId) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = find(&view.images, scope, id)?;
            if row.traits.protected {
                return Err(OpsError::Forbidden(format!("image {id} is protected and cannot be deleted")));
            }
            refuse_used(view, id)?;
            super::registry::refuse_kept(view, row)?;
            let mut draft = Draft::default();
            if !row.closing {
                draft.update(row, &ImageRecord { closing: true, ..(*row.record).clone() });
            }
            Ok((draft, ()))
        })
        .await?;
        self.transact(|view| {
            let row = find(&view.images, scope, id)?;
            let mut draft = Draft::default();
            let used = refuse_used(view, id);
            match &used {
                Ok(()) => {
                    draft.delete(row);
                    view.prepulls.get(id).into_iter().for_each(|row| draft.delete(row));
                    forget_manifests(view, &mut draft, row);
                }
                Err(_) => draft.update(row, &ImageRecord { closing: false, ..(*row.record).clone() }),
            }
            Ok((draft, used))
        })
        .await?
    }
}

/// Whether an image takes a blob of this role now.
fn takes(record: &ImageRecord, role: BlobRole) -> Result<(), OpsError> {
    if !record.format.roles().contains(&role) {
        return Err(OpsError::field("role", format!("{:?} images have no such blob", record.format)));
    }
    if record.closing {
        return Err(OpsError::conflict("the image is being deleted"));
    }
    Ok(())
}

/// The manifest that was pushed for the image goes; indexes that list it stay, without what bodies start from.
fn forget_manifests(view: &View, draft: &mut Draft, image: &ImageRecord) {
    let made = view.manifests.of_project(image.project).filter(|row| row.image == Some(image.id));
    // A commit has room for only so many; what is left names an image that is gone, which nobody finds.
    for row in made.take(super::status::CHUNK) {
        match row.kind {
            ManifestKind::Image => draft.delete(row),
            _ => draft.update(row, &ManifestRecord { image: None, ..(*row.record).clone() }),
        }
    }
}

/// The record of an image whose bytes a host is to hand over.
pub(super) fn reserve_snapshot_image(
    draft: &mut Draft,
    of: &InstanceRecord,
    name: &str,
    format: ImageFormat,
    export: ImageExport,
    properties: &BTreeMap<String, String>,
    now: Timestamp,
) -> ImageId {
    // nova/compute/api.py, `_create_image`: what a snapshot says of where it is from.
    let mut said = properties.clone();
    said.insert("image_type".into(), "snapshot".into());
    said.insert("instance_uuid".into(), of.id.to_string());
    said.extend(of.server.user.map(|user| ("user_id".into(), user.0.simple().to_string())));
    said.extend(of.server.image.map(|image| ("base_image_ref".into(), image.to_string())));
    let disk_gib = of.server.flavor.as_ref().map_or(0, |f| f.disk_gib);
    let record = ImageRecord {
        id: ImageId::new(),
        project: of.project,
        name: name.to_owned(),
        format,
        cmdline: String::new(),
        blobs: Default::default(),
        layers: Vec::new(),
        traits: ImageTraits {
            container_format: Some(if format.is_container() { "docker" } else { "bare" }.into()),
            disk_format: Some(if format == ImageFormat::Qcow2 { "qcow2" } else { "raw" }.into()),
            properties: said,
            min_disk: u32::try_from(disk_gib).unwrap_or(u32::MAX),
            ..ImageTraits::default()
        },
        export: Some(export),
        closing: false,
        created_at: now,
    };
    draft.create(&record);
    record.id
}

fn refuse_used(view: &View, id: ImageId) -> Result<(), OpsError> {
    let uses = |images: &[ImageId]| images.contains(&id);
    let made_of = |i: &InstanceRecord| i.bodies.iter().chain(&i.rescue).any(|b| uses(&b.images));
    if let Some(user) = view.instances.iter().find(|i| made_of(i)) {
        return Err(OpsError::conflict(format!("instance {} ('{}') uses it", user.id, user.name)));
    }
    if let Some(rollout) = view.rollouts.iter().find(|r| !r.ended() && super::updates::uses(view, r, id)) {
        return Err(OpsError::conflict(format!("the update of instance {} uses it", rollout.instance)));
    }
    if let Some(image) = super::conversions::being_converted(view, id) {
        return Err(OpsError::conflict(format!("image {image} is being made of it")));
    }
    if let Some(user) = view.exchanges.iter().find(|e| !e.ended() && uses(&e.body.images)) {
        return Err(OpsError::conflict(format!("exchange {} uses it", user.id)));
    }
    // Until its host has said that it is there, what it begins with must be.
    let begins = |v: &VolumeRecord| v.source_image == Some(id) && !v.made && v.intent == Intent::Live;
    match view.volumes.iter().find(|v| begins(v)) {
        Some(user) => {
            Err(OpsError::conflict(format!("volume {} ('{}') is being made of it", user.id, user.name)))
        }
        None => Ok(()),
    }
}
