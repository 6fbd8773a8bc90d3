//! What one controller tells another of an image: everything but the bytes, and those by their digests. Pure.
//!
//! A replica has the id of its origin. It is told as a whole, as often as one likes; the answer says which bytes are missing,
//! and from which on each that has come in part. It is an image once nothing is missing, and not before. Two clouds need not be
//! of one version: words that one does not know are passed over.

use crate::image::{Blob, BlobRole, ImageFormat, ImageVisibility, Layer};
use crate::repository::{repository_name, tag_name};
use crate::{FieldError, ImageId, ProjectId, validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

/// The role that may bring replicas and fetch them, beside administrators'.
pub const ROLE: &str = "replicator";
/// Most layers, properties, tags of one replica: what an image has at most.
const MANY: usize = 128;
/// Largest recipe of an archive, in bytes.
const RECIPE_MAX: u64 = 32 << 20;

/// The cloud that an image was first in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Origin {
    /// What no two clouds share: lower-case hexadecimal SHA-256 of its CA's certificate.
    pub cloud: String,
    /// As it calls itself.
    pub region: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Replica {
    pub id: ImageId,
    /// The name of the project that has it; one of this name (or id) is to have the replica.
    pub project: String,
    pub name: String,
    pub format: ImageFormat,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cmdline: String,
    pub blobs: BTreeMap<BlobRole, Blob>,
    /// A container image's, the lowest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Layer>,
    /// How the archive of a container image is put together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Blob>,
    pub said: ReplicaSaid,
    pub origin: Origin,
    /// Repositories' tags that are to name it; none: it is no repository's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushed: Option<ReplicaPushed>,
}

/// What is said of an image beside its bytes, in glance's words.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(default)]
pub struct ReplicaSaid {
    pub visibility: ImageVisibility,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    pub hidden: bool,
    pub deactivated: bool,
    /// In GiB.
    pub min_disk: u32,
    /// In MiB.
    pub min_ram: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_format: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_format: Option<String>,
}

/// An image as it was pushed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ReplicaPushed {
    /// Of its manifest.
    pub media_type: String,
    pub tags: Vec<ReplicaTag>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ReplicaTag {
    pub repository: String,
    pub tag: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// Bytes are missing.
    Waiting,
    Active,
    /// The image is from here: it is not taken back.
    Own,
}

/// What has become of a replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ReplicaAnswer {
    pub state: ReplicaState,
    /// The project that has it, or is to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectId>,
    /// In the order in which they are to be sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<MissingBlob>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct MissingBlob {
    #[serde(flatten)]
    pub blob: Blob,
    /// So many of its bytes are here: go on there.
    pub received: u64,
}

impl Replica {
    /// The bytes that it is made of, each once, in the order in which they go: layers before what names them.
    pub fn pieces(&self) -> Vec<Blob> {
        let layers = self.layers.iter().map(|l| Blob { sha256: l.sha256.clone(), size: l.size });
        let own: Vec<Blob> = match (self.format, &self.recipe) {
            // Manifest and configuration are in the archive: they come out of the recipe's own bytes.
            (ImageFormat::DockerArchive, Some(recipe)) => layers.chain([recipe.clone()]).collect(),
            (ImageFormat::Oci, _) => {
                let named = [BlobRole::Config, BlobRole::Manifest];
                layers.chain(named.iter().filter_map(|role| self.blobs.get(role).cloned())).collect()
            }
            _ => self.format.roles().iter().filter_map(|role| self.blobs.get(role).cloned()).collect(),
        };
        let mut seen = BTreeSet::new();
        own.into_iter().filter(|blob| seen.insert(blob.sha256.clone())).collect()
    }

    /// All of them, in bytes.
    pub fn size(&self) -> u64 {
        self.pieces().iter().fold(0, |sum, blob| sum.saturating_add(blob.size))
    }

