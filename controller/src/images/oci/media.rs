//! Media types of container images, as docker's registry and OCI's image specification 1.1 have them.

use amphi_api::image::Compression;

pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// Docker's first schema, in its two forms: its manifests name no configuration, and clients have not pushed it for years.
const SCHEMA_1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

pub fn is_schema_1(media_type: &str) -> bool {
    SCHEMA_1.contains(&media_type)
}

pub fn is_manifest(media_type: &str) -> bool {
    [DOCKER_MANIFEST, OCI_MANIFEST].contains(&media_type)
}

pub fn is_index(media_type: &str) -> bool {
    [DOCKER_LIST, OCI_INDEX].contains(&media_type)
}

pub fn is_config(media_type: &str) -> bool {
    [DOCKER_CONFIG, OCI_CONFIG].contains(&media_type)
}

/// How a layer of this type is packed, by its word alone; none: it is no layer's type. Daemons go by the bytes.
pub fn layer(media_type: &str) -> Option<Compression> {
    match media_type {
        DOCKER_LAYER | OCI_LAYER => Some(Compression::None),
        DOCKER_LAYER_GZIP | OCI_LAYER_GZIP => Some(Compression::Gzip),
        DOCKER_LAYER_ZSTD | OCI_LAYER_ZSTD => Some(Compression::Zstd),
        _ => None,
    }
}

/// Layers that must not be handed out, or lie elsewhere: their bytes would be missing here.
pub fn is_foreign(media_type: &str) -> bool {
    media_type.contains(".foreign.") || media_type.contains(".nondistributable.")
}

/// OCI's type of a layer that is packed so.
pub fn of_layer(compression: Compression) -> &'static str {
    match compression {
        Compression::None => OCI_LAYER,
        Compression::Gzip => OCI_LAYER_GZIP,
        Compression::Zstd => OCI_LAYER_ZSTD,
    }
}
