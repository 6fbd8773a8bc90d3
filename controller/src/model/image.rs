//! Images: a name and a meaning for blobs.

use super::{ArchiveParts, ImageTraits, Record};
use amphi_api::image::{Blob, BlobRole, Image, ImageFormat, ImageState, Layer};
use amphi_api::instance::Fault;
use amphi_api::prepull::{Mark, mark_of};
use amphi_api::wire::ExportSource;
use amphi_api::{HostId, ImageId, InstanceId, ProjectId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageRecord {
    pub id: ImageId,
    pub project: ProjectId,
    pub name: String,
    pub format: ImageFormat,
    #[serde(default)]
    pub cmdline: String,
    #[serde(default)]
    pub blobs: BTreeMap<BlobRole, Blob>,
    /// A container image's, the lowest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Layer>,
    /// Who may see it, and what is said of it.
    #[serde(default)]
    pub traits: ImageTraits,
    /// Its bytes come from there, once.
    #[serde(default)]
    pub export: Option<ImageExport>,
    /// Being deleted: no new body takes it.
    #[serde(default)]
    pub closing: bool,
    pub created_at: Timestamp,
}

/// Bytes of a host that are to become the image's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageExport {
    pub host: HostId,
    pub source: ExportSource,
    /// The instance whose task this is.
    #[serde(default)]
    pub instance: Option<InstanceId>,
    #[serde(default)]
    pub fault: Option<Fault>,
}

impl ImageRecord {
    /// All bytes that it names: its own, those that wait, and its layers'.
    pub fn digests(&self) -> impl Iterator<Item = &str> {
        let staged = self.traits.staged.iter().map(|staged| &staged.blob);
        let blobs = self.blobs.values().chain(staged).map(|blob| blob.sha256.as_str());
        blobs.chain(self.layers.iter().map(|layer| layer.sha256.as_str()))
    }

    /// Takes an archive's parts for its own.
    pub fn take_parts(&mut self, parts: &ArchiveParts) {
        self.blobs.insert(BlobRole::Manifest, parts.manifest.clone());
        self.blobs.insert(BlobRole::Config, parts.config.clone());
        self.layers.clone_from(&parts.layers);
    }

    /// The host that is to hand over its bytes now.
    pub fn exporting_host(&self) -> Option<HostId> {
        self.export.as_ref().filter(|_| !self.closing && self.state() == ImageState::Queued).map(|e| e.host)
    }

    /// Active once every blob of its format is there.
    pub fn state(&self) -> ImageState {
        let whole = self.format.roles().iter().all(|role| self.blobs.contains_key(role));
        if whole { ImageState::Active } else { ImageState::Queued }
    }

    /// What tells that a host has it.
    pub fn mark(&self) -> Option<Mark<'_>> {
        mark_of(&self.blobs, &self.layers)
    }

    /// As clients and hosts see it.
    pub fn view(&self) -> Image {
        Image {
            id: self.id,
            project: self.project,
            name: self.name.clone(),
            format: self.format,
            cmdline: self.cmdline.clone(),
            state: self.state(),
            blobs: self.blobs.clone(),
            layers: self.layers.clone(),
            created_at: self.created_at,
        }
    }
}

impl Record for ImageRecord {
    const PREFIX: &'static str = "/image/";
    const NOUN: &'static str = "image";
    type Id = ImageId;
    fn id(&self) -> ImageId {
        self.id
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((self.project, &self.name))
    }
}
