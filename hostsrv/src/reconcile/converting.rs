//! The export of an image's bytes that are made of another image's. Ends when nobody asks for it any more: what was under way
//! is thrown away. Says how far it is; what was found is told for as long as the image is ordered.

use super::Reconciler;
use super::execute::WorkError;
use super::exports::Workplace;
use crate::convert::ConvertError;
use amphi_api::ImageId;
use amphi_api::conversion::{ConversionProgress, ConversionReport, ConvertTo};
use amphi_api::image::{Blob, BlobRole, Image};
use amphi_api::wire::{ConversionStatus, HostStatus};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two looks that are asked for because a conversion is further than before: a look costs more than its news.
const BEAT: Duration = Duration::from_secs(4);

impl Reconciler {
    pub(super) async fn convert(
        &self,
        image: ImageId,
        of: &Image,
        to: ConvertTo,
        place: &Workplace,
    ) -> Result<(), WorkError> {
        let mut orders = self.orders.subscribe();
        let wanted = |exports: &[amphi_api::wire::ExportDesired]| exports.iter().any(|e| e.image == image);
        let unwanted = orders.wait_for(|desired| desired.as_ref().is_some_and(|d| !wanted(&d.exports)));
        let _over = Over { of: &self.converting, image };
        tokio::select! {
            made = self.make(image, of, to, place) => {
                let (blob, report) = made?;
                Ok(self.ledger().note_conversion(image, blob, report)?)
            }
            // The machine that does it goes with the future that waits for it.
            _ = unwanted => {
                tracing::info!(%image, "a conversion that nobody wants any more is ended");
                Ok(())
            }
        }
    }

    async fn make(
        &self,
        image: ImageId,
        of: &Image,
        to: ConvertTo,
        place: &Workplace,
    ) -> Result<(Blob, ConversionReport), WorkError> {
        let cached = self.drivers.images.ensure(of).await?;
        let last = Mutex::new(Instant::now());
        let told = |entries, bytes| {
            held(&self.converting).insert(image, ConversionProgress { entries, bytes });
            let mut last = held(&last);
            if last.elapsed() >= BEAT {
                *last = Instant::now();
                self.bell.notify_one();
            }
        };
        let file = place.file();
        let folder = file.parent().unwrap_or(&file);
        let report = match to {
            ConvertTo::Container => {
                let disk = cached.blobs.get(&BlobRole::Disk);
                let disk = disk.ok_or_else(|| ConvertError::Refused("it has no disk".into()))?;
                self.drivers.converter.to_container(disk, of.format, folder, &file, told).await?
            }
            ConvertTo::Disk => {
                self.drivers.images.ensure_layers(of).await?;
                let root = self.drivers.converter.roots()?.ensure(&cached).await?;
                self.drivers.converter.to_disk(&root, folder, &file, told).await?
            }
        };
        Ok((self.drivers.exports.finish(image, place).await?, report))
    }

    pub(super) fn tell_conversions(
        &self,
        report: impl Fn(ImageId) -> Option<ConversionReport>,
        status: &mut HostStatus,
    ) {
        let under_way = held(&self.converting);
        for export in &mut status.exports {
            let report = report(export.image);
            let progress = under_way.get(&export.image).copied();
            let done = report.as_ref().map(|r| ConversionProgress { entries: r.entries, bytes: r.bytes });
            export.conversion = progress.or(done).map(|progress| ConversionStatus { progress, report });
        }
    }
}

/// What is held is plain data, whatever happened to its holder.
fn held<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets how far a conversion is when it is over, however it ends.
struct Over<'a> {
    of: &'a Mutex<BTreeMap<ImageId, ConversionProgress>>,
    image: ImageId,
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        held(self.of).remove(&self.image);
    }
}
