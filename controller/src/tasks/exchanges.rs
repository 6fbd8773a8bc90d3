//! Takes exchanges from phase to phase, and volumes to their instances' hosts. The period is for deadlines; a host's word wakes it at once.

use super::Task;
use crate::ops::Ops;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;

pub struct Exchanges {
    pub ops: Arc<Ops>,
}

#[async_trait]
impl Task for Exchanges {
    fn name(&self) -> &'static str {
        "exchanges"
    }
    fn period(&self) -> Duration {
        Duration::from_secs(1)
    }
    async fn look(&self) -> anyhow::Result<()> {
        self.ops.step_volume_journeys().await?;
        Ok(self.ops.step_exchanges().await?)
    }
}
