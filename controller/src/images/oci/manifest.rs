//! Manifests and indexes.

use super::config::digest;
use super::{ARCHITECTURE, LAYERS_MAX, MANIFEST_MAX, MANIFESTS_MAX, OS, Wrong, media};
use crate::digest::Digest;
use crate::images::BLOB_MAX;
use serde::{Deserialize, Serialize};

/// What a manifest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    pub platform: Option<Platform>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: String,
}

impl Platform {
    pub fn is_ours(&self) -> bool {
        self.os == OS && self.architecture == ARCHITECTURE && matches!(self.variant.as_str(), "" | "v1")
    }
}

/// A manifest that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manifest {
    /// A container image.
    Image { config: Descriptor, layers: Vec<Descriptor> },
    /// A list of manifests by platform.
    Index { manifests: Vec<Descriptor> },
    /// Anything else of OCI's form.
    Artifact { config: Descriptor, blobs: Vec<Descriptor> },
}

/// A manifest with what is said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub manifest: Manifest,
    /// Its own.
    pub media_type: String,
    pub subject: Option<Digest>,
    /// OCI's `artifactType`, else an artifact's config's media type; empty for images and indexes without one.
    pub artifact_type: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u64,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    subject: Option<RawDescriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    urls: Option<Vec<String>>,
    platform: Option<Platform>,
}

impl RawDescriptor {
    fn read(&self, field: &str) -> Result<Descriptor, Wrong> {
        if self.size > BLOB_MAX {
            return Err(Wrong::new(format!("{field}.size"), format!("at most {BLOB_MAX}")));
        }
        if media::is_foreign(&self.media_type) || self.urls.as_ref().is_some_and(|urls| !urls.is_empty()) {
            let message = "a layer whose bytes lie elsewhere is not taken: push its bytes as an ordinary layer \
                           (dockerd: allow-nondistributable-artifacts)";
            return Err(Wrong::new(format!("{field}.mediaType"), message));
        }
        if self.media_type.len() > 255 || self.media_type.chars().any(char::is_control) {
            return Err(Wrong::new(
                format!("{field}.mediaType"),
                "at most 255 characters, no control characters",
            ));
        }
        Ok(Descriptor {
            media_type: self.media_type.clone(),
            digest: digest(format!("{field}.digest"), &self.digest)?,
            size: self.size,
            platform: self.platform.clone(),
        })
    }
}

/// Reads a manifest. `said`: its media type by whoever sends it; empty where nobody said.
pub fn parse(bytes: &[u8], said: &str) -> Result<Read, Wrong> {
    if bytes.len() > MANIFEST_MAX {
        return Err(Wrong::new(
            "manifest",
            format!("{} bytes; at most {MANIFEST_MAX} are taken", bytes.len()),
        ));
    }
    let said = said.split(';').next().unwrap_or_default().trim();
    if media::is_schema_1(said) {
        return Err(Wrong::new(
            "mediaType",
            "Docker's schema 1 is not taken: push with a client of 2016 or later",
        ));
    }
    let raw: Raw = serde_json::from_slice(bytes).map_err(|e| Wrong::new("manifest", e.to_string()))?;
    if raw.schema_version != 2 {
        return Err(Wrong::new("schemaVersion", "must be 2"));
    }
    let own = raw.media_type.as_deref().unwrap_or_default();
    if !own.is_empty() && !said.is_empty() && own != said {
        let shown: String = own.chars().take(120).collect();
        return Err(Wrong::new("mediaType", format!("{shown:?}, but it was sent as {said:?}")));
    }
    let media_type = [own, said].into_iter().find(|t| !t.is_empty()).unwrap_or(match raw.manifests {
        Some(_) => media::OCI_INDEX,
        None => media::OCI_MANIFEST,
    });
    let subject = raw.subject.as_ref().map(|s| s.read("subject")).transpose()?.map(|s| s.digest);
    let (manifest, artifact_type) = if media::is_index(media_type) {
        if raw.config.is_some() || raw.layers.is_some() {
            // A document that is two things at once is read as one by one client, as the other by the next.
            return Err(Wrong::new("manifests", "an index has no config and no layers"));
        }
        (index(&raw)?, raw.artifact_type.clone().unwrap_or_default())
    } else if media::is_manifest(media_type) {
        if raw.manifests.is_some() {
            return Err(Wrong::new("manifests", "a manifest has none; an index has"));
        }
        image(&raw)?
    } else {
        let known = [media::OCI_MANIFEST, media::OCI_INDEX, media::DOCKER_MANIFEST, media::DOCKER_LIST];
        let shown: String = media_type.chars().take(120).collect();
        return Err(Wrong::new("mediaType", format!("{shown:?} is not taken; one of {}", known.join(", "))));
    };
    if artifact_type.len() > 255 || artifact_type.chars().any(char::is_control) {
        return Err(Wrong::new("artifactType", "at most 255 characters, no control characters"));
    }
    Ok(Read { manifest, media_type: media_type.to_owned(), subject, artifact_type })
}

