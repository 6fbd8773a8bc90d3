//! Calls a host down whose record says up while no link of it stands here: after a restart of the controller, when the
//! host did not come back. Time is counted from when this process first found it so.

use super::Task;
use crate::ops::Ops;
use amphi_api::HostId;
use amphi_api::wire::SILENCE_SECONDS;
use async_trait::async_trait;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub struct Silence {
    pub ops: Arc<Ops>,
    missed: Mutex<HashMap<HostId, Instant>>,
}

impl Silence {
    pub fn new(ops: Arc<Ops>) -> Self {
        Self { ops, missed: Mutex::default() }
    }
}

#[async_trait]
impl Task for Silence {
    fn name(&self) -> &'static str {
        "silence"
    }
    fn period(&self) -> Duration {
        Duration::from_secs(1)
    }
    fn wakes(&self) -> bool {
        false
    }
    async fn look(&self) -> anyhow::Result<()> {
        let unlinked = self.ops.unlinked_hosts();
        let due: Vec<HostId> = {
            let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
            missed.retain(|host, _| unlinked.contains(host));
            let limit = Duration::from_secs(SILENCE_SECONDS);
            let mut silent =
                |host: &HostId| missed.entry(*host).or_insert_with(Instant::now).elapsed() >= limit;
            unlinked.into_iter().filter(|host| silent(host)).collect()
        };
        for host in due {
            self.ops.gone(host).await?;
        }
        Ok(())
    }
}
