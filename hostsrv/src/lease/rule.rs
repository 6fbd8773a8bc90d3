//! Whether this host may keep its guests, decided without I/O: grants and other hosts' words in, a verdict out. Time is a
//! parameter, in milliseconds on this host's own clock, which goes on while the machine sleeps.
//!
//! The lease runs from the *sending* of the renewal that was answered. When it is over, the host may hold out as long as
//! more than half of all voters (itself counted if it is one) say that it is not given up, each word being good for
//! `evidence` from when it was asked for. Else it must fence itself, and has `fence` for that: a lease therefore counts as
//! over `fence` early.
//!
//! Refuses to start from a guess: a host that no controller has ever spoken to holds out for nobody and vouches for nobody.

use amphi_api::HostId;
use amphi_api::lease::{LeaseEcho, LeaseGrant, LeaseTiming, Word};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Milliseconds on this host's clock.
pub type Millis = u64;

/// What the host may do. `until`: when the verdict must have been found anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Off,
    Held {
        until: Millis,
    },
    Hold {
        until: Millis,
    },
    /// End all guests now.
    Fence(Reason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The controller has shut this host out: its instances start elsewhere.
    Barred,
    /// The lease is over, and so many voters vouch for this host, of so many.
    Alone { vouch: usize, of: usize },
}

/// Whether, and for how long, guests may be let onto physical networks by something that ends without us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// There are no leases.
    Free,
    /// From now on for so many seconds, at least one.
    Open {
        seconds: u16,
    },
    /// What was let through goes on until it ends by itself.
    Lapsing,
    Closed,
}

/// The switch forgets a flow at most so much later than it was told to, in milliseconds: ofproto-dpif looks once a second.
const FORGETS: Millis = 1_000;

/// What the host knows of leases.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    me: HostId,
    timing: LeaseTiming,
    on: bool,
    barred: bool,
    /// When the last renewal that was granted was sent.
    renewed: Option<Millis>,
    /// The newest grant.
    echo: Option<LeaseEcho>,
    voters: BTreeSet<HostId>,
    given_up: BTreeSet<HostId>,
    /// Voters that say this host is not given up, and when they were asked.
    vouching: BTreeMap<HostId, Millis>,
}

impl Rule {
    pub fn new(me: HostId) -> Self {
        Self {
            me,
            timing: LeaseTiming::default(),
            on: false,
            barred: false,
            renewed: None,
            echo: None,
            voters: BTreeSet::new(),
            given_up: BTreeSet::new(),
            vouching: BTreeMap::new(),
        }
    }

    pub fn timing(&self) -> &LeaseTiming {
        &self.timing
    }

    pub fn is_on(&self) -> bool {
        self.on || self.barred
    }

    pub fn echo(&self) -> Option<LeaseEcho> {
        self.echo
    }

    pub fn voters(&self) -> &BTreeSet<HostId> {
        &self.voters
    }

    /// Takes the answer to the renewal that was sent at `sent`. Answers come in the order of their questions, since the
    /// next is asked when the last was answered or given up.
    pub fn granted(&mut self, sent: Millis, grant: &LeaseGrant) {
        self.timing = grant.timing;
        self.on = grant.on;
        self.barred = grant.barred;
        self.echo = Some(LeaseEcho { controller: grant.controller, number: grant.number, list: grant.list });
        if let Some(voters) = &grant.voters {
            self.voters = voters.iter().map(|voter| voter.id).collect();
        }
        self.given_up = grant.given_up.iter().copied().collect();
        if !grant.barred {
            self.renewed = Some(sent);
        }
    }

    /// A voter, asked at `asked`, has said this of us.
    pub fn heard(&mut self, voter: HostId, asked: Millis, word: Word) {
        match word {
            Word::Clear => self.vouching.insert(voter, asked),
            Word::Unknown | Word::GivenUp => self.vouching.remove(&voter),
        };
    }

    /// What this host says when it is asked about another.
    pub fn word_on(&self, other: HostId) -> Word {
        match self.echo {
            None => Word::Unknown,
            Some(_) if self.given_up.contains(&other) => Word::GivenUp,
            Some(_) => Word::Clear,
        }
    }

    /// How long ago the last granted renewal was sent.
    pub fn age(&self, now: Millis) -> Option<Millis> {
        self.renewed.map(|at| now.saturating_sub(at))
    }

    /// The others are asked from the first renewal that fails.
    pub fn in_doubt(&self, now: Millis) -> bool {
        self.on && self.renewed.is_none_or(|at| now >= at + self.timing.period + self.timing.answer)
    }

