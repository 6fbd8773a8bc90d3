//! Fails hosts over. Each look judges anew, from the leases' verdicts and the records: whom to fence, whom to take for
//! dead, whom the network has to shut out, what is to move, what runs by now, whom to let in again.
//!
//! Order of safety: a host is taken for dead only when its lease has ended (and is seized, so that it is granted nothing
//! more) or a fence device says that it is off; nothing moves before the network has shut the host out, unless the host
//! is known to be off. Nothing is let in before it has buried what moved.

mod fencing;
#[cfg(test)]
mod tests;

use super::Task;
use crate::fence::Fence;
use crate::leases::{Leases, Verdict};
use crate::network::{BarError, Barred, NetworkBar};
use crate::ops::Ops;
use amphi_api::HostId;
use amphi_api::failover::FailoverCause;
use async_trait::async_trait;
use fencing::Fencing;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// A verdict is acted on within this.
const LOOK: Duration = Duration::from_millis(50);
/// How often an instance that found no room is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// How often the bars are compared although nothing has changed.
const COMPARE: Duration = Duration::from_secs(10);
/// How long one look waits for the network's database, which answers within some ten milliseconds or is away. A try goes on
/// beside the looks: what needs no bar, such as a host that a device has switched off, is not held up by it.
const ANSWER: Duration = Duration::from_millis(100);

/// A try to have the network shut just these hosts out.
struct Try {
    barred: BTreeSet<Barred>,
    /// Of the set when it began: what has become another one since, even if it is the same again, is not what was tried.
    generation: u64,
    handle: JoinHandle<Result<(), BarError>>,
}

/// What failover needs of the leases.
pub trait Verdicts: Send + Sync + 'static {
    fn verdicts(&self) -> BTreeMap<HostId, Verdict>;
    /// Takes an ended lease away; false when it has not ended after all.
    fn seize(&self, host: HostId) -> bool;
    /// Takes the lease of a host away that is known to be off.
    fn seize_fenced(&self, host: HostId);
    /// The host may be granted a lease again.
    fn admit(&self, host: HostId);
}

impl Verdicts for Leases {
    fn verdicts(&self) -> BTreeMap<HostId, Verdict> {
        Leases::verdicts(self, Instant::now())
    }
    fn seize(&self, host: HostId) -> bool {
        Leases::seize(self, host, Instant::now())
    }
    fn seize_fenced(&self, host: HostId) {
        Leases::seize_fenced(self, host);
    }
    fn admit(&self, host: HostId) {
        Leases::admit(self, host, Instant::now());
    }
}

#[derive(Debug, Default)]
struct Clock {
    compared: Option<Instant>,
    /// The hosts that are to be shut out, as last seen, and how often they have changed.
    barred: BTreeSet<Barred>,
    generation: u64,
    /// The generation that the network has shut out.
    shut_out: u64,
    tried_again: Option<Instant>,
}

pub struct Failover {
    ops: Arc<Ops>,
    leases: Arc<dyn Verdicts>,
    network: Arc<dyn NetworkBar>,
    fencing: Fencing,
    clock: Mutex<Clock>,
    trying: tokio::sync::Mutex<Option<Try>>,
}

impl Failover {
    /// `fences` by host name.
    pub fn new(
        ops: Arc<Ops>,
        leases: Arc<dyn Verdicts>,
        network: Arc<dyn NetworkBar>,
        fences: BTreeMap<String, Fence>,
    ) -> Self {
        Self {
            ops,
            leases,
            network,
            fencing: Fencing::new(fences),
            clock: Mutex::default(),
            trying: Default::default(),
        }
    }

    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes for dead who is.
    async fn condemn(&self) -> anyhow::Result<()> {
        let verdicts = self.leases.verdicts();
        for (host, report) in self.fencing.look(&self.ops, &verdicts) {
            self.leases.seize_fenced(host);
            self.clock().generation += 1;
            self.ops.condemn(host, FailoverCause::Fenced, Some(report)).await?;
            self.fencing.done(host);
        }
        let ended = verdicts.iter().filter(|(_, verdict)| **verdict == Verdict::Ended);
        for (host, _) in ended {
            if self.ops.may_condemn(*host) && self.leases.seize(*host) {
                tracing::warn!(%host, "the host's lease has ended: its instances go elsewhere");
                self.clock().generation += 1;
                self.ops.condemn(*host, FailoverCause::LeaseEnded, self.fencing.report(*host)).await?;
            }
        }
        Ok(())
    }

    /// Who is to be shut out, and the generation of that.
    fn barred(&self) -> (BTreeSet<Barred>, u64) {
        let barred = self.ops.barred();
        let mut clock = self.clock();
        if clock.barred != barred {
            clock.barred = barred.clone();
            clock.generation += 1;
        }
        (barred, clock.generation)
    }

    /// Has the network shut out who must be.
    async fn bar(&self) -> anyhow::Result<()> {
        let (barred, generation) = self.barred();
        let due = {
            let clock = self.clock();
            clock.shut_out != generation || clock.compared.is_none_or(|at| at.elapsed() >= COMPARE)
        };
        let wanted = due || self.ops.bars_are_awaited();
        let mut trying = self.trying.lock().await;
        // One that is under way is collected whether or not anybody waits for it: it may shut out who was let in since.
        if !wanted && trying.is_none() {
            return Ok(());
        }
        let begun = trying.get_or_insert_with(|| {
            let (network, due) = (self.network.clone(), barred.clone());
            let handle = tokio::spawn(async move { network.shut_out(&due).await });
            Try { barred, generation, handle }
        });
        let patience = if wanted { ANSWER } else { Duration::ZERO };
        let Ok(outcome) = tokio::time::timeout(patience, &mut begun.handle).await else {
            return Ok(self.ops.are_barred(&BTreeSet::new(), false).await?);
        };
        let (tried, of) = (std::mem::take(&mut begun.barred), begun.generation);
        *trying = None;
        let shut_out = {
            let mut clock = self.clock();
            // Of another generation it says nothing, and what the network has now is unknown: the next look tries this one.
            let shut_out = matches!(outcome, Ok(Ok(()))) && of == generation;
            clock.compared = shut_out.then(Instant::now);
            if shut_out {
                clock.shut_out = generation;
            }
            shut_out
        };
        self.ops.are_barred(&tried, shut_out).await?;
        Ok(outcome??)
    }

    async fn move_away(&self) -> anyhow::Result<()> {
        let again = {
            let mut clock = self.clock();
            let due = clock.tried_again.is_none_or(|at| at.elapsed() >= AGAIN);
            if due {
                clock.tried_again = Some(Instant::now());
            }
            due
        };
        for id in self.ops.failovers_to_move(again) {
            self.ops.move_away(id, again).await?;
        }
        Ok(())
    }

    async fn let_in(&self) -> anyhow::Result<()> {
        for host in self.ops.returned_hosts() {
            if self.ops.let_in(host).await? {
                tracing::info!(%host, "the host has buried what had moved and is let in again");
                self.clock().generation += 1;
                self.leases.admit(host);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Task for Failover {
    fn name(&self) -> &'static str {
        "failover"
    }
    fn period(&self) -> Duration {
        LOOK
    }
    fn wakes(&self) -> bool {
        false
    }
    /// A step that fails holds up none of the others: each finds in the records what it needs.
    async fn look(&self) -> anyhow::Result<()> {
        let steps = [
            self.condemn().await,
            self.bar().await,
            self.move_away().await,
            self.ops.keep_groups().await.map_err(Into::into),
            self.ops.watch_failovers().await.map_err(Into::into),
            self.let_in().await,
        ];
        steps.into_iter().collect()
    }
}
