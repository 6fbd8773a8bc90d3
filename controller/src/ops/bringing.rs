//! How an image's bytes come into the store, by whichever face: archives of container images are taken apart on the way,
//! disks' headers are looked at, manifests are held against what is here. What is refused leaves nothing.

use super::blobs::{blank, digest_of, hold, lend};
use super::container_images::Checked;
use super::{BlobStream, Draft, Ops, OpsError, View, image_bytes};
use crate::images::oci::{self, Manifest, manifest};
use crate::images::{Apart, BlobError, Spooled, take_apart};
use crate::model::{ArchiveParts, BlobRecord, ImageRecord};
use amphi_api::disk::{self, DiskFormat, Ends};
use amphi_api::image::{Blob, BlobRole, ImageFormat};
use amphi_api::{ImageId, ProjectId};
use bytes::BytesMut;
use futures_util::{StreamExt, TryStreamExt};
use jiff::{SignedDuration, Timestamp};
use tokio_util::io::ReaderStream;

/// Read at a time, in bytes.
const CHUNK: usize = 256 << 10;

/// Bytes that are in the store, lent to the project until an image names them.
pub(super) struct Brought {
    pub blob: Blob,
    pub md5: Option<String>,
    pub virtual_size: Option<u64>,
    /// What a manifest names.
    pub container: Option<Checked>,
}

