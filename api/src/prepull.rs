//! Images on hosts before anything starts from them: what a host says that it holds, orders and policies to fetch, and what
//! clients see of both.

use crate::image::{Blob, BlobRole, Image, Layer};
use crate::instance::Fault;
use crate::{FieldError, HostId, ImageId, validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

/// Most digests of each kind that a host tells of: those used last.
pub const HELD_MAX: usize = 256;
/// Zones that a policy may name.
const ZONES_MAX: usize = 64;

/// What a host says of its images.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostImages {
    /// Digests of the blobs in its cache, layers apart; at most [`HELD_MAX`].
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub blobs: BTreeSet<String>,
    /// Digests of the configurations of container images that its engine has; at most [`HELD_MAX`].
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub containers: BTreeSet<String>,
    /// How it stands with what it is to have beforehand.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fetches: Vec<ImageFetch>,
}

impl HostImages {
    pub fn has(&self, mark: Mark<'_>) -> bool {
        match mark {
            Mark::Blob(digest) => self.blobs.contains(digest),
            Mark::Container(digest) => self.containers.contains(digest),
        }
    }
}

/// An image on its way to a host, or there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFetch {
    pub image: ImageId,
    /// How much of it has come, in tens: progress costs a few words, however large it is.
    #[serde(default)]
    pub percent: u8,
    /// It is there, whole.
    #[serde(default)]
    pub held: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
}

/// What tells that a host has an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mark<'a> {
    /// This blob is in its cache.
    Blob(&'a str),
    /// Its engine has an image of this configuration.
    Container(&'a str),
}

impl Image {
    /// None: no body starts from it, or its bytes are not there yet.
    pub fn mark(&self) -> Option<Mark<'_>> {
        mark_of(&self.blobs, &self.layers)
    }
}

/// [`Image::mark`] of an image that has these blobs and layers.
pub fn mark_of<'a>(blobs: &'a BTreeMap<BlobRole, Blob>, layers: &[Layer]) -> Option<Mark<'a>> {
    use BlobRole::{Archive, Config, Disk, Kernel};
    let digest = |role| blobs.get(&role).map(|blob| blob.sha256.as_str());
    match digest(Config).filter(|_| !layers.is_empty()) {
        Some(config) => Some(Mark::Container(config)),
        None => [Archive, Disk, Kernel].into_iter().find_map(digest).map(Mark::Blob),
    }
}

/// Which hosts are to fetch an image once. One that is named twice is meant once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PrepullCreate {
    /// These, by id.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<HostId>)]
    #[schemars(with = "Vec<HostId>")]
    pub hosts: BTreeSet<HostId>,
    /// All of these availability zones.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<String>)]
    #[schemars(with = "Vec<String>")]
    pub zones: BTreeSet<String>,
    /// All that there are now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

impl PrepullCreate {
    pub fn check(&self) -> Result<(), FieldError> {
        check_zones(&self.zones)?;
        let asked = [!self.hosts.is_empty(), !self.zones.is_empty(), self.all];
        match asked.iter().filter(|asked| **asked).count() {
            1 => Ok(()),
            _ => Err(FieldError::new("hosts", "give one of hosts, zones and all")),
        }
    }
}

/// Which hosts have an image at all times: they fetch it when it appears or when they join, and do not evict it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PrepullPolicy {
    /// Those of these availability zones.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<String>)]
    #[schemars(with = "Vec<String>")]
    pub zones: BTreeSet<String>,
    /// Every host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

impl PrepullPolicy {
    pub fn check(&self) -> Result<(), FieldError> {
        check_zones(&self.zones)?;
        match self.all == self.zones.is_empty() {
            true => Ok(()),
            false => Err(FieldError::new("zones", "give either zones or all")),
        }
    }

    /// Whether a host of this zone is meant.
    pub fn means(&self, zone: &str) -> bool {
        self.all || self.zones.contains(zone)
    }
}

fn check_zones(zones: &BTreeSet<String>) -> Result<(), FieldError> {
    if zones.len() > ZONES_MAX {
        return Err(FieldError::new("zones", format!("at most {ZONES_MAX}")));
    }
    zones.iter().try_for_each(|zone| validate::name("zones", zone))
}

/// An image, as hosts have it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ImageOnHosts {
    pub image: ImageId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PrepullPolicy>,
    /// All hosts.
    pub hosts: Vec<ImageOnHost>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ImageOnHost {
    pub host: HostId,
    pub name: String,
    pub state: PrepullState,
    /// It has been ordered there and is not over.
    pub ordered: bool,
    /// By policy it is there at all times.
    pub kept: bool,
    /// While it is fetched: how much has come, in tens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// Why it could not be fetched; tried again every half minute. Or why this host does not fetch at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PrepullState {
    /// It is not there, and nobody has asked for it.
    Absent,
    /// The host has not begun.
    Waiting,
    Fetching,
    /// It is there, whole.
    Held,
    Failed,
}

/// Something that lies in a host's cache or its container engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct HeldImage {
    pub image: ImageId,
    pub name: String,
    /// Lower-case hexadecimal SHA-256 of its disk, kernel, archive, or of its configuration.
    pub digest: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whom_an_order_means() {
        let order = |value| serde_json::from_value::<PrepullCreate>(value).unwrap().check().is_ok();
        assert!(order(json!({"all": true})) && order(json!({"zones": ["a"]})));
        assert!(!order(json!({})) && !order(json!({"all": true, "zones": ["a"]})));
        let policy = |value| serde_json::from_value::<PrepullPolicy>(value).unwrap();
        assert!(policy(json!({"all": true})).check().is_ok());
        assert!(policy(json!({})).check().is_err());
        assert!(policy(json!({"all": true, "zones": ["a"]})).check().is_err());
        let east = policy(json!({"zones": ["east"]}));
        assert!(east.means("east") && !east.means("west"));
    }

    #[test]
    fn what_marks_an_image() {
        let blob = |n: u8| json!({"sha256": format!("{n:064x}"), "size": 1});
        let image = |format: &str, blobs: serde_json::Value, layers: serde_json::Value| -> Image {
            serde_json::from_value(json!({"id": uuid::Uuid::nil(), "project": uuid::Uuid::nil(), "name": "i",
                "format": format, "state": "active", "blobs": blobs, "layers": layers,
                "created_at": "2026-01-01T00:00:00Z"}))
            .unwrap()
        };
        let layer = json!([{"sha256": "c", "size": 1, "compression": "none", "diff_id": "d"}]);
        let digest = |n: u8| format!("{n:064x}");
        let table = [
            ("docker-archive", json!({"archive": blob(1), "config": blob(2)}), layer, "container", 2),
            ("docker-archive", json!({"archive": blob(1)}), json!([]), "blob", 1),
            ("qcow2", json!({"disk": blob(3)}), json!([]), "blob", 3),
            ("kernel-initramfs", json!({"initramfs": blob(4), "kernel": blob(5)}), json!([]), "blob", 5),
            ("raw", json!({}), json!([]), "none", 0),
        ];
        for (format, blobs, layers, kind, number) in table {
            let image = image(format, blobs, layers);
            let told = match image.mark() {
                Some(Mark::Blob(digest)) => ("blob", digest.to_owned()),
                Some(Mark::Container(digest)) => ("container", digest.to_owned()),
                None => ("none", digest(0)),
            };
            assert_eq!(told, (kind, digest(number)), "{format}");
        }
    }
}
