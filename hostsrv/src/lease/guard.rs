//! The thread that judges and acts: it looks at the rule many times a second and at every piece of news, writes down what
//! may be done, and fences. It waits for nobody: not for the controller, not for a disk, not for an engine.

use super::clock;
use super::fence::Fence;
use super::memo::{Files, Memo};
use super::rule::{Millis, Reason, Verdict};
use super::shared::Shared;
use amphi_api::lease::LeaseState;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest time between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// A fenced host is swept this often: an engine may just have been starting something.
const SWEEP: Duration = Duration::from_millis(100);
/// How long after a fence that is done so often; then once a second.
const BUSY: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(1);

pub struct Guard {
    pub shared: Arc<Shared>,
    pub files: Files,
    /// None: a witness, which has no guests.
    pub fence: Option<Arc<Fence>>,
    /// Sets the guests' devices down; answers how many there were.
    pub switch_off: Box<dyn Fn() -> usize + Send>,
    /// Cuts this host off from the volumes in shared groups; answers how many it was cut off from now.
    pub cut_off: Box<dyn Fn() -> usize + Send>,
}

impl Guard {
    /// Runs until the process ends.
    pub fn run(self) {
        let mut written: Option<Memo> = None;
        let mut fenced: Option<(Instant, Instant)> = None;
        if self.shared.state() == LeaseState::Fenced {
            fenced = Some((Instant::now(), Instant::now()));
        }
        loop {
            self.shared.wait(LOOK);
            let now = clock::now();
            let (rule, verdict, doubt) =
                self.shared.rule(|rule| (rule.clone(), rule.verdict(now), rule.in_doubt(now)));
            self.shared.set_doubt(doubt);
            self.shared.set_closed(matches!(verdict, Verdict::Fence(_)));
            let (state, until) = match verdict {
                Verdict::Off => (LeaseState::Off, 0),
                Verdict::Held { until } => (LeaseState::Held, until),
                Verdict::Hold { until } => (LeaseState::Hold, until),
                Verdict::Fence(_) => (LeaseState::Fenced, 0),
            };
            let state = match (state, &fenced) {
                // Others' words alone bring no guest back: the controller may have given its instances away meanwhile.
                (LeaseState::Hold, Some(_)) => LeaseState::Fenced,
                (state, _) => state,
            };
            let until = if state == LeaseState::Fenced { 0 } else { until };
            if fenced.is_some() && state != LeaseState::Fenced {
                // What an engine was starting when this host was fenced goes before anything new may come.
                self.sweep();
                tracing::info!("this host is admitted again");
                fenced = None;
            }
            let voters = self.shared.voters().borrow().clone();
            let memo = Memo { state, until, rule, voters };
            // Before anything is ended: nothing is started from here on. And nothing is said before a controller has spoken.
            if memo.rule.echo().is_some() && written.as_ref() != Some(&memo) {
                if let Err(error) = self.files.write(&memo) {
                    tracing::error!(%error, "the lease cannot be written down");
                }
                if written.as_ref().is_none_or(|w| w.state != state) {
                    tracing::info!(?state, "lease");
                }
                written = Some(memo);
            }
            match (state, fenced) {
                (LeaseState::Fenced, None) => {
                    self.carry_out(verdict, now);
                    fenced = Some((Instant::now(), Instant::now()));
                }
                (LeaseState::Fenced, Some((since, swept))) => {
                    let pause = if since.elapsed() < BUSY { SWEEP } else { IDLE };
                    if swept.elapsed() >= pause {
                        self.sweep();
                        fenced = Some((since, Instant::now()));
                    }
                }
                _ => {}
            }
            self.shared.set_state(state);
        }
    }

    fn carry_out(&self, verdict: Verdict, decided: Millis) {
        let why = match verdict {
            Verdict::Fence(Reason::Barred) => "the controller has shut this host out".to_owned(),
            Verdict::Fence(Reason::Alone { vouch, of }) => {
                format!("the lease is over, and only {vouch} of {of} voters vouch for this host")
            }
            _ => String::new(),
        };
        tracing::warn!(why, "this host fences itself");
        // Whatever was ordered before counts no more, even if this process dies now.
        if let Err(error) = self.files.renew_boot() {
            tracing::error!(%error, "run_dir/boot cannot be replaced");
        }
        let Some(fence) = &self.fence else { return };
        let bound = Duration::from_millis(self.shared.rule(|rule| rule.timing().fence));
        let report = fence.carry_out(bound, || {
            let devices = (self.switch_off)();
            // Ending the guests is not enough: what they wrote last would still go to a disk that others take over.
            (self.cut_off)();
            devices
        });
        let total_ms = clock::now().saturating_sub(decided);
        if report.left == 0 {
            tracing::warn!(?report, total_ms, "fenced: no guest is left");
        } else {
            tracing::error!(?report, total_ms, "guests are left; they are killed until they are gone");
        }
    }

    fn sweep(&self) {
        (self.cut_off)();
        let killed = self.fence.as_ref().map(|fence| fence.sweep()).unwrap_or_default();
        if !killed.is_empty() {
            tracing::warn!(count = killed.len(), "guests that came up while this host is fenced were ended");
        }
    }
}
