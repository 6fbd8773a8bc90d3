//! Asking what runs whether it works. Owns the decision what follows from answers (`rules`, pure), the way to ask over
//! TCP and HTTP from inside a network namespace (`ask`), and what is known of each run (`Health`). Refuses to know
//! engines: who runs commands, ends what fails and starts it again is told by [`Subject`].

pub mod ask;
pub mod rules;

pub use ask::Asked;
pub use rules::{Kind, Verdict, Watch};

use amphi_api::set::{Probe, Probes};
use async_trait::async_trait;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// What is asked: one run of one thing.
#[async_trait]
pub trait Subject: Send + Sync + 'static {
    async fn ask(&self, probe: &Probe) -> Asked;

    /// Whether it can take work has changed.
    fn turned(&self);

    /// It is not worth keeping: to be ended, so that it starts again.
    async fn end(&self, reason: &str);
}

/// One run: the thing's id and when it started, in microseconds since the epoch.
pub type Run = (String, i64);

/// What is known of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// None: nobody asks.
    pub ready: Option<bool>,
    /// Why it was ended last, or what its probes told last while they fail.
    pub reason: Option<String>,
}

/// Who is asked, and what came of it. Nothing is kept on disk: after a start of the agent all is asked anew.
#[derive(Default)]
pub struct Health(Mutex<Known>);

#[derive(Default)]
struct Known {
    watched: HashMap<Run, Watched>,
    /// Why a thing was ended last, by its id; outlives the run.
    ended: HashMap<String, String>,
}

struct Watched {
    task: AbortHandle,
    outlook: Outlook,
}

impl Health {
    /// Begins to ask where nobody does. `ran`: how long the run is under way. Must be called inside a runtime.
    pub fn watch(
        self: &Arc<Self>,
        run: &Run,
        ran: Duration,
        probes: &Probes,
        subject: impl FnOnce() -> Arc<dyn Subject>,
    ) {
        let mut known = self.lock();
        if *probes == Probes::default() || known.watched.contains_key(run) {
            return;
        }
        let watch = Watch::new(probes.clone());
        let outlook = Outlook { ready: watch.ready(), reason: None };
        let task = tokio::spawn(follow(self.clone(), run.clone(), ran, watch, subject())).abort_handle();
        known.watched.insert(run.clone(), Watched { task, outlook });
    }

    /// Nobody else is asked any more; what was known of others goes.
    pub fn keep(&self, runs: impl Fn(&Run) -> bool, exists: impl Fn(&str) -> bool) {
        let mut known = self.lock();
        known.watched.retain(|run, watched| {
            let stays = runs(run);
            if !stays {
                watched.task.abort();
            }
            stays
        });
        known.ended.retain(|id, _| exists(id));
    }

    pub fn outlook(&self, run: &Run) -> Outlook {
        let known = self.lock();
        let mut outlook = known.watched.get(run).map(|watched| watched.outlook.clone()).unwrap_or_default();
        outlook.reason = outlook.reason.or_else(|| known.ended.get(&run.0).cloned());
        outlook
    }

    /// Says why a thing is ended.
    pub fn note_end(&self, id: &str, reason: &str) {
        self.lock().ended.insert(id.to_owned(), reason.to_owned());
    }

    /// True: whether it is ready has changed.
    fn note(&self, run: &Run, outlook: Outlook) -> bool {
        let mut known = self.lock();
        let Some(watched) = known.watched.get_mut(run) else { return false };
        let turned = watched.outlook != outlook;
        watched.outlook = outlook;
        turned
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        // Every change is a single insert or removal: a panic elsewhere leaves the maps whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks until the run is over, or it is ended here.
async fn follow(health: Arc<Health>, run: Run, ran: Duration, mut watch: Watch, subject: Arc<dyn Subject>) {
    let begin = Instant::now().checked_sub(ran).unwrap_or_else(Instant::now);
    let mut last = HashMap::new();
    loop {
        let Some((kind, due)) = watch.next(|kind| last.get(&kind).copied(), ran) else { return };
        tokio::time::sleep_until(begin + due).await;
        last.insert(kind, begin.elapsed());
        let Some(probe) = watch.probe(kind).cloned() else { return };
        let answer = subject.ask(&probe).await;
        let verdict = watch.take(kind, answer);
        let outlook = Outlook { ready: watch.ready(), reason: watch.reason() };
        if health.note(&run, outlook) {
            subject.turned();
        }
        if let Verdict::End(reason) = verdict {
            health.note_end(&run.0, &reason);
            subject.end(&reason).await;
            // Should it run on, whoever looks next has it asked anew.
            health.lock().watched.remove(&run);
            return;
        }
    }
}

#[cfg(test)]
mod tests;
