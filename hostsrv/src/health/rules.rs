//! What follows from answers. Pure: answers in, verdicts out; time is told.

use super::Asked;
use amphi_api::set::{Probe, Probes};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Startup,
    Readiness,
    Liveness,
}

/// What an answer leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Go,
    /// It is not worth keeping, for this reason.
    End(String),
}

/// One run under its probes.
#[derive(Clone, Debug)]
pub struct Watch {
    probes: Probes,
    /// The startup probe has held, or there is none.
    up: bool,
    startup: Streak,
    readiness: Streak,
    liveness: Streak,
}

/// Answers of one probe in a row.
#[derive(Clone, Debug, Default)]
struct Streak {
    holds: bool,
    good: u32,
    bad: u32,
    /// Of the last failure, while it fails.
    told: Option<String>,
}

impl Streak {
    /// True: it has failed as often as it may.
    fn take(&mut self, probe: &Probe, answer: Asked) -> bool {
        match answer {
            Asked::Holds => {
                (self.good, self.bad, self.told) = (self.good.saturating_add(1), 0, None);
                self.holds |= self.good >= probe.successes;
                false
            }
            Asked::Fails(why) => {
                (self.good, self.bad, self.told) = (0, self.bad.saturating_add(1), Some(why));
                let over = self.bad >= probe.failures;
                self.holds &= !over;
                over
            }
            Asked::Unknown => false,
        }
    }
}

impl Watch {
    pub fn new(probes: Probes) -> Self {
        let up = probes.startup.is_none();
        let fresh = Streak::default;
        Self { probes, up, startup: fresh(), readiness: fresh(), liveness: fresh() }
    }

    /// Of a run that had come up when it was asked before, and was ready then or not: so it is until it says otherwise.
    pub fn resumed(probes: Probes, ready: bool) -> Self {
        let readiness = Streak { holds: ready, ..Streak::default() };
        Self { up: true, readiness, ..Self::new(probes) }
    }

    pub fn is_up(&self) -> bool {
        self.up
    }

    pub fn probe(&self, kind: Kind) -> Option<&Probe> {
        match kind {
            Kind::Startup => self.probes.startup.as_ref(),
            Kind::Readiness => self.probes.readiness.as_ref(),
            Kind::Liveness => self.probes.liveness.as_ref(),
        }
    }

    /// What is asked next, and how long after the start: the startup probe alone until it holds, then the others.
    /// `last`: when each was asked last, likewise. `seen`: when the run was first seen; nothing was asked before.
    pub fn next(&self, last: impl Fn(Kind) -> Option<Duration>, seen: Duration) -> Option<(Kind, Duration)> {
        let kinds: &[Kind] = match self.up {
            false => &[Kind::Startup],
            true => &[Kind::Readiness, Kind::Liveness],
        };
        let second = |n: u32| Duration::from_secs(n.into());
        let due = |kind: Kind| {
            let probe = self.probe(kind)?;
            let first = second(probe.initial_delay_s).max(seen);
            Some((kind, last(kind).map_or(first, |last| last + second(probe.period_s))))
        };
        kinds.iter().filter_map(|kind| due(*kind)).min_by_key(|(_, due)| *due)
    }

    pub fn take(&mut self, kind: Kind, answer: Asked) -> Verdict {
        let (probe, streak, word) = match kind {
            Kind::Startup => (&self.probes.startup, &mut self.startup, "startup"),
            Kind::Readiness => (&self.probes.readiness, &mut self.readiness, "readiness"),
            Kind::Liveness => (&self.probes.liveness, &mut self.liveness, "liveness"),
        };
        let Some(probe) = probe else { return Verdict::Go };
        let over = streak.take(probe, answer);
        if kind == Kind::Startup && streak.holds {
            self.up = true;
        }
        if over && kind != Kind::Readiness {
            let told = streak.told.clone().unwrap_or_default();
            return Verdict::End(format!("its {word} probe failed {} times in a row: {told}", streak.bad));
        }
        Verdict::Go
    }

    /// None: neither a startup nor a readiness probe.
    pub fn ready(&self) -> Option<bool> {
        match (&self.probes.startup, &self.probes.readiness) {
            (None, None) => None,
            (_, None) => Some(self.up),
            (_, Some(_)) => Some(self.up && self.readiness.holds),
        }
    }

    /// What the probe that counts told last, while it is not ready.
    pub fn reason(&self) -> Option<String> {
        let (streak, word) = match self.up {
            false => (&self.startup, "startup"),
            true => (&self.readiness, "readiness"),
        };
        let told = streak.told.as_ref().filter(|_| !streak.holds)?;
        Some(format!("its {word} probe fails: {told}"))
    }
}
