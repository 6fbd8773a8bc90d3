//! Replicas: images as another cloud is told of them, and images that another cloud tells of. Bytes come by digest, as lone
//! blobs; a replica becomes an image in one commit, once all of them are here and are what the description says. It keeps the
//! id of its origin. Refuses to overwrite anything but a replica of the same origin.

use super::blobs::{PushRefused, digest_of, hold};
use super::bringing::Brought;
use super::registry::{Reference, place};
use super::{BlobStream, ByteRange, Draft, Ops, OpsError, View, image_bytes};
use crate::images::BlobRead;
use crate::images::oci::manifest;
use crate::model::*;
use amphi_api::image::{Blob, BlobRole, ImageFormat, ImageState};
use amphi_api::recipe::{LITERAL_MAX, Piece, Recipe};
use amphi_api::replica::{
    MissingBlob, Origin, Replica, ReplicaAnswer, ReplicaPushed, ReplicaSaid, ReplicaState, ReplicaTag,
};
use amphi_api::{ImageId, ProjectId};
use bytes::Bytes;
use futures_util::StreamExt;
use jiff::Timestamp;

/// Most pieces of an archive's recipe: each entry makes two.
const PIECES_MAX: usize = 8192;

/// A replica whose parts are all here.
struct Assembled {
    parts: Vec<(BlobRole, Brought)>,
    /// Of an image with tags: its manifest, as repositories keep it.
    manifest: Option<manifest::Read>,
}

impl Ops {
    /// What no two clouds share.
    pub fn cloud(&self) -> &str {
        &self.settings.ca_sha256
    }

    /// Whole images of this id, or of this name, as another region is told of them. Of all projects: the caller may.
    pub fn replicas(&self, image: &str, tags: bool) -> Result<Vec<Replica>, OpsError> {
        let view = self.world().read();
        let id = image.parse::<ImageId>().ok();
        let asked = |row: &&super::Row<ImageRecord>| match id {
            Some(id) => row.id == id,
            None => row.name == image,
        };
        let whole = |row: &&super::Row<ImageRecord>| row.state() == ImageState::Active && !row.closing;
        let found: Vec<_> = view.images.iter().filter(asked).filter(whole).map(|row| row.id).collect();
        found.into_iter().map(|id| self.describe(&view, id, tags)).collect()
    }

    pub(super) fn describe(&self, view: &View, id: ImageId, tags: bool) -> Result<Replica, OpsError> {
        let row = view.images.get(id).filter(|row| !row.closing);
        let row = row.ok_or_else(|| OpsError::not_found::<ImageRecord>(id))?;
        if row.state() != ImageState::Active {
            return Err(OpsError::taken(
                "image",
                format!("image {id} is not whole yet; only whole images go"),
            ));
        }
        let traits = &row.traits;
        let own = || Origin { cloud: self.cloud().to_owned(), region: self.settings.region.clone() };
        let recipe = row.blobs.get(&BlobRole::Archive).and_then(|blob| view.archive_parts(&blob.sha256));
        let named = row.blobs.get(&BlobRole::Manifest).filter(|_| tags && row.format == ImageFormat::Oci);
        let manifest = named.and_then(|blob| view.manifest(row.project, blob.sha256.parse().ok()?));
        let project = view.identity.projects.get(row.project);
        Ok(Replica {
            id,
            project: project.map_or_else(|| row.project.to_string(), |project| project.name.clone()),
            name: row.name.clone(),
            format: row.format,
            cmdline: row.cmdline.clone(),
            blobs: row.blobs.clone(),
            layers: row.layers.clone(),
            recipe: recipe.map(|parts| parts.recipe.clone()),
            said: ReplicaSaid {
                visibility: row.detail().said.visibility,
                tags: traits.tags.clone(),
                properties: traits.properties.clone(),
                hidden: traits.hidden,
                deactivated: traits.deactivated,
                min_disk: traits.min_disk,
                min_ram: traits.min_ram,
                disk_format: traits.disk_format.clone(),
                container_format: traits.container_format.clone(),
            },
            origin: traits.origin.clone().unwrap_or_else(own),
            pushed: manifest.map(|manifest| ReplicaPushed {
                media_type: manifest.media_type.clone(),
                tags: tags_of(view, row.project, manifest.key.digest),
            }),
        })
    }

