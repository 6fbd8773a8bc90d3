//! The smallest archive of a container image that is one, for whoever needs an image and never starts it.

use sha2::{Digest, Sha256};

/// As `docker save` writes it: one layer with one file.
pub fn archive() -> std::io::Result<Vec<u8>> {
    let layer = tar(&[("nothing", b"")])?;
    let diff_id = hex::encode(Sha256::digest(&layer));
    let config = serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff_id}")] },
    });
    let list = serde_json::json!([{ "Config": "config.json", "RepoTags": [], "Layers": ["layer.tar"] }]);
    tar(&[
        ("layer.tar", &layer),
        ("config.json", config.to_string().as_bytes()),
        ("manifest.json", list.to_string().as_bytes()),
    ])
}

fn tar(files: &[(&str, &[u8])]) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, *bytes)?;
    }
    archive.into_inner()
}
