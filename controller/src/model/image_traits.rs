//! What is said of an image beside its bytes: who sees it, its formats in glance's words, its properties.

use super::{ConversionRecord, ImageRecord};
use amphi_api::ProjectId;
use amphi_api::image::{Blob, ImageFormat, ImageVisibility};
use amphi_api::replica::Origin;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageTraits {
    /// Glance's `disk_format`, as it was given.
    pub disk_format: Option<String>,
    /// Glance's `container_format`, as it was given.
    pub container_format: Option<String>,
    pub visibility: Visibility,
    /// The projects that it is shared with.
    pub members: BTreeMap<ProjectId, ImageMember>,
    pub tags: BTreeSet<String>,
    pub properties: BTreeMap<String, String>,
    /// Bars deletion.
    pub protected: bool,
    /// Left out of lists that do not ask for it.
    pub hidden: bool,
    /// In GiB.
    pub min_disk: u32,
    /// In MiB.
    pub min_ram: u32,
    /// Lower-case hexadecimal MD5 of the bytes, glance's `checksum`; none: nobody has read them for it yet.
    pub md5: Option<String>,
    /// Size of the disk that the bytes describe, in bytes.
    pub virtual_size: Option<u64>,
    /// Not to be downloaded or started from until it is reactivated.
    pub deactivated: bool,
    /// Bytes that wait for an import.
    pub staged: Option<StagedBlob>,
    /// It is made of another image.
    pub conversion: Option<ConversionRecord>,
    /// Of a replica: where it is from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    pub updated_at: Option<Timestamp>,
}

/// Bytes that were taken and are not the image's yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StagedBlob {
    pub blob: Blob,
    pub md5: Option<String>,
    #[serde(default)]
    pub virtual_size: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Visibility {
    /// Everybody sees and lists it.
    Public,
    /// Everybody may use it; it is listed for those who ask for it.
    Community,
    /// Its project, and the members.
    Shared,
    #[default]
    Private,
}

impl From<ImageVisibility> for Visibility {
    fn from(said: ImageVisibility) -> Self {
        match said {
            ImageVisibility::Public => Self::Public,
            ImageVisibility::Community => Self::Community,
            ImageVisibility::Shared => Self::Shared,
            ImageVisibility::Private => Self::Private,
        }
    }
}

impl From<Visibility> for ImageVisibility {
    fn from(kept: Visibility) -> Self {
        match kept {
            Visibility::Public => Self::Public,
            Visibility::Community => Self::Community,
            Visibility::Shared => Self::Shared,
            Visibility::Private => Self::Private,
        }
    }
}

impl Visibility {
    pub const ALL: [Self; 4] = [Self::Public, Self::Community, Self::Shared, Self::Private];

    pub fn word(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Community => "community",
            Self::Shared => "shared",
            Self::Private => "private",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.word() == text)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageMember {
    pub status: MemberStatus,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberStatus {
    Pending,
    Accepted,
    Rejected,
}

impl MemberStatus {
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Accepted => "accepted",
            Self::Rejected => "rejected",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Accepted, Self::Rejected].into_iter().find(|s| s.word() == text)
    }
}

/// What bytes are, by glance's two formats. A container format that says what kind of body it is goes first.
pub fn format_of(container: Option<&str>, disk: Option<&str>) -> ImageFormat {
    match (container, disk) {
        (Some("docker"), _) => ImageFormat::DockerArchive,
        (Some("amphi-set"), _) => ImageFormat::SetDescription,
        (None | Some("bare"), Some("qcow2")) => ImageFormat::Qcow2,
        (None | Some("bare"), Some("raw")) => ImageFormat::Raw,
        (None | Some("bare"), Some("vmdk")) => ImageFormat::Vmdk,
        (None | Some("bare"), Some("vhd")) => ImageFormat::Vhd,
        (None | Some("bare"), Some("vhdx")) => ImageFormat::Vhdx,
        _ => ImageFormat::Other,
    }
}

impl ImageRecord {
    /// Glance's container format and disk format; an image of the native face has those that say the same.
    pub fn glance_formats(&self) -> (Option<&str>, Option<&str>) {
        let traits = &self.traits;
        if traits.container_format.is_some() || traits.disk_format.is_some() {
            return (traits.container_format.as_deref(), traits.disk_format.as_deref());
        }
        match self.format {
            ImageFormat::DockerArchive | ImageFormat::Oci => (Some("docker"), Some("raw")),
            ImageFormat::SetDescription => (Some("amphi-set"), Some("raw")),
            ImageFormat::Qcow2 => (Some("bare"), Some("qcow2")),
            ImageFormat::Raw => (Some("bare"), Some("raw")),
            ImageFormat::Vmdk => (Some("bare"), Some("vmdk")),
            ImageFormat::Vhd => (Some("bare"), Some("vhd")),
            ImageFormat::Vhdx => (Some("bare"), Some("vhdx")),
            // A kernel with its initramfs is what Amazon's formats tell of.
            ImageFormat::KernelInitramfs => (Some("ami"), Some("ami")),
            ImageFormat::Other => (None, None),
        }
    }

    /// Whether a project may look at it and start from it.
    pub fn open_to(&self, project: ProjectId) -> bool {
        self.project == project
            || match self.traits.visibility {
                Visibility::Public | Visibility::Community => true,
                Visibility::Shared => self.traits.members.contains_key(&project),
                Visibility::Private => false,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        use ImageFormat::*;
        for (container, disk, want) in [
            (Some("bare"), Some("qcow2"), Qcow2),
            (Some("bare"), Some("raw"), Raw),
            (Some("docker"), Some("raw"), DockerArchive),
            (Some("docker"), None, DockerArchive),
            (Some("amphi-set"), Some("raw"), SetDescription),
            (Some("bare"), Some("vmdk"), Vmdk),
            (None, Some("vhd"), Vhd),
            (Some("bare"), Some("vhdx"), Vhdx),
            (Some("bare"), Some("iso"), Other),
            (Some("bare"), Some("vdi"), Other),
            (Some("ova"), Some("qcow2"), Other),
            (None, None, Other),
        ] {
            assert_eq!(format_of(container, disk), want, "{container:?} {disk:?}");
        }
    }
}