    /// Takes what another region tells of an image. Told twice, it is the same; told anew, what is said of it changes.
    pub async fn take_replica(&self, replica: &Replica) -> Result<ReplicaAnswer, OpsError> {
        replica.check()?;
        let answer = |state, project, missing| ReplicaAnswer { state, project, missing };
        if replica.origin.cloud == self.cloud() {
            return Ok(answer(ReplicaState::Own, None, Vec::new()));
        }
        let (project, known) = {
            let view = self.world().read();
            let project =
                Ops::project_beside(&view, ProjectId::DEFAULT, &replica.project).ok_or_else(|| {
                    let text =
                        format!("no project '{}' here; make it, then the image comes", replica.project);
                    OpsError::field("project", text)
                })?;
            (project, standing(&view, project, replica)?)
        };
        let assembled = if known {
            Assembled { parts: Vec::new(), manifest: self.manifest_of(replica).await? }
        } else {
            let missing = self.missing(project, replica).await?;
            if !missing.is_empty() {
                let more = missing.iter().fold(0, |sum: u64, m| sum.saturating_add(m.blob.size));
                image_bytes::check(&self.world().read(), project, more)?;
                return Ok(answer(ReplicaState::Waiting, Some(project), missing));
            }
            self.assemble(project, replica).await?
        };
        let origin = &replica.origin;
        self.transact(|view| {
            standing(view, project, replica)?;
            let mut draft = Draft::default();
            let now = Timestamp::now();
            let row = view.images.get(replica.id);
            let mut record = match row {
                Some(row) => (*row.record).clone(),
                None => self.bare(project, replica, &assembled, view, &mut draft, now)?,
            };
            say(&mut record, replica);
            match row {
                Some(row) if *row.record == record => {}
                row => {
                    record.traits.updated_at = Some(now);
                    draft.put_record(row, &record);
                }
            }
            if let Some(read) = &assembled.manifest {
                keep_manifest(view, &mut draft, project, replica, read, now)?;
            }
            Ok((draft, ()))
        })
        .await?;
        for (n, named) in replica.pushed.iter().flat_map(|pushed| &pushed.tags).enumerate() {
            self.transact(|view| tag(view, project, replica, origin, (n, named))).await?;
        }
        Ok(answer(ReplicaState::Active, Some(project), Vec::new()))
    }

    /// A new record with the parts that are here.
    fn bare(
        &self,
        project: ProjectId,
        replica: &Replica,
        assembled: &Assembled,
        view: &View,
        draft: &mut Draft,
        now: Timestamp,
    ) -> Result<ImageRecord, OpsError> {
        if assembled.parts.is_empty() {
            return Err(OpsError::Unavailable("the replica was deleted meanwhile; tell of it again".into()));
        }
        let mut record = ImageRecord {
            id: replica.id,
            project,
            name: replica.name.clone(),
            format: replica.format,
            cmdline: replica.cmdline.clone(),
            blobs: Default::default(),
            layers: Vec::new(),
            traits: Default::default(),
            export: None,
            closing: false,
            created_at: now,
        };
        for (role, brought) in &assembled.parts {
            hold(view, draft, &brought.blob.sha256)?;
            if let Some(parts) = view.archive_parts(&brought.blob.sha256) {
                record.take_parts(parts);
            }
            if let Some(container) = &brought.container {
                container.fill(view, draft, &mut record)?;
            }
            record.blobs.insert(*role, brought.blob.clone());
            record.traits.md5.clone_from(&brought.md5);
            record.traits.virtual_size = brought.virtual_size;
        }
        Ok(record)
    }

