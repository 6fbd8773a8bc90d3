//! Gives images the checksum that the image API shows, where it was not taken on the way in.

use super::Task;
use crate::ops::Ops;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;

pub struct Checksums {
    pub ops: Arc<Ops>,
}

#[async_trait]
impl Task for Checksums {
    fn name(&self) -> &'static str {
        "checksums"
    }
    fn period(&self) -> Duration {
        Duration::from_secs(2)
    }
    fn wakes(&self) -> bool {
        false
    }
    async fn look(&self) -> anyhow::Result<()> {
        Ok(self.ops.fill_checksums().await?)
    }
}
