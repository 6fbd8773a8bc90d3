//! Lets blobs go that nobody names any more, and uploads that nobody goes on with.

use super::Task;
use crate::ops::Ops;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;

pub struct Blobs {
    pub ops: Arc<Ops>,
}

#[async_trait]
impl Task for Blobs {
    fn name(&self) -> &'static str {
        "blobs"
    }
    fn period(&self) -> Duration {
        Duration::from_secs(60)
    }
    fn wakes(&self) -> bool {
        false
    }
    async fn look(&self) -> anyhow::Result<()> {
        Ok(self.ops.sweep_blobs().await?)
    }
}
