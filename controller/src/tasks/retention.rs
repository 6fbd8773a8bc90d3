//! Removes what repositories' policies do not keep: tags first; manifests once they have lain untagged for long enough.

use super::Task;
use crate::ops::Ops;
use async_trait::async_trait;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

pub struct Retention {
    pub ops: Arc<Ops>,
}

#[async_trait]
impl Task for Retention {
    fn name(&self) -> &'static str {
        "retention"
    }
    fn period(&self) -> Duration {
        // Policies count in days and in tags that were pushed: a minute late is early.
        Duration::from_secs(60)
    }
    fn wakes(&self) -> bool {
        false
    }
    async fn look(&self) -> anyhow::Result<()> {
        self.ops.retain(Timestamp::now()).await?;
        Ok(())
    }
}
