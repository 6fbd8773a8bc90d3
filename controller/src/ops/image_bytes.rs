//! How many bytes of the image store are a project's: each blob that its images and manifests name, or that is lent to it,
//! once. Refuses to keep count in records: what is counted cannot drift.

use super::quotas;
use super::{OpsError, OverQuota, View};
use crate::model::{BlobRecord, Digest, Resource};
use amphi_api::ProjectId;
use jiff::Timestamp;
use std::collections::BTreeSet;

/// The unit of glance's quota `image_size_total`, in bytes.
const MIB: u64 = 1 << 20;

/// In bytes.
pub fn used(view: &View, project: ProjectId) -> u64 {
    let now = Timestamp::now();
    let images = view.images.of_project(project).flat_map(|row| row.digests());
    let manifests = view.manifests.of_project(project);
    let manifests = manifests.flat_map(|row| row.blobs.iter().map(|blob| blob.sha256.as_str()));
    let named = images.chain(manifests).filter_map(|text| text.parse::<Digest>().ok());
    let own = view.manifests.of_project(project).map(|row| row.key.digest);
    let mut digests: BTreeSet<Digest> = named.chain(own).collect();
    let lent = view.blobs.iter().filter(|row| row.lent.get(&project).is_some_and(|until| *until > now));
    digests.extend(lent.map(|row| row.digest));
    let size = |digest: &Digest| {
        // Of an archive that was taken apart, its recipe counts; its parts are named beside it.
        let held =
            |row: &super::Row<BlobRecord>| row.archive.as_ref().map_or(row.size, |parts| parts.recipe.size);
        view.blobs.get(*digest).map_or(0, held)
    };
    digests.iter().map(size).sum()
}

/// Whether the project may bring so many bytes more.
pub fn check(view: &View, project: ProjectId, more: u64) -> Result<(), OpsError> {
    let word = Resource::ImageSizeTotal.word();
    let limit = quotas::limit(view, project, None, word);
    let Ok(most) = u64::try_from(limit) else { return Ok(()) };
    let used = used(view, project);
    if more == 0 || used.saturating_add(more) <= most.saturating_mul(MIB) {
        return Ok(());
    }
    let over =
        OverQuota { resource: word.into(), asked: more.div_ceil(MIB), used: used.div_ceil(MIB), limit };
    Err(over.into())
}