    /// Those of its bytes that the project does not have yet, and how much of each has come.
    async fn missing(&self, project: ProjectId, replica: &Replica) -> Result<Vec<MissingBlob>, OpsError> {
        let mut missing = Vec::new();
        for blob in replica.pieces() {
            if let Some(there) = self.whole_blob(project, &blob.sha256).await? {
                if there.size != blob.size {
                    let text = format!("blob {} has {} bytes, not {}", blob.sha256, there.size, blob.size);
                    return Err(OpsError::field("blobs", text));
                }
                continue;
            }
            if blob.size == 0 {
                // Nothing can be sent of it.
                let made = self.keep_document(project, self.settings.blobs.lent, Bytes::new()).await?;
                if made.sha256 != blob.sha256 {
                    let text = format!("blob {} cannot have no bytes", blob.sha256);
                    return Err(OpsError::field("blobs", text));
                }
                continue;
            }
            let received = self.lone_blob_received(project, &blob.sha256).await?;
            missing.push(MissingBlob { blob, received });
        }
        Ok(missing)
    }

    /// Puts it together of what is here, and looks at it as at anything that is uploaded.
    async fn assemble(&self, project: ProjectId, replica: &Replica) -> Result<Assembled, OpsError> {
        let brief = self.settings.blobs.brief;
        let roles: &[BlobRole] = match replica.format {
            // Its configuration comes with the manifest.
            ImageFormat::Oci => &[BlobRole::Manifest],
            format => format.roles(),
        };
        let mut parts = Vec::new();
        for role in roles {
            let blob = replica.blobs.get(role).ok_or_else(|| OpsError::field("blobs", "incomplete"))?;
            let recipe = match (&replica.recipe, role) {
                (Some(recipe), BlobRole::Archive) => self.recipe(project, recipe).await?,
                _ => {
                    let as_it_lies = self.as_it_lies(replica.format, *role, &blob.sha256).await?;
                    if let Some(brought) = as_it_lies {
                        parts.push((*role, brought));
                        continue;
                    }
                    let mut one = Recipe::default();
                    one.blob(&blob.sha256, blob.size);
                    one
                }
            };
            let bytes = self.blobs.read_parts(self.placed(recipe)?, 0).stream().boxed();
            let brought =
                self.bring(project, replica.format, *role, bytes, Some(&blob.sha256), brief).await?;
            parts.push((*role, brought));
        }
        Ok(Assembled { parts, manifest: self.manifest_of(replica).await? })
    }

    /// An archive's recipe, of which the project sees all pieces.
    async fn recipe(&self, project: ProjectId, blob: &Blob) -> Result<Recipe, OpsError> {
        let text = self.document(&blob.sha256).await?;
        let recipe: Recipe =
            serde_json::from_slice(&text).map_err(|e| OpsError::field("recipe", e.to_string()))?;
        if recipe.literals() > LITERAL_MAX || recipe.pieces.len() > PIECES_MAX {
            let text = format!("at most {LITERAL_MAX} bytes and {PIECES_MAX} pieces");
            return Err(OpsError::field("recipe", text));
        }
        let mut missing = Vec::new();
        for piece in &recipe.pieces {
            let Piece::Blob { sha256, .. } = piece else { continue };
            if self.whole_blob(project, sha256).await?.is_none() {
                missing.push(sha256.clone());
            }
        }
        match missing.is_empty() {
            true => Ok(recipe),
            false => Err(OpsError::field("recipe", PushRefused::BlobsMissing(missing).to_string())),
        }
    }

    async fn manifest_of(&self, replica: &Replica) -> Result<Option<manifest::Read>, OpsError> {
        let (Some(pushed), Some(blob)) = (&replica.pushed, replica.blobs.get(&BlobRole::Manifest)) else {
            return Ok(None);
        };
        let text = self.document(&blob.sha256).await?;
        let read = manifest::parse(&text, &pushed.media_type);
        let read =
            read.map_err(|wrong| OpsError::field(format!("manifest.{}", wrong.field), wrong.message))?;
        Ok(Some(read))
    }

