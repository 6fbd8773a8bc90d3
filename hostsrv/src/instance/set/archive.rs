//! Image archives as `docker save` writes them: finds the image's id in one, and writes the small one that anchors
//! start from. Pure but for reading the given file; refuses to unpack anything.

use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::{Cursor, Read, Seek};

/// Largest manifest or configuration that is read into memory, in bytes.
const DOCUMENT_MAX: u64 = 8 << 20;

/// The id of the archive's first image: `sha256:` and the digest of its configuration, which is what `docker load`
/// gives it. The message says what is wrong with the archive.
pub fn image_id(mut archive: impl Read + Seek) -> Result<String, String> {
    let manifest = find(&mut archive, "manifest.json")?
        .ok_or("it is no docker-save archive: there is no manifest.json in it")?;
    let manifest: Vec<ManifestEntry> =
        serde_json::from_slice(&manifest).map_err(|error| format!("manifest.json: {error}"))?;
    let entry = manifest.first().ok_or("manifest.json lists no image")?;
    let config = find(&mut archive, &entry.config)?
        .ok_or_else(|| format!("the configuration {} is missing in it", entry.config))?;
    serde_json::from_slice::<Config>(&config).map_err(|error| format!("{}: {error}", entry.config))?;
    let digest = hex::encode(Sha256::digest(&config));
    let named = entry.config.rsplit('/').next().unwrap_or_default();
    let named = named.strip_suffix(".json").unwrap_or(named);
    if named.len() == 64 && named != digest {
        return Err(format!("the configuration {} has another digest: {digest}", entry.config));
    }
    Ok(format!("sha256:{digest}"))
}

#[derive(serde::Deserialize)]
struct ManifestEntry {
    #[serde(rename = "Config")]
    config: String,
}

/// Only what says that it is an image's configuration.
#[derive(serde::Deserialize)]
struct Config {
    #[serde(rename = "rootfs")]
    _rootfs: HashMap<String, serde_json::Value>,
}

fn find(archive: &mut (impl Read + Seek), name: &str) -> Result<Option<Vec<u8>>, String> {
    archive.rewind().map_err(|error| error.to_string())?;
    let mut tar = tar::Archive::new(archive);
    let entries = tar.entries_with_seek().map_err(|error| format!("it is no tar archive: {error}"))?;
    for entry in entries {
        let entry = entry.map_err(|error| format!("it is no whole tar archive: {error}"))?;
        let path = entry.path().map_err(|error| error.to_string())?;
        if path.to_str().map(|path| path.trim_start_matches("./")) == Some(name) {
            let mut bytes = Vec::new();
            entry.take(DOCUMENT_MAX).read_to_end(&mut bytes).map_err(|error| format!("{name}: {error}"))?;
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

/// The anchor's image out of a static busybox, as an archive for `docker load`, and its id. The same bytes give the
/// same id on every host.
pub fn anchor_archive(busybox: &[u8], tag: &str) -> std::io::Result<(Vec<u8>, String)> {
    let mut layer = tar::Builder::new(Vec::new());
    for directory in ["bin/", "dev/", "etc/", "proc/", "sys/", "tmp/"] {
        layer.append_data(&mut header(tar::EntryType::Directory, 0, 0o755), directory, std::io::empty())?;
    }
    layer.append_data(
        &mut header(tar::EntryType::Regular, busybox.len() as u64, 0o755),
        "bin/busybox",
        busybox,
    )?;
    for applet in ["sh", "sleep"] {
        let mut link = header(tar::EntryType::Symlink, 0, 0o777);
        layer.append_link(&mut link, format!("bin/{applet}"), "busybox")?;
    }
    let layer = layer.into_inner()?;
    let config = serde_json::json!({
        "architecture": architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex::encode(Sha256::digest(&layer)))]},
    })
    .to_string();
    let digest = hex::encode(Sha256::digest(&config));
    let config_name = format!("{digest}.json");
    let manifest =
        serde_json::json!([{"Config": config_name, "RepoTags": [tag], "Layers": ["layer.tar"]}]).to_string();
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in [
        ("layer.tar", layer.as_slice()),
        (&config_name, config.as_bytes()),
        ("manifest.json", manifest.as_bytes()),
    ] {
        let mut header = header(tar::EntryType::Regular, bytes.len() as u64, 0o644);
        archive.append_data(&mut header, name, Cursor::new(bytes))?;
    }
    Ok((archive.into_inner()?, format!("sha256:{digest}")))
}

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header
}

/// Go's name of this architecture, which is what images use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar_of(files: &[(&str, &str)]) -> Cursor<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, text) in files {
            let mut header = header(tar::EntryType::Regular, text.len() as u64, 0o644);
            tar.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        Cursor::new(tar.into_inner().unwrap())
    }

    #[test]
    fn the_anchors_archive_is_one_itself() {
        let (archive, id) = anchor_archive(b"not really busybox", "amphi-anchor:1").unwrap();
        assert_eq!(image_id(Cursor::new(&archive)), Ok(id.clone()));
        assert_eq!(anchor_archive(b"not really busybox", "amphi-anchor:1").unwrap().1, id);
        assert_ne!(anchor_archive(b"another", "amphi-anchor:1").unwrap().1, id);
    }

    #[test]
    fn broken_archives_are_told_apart() {
        let wrong = format!("{}.json", "0".repeat(64));
        let manifest = format!(r#"[{{"Config": "{wrong}", "Layers": []}}]"#);
        let table = [
            (Cursor::new(b"garbage".repeat(200)), "tar"),
            (Cursor::new(Vec::new()), "manifest.json"),
            (tar_of(&[("x", "y")]), "no manifest.json"),
            (tar_of(&[("manifest.json", "{")]), "manifest.json:"),
            (tar_of(&[("manifest.json", "[]")]), "lists no image"),
            (tar_of(&[("manifest.json", r#"[{"Config": "c.json"}]"#)]), "c.json is missing"),
            (tar_of(&[("manifest.json", r#"[{"Config": "c.json"}]"#), ("c.json", "{}")]), "c.json: "),
            (tar_of(&[("manifest.json", &manifest), (&wrong, r#"{"rootfs": {}}"#)]), "another digest"),
        ];
        for (archive, says) in table {
            let said = image_id(archive).unwrap_err();
            assert!(said.contains(says), "wanted {says:?} in {said:?}");
        }
        let (whole, _) = anchor_archive(b"busybox", "a:1").unwrap();
        assert!(image_id(Cursor::new(&whole[..whole.len() / 2])).is_err());
    }
}
