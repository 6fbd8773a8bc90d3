//! Owns the look at a container image's manifest and configuration before an engine gets them: they must name just the
//! layers that the image has. Pure; refuses what would send the engine elsewhere for bytes.

use amphi_api::image::{BlobRole, Image};
use serde::Deserialize;

/// What a manifest is where it does not say so itself (OCI image specification, manifest.md: `mediaType` is optional).
pub const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
pub const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Largest manifest or configuration that is looked at, in bytes: what registries take (OCI distribution specification).
pub const DOCUMENT_MAX: u64 = 4 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
    #[serde(default)]
    urls: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// The manifest's media type, where it and the configuration fit the image; else what is wrong.
pub fn check(image: &Image, manifest: &[u8], config: &[u8]) -> Result<&'static str, String> {
    let read: Manifest =
        serde_json::from_slice(manifest).map_err(|error| format!("its manifest cannot be read: {error}"))?;
    let media_type = match (read.schema_version, read.media_type.as_str()) {
        (2, DOCKER) => DOCKER,
        (2, OCI | "") => OCI,
        (version, other) => return Err(format!("its manifest is of version {version} and type {other:?}")),
    };
    if std::iter::once(&read.config).chain(&read.layers).any(|part| !part.urls.is_empty()) {
        return Err("its manifest has parts at addresses outside; push them as layers".into());
    }
    let own = image.blobs.get(&BlobRole::Config);
    if own.is_none_or(|own| read.config.digest != format!("sha256:{}", own.sha256)) {
        return Err(format!(
            "its manifest names the configuration {}, which is not the image's",
            read.config.digest
        ));
    }
    let named = read.layers.iter().map(|layer| (layer.digest.clone(), layer.size));
    if !named.eq(image.layers.iter().map(|layer| (format!("sha256:{}", layer.sha256), layer.size))) {
        return Err("its manifest does not name the image's layers".into());
    }
    let config: Config = serde_json::from_slice(config)
        .map_err(|error| format!("its configuration cannot be read: {error}"))?;
    let diff_ids = image.layers.iter().map(|layer| format!("sha256:{}", layer.diff_id));
    if !diff_ids.eq(config.rootfs.diff_ids) {
        return Err("its configuration does not name the image's layers".into());
    }
    Ok(media_type)
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::ImageId;
    use serde_json::{Value, json};

    #[test]
    fn manifests_that_do_not_fit_are_refused() {
        let digest = |c: &str| c.repeat(64);
        let image: Image = serde_json::from_value(json!({
            "id": ImageId::new(), "project": amphi_api::ProjectId::DEFAULT, "name": "web", "format": "oci",
            "state": "active", "created_at": "2026-01-01T00:00:00Z",
            "blobs": {"config": {"sha256": digest("c"), "size": 9}},
            "layers": [{"sha256": digest("1"), "size": 5, "compression": "gzip", "diff_id": digest("d")}]}))
        .unwrap();
        let manifest = json!({"schemaVersion": 2,
            "config": {"digest": format!("sha256:{}", digest("c")), "size": 9},
            "layers": [{"digest": format!("sha256:{}", digest("1")), "size": 5}]});
        let config = json!({"rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest("d"))]}});
        let check = |manifest: &Value, config: &Value| {
            check(&image, manifest.to_string().as_bytes(), config.to_string().as_bytes())
        };
        assert_eq!(check(&manifest, &config), Ok(OCI));
        type Change = fn(&mut Value, &mut Value);
        let table: [(Change, &str); 9] = [
            (|m, _| m["schemaVersion"] = json!(1), "version 1"),
            (|m, _| m["mediaType"] = json!("application/vnd.oci.image.index.v1+json"), "type"),
            (|m, _| m["config"]["digest"] = json!("sha256:0"), "configuration sha256:0"),
            (|m, _| m["layers"] = json!([]), "does not name the image's layers"),
            (|m, _| m["layers"][0]["size"] = json!(6), "does not name the image's layers"),
            (|m, _| m["layers"][0]["urls"] = json!(["http://10.0.0.1/"]), "addresses outside"),
            (|m, _| *m = json!({}), "cannot be read"),
            (|_, c| c["rootfs"]["diff_ids"] = json!([]), "its configuration does not name"),
            (|_, c| *c = json!({}), "its configuration cannot be read"),
        ];
        for (change, says) in table {
            let (mut manifest, mut config) = (manifest.clone(), config.clone());
            change(&mut manifest, &mut config);
            let said = check(&manifest, &config).unwrap_err();
            assert!(said.contains(says), "wanted {says:?} in {said:?}");
        }
        let mut docker = manifest.clone();
        docker["mediaType"] = json!(DOCKER);
        assert_eq!(check(&docker, &config), Ok(DOCKER));
    }
}
