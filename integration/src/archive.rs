//! Container images of bytes that nobody has seen before, as `docker save` writes them.

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::path::{Path, PathBuf};

/// An archive of busybox and layers of so many MiB each, made of the seed; and the image's id.
pub fn archive(folder: &Path, seed: &str, mib: &[usize]) -> Result<(PathBuf, String)> {
    let busybox = std::fs::read("/bin/busybox").context("busybox-static is installed")?;
    let mut layers =
        vec![layer(&[("bin/busybox", &busybox)], &[("bin/sh", "busybox"), ("bin/sleep", "busybox")])?];
    for (number, mib) in mib.iter().enumerate() {
        let bytes = noise(&format!("{seed}-{number}"), mib << 20);
        layers.push(layer(&[(&format!("bytes-{number}"), &bytes)], &[])?);
    }
    let digest = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
    let diff_ids: Vec<String> = layers.iter().map(|tar| format!("sha256:{}", digest(tar))).collect();
    let config = json!({ "architecture": "amd64", "os": "linux", "config": { "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids } })
    .to_string();
    let (id, names) = (digest(config.as_bytes()), (0..layers.len()).map(|n| format!("{n}.tar")));
    let names: Vec<String> = names.collect();
    let manifest =
        json!([{ "Config": format!("{id}.json"), "RepoTags": null, "Layers": names.clone() }]).to_string();
    let path = folder.join(format!("{seed}.tar"));
    let mut tar = tar::Builder::new(File::create(&path)?);
    for (name, bytes) in names.iter().zip(&layers) {
        tar.append_data(&mut header(tar::EntryType::Regular, bytes.len(), 0o644), name, bytes.as_slice())?;
    }
    for (name, text) in [(format!("{id}.json"), config), ("manifest.json".to_owned(), manifest)] {
        tar.append_data(&mut header(tar::EntryType::Regular, text.len(), 0o644), name, text.as_bytes())?;
    }
    tar.into_inner()?;
    Ok((path, format!("sha256:{id}")))
}

fn layer(files: &[(&str, &[u8])], links: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        tar.append_data(&mut header(tar::EntryType::Regular, bytes.len(), 0o755), name, *bytes)?;
    }
    for (name, to) in links {
        tar.append_link(&mut header(tar::EntryType::Symlink, 0, 0o777), name, to)?;
    }
    Ok(tar.into_inner()?)
}

fn header(kind: tar::EntryType, size: usize, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(mode);
    header
}

/// Bytes that nothing makes small, and that are the same at each run.
pub fn noise(seed: &str, size: usize) -> Vec<u8> {
    let mut state =
        Sha256::digest(seed).iter().fold(1_u64, |n, byte| n.rotate_left(8) ^ u64::from(*byte)) | 1;
    let words = std::iter::repeat_with(|| {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(size).collect()
}
