//! What the parts of the lease process share: the rule, the voters, and bells. The guard thread waits on it, the network's
//! tasks write to it. Refuses to do any I/O while it is locked.

use super::rule::{Millis, Rule};
use amphi_api::HostId;
use amphi_api::lease::{LeaseGrant, LeaseState, Voter, Word};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

pub struct Shared {
    pub me: HostId,
    inside: Mutex<Inside>,
    bell: Condvar,
    voters: watch::Sender<Vec<Voter>>,
    doubt: watch::Sender<bool>,
    /// Guests' way onto physical networks is closed.
    closed: watch::Sender<bool>,
}

struct Inside {
    rule: Rule,
    /// As the guard last wrote it.
    state: LeaseState,
    /// Something has come in since the guard last looked.
    news: bool,
}

impl Shared {
    pub fn new(me: HostId, rule: Rule, voters: Vec<Voter>, state: LeaseState) -> Self {
        Self {
            me,
            inside: Mutex::new(Inside { rule, state, news: true }),
            bell: Condvar::new(),
            voters: watch::Sender::new(voters),
            doubt: watch::Sender::new(false),
            closed: watch::Sender::new(false),
        }
    }

    // A panic while it is held leaves plain data behind.
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn rule<T>(&self, look: impl FnOnce(&mut Rule) -> T) -> T {
        look(&mut self.inside().rule)
    }

    pub fn state(&self) -> LeaseState {
        self.inside().state
    }

    /// Tells when guests' way onto physical networks is closed or opened.
    pub fn passage(&self) -> watch::Receiver<bool> {
        self.closed.subscribe()
    }

    pub fn set_closed(&self, closed: bool) {
        self.closed.send_if_modified(|held| std::mem::replace(held, closed) != closed);
    }

    /// The guard has acted, and written it down.
    pub fn set_state(&self, state: LeaseState) {
        self.inside().state = state;
    }

    pub fn granted(&self, sent: Millis, grant: &LeaseGrant) {
        if let Some(voters) = &grant.voters {
            self.voters.send_if_modified(|held| take_voters(held, voters));
        }
        let mut inside = self.inside();
        inside.rule.granted(sent, grant);
        inside.news = true;
        self.bell.notify_one();
    }

    pub fn heard(&self, voter: HostId, asked: Millis, word: Word) {
        let mut inside = self.inside();
        inside.rule.heard(voter, asked, word);
        inside.news = true;
        self.bell.notify_one();
    }

    pub fn voters(&self) -> watch::Receiver<Vec<Voter>> {
        self.voters.subscribe()
    }

    pub fn doubt(&self) -> watch::Receiver<bool> {
        self.doubt.subscribe()
    }

    pub fn set_doubt(&self, doubt: bool) {
        self.doubt.send_if_modified(|held| std::mem::replace(held, doubt) != doubt);
    }

    /// Waits for news, at most so long.
    pub fn wait(&self, at_most: Duration) {
        let inside = self.inside();
        let (mut inside, _) = self
            .bell
            .wait_timeout_while(inside, at_most, |inside| !inside.news)
            .unwrap_or_else(PoisonError::into_inner);
        inside.news = false;
    }
}

/// A controller that has just started may not know yet where a voter answers; what was known before stands.
fn take_voters(held: &mut Vec<Voter>, news: &[Voter]) -> bool {
    let next: Vec<Voter> = news
        .iter()
        .map(|voter| {
            let before = held.iter().find(|h| h.id == voter.id).and_then(|h| h.address);
            Voter { address: voter.address.or(before), ..voter.clone() }
        })
        .collect();
    let differs = next != *held;
    *held = next;
    differs
}
