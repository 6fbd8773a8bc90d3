//! Manifests as they were pushed: what a tag points to. One record per project and digest, so that the same manifest twice is
//! one thing. Pure.

use super::{Digest, Record};
use amphi_api::image::Blob;
use amphi_api::{ImageId, ProjectId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A manifest of a project. As text: `project.digest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ManifestKey {
    pub project: ProjectId,
    pub digest: Digest,
}

impl fmt::Display for ManifestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.project, self.digest)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no key of a manifest: {0:?}")]
pub struct NoManifestKey(String);

impl FromStr for ManifestKey {
    type Err = NoManifestKey;
    fn from_str(text: &str) -> Result<Self, NoManifestKey> {
        let read = || {
            let (project, digest) = text.split_once('.')?;
            Some(Self { project: project.parse().ok()?, digest: digest.parse().ok()? })
        };
        read().ok_or_else(|| NoManifestKey(text.chars().take(120).collect()))
    }
}

impl From<ManifestKey> for String {
    fn from(key: ManifestKey) -> String {
        key.to_string()
    }
}

impl TryFrom<String> for ManifestKey {
    type Error = NoManifestKey;
    fn try_from(text: String) -> Result<Self, NoManifestKey> {
        text.parse()
    }
}

/// What a manifest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ManifestKind {
    /// A container image: bodies start from it.
    Image,
    /// A list of manifests, one per platform. Its `image` is that of linux/amd64, where it has one.
    Index,
    /// Anything else that a manifest can hold: signatures, attestations, charts. Kept and given back, never started.
    Artifact,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManifestRecord {
    pub key: ManifestKey,
    pub kind: ManifestKind,
    /// As it was pushed; a pull answers with it.
    pub media_type: String,
    /// In bytes.
    pub size: u64,
    /// What a body starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageId>,
    /// The manifest that this one says something about (OCI 1.1's `subject`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Digest>,
    /// OCI 1.1's `artifactType`, else an artifact's config's media type: what `referrers` lists it as.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
    /// What it names beside itself: config and layers, or an index's manifests.
    #[serde(default)]
    pub blobs: Vec<Blob>,
    pub created_at: Timestamp,
}

impl Record for ManifestRecord {
    const PREFIX: &'static str = "/manifest/";
    const NOUN: &'static str = "manifest";
    type Id = ManifestKey;
    fn id(&self) -> ManifestKey {
        self.key
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        // Names are the tags' business.
        Some((self.key.project, ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_return() {
        let key = ManifestKey { project: ProjectId::new(), digest: Digest([9; 32]) };
        assert_eq!(key.to_string().parse(), Ok(key));
        for bad in ["", ".", "a.b", &key.to_string()[1..]] {
            assert!(bad.parse::<ManifestKey>().is_err(), "{bad}");
        }
    }
}