    /// Takes bytes of a replica's blob behind those that are here: how many there are then, or the blob.
    pub async fn take_replica_blob(
        &self,
        project: ProjectId,
        sha256: &str,
        range: ByteRange,
        bytes: BlobStream,
    ) -> Result<Result<Blob, u64>, OpsError> {
        if self.world().read().identity.projects.get(project).is_none() {
            return Err(OpsError::field("project", format!("no project {project} here")));
        }
        self.append_lone_blob(project, sha256, range, bytes).await
    }

    /// A blob's bytes from an offset on, and how many it has. Whoever asks may have all that is here.
    pub async fn read_replica_blob(&self, sha256: &str, from: u64) -> Result<(BlobRead, u64), OpsError> {
        let size = self.world().read().blobs.get(digest_of(sha256)?).map(|row| row.size);
        let size = size.ok_or_else(|| OpsError::NotFound { noun: "blob", id: sha256.to_owned() })?;
        if from > size {
            return Err(OpsError::field("range", format!("the blob has {size} bytes")));
        }
        self.read_blob(sha256, from).await
    }

    /// Its origin has deleted the image. What is no replica of that cloud stays, and what something uses.
    pub async fn delete_replica(&self, id: ImageId, cloud: &str) -> Result<(), OpsError> {
        let project = {
            let view = self.world().read();
            let row = view.images.get(id).ok_or_else(|| OpsError::not_found::<ImageRecord>(id))?;
            if row.traits.origin.as_ref().is_none_or(|origin| origin.cloud != cloud) {
                return Err(OpsError::taken("id", format!("image {id} here is no replica of that cloud's")));
            }
            row.project
        };
        self.delete_image(project, id).await
    }
}

/// Whether the replica is here already, with the bytes that it has. Refused where something else has its id or its name.
fn standing(view: &View, project: ProjectId, replica: &Replica) -> Result<bool, OpsError> {
    let same = |record: &ImageRecord| {
        record.traits.origin.as_ref().is_some_and(|origin| origin.cloud == replica.origin.cloud)
    };
    if let Some(row) = view.images.get(replica.id) {
        if !same(row) || row.project != project || row.format != replica.format {
            let text = format!("image {} is here and is something else", replica.id);
            return Err(OpsError::taken("id", text));
        }
        if row.closing {
            return Err(OpsError::conflict(format!("the replica {} is being deleted", replica.id)));
        }
        if let Some((role, there)) =
            row.blobs.iter().find(|(role, there)| replica.blobs.get(role).is_some_and(|b| b != *there))
        {
            let text = format!("the replica's {role:?} is {}; an image's bytes never change", there.sha256);
            return Err(OpsError::taken("blobs", text));
        }
        return Ok(true);
    }
    let namesakes = view.images.named(project, &replica.name);
    match namesakes.into_iter().find(|row| !row.closing && !same(row)) {
        Some(row) => {
            let text = format!(
                "the name '{}' is taken by image {}, which is no replica of that region's; rename either",
                replica.name, row.id
            );
            Err(OpsError::taken("name", text))
        }
        None => Ok(false),
    }
}

/// What is said of the image is what its origin says.
fn say(record: &mut ImageRecord, replica: &Replica) {
    let said = &replica.said;
    record.name.clone_from(&replica.name);
    record.cmdline.clone_from(&replica.cmdline);
    let traits = &mut record.traits;
    traits.visibility = said.visibility.into();
    traits.tags.clone_from(&said.tags);
    traits.properties.clone_from(&said.properties);
    (traits.hidden, traits.deactivated) = (said.hidden, said.deactivated);
    (traits.min_disk, traits.min_ram) = (said.min_disk, said.min_ram);
    traits.disk_format.clone_from(&said.disk_format);
    traits.container_format.clone_from(&said.container_format);
    traits.origin = Some(replica.origin.clone());
}

