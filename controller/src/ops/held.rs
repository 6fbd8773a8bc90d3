//! Which hosts have which images: kept for placement as images and what hosts say of theirs come and go, and whom an image
//! that is to be fetched beforehand concerns.

use super::named::Namer;
use super::view::{Row, View};
use crate::model::{HostImagesRecord, ImageRecord, PrepullRecord};
use amphi_api::prepull::Mark;
use amphi_api::{HostId, ImageId};
use std::collections::BTreeSet;

impl View {
    /// Whether a host's zone says what it fetches beforehand.
    pub(super) fn has_zoned_prepulls(&self) -> bool {
        self.prepulls.iter().any(|row| row.policy.as_ref().is_some_and(|policy| !policy.all))
    }

    /// Images that this tells of.
    pub(super) fn images_marked(&self, mark: Mark<'_>) -> Vec<ImageId> {
        let (Mark::Blob(digest) | Mark::Container(digest)) = mark;
        let Ok(digest) = digest.parse() else { return Vec::new() };
        let marked = |id: &ImageId| self.images.get(*id).is_some_and(|image| image.mark() == Some(mark));
        let images = self.named.by(digest).filter_map(|namer| match namer {
            Namer::Image(id) => Some(id),
            _ => None,
        });
        images.filter(marked).collect()
    }

    /// Hosts that these ask to have an image.
    pub(super) fn asked_to_fetch<'a>(
        &self,
        rows: impl Iterator<Item = &'a Row<PrepullRecord>>,
    ) -> Vec<HostId> {
        let rows: Vec<_> = rows.collect();
        let asked = |id: &HostId| rows.iter().any(|row| row.asks(*id, self.zone_of(*id)));
        self.hosts.iter().map(|host| host.id).filter(asked).collect()
    }

    /// An image has other bytes than before, or is gone: hosts that have it count for placement, and those that are to have
    /// it are told.
    pub(super) fn remark(&mut self, id: ImageId, before: Option<&Row<ImageRecord>>) -> Vec<HostId> {
        let now = self.images.get(id).cloned();
        let marks = [before, now.as_ref()].map(|row| row.and_then(|row| row.mark()));
        let closing = |row: Option<&Row<ImageRecord>>| row.is_some_and(|row| row.closing);
        if marks[0] == marks[1] && closing(before) == closing(now.as_ref()) {
            return Vec::new();
        }
        if marks[0] != marks[1] {
            for (mark, comes) in marks.into_iter().zip([false, true]) {
                let Some(mark) = mark else { continue };
                let hosts = self.host_images.iter().filter(|row| row.told.has(mark)).map(|row| row.host);
                for host in hosts.collect::<Vec<_>>() {
                    self.fleet.count_images(host, &[id], comes);
                }
            }
        }
        self.asked_to_fetch(self.prepulls.get(id).into_iter())
    }

    /// A host has other images than before.
    pub(super) fn recount_held(
        &mut self,
        host: HostId,
        before: Option<&HostImagesRecord>,
        now: Option<&HostImagesRecord>,
    ) {
        let marks = |record: Option<&HostImagesRecord>| -> BTreeSet<(bool, String)> {
            let told = record.map(|record| &record.told);
            let blobs = told.into_iter().flat_map(|told| &told.blobs).map(|d| (false, d.clone()));
            let containers = told.into_iter().flat_map(|told| &told.containers).map(|d| (true, d.clone()));
            blobs.chain(containers).collect()
        };
        let (before, now) = (marks(before), marks(now));
        for ((container, digest), comes) in
            before.difference(&now).map(|d| (d, false)).chain(now.difference(&before).map(|d| (d, true)))
        {
            let mark = if *container { Mark::Container(digest) } else { Mark::Blob(digest) };
            let images = self.images_marked(mark);
            self.fleet.count_images(host, &images, comes);
        }
    }
}
