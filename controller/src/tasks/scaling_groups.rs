//! Keeps every scaling group as it is ordered: so many members, of the revision that is wanted, in good health.

use super::Task;
use crate::ops::Ops;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;

pub struct ScalingGroups {
    pub ops: Arc<Ops>,
}

#[async_trait]
impl Task for ScalingGroups {
    fn name(&self) -> &'static str {
        "scaling groups"
    }
    /// For what only time changes: patience, drains, cool-downs.
    fn period(&self) -> Duration {
        Duration::from_secs(1)
    }
    async fn look(&self) -> anyhow::Result<()> {
        Ok(self.ops.step_groups().await?)
    }
}
