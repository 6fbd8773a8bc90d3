//! Forgets what was done to instances that have been gone for long.

use super::Task;
use crate::ops::Ops;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;

pub struct Journal {
    pub ops: Arc<Ops>,
}

#[async_trait]
impl Task for Journal {
    fn name(&self) -> &'static str {
        "journal"
    }
    fn period(&self) -> Duration {
        Duration::from_secs(600)
    }
    fn wakes(&self) -> bool {
        false
    }
    async fn look(&self) -> anyhow::Result<()> {
        Ok(self.ops.forget_actions(jiff::Timestamp::now()).await?)
    }
}
