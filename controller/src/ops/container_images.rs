//! Container images by their manifests: what a push ends with, and what a pull looks up. A manifest is checked against what
//! is here before it is kept; the same manifest in the same project is the same record and the same image.

use super::blobs::PushRefused;
use super::{Ops, OpsError, Row, View};
use crate::model::{Digest, ManifestKey, ManifestKind, ManifestRecord};
use amphi_api::{ImageId, ProjectId};
use bytes::Bytes;

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
    ) -> Result<ContainerPut, PushRefused>;

    /// Forgets a manifest, and the image that was made of it. Refused while a body uses the image. Indexes that list the
    /// manifest stay, with that platform missing.
    pub async fn delete_container(&self, scope: ProjectId, digest: Digest) -> Result<(), OpsError>;
}

impl View {
    /// A manifest that was pushed into the project (`manifests` is the table).
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
