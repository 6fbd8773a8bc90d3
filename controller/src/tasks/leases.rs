//! Keeps the leases and the records of hosts in step.

use super::Task;
use crate::ops::Ops;
use crate::store::Revision;
use async_trait::async_trait;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the leases are told who the hosts are although nothing of them has changed: they forget older lists then.
const TELL: Duration = Duration::from_millis(500);

pub struct Leases {
    ops: Arc<Ops>,
    /// The commit of the hosts' records that the leases know of, and since when.
    told: Mutex<Option<(Revision, Instant)>>,
}

impl Leases {
    pub fn new(ops: Arc<Ops>) -> Self {
        Self { ops, told: Mutex::default() }
    }

    /// Most changes of the records are no news of hosts.
    fn is_due(&self) -> bool {
        let changed = self.ops.world().read().hosts_changed();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let due = told.is_none_or(|(of, at)| of != changed || at.elapsed() >= TELL);
        if due {
            *told = Some((changed, Instant::now()));
        }
        due
    }
}

#[async_trait]
impl Task for Leases {
    fn name(&self) -> &'static str {
        "leases"
    }
    fn period(&self) -> Duration {
        TELL
    }
    async fn look(&self) -> anyhow::Result<()> {
        if self.is_due() {
            self.ops.tell_leases();
        }
        Ok(self.ops.record_leases().await?)
    }
}