fn index(raw: &Raw) -> Result<Manifest, Wrong> {
    let listed = raw.manifests.as_deref().ok_or_else(|| Wrong::new("manifests", "missing"))?;
    if listed.len() > MANIFESTS_MAX {
        return Err(Wrong::new("manifests", format!("at most {MANIFESTS_MAX} are taken")));
    }
    let read = |(n, one): (usize, &RawDescriptor)| one.read(&format!("manifests[{n}]"));
    Ok(Manifest::Index { manifests: listed.iter().enumerate().map(read).collect::<Result<_, _>>()? })
}

fn image(raw: &Raw) -> Result<(Manifest, String), Wrong> {
    let config = raw.config.as_ref().ok_or_else(|| Wrong::new("config", "missing"))?.read("config")?;
    let listed = raw.layers.as_deref().unwrap_or_default();
    if listed.len() > LAYERS_MAX {
        return Err(Wrong::new("layers", format!("{}; at most {LAYERS_MAX} are taken", listed.len())));
    }
    let read = |(n, one): (usize, &RawDescriptor)| one.read(&format!("layers[{n}]"));
    let blobs: Vec<Descriptor> = listed.iter().enumerate().map(read).collect::<Result<_, _>>()?;
    let said = raw.artifact_type.clone().unwrap_or_default();
    let layered = |blob: &Descriptor| media::layer(&blob.media_type).is_some();
    // Attestations have an image's config and no layers of an image: they are artifacts for us, whatever they say.
    if media::is_config(&config.media_type) && blobs.iter().all(layered) {
        if config.size > super::CONFIG_MAX {
            return Err(Wrong::new("config.size", format!("at most {} bytes", super::CONFIG_MAX)));
        }
        return Ok((Manifest::Image { config, layers: blobs }, said));
    }
    let kind = if said.is_empty() { config.media_type.clone() } else { said };
    Ok((Manifest::Artifact { config, blobs }, kind))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    schema_version: u64,
    media_type: &'a str,
    config: WrittenDescriptor,
    layers: Vec<WrittenDescriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenDescriptor {
    media_type: &'static str,
    digest: String,
    size: u64,
}

/// The manifest of an image that came without one. The same parts give the same bytes.
pub fn write(config: (Digest, u64), layers: &[amphi_api::image::Layer]) -> Vec<u8> {
    let layers = layers.iter().map(|layer| WrittenDescriptor {
        media_type: media::of_layer(layer.compression),
        digest: format!("sha256:{}", layer.sha256),
        size: layer.size,
    });
    let (digest, size) = config;
    let manifest = Written {
        schema_version: 2,
        media_type: media::OCI_MANIFEST,
        config: WrittenDescriptor { media_type: media::OCI_CONFIG, digest: format!("sha256:{digest}"), size },
        layers: layers.collect(),
    };
    // Plain data with string keys: serialising it cannot fail.
    serde_json::to_vec(&manifest).expect("a manifest is plain data")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn blob(media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": format!("sha256:{}", "ab".repeat(32)), "size": 7})
    }

    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    const ATTESTATION: &str = "application/vnd.in-toto+json";

    fn of(media_type: &str, config: &str, layers: &[&str]) -> Value {
        let layers: Vec<Value> = layers.iter().map(|l| blob(l)).collect();
        json!({"schemaVersion": 2, "mediaType": media_type, "config": blob(config), "layers": layers})
    }

    fn kind(value: &Value, said: &str) -> Result<&'static str, String> {
        match parse(value.to_string().as_bytes(), said).map_err(|wrong| wrong.field)?.manifest {
            Manifest::Image { .. } => Ok("image"),
            Manifest::Index { .. } => Ok("index"),
            Manifest::Artifact { .. } => Ok("artifact"),
        }
    }

    #[test]
    fn what_clients_push() {
        let docker = of(
            media::DOCKER_MANIFEST,
            media::DOCKER_CONFIG,
            &["application/vnd.docker.image.rootfs.diff.tar.gzip"],
        );
        assert_eq!(kind(&docker, media::DOCKER_MANIFEST), Ok("image"));
        let mut oci = of(media::OCI_MANIFEST, media::OCI_CONFIG, &[LAYER]);
        assert_eq!(kind(&oci, "application/vnd.oci.image.manifest.v1+json; charset=utf-8"), Ok("image"));
        oci.as_object_mut().unwrap().remove("mediaType");
        assert_eq!(kind(&oci, ""), Ok("image"), "OCI 1.0 need not say what it is");
        let list =
            |t: &str| json!({"schemaVersion": 2, "mediaType": t, "manifests": [blob(media::OCI_MANIFEST)]});
        assert_eq!(kind(&list(media::OCI_INDEX), media::OCI_INDEX), Ok("index"));
        assert_eq!(kind(&list(media::DOCKER_LIST), ""), Ok("index"));
        assert_eq!(kind(&of(media::OCI_MANIFEST, media::OCI_CONFIG, &[ATTESTATION]), ""), Ok("artifact"));
        let mut signed = of(media::OCI_MANIFEST, "application/vnd.oci.empty.v1+json", &["text/plain"]);
        signed["subject"] = blob(media::OCI_MANIFEST);
        signed["artifactType"] = json!("application/example");
        let read = parse(signed.to_string().as_bytes(), "").unwrap();
        assert_eq!(
            (read.artifact_type.as_str(), read.subject),
            ("application/example", Some(Digest([0xab; 32])))
        );
    }

    #[test]
    fn hostile_ones() {
        let good = || of(media::OCI_MANIFEST, media::OCI_CONFIG, &[LAYER]);
        let with = |pointer: &str, value: Value| {
            let mut all = good();
            *all.pointer_mut(pointer).unwrap() = value;
            all
        };
        let mut both = good();
        both["manifests"] = json!([]);
        let mut elsewhere = good();
        elsewhere["layers"][0]["urls"] = json!(["https://example.com/layer"]);
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        let far = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
        for (value, said, field) in [
            (json!([]), "", "manifest"),
            (json!({"schemaVersion": 1}), "", "schemaVersion"),
            (json!({"schemaVersion": 2}), "", "config"),
            (json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX}), "", "manifests"),
            (good(), "application/vnd.docker.distribution.manifest.v1+prettyjws", "mediaType"),
            (good(), media::DOCKER_MANIFEST, "mediaType"),
            (with("/mediaType", json!("text/html")), "text/html", "mediaType"),
            (with("/config/digest", json!("sha512:00")), "", "config.digest"),
            (with("/config/digest", json!("sha256:../../etc/passwd")), "", "config.digest"),
            (with("/config/size", json!(1u64 << 40)), "", "config.size"),
            (with("/config/size", json!(-1)), "", "manifest"),
            (with("/config/size", json!(1e300)), "", "manifest"),
            (with("/layers/0/size", json!(u64::MAX)), "", "layers[0].size"),
            (with("/layers/0/mediaType", json!(foreign)), "", "layers[0].mediaType"),
            (with("/layers/0/mediaType", json!(far)), "", "layers[0].mediaType"),
            (with("/layers", json!(vec![blob(LAYER); LAYERS_MAX + 1])), "", "layers"),
            (elsewhere, "", "layers[0].mediaType"),
            (both, "", "manifests"),
        ] {
            assert_eq!(kind(&value, said), Err(field.to_owned()), "{value}");
        }
        let large = vec![b' '; MANIFEST_MAX + 1];
        assert_eq!(parse(&large, "").unwrap_err().field, "manifest");
        assert!(parse(&vec![b'['; MANIFEST_MAX], "").is_err(), "deep nesting ends");
    }

    #[test]
    fn platforms() {
        let of = |os: &str, architecture: &str, variant: &str| Platform {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.into(),
        };
        assert!(of("linux", "amd64", "").is_ours());
        for other in [of("linux", "arm64", "v8"), of("windows", "amd64", ""), of("unknown", "unknown", "")] {
            assert!(!other.is_ours(), "{other:?}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let layer = amphi_api::image::Layer {
            sha256: "cd".repeat(32),
            size: 9,
            compression: amphi_api::image::Compression::Zstd,
            diff_id: "ef".repeat(32),
        };
        let bytes = write((Digest([1; 32]), 5), std::slice::from_ref(&layer));
        assert_eq!(bytes, write((Digest([1; 32]), 5), &[layer]), "the same each time");
        let Manifest::Image { config, layers } = parse(&bytes, media::OCI_MANIFEST).unwrap().manifest else {
            panic!("an image");
        };
        assert_eq!((config.size, layers[0].size, layers[0].digest), (5, 9, Digest([0xcd; 32])));
    }
}
