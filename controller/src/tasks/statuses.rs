//! Records what hosts said and the store could not take then.

use super::Task;
use crate::ops::Ops;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;

pub struct Statuses {
    pub ops: Arc<Ops>,
}

#[async_trait]
impl Task for Statuses {
    fn name(&self) -> &'static str {
        "statuses"
    }
    fn period(&self) -> Duration {
        Duration::from_secs(1)
    }
    fn wakes(&self) -> bool {
        false
    }
    async fn look(&self) -> anyhow::Result<()> {
        Ok(self.ops.record_left_over().await?)
    }
}