    pub fn verdict(&self, now: Millis) -> Verdict {
        if self.barred {
            return Verdict::Fence(Reason::Barred);
        }
        if !self.on {
            return Verdict::Off;
        }
        let lease = self.renewed.map_or(0, |at| at + self.timing.term - self.timing.fence);
        if now < lease {
            return Verdict::Held { until: lease };
        }
        match self.vouched(now) {
            Some(until) => Verdict::Hold { until },
            None => Verdict::Fence(Reason::Alone { vouch: self.words(now).len(), of: self.voters.len() }),
        }
    }

    /// Until when a majority of the voters stands for this host.
    fn vouched(&self, now: Millis) -> Option<Millis> {
        let mut good = self.words(now);
        // The newest first: with this many the majority stands until the oldest of them lapses.
        good.sort_unstable_by(|a, b| b.cmp(a));
        good.get(self.voters.len() / 2).copied()
    }

    /// When the good words for this host, its own among them, lose their worth.
    fn words(&self, now: Millis) -> Vec<Millis> {
        let asked = |voter: &HostId| {
            if *voter == self.me { Some(now) } else { self.vouching.get(voter).copied() }
        };
        let good = self.voters.iter().filter_map(asked).map(|asked| asked + self.timing.evidence);
        good.filter(|until| now < *until).collect()
    }

    /// For how long a flow may let guests onto physical networks: it has to be forgotten before the controller may start
    /// them elsewhere, though this process be frozen from now on. That is the end of the lease; while it holds out by others'
    /// words, a second, which may be half a second too long (docs/lease.md).
    pub fn passage(&self, now: Millis) -> Passage {
        match self.verdict(now) {
            Verdict::Off => Passage::Free,
            Verdict::Fence(_) => Passage::Closed,
            Verdict::Hold { .. } => Passage::Open { seconds: 1 },
            Verdict::Held { .. } => {
                let end = self.renewed.map_or(0, |at| at + self.timing.term);
                let left = end.saturating_sub(now + FORGETS) / 1_000;
                match u16::try_from(left).unwrap_or(u16::MAX) {
                    // The lease is about to end, and nobody knows yet how.
                    0 if self.vouched(now).is_some() => Passage::Open { seconds: 1 },
                    0 => Passage::Lapsing,
                    seconds => Passage::Open { seconds },
                }
            }
        }
    }

    /// Moves all that happened `by` milliseconds into the past, as far as `floor`; see the same of the controller's book.
    pub fn age_by(&mut self, by: Millis, floor: Millis) {
        let back = |time: &mut Millis| *time = time.saturating_sub(by).max(floor.min(*time));
        self.renewed.iter_mut().for_each(back);
        self.vouching.values_mut().for_each(back);
    }

