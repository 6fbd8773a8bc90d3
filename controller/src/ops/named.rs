//! Who names which blob, kept as records come and go: what keeps a blob, and what lets a project see it.

use crate::model::{
    BlobRecord, Digest, ImageRecord, LinkKey, LinkRecord, ManifestKey, ManifestRecord, Record,
};
use amphi_api::ImageId;
use std::collections::{BTreeSet, HashMap};

/// A record that names blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Namer {
    Image(ImageId),
    Manifest(ManifestKey),
    /// An archive that was taken apart names its parts.
    Archive(Digest),
    /// A mirror's manifest, whose blobs come when they are asked for.
    Mirror(LinkKey),
}

#[derive(Debug, Default)]
pub struct Named(HashMap<Digest, BTreeSet<Namer>>);

impl Named {
    pub fn by(&self, digest: Digest) -> impl Iterator<Item = Namer> {
        self.0.get(&digest).into_iter().flatten().copied()
    }

    pub fn has(&self, digest: Digest) -> bool {
        self.0.contains_key(&digest)
    }

    /// All that is named.
    pub fn all(&self) -> impl Iterator<Item = Digest> {
        self.0.keys().copied()
    }

    pub(super) fn image(&mut self, before: Option<&ImageRecord>, now: Option<&ImageRecord>) {
        let id = |record: &ImageRecord| Namer::Image(record.id);
        self.change(
            before.map(|b| (id(b), digests(b.digests()))),
            now.map(|n| (id(n), digests(n.digests()))),
        );
    }

    pub(super) fn manifest(&mut self, before: Option<&ManifestRecord>, now: Option<&ManifestRecord>) {
        let of = |record: &ManifestRecord| {
            let mut named = digests(record.blobs.iter().map(|blob| blob.sha256.as_str()));
            named.insert(record.key.digest);
            (Namer::Manifest(record.key), named)
        };
        self.change(before.map(of), now.map(of));
    }

    pub(super) fn blob(&mut self, before: Option<&BlobRecord>, now: Option<&BlobRecord>) {
        let of = |record: &BlobRecord| {
            let parts = record.archive.iter().flat_map(|parts| parts.blobs());
            (Namer::Archive(record.digest), digests(parts))
        };
        self.change(before.map(of), now.map(of));
    }

    pub(super) fn link(&mut self, before: Option<&LinkRecord>, now: Option<&LinkRecord>) {
        let of = |record: &LinkRecord| (Namer::Mirror(record.id()), record.keeps().collect());
        self.change(before.map(of), now.map(of));
    }

    fn change(&mut self, before: Option<(Namer, BTreeSet<Digest>)>, now: Option<(Namer, BTreeSet<Digest>)>) {
        if before == now {
            return;
        }
        if let Some((namer, digests)) = before {
            for digest in digests {
                if let Some(namers) = self.0.get_mut(&digest) {
                    namers.remove(&namer);
                    if namers.is_empty() {
                        self.0.remove(&digest);
                    }
                }
            }
        }
        if let Some((namer, digests)) = now {
            for digest in digests {
                self.0.entry(digest).or_default().insert(namer);
            }
        }
    }
}

/// What is no digest names nothing.
fn digests<'a>(texts: impl Iterator<Item = &'a str>) -> BTreeSet<Digest> {
    texts.filter_map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::ProjectId;
    use amphi_api::image::Blob;
    use jiff::Timestamp;

    #[test]
    fn names_come_and_go() {
        let digest = |n: u8| Digest([n; 32]);
        let blob = |n: u8| Blob { sha256: digest(n).to_string(), size: 1 };
        let one = ManifestRecord {
            key: ManifestKey { project: ProjectId::DEFAULT, digest: digest(1) },
            kind: crate::model::ManifestKind::Artifact,
            media_type: String::new(),
            size: 1,
            image: None,
            subject: None,
            artifact_type: String::new(),
            blobs: vec![blob(2), blob(2), blob(3)],
            created_at: Timestamp::UNIX_EPOCH,
        };
        let two = ManifestRecord { blobs: vec![blob(3)], ..one.clone() };
        let mut named = Named::default();
        named.manifest(None, Some(&one));
        assert!([1, 2, 3].iter().all(|n| named.has(digest(*n))));
        named.manifest(Some(&one), Some(&two));
        assert!(named.has(digest(1)) && !named.has(digest(2)) && named.has(digest(3)));
        assert_eq!(named.by(digest(3)).count(), 1);
        named.manifest(Some(&two), None);
        assert_eq!(named.all().count(), 0);
    }
}