    pub fn check(&self) -> Result<(), FieldError> {
        validate::name("name", &self.name)?;
        validate::name("project", &self.project)?;
        validate::name("origin.region", &self.origin.region)?;
        if !sha256(&self.origin.cloud) {
            return Err(FieldError::new("origin.cloud", "must be 64 lower-case hexadecimal digits"));
        }
        if let Some(role) = self.format.roles().iter().find(|role| !self.blobs.contains_key(role)) {
            let message = format!("an image of this format has a blob {role:?}; only whole images go");
            return Err(FieldError::new("blobs", message.to_lowercase()));
        }
        for (field, many) in [
            ("layers", self.layers.len()),
            ("said.tags", self.said.tags.len()),
            ("said.properties", self.said.properties.len()),
            ("pushed.tags", self.pushed.as_ref().map_or(0, |pushed| pushed.tags.len())),
        ] {
            if many > MANY {
                return Err(FieldError::new(field, format!("at most {MANY}")));
            }
        }
        if self.recipe.as_ref().is_some_and(|recipe| recipe.size > RECIPE_MAX) {
            return Err(FieldError::new("recipe.size", format!("at most {RECIPE_MAX}")));
        }
        if let Some(wrong) = self.pieces().iter().find(|blob| !sha256(&blob.sha256)) {
            let message = format!("'{}' is no digest: 64 lower-case hexadecimal digits", wrong.sha256);
            return Err(FieldError::new("blobs", message));
        }
        if self.pushed.is_some() && self.format != ImageFormat::Oci {
            return Err(FieldError::new("pushed", "only images that were pushed by layers have tags"));
        }
        for (n, named) in self.pushed.iter().flat_map(|pushed| &pushed.tags).enumerate() {
            if !repository_name(&named.repository) {
                return Err(FieldError::new(
                    format!("pushed.tags[{n}].repository"),
                    "no name of a repository",
                ));
            }
            if !tag_name(&named.tag) {
                return Err(FieldError::new(format!("pushed.tags[{n}].tag"), "no tag"));
            }
        }
        Ok(())
    }
}

fn sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Compression;
    use serde_json::json;

    fn blob(n: u8) -> Blob {
        Blob { sha256: format!("{n:02x}").repeat(32), size: u64::from(n) }
    }

    fn replica(format: ImageFormat, blobs: &[(BlobRole, Blob)], layers: &[u8]) -> Replica {
        let layer = |n: &u8| Layer {
            sha256: blob(*n).sha256,
            size: u64::from(*n),
            compression: Compression::None,
            diff_id: blob(*n).sha256,
        };
        Replica {
            id: ImageId::new(),
            project: "p".into(),
            name: "n".into(),
            format,
            cmdline: String::new(),
            blobs: blobs.iter().cloned().collect(),
            layers: layers.iter().map(layer).collect(),
            recipe: None,
            said: ReplicaSaid::default(),
            origin: Origin { cloud: "ab".repeat(32), region: "north".into() },
            pushed: None,
        }
    }

    #[test]
    fn layers_go_before_what_names_them() {
        use BlobRole::*;
        let order = |r: &Replica| r.pieces().iter().map(|b| b.size).collect::<Vec<_>>();
        let oci = replica(ImageFormat::Oci, &[(Manifest, blob(9)), (Config, blob(8))], &[1, 2, 1]);
        assert_eq!(order(&oci), [1, 2, 8, 9], "each once");
        assert_eq!(oci.size(), 20);
        let parts = [(Archive, blob(7)), (Manifest, blob(9)), (Config, blob(8))];
        let mut archive = replica(ImageFormat::DockerArchive, &parts, &[1, 2]);
        assert_eq!(order(&archive), [7], "one that was never taken apart goes as it lies");
        archive.recipe = Some(blob(5));
        assert_eq!(order(&archive), [1, 2, 5]);
        let kernel = replica(ImageFormat::KernelInitramfs, &[(Kernel, blob(3)), (Initramfs, blob(4))], &[]);
        assert_eq!(order(&kernel), [3, 4]);
    }

    #[test]
    fn what_is_wrong_is_said_of_its_field() {
        let good =
            replica(ImageFormat::Oci, &[(BlobRole::Manifest, blob(9)), (BlobRole::Config, blob(8))], &[1]);
        assert_eq!(good.check(), Ok(()));
        let good = serde_json::to_value(good).unwrap();
        for (change, field) in [
            (json!({"name": ""}), "name"),
            (json!({"project": " x"}), "project"),
            (json!({"origin": {"cloud": "AB", "region": "north"}}), "origin.cloud"),
            (json!({"origin": {"cloud": "ab".repeat(32), "region": ""}}), "origin.region"),
            (json!({"blobs": {"manifest": blob(9)}}), "blobs"),
            (json!({"blobs": {"manifest": {"sha256": "../x", "size": 1}, "config": blob(8)}}), "blobs"),
            (json!({"recipe": {"sha256": "00", "size": u64::MAX}}), "recipe.size"),
            (
                json!({"pushed": {"media_type": "m", "tags": [{"repository": "A", "tag": "t"}]}}),
                "pushed.tags[0].repository",
            ),
            (
                json!({"pushed": {"media_type": "m", "tags": [{"repository": "a", "tag": "."}]}}),
                "pushed.tags[0].tag",
            ),
            (
                json!({"format": "raw", "blobs": {"disk": blob(3)}, "pushed": {"media_type": "m", "tags": []}}),
                "pushed",
            ),
        ] {
            let mut wrong = good.clone();
            wrong.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            let wrong: Replica = serde_json::from_value(wrong).unwrap();
            assert_eq!(wrong.check().map_err(|e| e.field), Err(field.to_owned()), "{change}");
        }
    }
}