    /// The same for the grant's number, which is a time on the controller's clock.
    pub fn age_echo(&mut self, by: Millis, floor: Millis) {
        if let Some(echo) = &mut self.echo {
            echo.number = echo.number.saturating_sub(by).max(floor.min(echo.number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::lease::Voter;
    use uuid::Uuid;

    fn host(number: u128) -> HostId {
        HostId(Uuid::from_u128(number))
    }

    fn grant(voters: u128) -> LeaseGrant {
        let voter = |n| Voter { id: host(n), name: format!("h{n}"), address: None };
        LeaseGrant {
            sequence: 1,
            controller: Uuid::from_u128(9),
            number: 100,
            on: true,
            barred: false,
            timing: LeaseTiming::default(),
            list: 1,
            voters: Some((1..=voters).map(voter).collect()),
            given_up: vec![],
        }
    }

    fn leased(voters: u128) -> Rule {
        let mut rule = Rule::new(host(1));
        rule.granted(10_000, &grant(voters));
        rule
    }

    #[test]
    fn a_lease_runs_from_the_sending_and_leaves_time_to_fence() {
        let rule = leased(3);
        assert_eq!(rule.verdict(10_000), Verdict::Held { until: 12_700 });
        assert_eq!(rule.verdict(12_699), Verdict::Held { until: 12_700 });
        assert_eq!(rule.verdict(12_700), Verdict::Fence(Reason::Alone { vouch: 1, of: 3 }));
        assert!(!rule.in_doubt(11_199) && rule.in_doubt(11_200));
    }

    #[test]
    fn a_majority_that_vouches_lets_it_hold_out_for_as_long_as_it_does() {
        let late = 13_000;
        let mut rule = leased(5);
        rule.heard(host(2), late - 100, Word::Clear);
        assert_eq!(rule.verdict(late), Verdict::Fence(Reason::Alone { vouch: 2, of: 5 }));
        rule.heard(host(3), late - 200, Word::Clear);
        assert_eq!(
            rule.verdict(late),
            Verdict::Hold { until: late + 400 },
            "three of five, until the older lapses"
        );
        rule.heard(host(4), late, Word::Clear);
        assert_eq!(rule.verdict(late), Verdict::Hold { until: late + 500 });
        assert_eq!(rule.verdict(late + 500), Verdict::Fence(Reason::Alone { vouch: 2, of: 5 }));
        rule.heard(host(4), late + 10, Word::GivenUp);
        rule.heard(host(3), late + 10, Word::Unknown);
        assert_eq!(
            rule.verdict(late + 10),
            Verdict::Fence(Reason::Alone { vouch: 2, of: 5 }),
            "one word to the contrary counts at once"
        );
        // Half is no majority: the controller may act on the other half.
        let mut rule = leased(4);
        rule.heard(host(2), late, Word::Clear);
        assert!(matches!(rule.verdict(late), Verdict::Fence(_)));
        // One who is no voter has no voice, its own included.
        let mut rule = Rule::new(host(9));
        rule.granted(10_000, &grant(3));
        rule.heard(host(2), late, Word::Clear);
        rule.heard(host(7), late, Word::Clear);
        assert_eq!(rule.verdict(late), Verdict::Fence(Reason::Alone { vouch: 1, of: 3 }));
        rule.heard(host(3), late, Word::Clear);
        assert!(matches!(rule.verdict(late), Verdict::Hold { .. }));
    }

    #[test]
    fn what_the_controller_says_counts_over_all() {
        let mut rule = leased(3);
        rule.granted(10_500, &LeaseGrant { barred: true, ..grant(3) });
        assert_eq!(rule.verdict(10_600), Verdict::Fence(Reason::Barred));
        rule.granted(11_000, &grant(3));
        assert_eq!(rule.verdict(11_100), Verdict::Held { until: 13_700 });
        rule.granted(11_500, &LeaseGrant { on: false, voters: None, ..grant(3) });
        assert_eq!((rule.verdict(99_000), rule.in_doubt(99_000)), (Verdict::Off, false));
        assert_eq!(Rule::new(host(1)).verdict(5), Verdict::Off);
        assert_eq!(rule.voters().len(), 3, "a grant without a list keeps the one before");
    }

    #[test]
    fn the_way_out_ends_before_the_lease_does() {
        let mut rule = leased(3);
        // The flow lives at most so long: its seconds, and what the switch is late.
        for (age, expected) in [
            (0, Passage::Open { seconds: 2 }),
            (500, Passage::Open { seconds: 2 }),
            (501, Passage::Open { seconds: 1 }),
            (1_500, Passage::Open { seconds: 1 }),
            (1_501, Passage::Lapsing),
            (2_699, Passage::Lapsing),
            (2_700, Passage::Closed),
        ] {
            assert_eq!(rule.passage(10_000 + age), expected, "{age} ms after the renewal was sent");
            if let Passage::Open { seconds } = expected {
                assert!(age + u64::from(seconds) * 1_000 + FORGETS <= rule.timing().term);
            }
        }
        // Others' words keep it open, before the lease is over and after it.
        for late in [11_600, 12_650, 20_000] {
            rule.heard(host(2), late - 100, Word::Clear);
            assert_eq!(rule.passage(late), Passage::Open { seconds: 1 });
        }
        rule.granted(21_000, &LeaseGrant { barred: true, ..grant(3) });
        assert_eq!(rule.passage(21_000), Passage::Closed);
        assert_eq!(Rule::new(host(1)).passage(5), Passage::Free);
    }

    #[test]
    fn it_vouches_for_those_who_are_not_given_up() {
        assert_eq!(Rule::new(host(1)).word_on(host(2)), Word::Unknown);
        let mut rule = leased(3);
        assert_eq!(rule.word_on(host(2)), Word::Clear);
        rule.granted(10_500, &LeaseGrant { given_up: vec![host(2)], ..grant(3) });
        assert_eq!((rule.word_on(host(2)), rule.word_on(host(3))), (Word::GivenUp, Word::Clear));
        let kept: Rule = serde_json::from_str(&serde_json::to_string(&rule).unwrap()).unwrap();
        assert_eq!(kept, rule, "it survives a restart of its process");
    }
}
