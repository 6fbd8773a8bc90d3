//! Keeps the leases and the records of hosts in step.

use super::Task;
use crate::ops::Ops;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;

pub struct Leases {
    pub ops: Arc<Ops>,
}

#[async_trait]
impl Task for Leases {
    fn name(&self) -> &'static str {
        "leases"
    }
    fn period(&self) -> Duration {
        Duration::from_millis(500)
    }
    async fn look(&self) -> anyhow::Result<()> {
        self.ops.tell_leases();
        Ok(self.ops.record_leases().await?)
    }
}
