//! A container image's configuration, as far as the catalogue needs it: what it runs on, and which tars its layers are.

use super::{ARCHITECTURE, LAYERS_MAX, OS, Wrong};
use crate::digest::Digest;
use serde::Deserialize;

/// What is read of it; the rest is dockerd's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Of each layer's tar, the lowest first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    rootfs: Option<RootFs>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

/// A digest as documents write it: `sha256:` and 64 hexadecimal digits.
pub fn digest(field: impl Into<String>, text: &str) -> Result<Digest, Wrong> {
    let field = field.into();
    let Some(hex) = text.strip_prefix("sha256:") else {
        let shown: String = text.chars().take(80).collect();
        return Err(Wrong::new(field, format!("{shown:?}: only sha256 digests are taken")));
    };
    hex.parse().map_err(|e: crate::digest::NoDigest| Wrong::new(field, e.to_string()))
}

/// Reads it; one for another system than the hosts' is refused.
pub fn parse(bytes: &[u8]) -> Result<Config, Wrong> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(|e| Wrong::new("config", e.to_string()))?;
    let rootfs =
        raw.rootfs.ok_or_else(|| Wrong::new("config.rootfs", "missing: it is no image's configuration"))?;
    if !rootfs.kind.is_empty() && rootfs.kind != "layers" {
        return Err(Wrong::new("config.rootfs.type", "must be layers"));
    }
    for (field, value, ours) in
        [("config.os", &raw.os, OS), ("config.architecture", &raw.architecture, ARCHITECTURE)]
    {
        // Builders of small images leave it out.
        if !value.is_empty() && value != ours {
            let shown: String = value.chars().take(40).collect();
            return Err(Wrong::new(
                field,
                format!("{shown:?}; hosts run images for {OS}/{ARCHITECTURE} only"),
            ));
        }
    }
    let diff_ids = rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() > LAYERS_MAX {
        let count = diff_ids.len();
        return Err(Wrong::new(
            "config.rootfs.diff_ids",
            format!("{count} layers; at most {LAYERS_MAX} are taken"),
        ));
    }
    let read = |(n, text): (usize, &String)| digest(format!("config.rootfs.diff_ids[{n}]"), text);
    Ok(Config { diff_ids: diff_ids.iter().enumerate().map(read).collect::<Result<_, _>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn hostile_ones() {
        let good = format!("sha256:{}", "ab".repeat(32));
        let read = |value: serde_json::Value| {
            parse(value.to_string().as_bytes()).map(|c| c.diff_ids.len()).map_err(|e| e.field)
        };
        let of =
            |ids: serde_json::Value| json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}});
        assert_eq!(read(of(json!([good, good]))), Ok(2), "the same layer twice is an image's right");
        assert_eq!(read(json!({"rootfs": {}})), Ok(0));
        assert_eq!(read(json!({"rootfs": {"diff_ids": null}, "more": [1]})), Ok(0));
        for (value, field) in [
            (json!([]), "config"),
            (json!({}), "config.rootfs"),
            (json!({"rootfs": {"type": "other"}}), "config.rootfs.type"),
            (json!({"os": "windows", "rootfs": {}}), "config.os"),
            (json!({"architecture": "arm64", "rootfs": {}}), "config.architecture"),
            (of(json!(["md5:00"])), "config.rootfs.diff_ids[0]"),
            (of(json!([good, "sha256:xyz"])), "config.rootfs.diff_ids[1]"),
            (of(json!([good.to_uppercase()])), "config.rootfs.diff_ids[0]"),
            (of(json!(vec![good.clone(); LAYERS_MAX + 1])), "config.rootfs.diff_ids"),
            (of(json!([1])), "config"),
        ] {
            assert_eq!(read(value.clone()), Err(field.to_owned()), "{value}");
        }
        assert!(parse(b"\xff").is_err() && parse(&[b'['; 100_000]).is_err(), "deep nesting ends");
    }
}
