//! Asking what runs whether it works. Owns the decision what follows from answers (`rules`, pure), the way to ask over
//! TCP and HTTP from inside a network namespace (`ask`), and what is known of each run (`Health`). Refuses to know
//! engines: who runs commands, ends what fails and starts it again is told by [`Subject`].

pub mod ask;
pub mod rules;

pub use ask::Asked;
pub use rules::{Kind, Verdict, Watch};

use amphi_api::set::{Probe, Probes};
use async_trait::async_trait;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
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

/// Who is asked, and what came of it. After a start of the agent all is asked anew, but where a file says which runs had come
/// up, and whether they were ready: those are so until they say otherwise.
#[derive(Default)]
pub struct Health {
    known: Mutex<Known>,
    file: OnceLock<PathBuf>,
}

#[derive(Default)]
struct Known {
    watched: HashMap<Run, Watched>,
    /// Why a thing was ended last, by its id; outlives the run.
    ended: HashMap<String, String>,
    /// Of runs that have come up, by their ids: when they started, and whether they are ready.
    up: BTreeMap<String, (i64, bool)>,
}

struct Watched {
    task: AbortHandle,
    outlook: Outlook,
}

impl Health {
    /// Remembers over this process's end in a file, which has to be gone when the host starts anew. Before anybody is asked.
    pub fn remember(&self, file: PathBuf) {
        let text = std::fs::read(&file).unwrap_or_default();
        // One that is not there, or half a one, costs no more than that all are asked anew.
        self.lock().up = serde_json::from_slice(&text).unwrap_or_default();
        let _first = self.file.set(file);
    }

    /// Writes down which runs are up, where that has changed.
    fn write(&self, before: &BTreeMap<String, (i64, bool)>, known: &Known) {
        let Some(file) = self.file.get().filter(|_| *before != known.up) else { return };
        let part = file.with_extension("part");
        let written = serde_json::to_vec(&known.up)
            .map_err(std::io::Error::other)
            .and_then(|bytes| std::fs::write(&part, bytes))
            .and_then(|()| std::fs::rename(&part, file));
        if let Err(error) = written {
            tracing::warn!(%error, file = %file.display(), "who is up is not written down");
        }
    }

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
        let ready = known.up.get(&run.0).filter(|(began, _)| *began == run.1).map(|(_, ready)| *ready);
        let watch = match ready {
            Some(ready) => Watch::resumed(probes.clone(), ready),
            None => Watch::new(probes.clone()),
        };
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
        let before = known.up.clone();
        known.up.retain(|id, (began, _)| runs(&(id.clone(), *began)));
        self.write(&before, &known);
    }

    pub fn outlook(&self, run: &Run) -> Outlook {
        let known = self.lock();
        let mut outlook = known.watched.get(run).map(|watched| watched.outlook.clone()).unwrap_or_default();
        outlook.reason = outlook.reason.or_else(|| known.ended.get(&run.0).cloned());
        outlook
    }

    /// Says why a thing is ended.
    pub fn note_end(&self, id: &str, reason: &str) {
        let mut known = self.lock();
        known.ended.insert(id.to_owned(), reason.to_owned());
        let before = known.up.clone();
        known.up.remove(id);
        self.write(&before, &known);
    }

    /// True: whether it is ready has changed.
    fn note(&self, run: &Run, outlook: Outlook, up: bool) -> bool {
        let mut known = self.lock();
        let Some(watched) = known.watched.get_mut(run) else { return false };
        let ready = outlook.ready == Some(true);
        let turned = watched.outlook != outlook;
        watched.outlook = outlook;
        if up && known.up.get(&run.0) != Some(&(run.1, ready)) {
            let before = known.up.clone();
            known.up.insert(run.0.clone(), (run.1, ready));
            self.write(&before, &known);
        }
        turned
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        // Every change is a single insert or removal: a panic elsewhere leaves the maps whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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
        if health.note(&run, outlook, watch.is_up()) {
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