/// The manifest that tags name. One that somebody has pushed here stays: it is the same bytes.
fn keep_manifest(
    view: &View,
    draft: &mut Draft,
    project: ProjectId,
    replica: &Replica,
    read: &manifest::Read,
    now: Timestamp,
) -> Result<(), OpsError> {
    let Some(blob) = replica.blobs.get(&BlobRole::Manifest) else { return Ok(()) };
    let key = ManifestKey { project, digest: digest_of(&blob.sha256)? };
    let row = view.manifests.get(key);
    let stands = row.is_some_and(|row| row.image.is_some_and(|id| view.images.get(id).is_some()));
    if stands {
        return Ok(());
    }
    hold(view, draft, &blob.sha256)?;
    let layers = replica.layers.iter().map(|l| Blob { sha256: l.sha256.clone(), size: l.size });
    let record = ManifestRecord {
        key,
        kind: ManifestKind::Image,
        media_type: read.media_type.clone(),
        size: blob.size,
        image: Some(replica.id),
        subject: read.subject,
        artifact_type: read.artifact_type.clone(),
        blobs: replica.blobs.get(&BlobRole::Config).cloned().into_iter().chain(layers).collect(),
        created_at: now,
    };
    draft.put_record(row, &record);
    Ok(())
}

/// A repository's tag names the replica from now on. One that names what is not of this origin stays.
fn tag(
    view: &View,
    project: ProjectId,
    replica: &Replica,
    origin: &Origin,
    (n, named): (usize, &ReplicaTag),
) -> Result<(Draft, ()), OpsError> {
    let mut draft = Draft::default();
    let Some(blob) = replica.blobs.get(&BlobRole::Manifest) else { return Ok((draft, ())) };
    let digest = digest_of(&blob.sha256)?;
    let manifest = view.manifests.get(ManifestKey { project, digest });
    let manifest = manifest.ok_or_else(|| {
        OpsError::Unavailable("the manifest was deleted meanwhile; tell of the image again".into())
    })?;
    let field = format!("pushed.tags[{n}]");
    let name = format!("{}:{}", named.repository, named.tag);
    let repository = view.repository(project, &named.repository);
    if repository.is_some_and(|row| row.mirror.is_some()) {
        return Err(OpsError::taken(
            field,
            format!("'{}' is a mirror; nobody pushes there", named.repository),
        ));
    }
    let present = repository.and_then(|row| view.tags.get(TagKey::of(row.id(), &named.tag)));
    match present {
        Some(present) if present.digest == digest => return Ok((draft, ())),
        Some(present) => {
            let there = view.manifests.get(ManifestKey { project, digest: present.digest });
            let image = there.and_then(|row| view.images.get(row.image?));
            let of = image.and_then(|image| image.traits.origin.as_ref());
            if of.is_none_or(|of| of.cloud != origin.cloud) {
                let text = format!(
                    "'{name}' names an image here that is no replica of that region's; take the tag away"
                );
                return Err(OpsError::taken(field, text));
            }
        }
        None => {}
    }
    draft.guard(manifest);
    let reference = Reference::Tag(named.tag.clone());
    place(view, &mut draft, project, &named.repository, &reference, digest, None, Timestamp::now())?;
    Ok((draft, ()))
}

/// All tags of the project that name a manifest.
pub(super) fn tags_of(view: &View, project: ProjectId, digest: Digest) -> Vec<ReplicaTag> {
    let repositories = view.repositories.of_project(project).filter(|r| r.mirror.is_none());
    let named = repositories.flat_map(|repository| {
        let tags = view.tags_in(repository.id()).filter(move |tag| tag.digest == digest);
        tags.map(|tag| ReplicaTag { repository: repository.name.clone(), tag: tag.name.clone() })
    });
    let mut named: Vec<_> = named.collect();
    named.sort_by(|a, b| (&a.repository, &a.tag).cmp(&(&b.repository, &b.tag)));
    named
}
