//! What an archive's own documents say: which file is the configuration, which are the layers. Names are looked up, never
//! opened: nothing in an archive leads anywhere else.

use super::super::oci::{self, Manifest, Wrong, manifest};
use super::{BlobError, Part, wrong};
use crate::digest::Digest;
use crate::images::tar::shorten;
use bytes::Bytes;
use serde::Deserialize;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

/// Links that lead to links, at most.
const LINKS_MAX: usize = 8;
/// Indexes in indexes, at most.
const DEPTH_MAX: usize = 3;
/// Largest `index.json` or `manifest.json`, in bytes.
const LIST_MAX: u64 = 1 << 20;

/// Where a name leads.
pub enum Target {
    File(usize),
    /// A symbolic link: from the link's own directory.
    Beside(String),
    /// A hard link: from the archive's top.
    At(String),
}

/// The names in the archive.
#[derive(Default)]
pub struct Files(HashMap<String, Target>);

/// What the image is made of.
pub struct Meaning {
    pub config: Bytes,
    /// As it lies in the archive; older archives have none.
    pub manifest: Option<Bytes>,
    /// The files of the layers, the lowest first.
    pub layers: Vec<usize>,
}

/// The path from the top, without `.` and `..`; none: it leads out.
fn normal(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

impl Files {
    /// False: the name is there already. A name that leads out of the archive is nobody's.
    pub fn add(&mut self, name: &str, target: Target) -> bool {
        let Some(name) = normal(name) else { return true };
        let Entry::Vacant(place) = self.0.entry(name) else { return false };
        place.insert(target);
        true
    }

    /// The file of a name, through links (docker 20.10 saves a layer that is there already as a link to it).
    pub fn find(&self, name: &str) -> Option<usize> {
        let mut name = normal(name)?;
        for _ in 0..=LINKS_MAX {
            match self.0.get(&name)? {
                Target::File(at) => return Some(*at),
                Target::At(to) => name = normal(to)?,
                Target::Beside(to) if to.starts_with('/') => return None,
                Target::Beside(to) => {
                    let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                    name = normal(&format!("{dir}/{to}"))?;
                }
            }
        }
        None
    }

    fn blob(&self, digest: Digest) -> Option<usize> {
        self.find(&format!("blobs/sha256/{digest}"))
    }
}

fn said(text: impl Into<String>) -> BlobError {
    BlobError::Broken(text.into())
}

/// Reads the archive's documents: an OCI layout's where there is one, else docker's.
pub async fn read(files: &Files, parts: &[Part]) -> Result<Meaning, BlobError> {
    if let (Some(_), Some(index)) = (files.find("oci-layout"), files.find("index.json"))
        && let Some(meaning) = layout(files, parts, &parts[index]).await?
    {
        return Ok(meaning);
    }
    match files.find("manifest.json") {
        Some(list) => saved(files, parts, &parts[list]).await,
        None => Err(said(
            "the archive is no container image's: neither docker's manifest.json nor an OCI layout's index.json is in it",
        )),
    }
}

#[derive(Deserialize)]
struct Saved {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "Layers")]
    layers: Option<Vec<String>>,
}

/// `docker save`.
async fn saved(files: &Files, parts: &[Part], list: &Part) -> Result<Meaning, BlobError> {
    let text = list.document("manifest.json", LIST_MAX).await?;
    let images: Vec<Saved> =
        serde_json::from_slice(&text).map_err(|e| said(format!("the archive's manifest.json: {e}")))?;
    let [image] = images.as_slice() else {
        let count = images.len();
        return Err(said(format!("the archive holds {count} images; save one at a time")));
    };
    let missing =
        |name: &str| said(format!("the archive's manifest.json names {}, which is not in it", shorten(name)));
    let config = files.find(&image.config).ok_or_else(|| missing(&image.config))?;
    let config = parts[config].document(&image.config, oci::CONFIG_MAX).await?;
    let named = image.layers.as_deref().unwrap_or_default();
    if named.len() > oci::LAYERS_MAX {
        return Err(said(format!(
            "the archive's image has {} layers; at most {} are taken",
            named.len(),
            oci::LAYERS_MAX
        )));
    }
    let find = |name: &String| files.find(name).ok_or_else(|| missing(name));
    let layers = named.iter().map(find).collect::<Result<_, _>>()?;
    Ok(Meaning { config, manifest: None, layers })
}

