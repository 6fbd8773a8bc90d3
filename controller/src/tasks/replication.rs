//! Sends images to other regions and fetches them: what was ordered, and what policies ask for whenever an image becomes whole
//! or more is said of it.

use super::Task;
use crate::regions::Regions;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;

pub struct Replication {
    pub regions: Arc<Regions>,
}

#[async_trait]
impl Task for Replication {
    fn name(&self) -> &'static str {
        "replication"
    }
    fn period(&self) -> Duration {
        // Attempts are due to the second.
        Duration::from_secs(1)
    }
    async fn look(&self) -> anyhow::Result<()> {
        Ok(self.regions.begin().await?)
    }
}
