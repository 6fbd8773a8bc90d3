//! Container images by their manifests: what a push ends with, and what a pull looks up. A manifest is checked against what
//! is here before it is kept; the same manifest in the same project is the same record and the same image.

use super::blobs::{PushRefused, hold};
use super::{Draft, Ops, OpsError, Row, View};
use crate::images::oci::{self, Descriptor, Manifest, config, manifest};
use crate::model::{
    BlobRecord, Digest, ImageRecord, ImageTraits, LayerFacts, ManifestKey, ManifestKind, ManifestRecord,
};
use amphi_api::image::{Blob, BlobRole, ImageFormat, Layer};
use amphi_api::{ImageId, ProjectId, validate};
use bytes::Bytes;
use jiff::Timestamp;
use std::collections::BTreeSet;

/// A manifest that is here now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPut {
    /// Of the manifest's bytes: what clients call the image's digest.
    pub digest: Digest,
    pub kind: ManifestKind,
    /// What a body starts from: of an index, the image for linux/amd64; none of an artifact.
    pub image: Option<ImageId>,
    pub subject: Option<Digest>,
}

/// A manifest that was held against what is here.
pub(super) struct Checked {
    pub kind: ManifestKind,
    /// What it names, each once; an image's config first.
    pub blobs: Vec<Blob>,
    pub layers: Vec<Layer>,
    /// The image of an index.
    pub image: Option<ImageId>,
}

fn wrong(wrong: oci::Wrong) -> PushRefused {
    PushRefused::Manifest { field: wrong.field, message: wrong.message }
}

fn said(field: impl Into<String>, message: impl Into<String>) -> PushRefused {
    PushRefused::Manifest { field: field.into(), message: message.into() }
}

impl Ops {
    /// Takes a manifest: an image's (Docker's schema 2 or OCI's), an index (Docker's manifest list or OCI's), or an OCI
    /// artifact's. All that it names must be visible to the project, with the sizes it says; a layer's tar must be of the
    /// `diff_id` that the config says. `name`: of the image that is made; an image that is there keeps its name.
    /// `media_type`: the request's; it must be the manifest's own where that says one.
    pub async fn put_container(
        &self,
        scope: ProjectId,
        name: &str,
        media_type: &str,
        manifest: Bytes,
    ) -> Result<ContainerPut, PushRefused> {
        validate::name("name", name).map_err(OpsError::from)?;
        let read = manifest::parse(&manifest, media_type).map_err(wrong)?;
        let checked = match &read.manifest {
            Manifest::Image { config, layers } => self.image_of(scope, config, layers).await?,
            Manifest::Index { manifests } => self.index_of(scope, manifests)?,
            Manifest::Artifact { config, blobs } => {
                let blobs = [std::slice::from_ref(config), blobs].concat();
                let blobs = self.all_here(scope, &blobs).await?;
                Checked { kind: ManifestKind::Artifact, blobs, layers: Vec::new(), image: None }
            }
        };
        let kept = self.keep_document(scope, self.settings.blobs.lent, manifest).await?;
        let digest = super::blobs::digest_of(&kept.sha256)?;
        let key = ManifestKey { project: scope, digest };
        let now = Timestamp::now();
        let image = self
            .transact(|view| {
                let row = view.manifests.get(key);
                let mut draft = Draft::default();
                if let Some(row) = row
                    && row.image.is_none_or(|id| view.images.get(id).is_some_and(|image| !image.closing))
                    && (row.image.is_some() || checked.image.is_none())
                {
                    return Ok((draft, row.image));
                }
                hold(view, &mut draft, &kept.sha256)?;
                for blob in &checked.blobs {
                    hold(view, &mut draft, &blob.sha256)?;
                }
                let image = match checked.kind {
                    ManifestKind::Image => {
                        let record = image_record(scope, name, &kept, &checked, now);
                        draft.create(&record);
                        Some(record.id)
                    }
                    _ => checked.image,
                };
                let record = ManifestRecord {
                    key,
                    kind: checked.kind,
                    media_type: read.media_type.clone(),
                    size: kept.size,
                    image,
                    subject: read.subject,
                    artifact_type: read.artifact_type.clone(),
                    blobs: checked.blobs.clone(),
                    created_at: now,
                };
                draft.put_record(row, &record);
                Ok((draft, image))
            })
            .await?;
        Ok(ContainerPut { digest, kind: checked.kind, image, subject: read.subject })
    }

