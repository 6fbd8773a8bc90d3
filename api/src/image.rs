//! Images: what a body starts from. Bytes are content-addressed blobs; a record gives them a name and a meaning.

use crate::{FieldError, ImageId, ProjectId, validate};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// What an image's bytes are, and so which kind of body it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFormat {
    /// A container image as `docker save` writes it. Blob `archive`, taken apart into `manifest`, `config` and layers.
    DockerArchive,
    /// A container image by its layers, as the OCI image specification has it. Blobs `manifest` and `config`, and layers.
    Oci,
    /// A bootable disk. Blob `disk`.
    Qcow2,
    /// A bootable disk. Blob `disk`.
    Raw,
    /// A bootable disk of one file, made qcow2 once on each host. Blob `disk`.
    Vmdk,
    /// The same.
    Vhd,
    /// The same.
    Vhdx,
    /// Blobs `kernel` and `initramfs`; the guest has no disk of its own.
    KernelInitramfs,
    /// A whole set as JSON, as `amphi set check` reads it. Blob `description`.
    SetDescription,
    /// A disk in a format that no body starts from, kept for whoever downloads it. Blob `disk`.
    Other,
}

/// One part of an image.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum BlobRole {
    Archive,
    Disk,
    Kernel,
    Initramfs,
    Description,
    /// An OCI image manifest, or Docker's schema 2: it names the config and the layers.
    Manifest,
    /// A container image's configuration. Its digest is the image's id in Docker.
    Config,
}

impl ImageFormat {
    /// The blobs an image of this format needs before it is `active`.
    pub fn roles(self) -> &'static [BlobRole] {
        match self {
            Self::DockerArchive => &[BlobRole::Archive],
            Self::Oci => &[BlobRole::Manifest, BlobRole::Config],
            Self::Qcow2 | Self::Raw | Self::Vmdk | Self::Vhd | Self::Vhdx | Self::Other => &[BlobRole::Disk],
            Self::KernelInitramfs => &[BlobRole::Kernel, BlobRole::Initramfs],
            Self::SetDescription => &[BlobRole::Description],
        }
    }

    /// Whether it is a disk that a VM starts from and a volume begins with.
    pub fn is_disk(self) -> bool {
        matches!(self, Self::Qcow2 | Self::Raw | Self::Vmdk | Self::Vhd | Self::Vhdx)
    }

    /// A disk that hosts make a qcow2 of first.
    pub fn is_foreign_disk(self) -> bool {
        matches!(self, Self::Vmdk | Self::Vhd | Self::Vhdx)
    }

    /// Whether a member of a set can start from it (else: a VM).
    pub fn is_container(self) -> bool {
        matches!(self, Self::DockerArchive | Self::Oci)
    }
}

/// An image to make; its blobs are uploaded after it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageCreate {
    #[schema(min_length = 1, max_length = 255)]
    pub name: String,
    pub format: ImageFormat,
    /// Kernel command line of a `kernel-initramfs` image, beside the console that Amphi sets.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(max_length = 2000)]
    pub cmdline: String,
}

impl ImageCreate {
    pub fn check(&self) -> Result<(), FieldError> {
        validate::name("name", &self.name)?;
        if !self.cmdline.is_empty() && self.format != ImageFormat::KernelInitramfs {
            return Err(FieldError::new("cmdline", "only kernel-initramfs images have one"));
        }
        if self.cmdline.len() > 2000 || self.cmdline.chars().any(char::is_control) {
            return Err(FieldError::new("cmdline", "at most 2000 characters, no control characters"));
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageState {
    /// Blobs are missing.
    Queued,
    Active,
}

/// Bytes by their digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Blob {
    /// Lower-case hexadecimal SHA-256.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
}

/// Who sees an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageVisibility {
    /// Everybody, in the market too.
    Public,
    /// Everybody who knows of it; in the market for those who ask for such.
    Community,
    /// Its project, and those that it is shared with.
    Shared,
    #[default]
    Private,
}

/// What is said of an image, beside its bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ImageSaid {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(default)]
    pub visibility: ImageVisibility,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Of a replica: the region that it is from, as that calls itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
}

