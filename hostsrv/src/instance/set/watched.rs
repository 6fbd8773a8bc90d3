//! Members under their probes: who is asked, how a command is run for it, and what becomes of one that fails. Refuses to
//! decide when (`crate::health`).

use super::commands::{self, Ran};
use super::ending;
use super::observed::{Part, PartState};
use super::shared::Shared;
use crate::health::{Asked, Outlook, Run, Subject, ask};
use amphi_api::set::{Probe, Probes};
use async_trait::async_trait;
use jiff::Timestamp;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// What a member has for its end that is ended for its probes and says nothing about it.
const GRACE: Duration = Duration::from_secs(10);

/// The run of a part that runs.
pub fn run_of(part: &Part) -> Option<Run> {
    Some((part.id.clone(), part.detail.started_us?))
}

impl Shared {
    /// Asks every member that runs and has probes. `all`: there are no others.
    pub fn watch(self: &Arc<Self>, parts: &[Part], all: bool) {
        let running = parts.iter().filter(|part| part.state == PartState::Running);
        let watched: Vec<(Run, &Part)> = running
            .filter(|part| part.tag.life.probes != Probes::default())
            .filter_map(|part| Some((run_of(part)?, part)))
            .collect();
        if all {
            let runs: HashSet<&Run> = watched.iter().map(|(run, _)| run).collect();
            let ids: HashSet<&str> = parts.iter().map(|part| part.id.as_str()).collect();
            self.health.keep(|run| runs.contains(run), |id| ids.contains(id));
        }
        let now_us = Timestamp::now().as_microsecond();
        for (run, part) in &watched {
            let ran = Duration::from_micros(now_us.saturating_sub(run.1).try_into().unwrap_or(0));
            self.health.watch(run, ran, &part.tag.life.probes, || {
                Arc::new(Member { shared: self.clone(), part: (*part).clone() })
            });
        }
    }

    /// Nobody asks a part that does not run.
    pub fn outlook(&self, part: &Part) -> Outlook {
        // Why one could not be started is known by its id alone.
        self.health.outlook(&run_of(part).unwrap_or_else(|| (part.id.clone(), 0)))
    }
}

/// One run of a member.
struct Member {
    shared: Arc<Shared>,
    part: Part,
}

#[async_trait]
impl Subject for Member {
    async fn ask(&self, probe: &Probe) -> Asked {
        let id = &self.part.id;
        // Held still while its volume is read: it cannot answer, and that is no fault of its own.
        if self.shared.still.lock().unwrap_or_else(PoisonError::into_inner).contains(id) {
            return Asked::Unknown;
        }
        let limit = Duration::from_secs(probe.timeout_s.into());
        if let Some(command) = &probe.exec {
            return match commands::run(&self.shared, id, command, limit).await {
                Ok(Ran::Well) => Asked::Holds,
                Ok(Ran::Badly(why)) => Asked::Fails(why),
                // The engine's trouble, or the member's end.
                Err(error) => {
                    tracing::debug!(%error, container = id, "a probe was not asked");
                    Asked::Unknown
                }
            };
        }
        let Some(pid) = self.part.detail.pid else { return Asked::Unknown };
        let namespace = PathBuf::from(format!("/proc/{pid}/ns/net"));
        ask::over_network(&namespace, probe).await.unwrap_or(Asked::Unknown)
    }

    fn turned(&self) {
        self.shared.bell.notify_one();
    }

    async fn end(&self, reason: &str) {
        tracing::info!(container = self.part.id, reason, "a member is ended, to start again");
        if let Err(error) = ending::end(&self.shared, &self.part, GRACE).await {
            // It is asked again: whoever looks next finds it running and unwatched.
            tracing::warn!(container = self.part.id, %error, "a member that fails its probes cannot be ended");
        }
        self.shared.bell.notify_one();
    }
}
