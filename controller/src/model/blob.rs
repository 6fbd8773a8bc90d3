//! Blobs as the records know them, and when one may go: pure. A blob is the bytes of one SHA-256 digest; who names it (an
//! image, a manifest, an archive that was taken apart) keeps it. One that nobody names is doomed first and removed later;
//! whoever names or wants a doomed blob writes its record, so that the removal, which compares the record's version, fails.

use super::Record;
use crate::digest::{Digest, LayerFacts};
use amphi_api::ProjectId;
use amphi_api::image::{Blob, Layer};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// One blob. Its file is there before the record, and goes after it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlobRecord {
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// Lower-case hexadecimal; none where nobody has asked for it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub md5: Option<String>,
    /// Which of the files of this digest it is: whoever removes one never removes another's. Empty: the plain one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub place: String,
    /// Projects that have brought it or asked for it in a push, and until when that keeps it and lets them see it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lent: BTreeMap<ProjectId, Timestamp>,
    /// Nobody named it at the last look.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub doomed: bool,
    /// A layer's, once it has been measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<LayerFacts>,
    /// An archive's that was taken apart: it has no file of its own and is put together from these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveParts>,
}

/// A container image's archive, taken apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArchiveParts {
    /// How the archive is put together again.
    pub recipe: Blob,
    pub manifest: Blob,
    pub config: Blob,
    /// The lowest first.
    pub layers: Vec<Layer>,
}

impl ArchiveParts {
    pub fn blobs(&self) -> impl Iterator<Item = &str> {
        let layers = self.layers.iter().map(|layer| layer.sha256.as_str());
        [&self.recipe, &self.manifest, &self.config].into_iter().map(|b| b.sha256.as_str()).chain(layers)
    }
}

impl Record for BlobRecord {
    const PREFIX: &'static str = "/blob/";
    const NOUN: &'static str = "blob";
    type Id = Digest;
    fn id(&self) -> Digest {
        self.digest
    }
}

/// What the collector knows of a blob at a look.
#[derive(Clone, Copy, Debug)]
pub struct BlobSight {
    /// Whether any record names it.
    pub named: bool,
    /// Since this collector first saw the record as it is now.
    pub unchanged: Duration,
    pub now: Timestamp,
}

/// What the collector does with a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobStep {
    Keep,
    /// Write that nobody names it.
    Doom,
    /// Take the doom back.
    Spare,
    /// Delete the record, then the file.
    Remove,
}

/// The rule. A doomed record that has not changed for `grace` goes.
pub fn blob_step(record: &BlobRecord, sight: BlobSight, grace: Duration) -> BlobStep {
    let lent = record.lent.values().any(|until| *until > sight.now);
    match (sight.named || lent, record.doomed) {
        (true, false) => BlobStep::Keep,
        (true, true) => BlobStep::Spare,
        (false, false) => BlobStep::Doom,
        (false, true) if sight.unchanged < grace => BlobStep::Keep,
        (false, true) => BlobStep::Remove,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_blob_goes() {
        use BlobStep::*;
        let (now, grace) = (Timestamp::UNIX_EPOCH, Duration::from_secs(10));
        let later = now + jiff::SignedDuration::from_secs(1);
        let (old, new) = (Duration::from_secs(10), Duration::from_secs(9));
        for (named, lent, doomed, unchanged, want) in [
            (true, None, false, old, Keep),
            (true, None, true, old, Spare),
            (false, Some(later), false, old, Keep),
            (false, Some(later), true, old, Spare),
            (false, Some(now), false, old, Doom),
            (false, None, false, new, Doom),
            (false, None, true, new, Keep),
            (false, None, true, old, Remove),
            (false, Some(now), true, old, Remove),
        ] {
            let record = BlobRecord {
                digest: Digest([7; 32]),
                size: 1,
                md5: None,
                place: String::new(),
                lent: lent.into_iter().map(|until| (ProjectId::DEFAULT, until)).collect(),
                doomed,
                layer: None,
                archive: None,
            };
            let seen = blob_step(&record, BlobSight { named, unchanged, now }, grace);
            assert_eq!(seen, want, "named {named}, lent {lent:?}, doomed {doomed}, {unchanged:?}");
        }
    }
}
