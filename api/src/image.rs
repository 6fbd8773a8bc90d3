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
