//! Container images' documents, read strictly: manifests and indexes (Docker's schema 2 and OCI's) and configurations. Pure.
//! Refuses what is too large, names too much, or cannot be served later: layers that lie elsewhere, other algorithms than
//! SHA-256. What is unknown beside that is let pass: the documents are kept byte for byte.

pub mod config;
pub mod manifest;
pub mod media;

pub use config::Config;
pub use manifest::{Descriptor, Manifest, Platform, parse};

/// Largest manifest, in bytes: what docker's registry takes (distribution, `maxManifestBodySize`, 4 MiB).
pub const MANIFEST_MAX: usize = 4 << 20;
/// Largest configuration, in bytes.
pub const CONFIG_MAX: u64 = 8 << 20;
/// Most layers of one image. Docker itself stops at 127; a commit of the store has 128 conditions and operations, and each
/// layer is one of them.
pub const LAYERS_MAX: usize = 112;
/// Most manifests of one index.
pub const MANIFESTS_MAX: usize = 100;
/// What hosts run.
pub const OS: &str = "linux";
pub const ARCHITECTURE: &str = "amd64";

/// What a document says wrong; `field` as JSON names it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Wrong {
    pub field: String,
    pub message: String,
}

impl Wrong {
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}
