//! How the story is told: a line per check with its seconds, and the count at the end.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::time::Duration;

/// Hears of the story as it goes.
pub trait Progress {
    /// A step begins.
    fn step(&self, number: usize, title: &str);
    /// A check held, after this long.
    fn check(&self, text: &str, took: Duration);
    /// Something measured or worth seeing.
    fn note(&self, text: &str);
    fn failed(&self, number: usize, error: &anyhow::Error);
    /// A step that stands on another which is not ok.
    fn not_run(&self, number: usize, title: &str, because: usize);
}

/// Lines on standard output.
pub struct Lines;

impl Lines {
    fn say(text: &str) {
        // A reader that has left does not end the story.
        let _ = writeln!(std::io::stdout(), "{text}").and_then(|()| std::io::stdout().flush());
    }
}

impl Progress for Lines {
    fn step(&self, number: usize, title: &str) {
        Self::say(&format!("\n{number:>2}. {title}"));
    }

    fn check(&self, text: &str, took: Duration) {
        Self::say(&format!("    {:>6.1} s  {text}", took.as_secs_f64()));
    }

    fn note(&self, text: &str) {
        for line in text.lines() {
            Self::say(&format!("              {line}"));
        }
    }

    fn failed(&self, number: usize, error: &anyhow::Error) {
        Self::say(&format!("    FAILED    step {number}: {error:#}"));
    }

    fn not_run(&self, number: usize, title: &str, because: usize) {
        Self::say(&format!("\n{number:>2}. {title}\n    NOT RUN   stands on step {because}"));
    }
}

/// What became of the steps.
#[derive(Clone, Debug)]
pub struct Outcome {
    steps: usize,
    ok: BTreeMap<usize, Duration>,
    failed: BTreeMap<usize, String>,
}

impl Outcome {
    pub(super) fn new(steps: usize) -> Self {
        Self { steps, ok: BTreeMap::new(), failed: BTreeMap::new() }
    }

    pub(super) fn ok(&mut self, number: usize, took: Duration) {
        self.ok.insert(number, took);
    }

    pub(super) fn failed(&mut self, number: usize, why: String) {
        self.failed.insert(number, why);
    }

    /// Whether this step was played and held.
    pub fn is_ok(&self, number: usize) -> bool {
        self.ok.contains_key(&number)
    }

    /// Whether every step was.
    pub fn all_ok(&self) -> bool {
        self.ok.len() == self.steps
    }

    /// Failed steps with their reasons; those that were not run are in neither this nor the count of the good ones.
    pub fn failures(&self) -> &BTreeMap<usize, String> {
        &self.failed
    }
}

/// The story's last line: `story: 11/11 ok`.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "story: {}/{} ok", self.ok.len(), self.steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_held_counts() {
        let mut outcome = Outcome::new(3);
        outcome.ok(1, Duration::ZERO);
        outcome.failed(2, "no".to_owned());
        assert_eq!(outcome.to_string(), "story: 1/3 ok");
        assert!(!outcome.all_ok() && outcome.is_ok(1) && !outcome.is_ok(2) && !outcome.is_ok(3));
        outcome.ok(2, Duration::ZERO);
        outcome.ok(3, Duration::ZERO);
        assert!(outcome.all_ok());
    }
}
