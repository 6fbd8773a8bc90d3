//! Conversions: a VM's disk becomes a container image, a container image becomes a disk. What was found on the way is told in
//! a report, above all what will not be in the one as it was in the other.

use crate::image::Image;
use crate::instance::Fault;
use crate::set::SetSpec;
use crate::{FieldError, HostId, ImageId, validate};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConvertTo {
    /// Of a disk's root file system: a container image of one layer.
    Container,
    /// Of a container image: a disk that a BIOS boots.
    Disk,
}

/// An order to convert an image; what comes out is an image of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConvertCreate {
    pub to: ConvertTo,
    /// Of the new image; none: the old one's with what it becomes behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 255)]
    pub name: Option<String>,
}

impl ConvertCreate {
    pub fn check(&self) -> Result<(), FieldError> {
        self.name.as_ref().map_or(Ok(()), |name| validate::name("name", name))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConversionState {
    Running,
    Done,
    /// For good: the fault says why.
    Failed,
}

/// Of an image that is made of another one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Conversion {
    /// What comes out.
    pub image: Image,
    /// What it is made of.
    pub of: ImageId,
    pub of_name: String,
    pub to: ConvertTo,
    /// Where it is made.
    pub host: HostId,
    pub state: ConversionState,
    pub progress: ConversionProgress,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<ConversionReport>,
    /// Why it failed, or why it is not further yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// A set that runs what came out: what `amphi set create --file` takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<SetSpec>,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub began_at: Timestamp,
}

/// How much was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ConversionProgress {
    /// Names.
    pub entries: u64,
    /// Of files.
    pub bytes: u64,
}

/// What was found on a disk, and what became of it. Its texts are the disk's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(default)]
pub struct ConversionReport {
    /// As its os-release calls it.
    pub system: String,
    /// Where on the disk its root file system is.
    pub root: String,
    /// Further file systems of the disk that are in the image: path, place.
    pub mounted: Vec<(String, String)>,
    pub init: ConversionInit,
    /// What it starts at boot.
    pub services: Vec<ConversionService>,
    /// What will not be in a container as it was in the machine.
    pub notes: Vec<ConversionNote>,
    pub entries: u64,
    /// Of files.
    pub bytes: u64,
    pub hard_links: u64,
    pub sparse_files: u64,
    /// Files with capabilities.
    pub capabilities: u64,
    /// Files that run as their owner or group.
    pub set_ids: u64,
}

/// What the image starts with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(default)]
pub struct ConversionInit {
    /// The machine's: `systemd`, `sysvinit`, `busybox`, `openrc`, `other` or `none`.
    pub kind: String,
    pub argv: Vec<String>,
    pub stop_signal: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ConversionService {
    pub name: String,
    pub started: bool,
    /// Why it is not.
    #[serde(default)]
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ConversionNote {
    /// `kernel_module`, `mount`, `network`, `sysctl`, `swap`, `security`, `service`, `unread` or `left_out`.
    pub kind: String,
    pub what: String,
    pub why: String,
}
