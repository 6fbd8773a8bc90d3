//! Takes updates of sets from member to member. The period is for deadlines; a host's word wakes it at once.

use super::Task;
use crate::ops::Ops;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;

pub struct Rollouts {
    pub ops: Arc<Ops>,
}

#[async_trait]
impl Task for Rollouts {
    fn name(&self) -> &'static str {
        "rollouts"
    }
    fn period(&self) -> Duration {
        Duration::from_secs(1)
    }
    async fn look(&self) -> anyhow::Result<()> {
        Ok(self.ops.step_rollouts().await?)
    }
}