/// An OCI layout; none: it holds no image at all, and docker's own list may.
async fn layout(files: &Files, parts: &[Part], index: &Part) -> Result<Option<Meaning>, BlobError> {
    let text = index.document("index.json", LIST_MAX).await?;
    let mut waiting = vec![(text, 0, "index.json".to_owned())];
    let mut images: BTreeMap<Digest, (Bytes, Manifest)> = BTreeMap::new();
    let mut others = Vec::new();
    while let Some((text, depth, name)) = waiting.pop() {
        let read = manifest::parse(&text, oci::media::OCI_INDEX)
            .or_else(|_| manifest::parse(&text, ""))
            .map_err(|e| wrong(Wrong::new(format!("{}: {}", shorten(&name), e.field), e.message)))?;
        let Manifest::Index { manifests } = read.manifest else { continue };
        for one in manifests {
            // Where images of several platforms are saved, the list may tell of more than was saved.
            let Some(at) = files.blob(one.digest) else { continue };
            if let Some(platform) = one.platform.as_ref().filter(|p| !p.is_ours()) {
                others.push(shorten(&format!("{}/{}", platform.os, platform.architecture)));
                continue;
            }
            let text = verified(&parts[at], one.digest, oci::MANIFEST_MAX as u64).await?;
            if oci::media::is_index(&one.media_type) {
                if depth >= DEPTH_MAX {
                    return Err(said("the archive's indexes are too deep"));
                }
                waiting.push((text, depth + 1, one.digest.to_string()));
                continue;
            }
            let read = manifest::parse(&text, &one.media_type).map_err(wrong)?;
            if matches!(read.manifest, Manifest::Image { .. }) {
                images.insert(one.digest, (text, read.manifest));
            }
        }
    }
    if images.len() > 1 {
        return Err(said(format!("the archive holds {} images; save one at a time", images.len())));
    }
    let Some((_, (text, Manifest::Image { config, layers }))) = images.pop_first() else {
        if others.is_empty() {
            return Ok(None);
        }
        others.dedup();
        let others = others.join(", ");
        return Err(said(format!("the archive holds no image for linux/amd64, but for {others}")));
    };
    let absent =
        |digest: Digest| said(format!("the archive's image names the blob {digest}, which is not in it"));
    let at = files.blob(config.digest).ok_or_else(|| absent(config.digest))?;
    let config = verified(&parts[at], config.digest, oci::CONFIG_MAX).await?;
    let mut found = Vec::new();
    for layer in layers {
        let at = files.blob(layer.digest).ok_or_else(|| absent(layer.digest))?;
        if parts[at].digest != layer.digest || parts[at].size != layer.size {
            return Err(said(format!(
                "the archive's blob {} is not what its name or its size says",
                layer.digest
            )));
        }
        found.push(at);
    }
    Ok(Some(Meaning { config, manifest: Some(text), layers: found }))
}

/// A document whose name is its digest.
async fn verified(part: &Part, digest: Digest, most: u64) -> Result<Bytes, BlobError> {
    if part.digest != digest {
        return Err(said(format!("the archive's blob {digest} is of digest {}", part.digest)));
    }
    part.document(&digest.to_string(), most).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        let mut files = Files::default();
        assert!(files.add("./a/layer.tar", Target::File(0)));
        assert!(!files.add("a//layer.tar", Target::File(1)), "the same name");
        files.add("b/layer.tar", Target::Beside("../a/layer.tar".into()));
        files.add("c", Target::At("b/layer.tar".into()));
        files.add("up", Target::Beside("../../etc/passwd".into()));
        files.add("abs", Target::Beside("/a/layer.tar".into()));
        files.add("round", Target::Beside("round".into()));
        files.add("../out", Target::File(9));
        for (name, want) in [
            ("a/layer.tar", Some(0)),
            ("b/layer.tar", Some(0)),
            ("c", Some(0)),
            ("up", None),
            ("abs", None),
            ("round", None),
            ("../out", None),
            ("out", None),
            ("none", None),
        ] {
            assert_eq!(files.find(name), want, "{name}");
        }
    }
}
