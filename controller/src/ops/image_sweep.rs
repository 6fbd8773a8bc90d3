//! Blobs that nobody names go: doomed first, removed later, the record before the file. Several controllers may sweep at once,
//! and pushes never wait for it: whoever names or wants a blob changes or compares its record, and so does the sweep.
//!
//! Why nothing is lost: a record is removed only as the version that says it is doomed. What was named before the doom is in
//! the view that shows that version; what is named after it has changed the record. And the file that goes is the one at that
//! record's own place: a blob of the same bytes that comes at that very moment lies at another.

use super::blobs::blank;
use super::{Draft, Ops, OpsError};
use crate::model::{BlobRecord, BlobSight, BlobStep, Digest, blob_step};
use jiff::Timestamp;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// A file that no record names stays for so long: its record may be on its way.
const ORPHAN: Duration = Duration::from_secs(24 * 3600);

/// All files are looked at so often: that reads every directory of the store.
const ORPHANS_EVERY: Duration = Duration::from_secs(3600);

/// What a sweep remembers of the ones before.
#[derive(Default)]
pub(super) struct Sweeps {
    /// Since when each doomed blob's record is as it is, by its version.
    doomed: Mutex<HashMap<Digest, (u64, Instant)>>,
    /// When all files were last looked at.
    orphans: Mutex<Option<Instant>>,
}

impl Ops {
    /// One look at all blobs and uploads, and what follows from it.
    pub async fn sweep_blobs(&self) -> Result<(), OpsError> {
        self.adopt_blobs().await?;
        let terms = self.settings.blobs;
        let (now, instant) = (Timestamp::now(), Instant::now());
        let steps: Vec<(Digest, u64, BlobStep)> = {
            let view = self.world().read();
            let mut doomed = self.sweeps.doomed.lock().unwrap_or_else(PoisonError::into_inner);
            doomed.retain(|digest, (version, _)| {
                view.blobs.get(*digest).is_some_and(|row| row.doomed && row.version == *version)
            });
            let step = |row: &super::Row<BlobRecord>| {
                let since = row.doomed.then(|| doomed.entry(row.digest).or_insert((row.version, instant)).1);
                let unchanged =
                    since.map_or(Duration::ZERO, |since| instant.saturating_duration_since(since));
                let sight = BlobSight { named: view.named.has(row.digest), unchanged, now };
                (row.digest, row.version, blob_step(row, sight, terms.grace))
            };
            view.blobs.iter().map(step).filter(|(_, _, step)| *step != BlobStep::Keep).collect()
        };
        for (digest, version, step) in steps {
            self.step_blob(digest, version, step, now).await?;
        }
        self.blobs.expire(terms.upload).await?;
        let due = {
            let mut last = self.sweeps.orphans.lock().unwrap_or_else(PoisonError::into_inner);
            let due = last.is_none_or(|last| instant.saturating_duration_since(last) >= ORPHANS_EVERY);
            if due {
                *last = Some(instant);
            }
            due
        };
        if due { self.sweep_orphans().await } else { Ok(()) }
    }

    /// What was decided holds for the record as it was seen then: the next sweep looks at one that has changed.
    async fn step_blob(
        &self,
        digest: Digest,
        version: u64,
        step: BlobStep,
        now: Timestamp,
    ) -> Result<(), OpsError> {
        let gone = self
            .transact(|view| {
                let mut draft = Draft::default();
                let row = view.blobs.get(digest).filter(|row| row.version == version);
                let Some(row) = row else { return Ok((draft, None)) };
                // The grace was over when it was looked at; who names it may have changed since.
                let sight = BlobSight { named: view.named.has(digest), unchanged: Duration::MAX, now };
                let mut record = (*row.record).clone();
                record.lent.retain(|_, until| *until > now);
                match (step, blob_step(row, sight, Duration::ZERO)) {
                    (BlobStep::Remove, BlobStep::Remove) => {
                        draft.delete(row);
                        return Ok((draft, Some(record.place)));
                    }
                    (BlobStep::Doom, BlobStep::Doom) => record.doomed = true,
                    (_, BlobStep::Spare) => record.doomed = false,
                    _ => return Ok((draft, None)),
                }
                draft.update(row, &record);
                Ok((draft, None))
            })
            .await?;
        if let Some(place) = gone {
            tracing::info!(sha256 = %digest, "a blob that nobody names goes");
            self.blobs.remove(digest, &place).await?;
        }
        Ok(())
    }

    /// Blobs that images name from before blobs had records get theirs.
    async fn adopt_blobs(&self) -> Result<(), OpsError> {
        let unknown: Vec<Digest> = {
            let view = self.world().read();
            view.named.all().filter(|digest| view.blobs.get(*digest).is_none()).collect()
        };
        for digest in unknown {
            let Some(size) = self.blobs.has(digest, "").await? else { continue };
            self.transact(|view| {
                let mut draft = Draft::default();
                if view.blobs.get(digest).is_none() {
                    draft.create(&blank(digest, size, String::new()));
                }
                Ok((draft, ()))
            })
            .await?;
        }
        Ok(())
    }

    /// Files that no record names: what a death between file and record has left.
    async fn sweep_orphans(&self) -> Result<(), OpsError> {
        let now = SystemTime::now();
        let old = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age >= ORPHAN);
        let old: Vec<_> = self.blobs.list().await?.into_iter().filter(|file| old(file.modified)).collect();
        let kept: HashSet<(Digest, String)> = {
            let view = self.world().read();
            let known = |file: &&crate::images::Found| match view.blobs.get(file.digest) {
                Some(row) => row.place == file.place,
                None => view.named.has(file.digest),
            };
            old.iter().filter(known).map(|file| (file.digest, file.place.clone())).collect()
        };
        for file in old {
            if !kept.contains(&(file.digest, file.place.clone())) {
                tracing::info!(sha256 = %file.digest, "a file that no record names goes");
                self.blobs.remove(file.digest, &file.place).await?;
            }
        }
        Ok(())
    }
}
