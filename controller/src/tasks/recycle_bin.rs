//! Purges volumes that have lain in the recycle bin for long enough. One with snapshots stays: whoever kept the
//! snapshots may want the rest. How long that is goes by the date only until a volume is first seen in the bin: a date
//! that jumps empties no bin and keeps none full.

use super::Task;
use crate::model::Intent;
use crate::ops::Ops;
use amphi_api::VolumeId;
use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub struct RecycleBin {
    ops: Arc<Ops>,
    keep: SignedDuration,
    ages: Mutex<Ages>,
}

impl RecycleBin {
    pub fn new(ops: Arc<Ops>, keep: SignedDuration) -> Self {
        Self { ops, keep, ages: Mutex::default() }
    }
}

/// Since when each volume has lain in the bin: by its record, by how long when it was first seen, and when that was.
#[derive(Default)]
struct Ages(HashMap<VolumeId, (Timestamp, SignedDuration, Instant)>);

impl Ages {
    /// How long the volume has lain there. A time that is yet to come was written by another clock: then not at all.
    fn of(&mut self, id: VolumeId, trashed_at: Timestamp, date: Timestamp, now: Instant) -> SignedDuration {
        let first = (trashed_at, date.duration_since(trashed_at).max(SignedDuration::ZERO), now);
        let known = self.0.entry(id).or_insert(first);
        if known.0 != trashed_at {
            *known = first;
        }
        let since = SignedDuration::try_from(now.saturating_duration_since(known.2));
        known.1.saturating_add(since.unwrap_or(SignedDuration::MAX))
    }
}

#[async_trait]
impl Task for RecycleBin {
    fn name(&self) -> &'static str {
        "recycle bin"
    }
    fn period(&self) -> Duration {
        // A bin that keeps nothing is emptied at once.
        Duration::from_secs(if self.keep.is_zero() { 1 } else { 60 })
    }
    fn wakes(&self) -> bool {
        false
    }
    async fn look(&self) -> anyhow::Result<()> {
        let (date, now) = (Timestamp::now(), Instant::now());
        let due: Vec<_> = {
            let view = self.ops.world().read();
            let mut ages = self.ages.lock().unwrap_or_else(PoisonError::into_inner);
            let binned: HashSet<VolumeId> =
                view.volumes.iter().filter(|v| v.trashed_at.is_some()).map(|v| v.id).collect();
            ages.0.retain(|id, _| binned.contains(id));
            let old = view.volumes.iter().filter(|v| {
                v.intent == Intent::Live
                    && v.snapshots == 0
                    && v.trashed_at.is_some_and(|since| ages.of(v.id, since, date, now) >= self.keep)
            });
            old.map(|v| (v.project, v.id)).collect()
        };
        for (project, id) in due {
            tracing::info!(volume = %id, "purged by age");
            self.ops.purge_volume(project, id).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_that_jumps_ages_nothing() {
        let (mut ages, id, start) = (Ages::default(), VolumeId::new(), Instant::now());
        let at = |hours: i64| Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hours);
        let mut age = |trashed, date, hours: u64| {
            ages.of(id, at(trashed), at(date), start + Duration::from_secs(hours * 3600)).as_hours()
        };
        assert_eq!(age(100, 102, 0), 2, "what was there before the start goes by the date");
        assert_eq!(age(100, 102 + 720, 1), 3, "the date is a month ahead");
        assert_eq!(age(100, 50, 2), 4, "and back");
        assert_eq!(age(200, 50, 3), 0, "trashed anew, by a clock that was ahead");
        assert_eq!(age(200, 51, 4), 1);
    }
}
