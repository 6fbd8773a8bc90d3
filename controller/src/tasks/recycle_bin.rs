//! Purges volumes that have lain in the recycle bin for long enough. One with snapshots stays: whoever kept the
//! snapshots may want the rest.

use super::Task;
use crate::model::Intent;
use crate::ops::Ops;
use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;

pub struct RecycleBin {
    pub ops: Arc<Ops>,
    pub keep: SignedDuration,
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
        let now = Timestamp::now();
        let due: Vec<_> = {
            let view = self.ops.world().read();
            let old = view.volumes.iter().filter(|v| {
                v.intent == Intent::Live
                    && v.snapshots == 0
                    && v.trashed_at.is_some_and(|since| now.duration_since(since) >= self.keep)
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
