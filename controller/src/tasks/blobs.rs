//! Lets blobs go that nobody names any more, and uploads that nobody goes on with.

use super::Task;
use crate::ops::Ops;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;

pub struct Blobs {
    pub ops: Arc<Ops>,
    /// Between two looks.
    pub every: Duration,
}

#[async_trait]
impl Task for Blobs {
    fn name(&self) -> &'static str {
        "blobs"
    }
    fn period(&self) -> Duration {
        self.every
    }
    fn wakes(&self) -> bool {
        false
    }
    async fn look(&self) -> anyhow::Result<()> {
        Ok(self.ops.sweep_blobs().await?)
    }
}
