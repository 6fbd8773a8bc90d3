//! Gives every instance that asks for one a twin on another host, and takes away what nobody asks for any more.

use super::Task;
use crate::ops::Ops;
use async_trait::async_trait;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a place is looked for again where there was none.
const AGAIN: Duration = Duration::from_secs(2);

pub struct Twins {
    ops: Arc<Ops>,
    tried: Mutex<Option<Instant>>,
}

impl Twins {
    pub fn new(ops: Arc<Ops>) -> Self {
        Self { ops, tried: Mutex::default() }
    }

    fn again(&self) -> bool {
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        let due = tried.is_none_or(|at| at.elapsed() >= AGAIN);
        if due {
            *tried = Some(Instant::now());
        }
        due
    }
}

#[async_trait]
impl Task for Twins {
    fn name(&self) -> &'static str {
        "twins"
    }
    fn period(&self) -> Duration {
        AGAIN
    }
    async fn look(&self) -> anyhow::Result<()> {
        Ok(self.ops.step_twins(self.again()).await?)
    }
}