    /// Forgets a manifest, and the image that was made of it. Refused while a body uses the image. Indexes that list the
    /// manifest stay, with that platform missing.
    pub async fn delete_container(&self, scope: ProjectId, digest: Digest) -> Result<(), OpsError> {
        let key = ManifestKey { project: scope, digest };
        let image = {
            let view = self.world().read();
            let row = view.manifests.get(key).ok_or_else(|| OpsError::not_found::<ManifestRecord>(digest))?;
            row.image.filter(|_| row.kind == ManifestKind::Image)
        };
        if let Some(image) = image {
            match self.delete_image(scope, image).await {
                // Its record goes with the image's.
                Ok(()) => return Ok(()),
                Err(OpsError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.transact(|view| {
            let mut draft = Draft::default();
            if let Some(row) = view.manifests.get(key) {
                draft.delete(row);
            }
            Ok((draft, ()))
        })
        .await
    }

    /// An image whose parts are here and fit together.
    pub(super) async fn image_of(
        &self,
        scope: ProjectId,
        config: &Descriptor,
        layers: &[Descriptor],
    ) -> Result<Checked, PushRefused> {
        let named = [std::slice::from_ref(config), layers].concat();
        let blobs = self.all_here(scope, &named).await?;
        let text = self.document(&config.digest.to_string()).await?;
        let read = config::parse(&text).map_err(wrong)?;
        if read.diff_ids.len() != layers.len() {
            let (told, there) = (read.diff_ids.len(), layers.len());
            return Err(said(
                "config.rootfs.diff_ids",
                format!("{told}, but the manifest has {there} layers"),
            ));
        }
        let mut known = Vec::new();
        for (n, (layer, diff_id)) in layers.iter().zip(&read.diff_ids).enumerate() {
            let facts = self.layer_facts(layer.digest).await?;
            if facts.diff_id != *diff_id {
                let found = facts.diff_id;
                return Err(said(
                    format!("layers[{n}]"),
                    format!("unpacks to a tar of digest {found}; the configuration says {diff_id}"),
                ));
            }
            known.push(Layer {
                sha256: layer.digest.to_string(),
                size: layer.size,
                compression: facts.compression,
                diff_id: diff_id.to_string(),
            });
        }
        Ok(Checked { kind: ManifestKind::Image, blobs, layers: known, image: None })
    }

    /// An index whose manifests are here.
    fn index_of(&self, scope: ProjectId, manifests: &[Descriptor]) -> Result<Checked, PushRefused> {
        let view = self.world().read();
        let (mut missing, mut blobs, mut image) = (Vec::new(), Vec::new(), None);
        for (n, one) in manifests.iter().enumerate() {
            let Some(row) = view.manifest(scope, one.digest) else {
                missing.push(one.digest.to_string());
                continue;
            };
            if row.size != one.size {
                return Err(said(
                    format!("manifests[{n}].size"),
                    format!("the manifest has {} bytes", row.size),
                ));
            }
            if one.platform.as_ref().is_none_or(|p| p.is_ours()) {
                image = image.or(row.image);
            }
            blobs.push(Blob { sha256: one.digest.to_string(), size: one.size });
        }
        if !missing.is_empty() {
            return Err(PushRefused::BlobsMissing(missing));
        }
        Ok(Checked { kind: ManifestKind::Index, blobs, layers: Vec::new(), image })
    }

    /// All of them are visible to the project and of the sizes that they should be of; each once.
    async fn all_here(&self, scope: ProjectId, named: &[Descriptor]) -> Result<Vec<Blob>, PushRefused> {
        let (mut missing, mut blobs, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
        for one in named {
            let Some(blob) = self.wanted_blob(scope, &one.digest.to_string()).await? else {
                missing.push(one.digest.to_string());
                continue;
            };
            if blob.size != one.size {
                let (digest, there) = (one.digest, blob.size);
                return Err(said("size", format!("blob {digest} has {there} bytes, not {}", one.size)));
            }
            if seen.insert(one.digest) {
                blobs.push(blob);
            }
        }
        if missing.is_empty() { Ok(blobs) } else { Err(PushRefused::BlobsMissing(missing)) }
    }

    /// What a layer is once unpacked: measured once per blob.
    async fn layer_facts(&self, digest: Digest) -> Result<LayerFacts, PushRefused> {
        let known = self.world().read().blobs.get(digest).map(|row| row.record.clone());
        let known = known.ok_or_else(|| PushRefused::BlobsMissing(vec![digest.to_string()]))?;
        if let Some(facts) = known.layer {
            return Ok(facts);
        }
        let facts = self.blobs.measure(digest, &known.place).await?;
        self.transact(|view| {
            let mut draft = Draft::default();
            if let Some(row) = view.blobs.get(digest).filter(|row| row.layer.is_none()) {
                draft.update(row, &BlobRecord { layer: Some(facts), ..(*row.record).clone() });
            }
            Ok((draft, ()))
        })
        .await?;
        Ok(facts)
    }
}

fn image_record(
    scope: ProjectId,
    name: &str,
    manifest: &Blob,
    checked: &Checked,
    now: Timestamp,
) -> ImageRecord {
    let mut blobs = std::collections::BTreeMap::from([(BlobRole::Manifest, manifest.clone())]);
    blobs.extend(checked.blobs.first().map(|config| (BlobRole::Config, config.clone())));
    ImageRecord {
        id: ImageId::new(),
        project: scope,
        name: name.to_owned(),
        format: ImageFormat::Oci,
        cmdline: String::new(),
        blobs,
        layers: checked.layers.clone(),
        traits: ImageTraits {
            container_format: Some("docker".into()),
            disk_format: Some("raw".into()),
            updated_at: Some(now),
            ..ImageTraits::default()
        },
        export: None,
        closing: false,
        created_at: now,
    }
}

impl View {
    /// A manifest that was pushed into the project.
    pub fn manifest(&self, project: ProjectId, digest: Digest) -> Option<&Row<ManifestRecord>> {
        self.manifests.get(ManifestKey { project, digest })
    }

    /// What in the project says something about this manifest.
    pub fn referrers(
        &self,
        project: ProjectId,
        subject: Digest,
    ) -> impl Iterator<Item = &Row<ManifestRecord>> {
        self.manifests.of_project(project).filter(move |row| row.subject == Some(subject))
    }
}