/// A role as the route spells it.
pub(super) fn word(role: BlobRole) -> String {
    serde_json::to_value(role).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Bytes that are not what they should be are the field's fault that they were sent as.
fn of_role(role: BlobRole) -> impl Fn(BlobError) -> OpsError {
    move |error| match error {
        BlobError::Broken(text) => OpsError::field(word(role), text),
        error => error.into(),
    }
}

impl Ops {
    /// Takes the bytes of one role of an image.
    pub(super) async fn bring(
        &self,
        scope: ProjectId,
        format: ImageFormat,
        role: BlobRole,
        bytes: BlobStream,
        expected: Option<&str>,
        lent: SignedDuration,
    ) -> Result<Brought, OpsError> {
        image_bytes::check(&self.world().read(), scope, 1)?;
        match role {
            BlobRole::Archive => {
                let apart = take_apart(&self.blobs, bytes, expected).await.map_err(of_role(role))?;
                self.keep_apart(scope, lent, apart).await
            }
            BlobRole::Manifest => self.bring_manifest(scope, lent, bytes, expected).await,
            _ => {
                let spooled = self.blobs.spool_all(bytes, expected).await?;
                self.keep_whole(scope, format, role, spooled, lent).await
            }
        }
    }

    /// [`Self::bring`] of bytes that have come as a file.
    pub(super) async fn bring_file(
        &self,
        scope: ProjectId,
        format: ImageFormat,
        role: BlobRole,
        spooled: Spooled,
    ) -> Result<Brought, OpsError> {
        let lent = self.settings.blobs.brief;
        if !matches!(role, BlobRole::Archive | BlobRole::Manifest) {
            return self.keep_whole(scope, format, role, spooled, lent).await;
        }
        let failed = |e: std::io::Error| OpsError::Unavailable(format!("cannot read an upload: {e}"));
        let file = tokio::fs::File::open(spooled.path()).await.map_err(failed)?;
        let bytes = ReaderStream::with_capacity(file, CHUNK).boxed();
        self.bring(scope, format, role, bytes, None, lent).await
    }

    async fn keep_whole(
        &self,
        scope: ProjectId,
        format: ImageFormat,
        role: BlobRole,
        spooled: Spooled,
        lent: SignedDuration,
    ) -> Result<Brought, OpsError> {
        image_bytes::check(&self.world().read(), scope, spooled.size)?;
        let virtual_size = match DiskFormat::of(format).filter(|_| role == BlobRole::Disk) {
            Some(disk) => {
                let (path, size) = (spooled.path().to_owned(), spooled.size);
                let ends = move || Ends::read(disk, &mut std::fs::File::open(path)?, 0, size);
                let ends =
                    tokio::task::spawn_blocking(ends).await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
                let ends = ends.map_err(|e| OpsError::Unavailable(format!("cannot read the disk: {e}")))?;
                Some(disk::look(disk, &ends).map_err(|why| OpsError::field(word(role), why))?)
            }
            None => None,
        };
        let md5 = spooled.md5.clone();
        let blob = self.keep(scope, lent, spooled, None).await?;
        Ok(Brought { blob, md5, virtual_size, container: None })
    }

    async fn bring_manifest(
        &self,
        scope: ProjectId,
        lent: SignedDuration,
        bytes: BlobStream,
        expected: Option<&str>,
    ) -> Result<Brought, OpsError> {
        let whole = bytes.try_fold(BytesMut::new(), async |mut whole, part| {
            if whole.len() + part.len() > oci::MANIFEST_MAX {
                return Err(std::io::Error::other(format!("more than {} bytes", oci::MANIFEST_MAX)));
            }
            whole.extend_from_slice(&part);
            Ok(whole)
        });
        let whole =
            whole.await.map_err(|e| OpsError::field(word(BlobRole::Manifest), e.to_string()))?.freeze();
        let read = manifest::parse(&whole, "")
            .map_err(|wrong| OpsError::field(format!("manifest.{}", wrong.field), wrong.message))?;
        let Manifest::Image { config, layers } = &read.manifest else {
            return Err(OpsError::field("manifest", "it is no container image's manifest"));
        };
        let checked = self.image_of(scope, config, layers).await?;
        let one = futures_util::stream::iter([Ok::<_, std::io::Error>(whole)]);
        let stored = self.blobs.put(one, expected).await?;
        let md5 = stored.md5.clone();
        let blob = self.record_blob(scope, lent, stored, None).await?;
        Ok(Brought { blob, md5, virtual_size: None, container: Some(checked) })
    }

    /// Keeps what an archive was taken apart into: its layers, its documents and the recipe first, then the archive itself.
    async fn keep_apart(
        &self,
        scope: ProjectId,
        lent: SignedDuration,
        apart: Apart,
    ) -> Result<Brought, OpsError> {
        let bytes: u64 = apart.files.iter().map(|(file, _)| file.size).sum();
        image_bytes::check(&self.world().read(), scope, bytes)?;
        for (file, facts) in apart.files {
            self.keep(scope, lent, file, Some(facts)).await?;
        }
        let recipe = serde_json::to_vec(&apart.recipe)
            .map_err(|e| OpsError::Internal(format!("cannot write an archive's recipe: {e}")))?;
        let parts = ArchiveParts {
            recipe: self.keep_document(scope, lent, recipe.into()).await?,
            manifest: self.keep_document(scope, lent, apart.manifest).await?,
            config: self.keep_document(scope, lent, apart.config).await?,
            layers: apart.layers,
        };
        let now = Timestamp::now();
        self.transact(|view| {
            let row = view.blobs.get(apart.digest);
            let mut draft = Draft::default();
            parts.blobs().try_for_each(|part| hold(view, &mut draft, part))?;
            let mut record = match row {
                Some(row) => (*row.record).clone(),
                None => blank(apart.digest, apart.size, String::new()),
            };
            record.md5 = apart.md5.clone().or(record.md5);
            record.archive = Some(parts.clone());
            lend(&mut record, scope, now, lent);
            draft.put_record(row, &record);
            Ok((draft, ()))
        })
        .await?;
        let blob = Blob { sha256: apart.digest.to_string(), size: apart.size };
        Ok(Brought { blob, md5: apart.md5, virtual_size: None, container: None })
    }

    /// Takes the bytes that a host was told to read for an image; they are the image's once the host says so.
    pub async fn take_export(&self, image: ImageId, sha256: &str, bytes: BlobStream) -> Result<(), OpsError> {
        digest_of(sha256)?;
        let (project, format) = {
            let view = self.world().read();
            let row = view.images.get(image).ok_or_else(|| OpsError::not_found::<ImageRecord>(image))?;
            (row.project, row.format)
        };
        let Some(role) = format.roles().first() else {
            return Err(OpsError::conflict("the image's format takes no bytes"));
        };
        self.bring(project, format, *role, bytes, Some(sha256), self.settings.blobs.lent).await.map(drop)
    }
}

impl Checked {
    /// The image is made of what its manifest names.
    pub(super) fn fill(
        &self,
        view: &View,
        draft: &mut Draft,
        record: &mut ImageRecord,
    ) -> Result<(), OpsError> {
        for blob in &self.blobs {
            hold(view, draft, &blob.sha256)?;
        }
        if let Some(config) = self.blobs.first() {
            match record.blobs.get(&BlobRole::Config) {
                Some(there) if there != config => {
                    let text = format!("the image's config is {}, not {}", there.sha256, config.sha256);
                    return Err(OpsError::field("manifest.config", text));
                }
                _ => drop(record.blobs.insert(BlobRole::Config, config.clone())),
            }
        }
        record.layers.clone_from(&self.layers);
        Ok(())
    }
}

impl View {
    /// What an archive was taken apart into.
    pub(super) fn archive_parts(&self, sha256: &str) -> Option<&ArchiveParts> {
        self.blobs.get(sha256.parse().ok()?)?.archive.as_ref()
    }
}

/// Bytes that a host has brought are an image's now: nobody else keeps them.
pub(super) fn named(view: &View, draft: &mut Draft, sha256: &str, project: ProjectId) {
    let row = sha256.parse().ok().and_then(|digest| view.blobs.get(digest));
    let Some(row) = row.filter(|row| !draft.writes(&crate::model::Record::key(&*row.record))) else { return };
    let mut record: BlobRecord = (*row.record).clone();
    record.doomed = false;
    record.lent.remove(&project);
    draft.update(row, &record);
}
