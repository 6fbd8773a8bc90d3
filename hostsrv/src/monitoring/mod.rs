//! Measures the bodies of this host every few seconds and hands the figures to whoever the settings name. Owns the rounds
//! and the sinks' lives: a sink that is slow or away misses rounds and holds up nobody. Refuses to ask an engine more than
//! one question a round, to keep figures, and to change anything.

pub mod load;
pub mod sample;
pub mod settings;
mod sink;

use crate::instance::figures::{Meter, Reading, read_all};
use amphi_api::wire::HostDesired;
use jiff::Timestamp;
use sample::Round;
use settings::{Settings, SinkSettings};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// The newest round; none before the first.
pub type Rounds = watch::Receiver<Option<Arc<Round>>>;

/// Whom to measure with.
pub struct Monitoring {
    pub file: PathBuf,
    /// This host's name.
    pub host: Arc<str>,
    pub meters: Vec<Arc<dyn Meter>>,
    pub orders: watch::Receiver<Option<Arc<HostDesired>>>,
}

impl Monitoring {
    /// Runs until the process ends.
    pub async fn run(self) {
        let mut file = File::default();
        let mut settings = Settings::default();
        let (tell, rounds) = watch::channel(None);
        let mut sinks = HashMap::new();
        let mut troubles: Vec<Option<String>> = vec![None; self.meters.len()];
        let mut next = Instant::now();
        loop {
            match file.look(&self.file) {
                Look::Same => {}
                Look::New(new) => {
                    follow(&mut sinks, &new.sinks, &rounds).await;
                    let (sinks, every) = (new.sinks.len(), new.interval_seconds);
                    tracing::info!(sinks, every, "monitoring's settings are in force");
                    settings = new;
                    next = Instant::now();
                }
                Look::Bad(error) => {
                    tracing::error!("monitoring goes on as before, since {error:#}");
                }
            }
            if !settings.sinks.is_empty() && Instant::now() >= next {
                next += Duration::from_secs(settings.interval_seconds);
                // After a halt, rounds that were missed are not caught up with.
                next = next.max(Instant::now());
                tell.send_replace(Some(Arc::new(self.round(&mut troubles).await)));
            }
            let wake = if settings.sinks.is_empty() { Instant::now() + LOOK } else { next };
            tokio::time::sleep_until(wake.min(Instant::now() + LOOK)).await;
        }
    }

    async fn round(&self, troubles: &mut [Option<String>]) -> Round {
        let mut readings: Vec<Reading> = Vec::new();
        for (answer, trouble) in read_all(&self.meters).await.into_iter().zip(troubles) {
            match answer {
                Ok(read) => {
                    readings.extend(read);
                    *trouble = None;
                }
                // Said once, not every round.
                Err(error) if trouble.as_ref() != Some(&error) => {
                    tracing::warn!("figures are missing: {error}");
                    *trouble = Some(error);
                }
                Err(_) => {}
            }
        }
        let desired = self.orders.borrow().clone();
        let instances = desired.as_ref().map(|d| d.instances.as_slice()).unwrap_or_default();
        Round::of(self.host.clone(), Timestamp::now(), instances, readings)
    }
}

/// Starts sinks that are new, ends those that are gone or changed, and leaves the others alone.
async fn follow(
    sinks: &mut HashMap<String, (SinkSettings, JoinHandle<()>)>,
    wanted: &[SinkSettings],
    rounds: &Rounds,
) {
    let stays = |held: &SinkSettings| wanted.contains(held);
    let gone: Vec<String> =
        sinks.iter().filter(|(_, (held, _))| !stays(held)).map(|(name, _)| name.clone()).collect();
    for name in gone {
        if let Some((_, task)) = sinks.remove(&name) {
            task.abort();
            // Its listener is free when this returns.
            let _ = task.await;
        }
    }
    for settings in wanted {
        if !sinks.contains_key(&settings.common.name) {
            let task = tokio::spawn(sink::run(settings.clone(), rounds.clone()));
            sinks.insert(settings.common.name.clone(), (settings.clone(), task));
        }
    }
}

/// The settings' file as it was last seen.
#[derive(Default)]
struct File(Option<(SystemTime, u64)>);

enum Look {
    Same,
    New(Settings),
    Bad(anyhow::Error),
}

impl File {
    fn look(&mut self, path: &Path) -> Look {
        let seen = std::fs::metadata(path).ok().and_then(|m| Some((m.modified().ok()?, m.len())));
        if seen == self.0 {
            return Look::Same;
        }
        self.0 = seen;
        if seen.is_none() {
            return Look::New(Settings::default());
        }
        let read = std::fs::read_to_string(path).map_err(anyhow::Error::from);
        match read.and_then(|text| Settings::parse(&text)) {
            Ok(settings) => Look::New(settings),
            Err(error) => Look::Bad(error.context(format!("{} cannot be used", path.display()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_followed_and_a_bad_one_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("monitoring.toml");
        let mut file = File::default();
        assert!(matches!(file.look(&path), Look::Same), "no file, no news");
        std::fs::write(&path, "interval_seconds = 3").expect("written");
        let Look::New(settings) = file.look(&path) else { panic!("not read") };
        assert_eq!(settings.interval_seconds, 3);
        assert!(matches!(file.look(&path), Look::Same));
        std::fs::write(&path, "interval_seconds = 'often'").expect("written");
        let Look::Bad(error) = file.look(&path) else { panic!("taken") };
        assert!(format!("{error:#}").contains("interval_seconds"), "{error:#}");
        assert!(matches!(file.look(&path), Look::Same), "said once");
        std::fs::remove_file(&path).expect("gone");
        let Look::New(settings) = file.look(&path) else { panic!("not seen to be gone") };
        assert_eq!(settings, Settings::default());
    }
}