/// An image with what is said of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ImageDetail {
    #[serde(flatten)]
    pub image: Image,
    #[serde(flatten)]
    pub said: ImageSaid,
}

/// An image that everybody may start from, with the name of the project that offers it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct MarketImage {
    #[serde(flatten)]
    pub detail: ImageDetail,
    pub owner: String,
    /// In bytes, as [`Image::size`].
    pub size: u64,
}

/// What is to be said of an image from now on; what is not named stays. An empty description or version is none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageEdit {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 255)]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 4000)]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 255)]
    pub version: Option<String>,
    /// Only administrators make images public.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visibility: Option<ImageVisibility>,
}

impl ImageEdit {
    pub fn check(&self) -> Result<(), FieldError> {
        self.name.iter().try_for_each(|name| validate::name("name", name))?;
        let text = |field: &str, text: &Option<String>, most: usize, lines: bool| match text {
            Some(text) if text.chars().count() > most => {
                Err(FieldError::new(field, format!("at most {most} characters")))
            }
            Some(text) if text.chars().any(|c| c.is_control() && !(lines && c == '\n')) => {
                Err(FieldError::new(field, "must not contain control characters"))
            }
            _ => Ok(()),
        };
        text("description", &self.description, 4000, true)?;
        text("version", &self.version, validate::NAME_MAX, false)
    }
}

/// How much a project may have in the image store, and has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ImageUsage {
    /// In MiB; -1: as much as there is room.
    pub limit_mib: i64,
    /// Each blob once, in bytes.
    pub used_bytes: u64,
}

/// Another limit for a project.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageLimit {
    /// In MiB; -1: none.
    pub limit_mib: i64,
}

/// Digests of blobs that somebody would send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BlobsWanted {
    /// Lower-case hexadecimal; at most 1,000.
    #[schema(max_items = 1000)]
    pub sha256: Vec<String>,
}

impl BlobsWanted {
    pub const MAX: usize = 1000;
}

/// Those of them that need not be sent: a recipe or manifest of the project may name them for a day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct BlobsKnown {
    pub blobs: Vec<Blob>,
}

/// A layer as an image of its own: the file system up to it. Its id is the same in every image that begins with the same
/// layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct LayerImage {
    pub id: ImageId,
    /// The layer below; none of the lowest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ImageId>,
    /// Of this layer and all below (the OCI image specification's ChainID); lower-case hexadecimal.
    pub chain_id: String,
    #[serde(flatten)]
    pub layer: Layer,
    /// The listed images whose own file system it is part of.
    pub images: Vec<ImageId>,
}

/// How a layer's bytes are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// One layer of a container image: a tar of what it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Layer {
    /// Of the bytes as they are stored and sent; lower-case hexadecimal.
    pub sha256: String,
    /// In bytes, as they are stored and sent.
    pub size: u64,
    pub compression: Compression,
    /// SHA-256 of the tar without compression, lower-case hexadecimal: what the config's `rootfs.diff_ids` names.
    pub diff_id: String,
}

/// An image as clients and hosts see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Image {
    pub id: ImageId,
    pub project: ProjectId,
    pub name: String,
    pub format: ImageFormat,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cmdline: String,
    pub state: ImageState,
    pub blobs: BTreeMap<BlobRole, Blob>,
    /// A container image's, the lowest first. Empty for all others, and for container images that were uploaded before
    /// layers were known: those have an `archive` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Layer>,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub created_at: Timestamp,
}

impl Image {
    /// Of what was uploaded, or pushed: an archive that was taken apart counts once. In bytes.
    pub fn size(&self) -> u64 {
        size_of(self.format, &self.blobs, &self.layers)
    }
}

/// [`Image::size`] of an image that has these blobs and layers.
pub fn size_of(format: ImageFormat, blobs: &BTreeMap<BlobRole, Blob>, layers: &[Layer]) -> u64 {
    let own = format.roles().iter().filter_map(|role| blobs.get(role)).map(|blob| blob.size);
    let layers = layers.iter().filter(|_| format == ImageFormat::Oci).map(|layer| layer.size);
    own.chain(layers).fold(0, u64::saturating_add)
}
