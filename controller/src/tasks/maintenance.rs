//! Empties hosts in maintenance: the next moves are ordered whenever something changes.

use super::Task;
use crate::ops::Ops;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;

pub struct MaintenanceMoves {
    pub ops: Arc<Ops>,
}

#[async_trait]
impl Task for MaintenanceMoves {
    fn name(&self) -> &'static str {
        "maintenance"
    }
    fn period(&self) -> Duration {
        Duration::from_secs(2)
    }
    async fn look(&self) -> anyhow::Result<()> {
        Ok(self.ops.step_maintenance().await?)
    }
}
