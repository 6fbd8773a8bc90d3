//! The leases' rules under a model checker: the very functions of controller and host, hosts that move in steps of half a
//! second, and everything that may go wrong between them at any step: partitions in one direction or both, answers that come
//! late, a controller that is restarted, a host that is frozen whole, clocks and processes that lag a step.
//!
//! One instance has its home on one host. What must never be is two bodies of it, but for one on a host that was frozen
//! and that the network has shut out. The rest of the file shows that the check can fail: with times that do not fit it
//! finds the two bodies.

use amphi_api::HostId;
use amphi_api::lease::{LeaseEcho, LeaseGrant, LeaseTiming, Voter, Word};
use amphi_controller::leases::book::{Book, Known, Verdict};
use amphi_hostsrv::lease::rule::{self, Rule};
use stateright::{Checker, Model, Property};
use std::time::Instant;
use uuid::Uuid;

/// One step, in milliseconds.
const STEP: u64 = 500;
/// The present, always: after each step everything that happened moves into the past.
const NOW: u64 = 100_000;
/// What is older than this is all the same.
const FLOOR: u64 = NOW - 16 * STEP;
const HOSTS: usize = 3;

/// The usual times, rounded to steps.
const TIMES: LeaseTiming = LeaseTiming {
    period: STEP,
    answer: STEP,
    term: 7 * STEP,
    fence: STEP,
    poll: STEP,
    evidence: 2 * STEP,
    margin: STEP,
    doubt: 3 * STEP,
};

fn id(host: usize) -> HostId {
    HostId(Uuid::from_u128(host as u128 + 1))
}

/// What may go wrong, each so many times.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Budget {
    cuts: u8,
    restarts: u8,
    freezes: u8,
    delays: u8,
    lags: u8,
}

struct Cloud {
    /// As the controller counts, and as it tells hosts to count. The same, but where the rules are broken on purpose.
    controller: LeaseTiming,
    host: LeaseTiming,
    budget: Budget,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// None: the controller is down.
    book: Option<Book>,
    /// Tells controllers apart.
    controller: u8,
    hosts: Vec<Host>,
    /// Nothing passes from the first to the second. `HOSTS` is the controller.
    cuts: Vec<(usize, usize)>,
    /// Where the instance should run.
    home: usize,
    moves: u8,
    budget: Budget,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Host {
    rule: Rule,
    body: bool,
    /// Decided to fence itself; the body is gone one step later.
    fencing: bool,
    fenced: bool,
    frozen: bool,
    was_frozen: bool,
    /// The network has shut it out.
    barred: bool,
    /// A renewal that is still on its way, with the echo it carries and when it was sent.
    late: Option<(Option<LeaseEcho>, bool, u64)>,
    held_out: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Action {
    /// A step of time. `polls_first`: hosts ask each other before they hear the controller, or after. `lag`: this host's
    /// clock, or its process, stands still meanwhile. `delay`: this host's renewal arrives one step later.
    Step {
        polls_first: bool,
        lag: Option<usize>,
        delay: Option<usize>,
    },
    Cut(Cut),
    Heal,
    /// All but what lies between this host and the controller.
    HealBut(usize),
    Stop,
    Start,
    Freeze(usize),
    Thaw(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Cut {
    /// From everything.
    Alone(usize),
    FromController(usize),
    ToController(usize),
    OfController(usize),
    /// The controller from all hosts.
    Controller,
    Between(usize, usize),
    OneWay(usize, usize),
}

impl Cut {
    fn links(self) -> Vec<(usize, usize)> {
        let both = |a, b| [(a, b), (b, a)];
        match self {
            Cut::Alone(h) => (0..=HOSTS).filter(|o| *o != h).flat_map(|o| both(h, o)).collect(),
            Cut::FromController(h) => both(h, HOSTS).to_vec(),
            Cut::ToController(h) => vec![(h, HOSTS)],
            Cut::OfController(h) => vec![(HOSTS, h)],
            Cut::Controller => (0..HOSTS).flat_map(|h| both(h, HOSTS)).collect(),
            Cut::Between(a, b) => both(a, b).to_vec(),
            Cut::OneWay(a, b) => vec![(a, b)],
        }
    }
}

impl Cloud {
    fn book(&self) -> Book {
        let mut book = Book::new(self.controller, true, NOW);
        book.know(
            &(0..HOSTS).map(|h| (id(h), Known { voter: true, enforces: true, barred: false })).collect(),
            NOW,
        );
        book
    }

    fn sound(budget: Budget) -> Self {
        Self { controller: TIMES, host: TIMES, budget }
    }
}

impl State {
    fn passes(&self, from: usize, to: usize) -> bool {
        !self.cuts.contains(&(from, to))
    }

    fn connected(&self, a: usize, b: usize) -> bool {
        self.passes(a, b) && self.passes(b, a)
    }

    /// A renewal of `host` reaches the controller, which answers; whether the answer gets through, the links say.
    fn renew(&mut self, cloud: &Cloud, host: usize, echo: Option<LeaseEcho>, enforces: bool, sent: u64) {
        if !self.passes(host, HOSTS) {
            return;
        }
        let controller = Uuid::from_u128(u128::from(self.controller));
        let Some(book) = &mut self.book else { return };
        let echo = echo.filter(|e| e.controller == controller).map(|e| e.number);
        // One that is shut out is let in when it has buried what it lost.
        let buried = self.hosts[host].barred && !self.hosts[host].body && self.home != host;
        let Some(mut reply) = book.renewed(id(host), echo, enforces, NOW) else { return };
        if reply.barred && buried && self.hosts[host].fenced {
            book.admit(id(host), NOW);
            let Some(again) = book.renewed(id(host), echo, enforces, NOW) else { return };
            reply = again;
            self.hosts[host].barred = false;
            self.hosts[host].was_frozen = false;
        }
        if !self.passes(HOSTS, host) || NOW > sent + cloud.host.answer {
            return;
        }
        let voter = |h| Voter { id: id(h), name: String::new(), address: None };
        let grant = LeaseGrant {
            sequence: 0,
            controller,
            number: reply.number,
            on: reply.on,
            barred: reply.barred,
            timing: cloud.host,
            list: 1,
            voters: Some((0..HOSTS).map(voter).collect()),
            given_up: reply.given_up.into_iter().filter(|h| *h != id(host)).collect(),
        };
        self.hosts[host].rule.granted(sent, &grant);
    }

    fn renewals(&mut self, cloud: &Cloud, delay: Option<usize>) {
        for host in 0..HOSTS {
            if let Some((echo, enforces, sent)) = self.hosts[host].late.take() {
                self.renew(cloud, host, echo, enforces, sent);
            }
            if self.hosts[host].frozen {
                continue;
            }
            let (echo, enforces) = (self.hosts[host].rule.echo(), self.hosts[host].rule.is_on());
            if delay == Some(host) {
                self.hosts[host].late = Some((echo, enforces, NOW));
            } else {
                self.renew(cloud, host, echo, enforces, NOW);
            }
        }
    }

    fn polls(&mut self) {
        for host in 0..HOSTS {
            if self.hosts[host].frozen || !self.hosts[host].rule.in_doubt(NOW) {
                continue;
            }
            for peer in 0..HOSTS {
                if peer != host && !self.hosts[peer].frozen && self.connected(host, peer) {
                    let word: Word = self.hosts[peer].rule.word_on(id(host));
                    self.hosts[host].rule.heard(id(peer), NOW, word);
                }
            }
        }
    }

    /// Hosts look at their rules and act.
    fn guard(&mut self, lag: Option<usize>) {
        for (n, host) in self.hosts.iter_mut().enumerate() {
            if host.frozen || lag == Some(n) {
                continue;
            }
            if std::mem::take(&mut host.fencing) {
                host.body = false;
                host.fenced = true;
            }
            match host.rule.verdict(NOW) {
                rule::Verdict::Fence(_) => host.fencing = !host.fenced,
                rule::Verdict::Held { .. } | rule::Verdict::Off => {
                    // A fence that has begun is carried out.
                    if !host.fencing {
                        host.fenced = false;
                    }
                }
                rule::Verdict::Hold { .. } => host.held_out |= host.body && !host.fenced,
            }
        }
    }

    /// The controller fails over what it may; hosts start what they should hold.
    fn fail_over(&mut self) {
        let home = self.home;
        let Some(book) = &mut self.book else { return };
        if book.seize(id(home), NOW) {
            self.hosts[home].barred = true;
            let fit = |h: &usize| *h != home && book.clone().verdict(id(*h), NOW) == Some(Verdict::Fresh);
            if let Some(to) = (0..HOSTS).find(fit) {
                self.home = to;
                self.moves += 1;
            }
        }
        // The worst case: where it is ordered it runs at once.
        let to = self.home;
        let ordered = self.connected(to, HOSTS);
        let host = &mut self.hosts[to];
        let leased = matches!(host.rule.verdict(NOW), rule::Verdict::Held { .. });
        if ordered && leased && !host.frozen && !host.fencing && !host.fenced && !host.barred {
            host.body = true;
        }
    }

    fn step(&mut self, cloud: &Cloud, polls_first: bool, lag: Option<usize>, delay: Option<usize>) {
        if let Some(book) = &mut self.book {
            book.age(STEP, FLOOR);
        }
        for (n, host) in self.hosts.iter_mut().enumerate() {
            host.rule.age_echo(STEP, FLOOR);
            if lag != Some(n) {
                host.rule.age_by(STEP, FLOOR);
            }
            if let Some((echo, _, sent)) = &mut host.late {
                *sent -= STEP;
                if let Some(echo) = echo {
                    echo.number = (echo.number - STEP).max(FLOOR);
                }
            }
        }
        if polls_first {
            self.polls();
        }
        self.renewals(cloud, delay);
        if !polls_first {
            self.polls();
        }
        self.guard(lag);
        self.fail_over();
    }
}

impl Model for Cloud {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let host = |h| Host {
            rule: Rule::new(id(h)),
            body: h == 0,
            fencing: false,
            fenced: false,
            frozen: false,
            was_frozen: false,
            barred: false,
            late: None,
            held_out: false,
        };
        let mut state = State {
            book: Some(self.book()),
            controller: 1,
            hosts: (0..HOSTS).map(host).collect(),
            cuts: Vec::new(),
            home: 0,
            moves: 0,
            budget: self.budget.clone(),
        };
        // Until everybody holds a lease and knows of it.
        (0..3).for_each(|_| state.step(self, false, None, None));
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let budget = &state.budget;
        let busy = state.hosts.iter().any(|h| h.rule.in_doubt(NOW));
        for polls_first in [false, true] {
            // Who asks when is all the same while nobody asks.
            if polls_first && !busy {
                continue;
            }
            actions.push(Action::Step { polls_first, lag: None, delay: None });
            // The home's own clock and messages matter, and those of one who could vouch for it.
            if budget.lags > 0 {
                actions.push(Action::Step { polls_first, lag: Some(state.home), delay: None });
            }
            if budget.delays > 0 {
                let delayed = [0, 1].map(|h| Action::Step { polls_first, lag: None, delay: Some(h) });
                actions.extend(delayed);
            }
        }
        if budget.cuts > 0 {
            let mut cuts: Vec<Cut> = (0..HOSTS)
                .flat_map(|h| {
                    [Cut::Alone(h), Cut::FromController(h), Cut::ToController(h), Cut::OfController(h)]
                })
                .collect();
            cuts.push(Cut::Controller);
            cuts.extend([Cut::Between(0, 1), Cut::Between(0, 2), Cut::OneWay(0, 1), Cut::OneWay(1, 0)]);
            actions.extend(cuts.into_iter().map(Action::Cut));
        }
        if !state.cuts.is_empty() {
            actions.push(Action::Heal);
        }
        if state.cuts.contains(&(state.home, HOSTS)) && state.cuts.len() > 2 {
            actions.push(Action::HealBut(state.home));
        }
        match state.book {
            Some(_) if budget.restarts > 0 => actions.push(Action::Stop),
            Some(_) => {}
            None => actions.push(Action::Start),
        }
        for (n, host) in state.hosts.iter().enumerate() {
            if host.frozen {
                actions.push(Action::Thaw(n));
            } else if budget.freezes > 0 && n < 2 {
                actions.push(Action::Freeze(n));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Step { polls_first, lag, delay } => {
                state.budget.lags -= u8::from(lag.is_some());
                state.budget.delays -= u8::from(delay.is_some());
                state.step(self, polls_first, lag, delay);
            }
            Action::Cut(cut) => {
                state.budget.cuts -= 1;
                state.cuts.extend(cut.links());
                state.cuts.sort_unstable();
                state.cuts.dedup();
                if state.cuts == last.cuts {
                    return None;
                }
            }
            Action::Heal => state.cuts.clear(),
            Action::HealBut(host) => {
                state.cuts.retain(|cut| [(host, HOSTS), (HOSTS, host)].contains(cut));
            }
            Action::Stop => {
                state.budget.restarts -= 1;
                state.book = None;
                // What the dead one had seized is in the records.
            }
            Action::Start => {
                state.controller += 1;
                let mut book = self.book();
                let barred = |h: usize| state.hosts[h].barred;
                book.know(
                    &(0..HOSTS)
                        .map(|h| (id(h), Known { voter: true, enforces: true, barred: barred(h) }))
                        .collect(),
                    NOW,
                );
                state.book = Some(book);
            }
            Action::Freeze(host) => {
                state.budget.freezes -= 1;
                state.hosts[host].frozen = true;
                state.hosts[host].was_frozen = true;
            }
            Action::Thaw(host) => state.hosts[host].frozen = false,
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one body", |_, state: &State| {
                let heard = |h: &&Host| h.body && !(h.was_frozen && h.barred);
                state.hosts.iter().filter(heard).count() <= 1
            }),
            Property::sometimes("failover", |_, state: &State| state.moves > 0),
            Property::sometimes("hold", |_, state: &State| state.hosts.iter().any(|h| h.held_out)),
            Property::sometimes("fence", |_, state: &State| state.hosts.iter().any(|h| h.fenced)),
            Property::sometimes("back", |_, state: &State| {
                state.moves > 0
                    && state.hosts.iter().all(|h| !h.barred && !h.fenced && !h.frozen)
                    && state.cuts.is_empty()
            }),
        ]
    }
}

const NONE: Budget = Budget { cuts: 0, restarts: 0, freezes: 0, delays: 0, lags: 0 };

/// Goes through everything that can happen within so many actions.
fn check(name: &str, cloud: Cloud, depth: usize) -> impl Checker<Cloud> {
    let began = Instant::now();
    let checker = cloud.checker().threads(2).target_max_depth(depth).spawn_bfs().join();
    println!(
        "{name}: {} states, {} different ones, depth {}, {:.1} s",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f32()
    );
    checker
}

fn holds(name: &str, budget: Budget, depth: usize, happens: &[&'static str]) {
    let checker = check(name, Cloud::sound(budget), depth);
    if let Some(path) = checker.discovery("one body") {
        panic!("{name}: two bodies after {:?}", path.into_actions());
    }
    for what in happens {
        assert!(checker.discovery(what).is_some(), "{name}: {what} never happens: does this check anything?");
    }
}

#[test]
fn one_body_whatever_partitions_come_and_go() {
    holds("partitions", Budget { cuts: 2, ..NONE }, 22, &["failover", "fence", "back", "hold"]);
}

#[test]
fn one_body_though_the_controller_is_restarted() {
    holds("restarts", Budget { cuts: 1, restarts: 1, ..NONE }, 26, &["failover", "fence", "hold"]);
}

#[test]
fn one_body_though_clocks_and_messages_lag() {
    holds("lags", Budget { cuts: 1, delays: 1, lags: 1, ..NONE }, 22, &["failover", "fence"]);
}

#[test]
fn a_frozen_host_is_shut_out_before_anything_starts_elsewhere() {
    holds("freezes", Budget { cuts: 1, freezes: 1, ..NONE }, 22, &["failover"]);
}

/// The check is worth something only if it can fail.
fn breaks(name: &str, cloud: Cloud, depth: usize) {
    let checker = check(name, cloud, depth);
    let path = checker.discovery("one body").unwrap_or_else(|| panic!("{name}: two bodies are not found"));
    println!("  two bodies after {:?}", path.into_actions());
}

#[test]
fn a_margin_below_zero_is_found_out() {
    // The host believes in a lease that is longer than the controller thinks.
    let host = LeaseTiming { term: TIMES.term + 6 * STEP, ..TIMES };
    breaks("margin", Cloud { host, ..Cloud::sound(Budget { cuts: 1, ..NONE }) }, 24);
}

#[test]
fn a_controller_that_does_not_let_words_lapse_is_found_out() {
    // It acts as soon as enough voters know, though the host may have heard them a moment before.
    let controller = LeaseTiming { evidence: 0, fence: 0, ..TIMES };
    breaks("settle", Cloud { controller, ..Cloud::sound(Budget { cuts: 1, ..NONE }) }, 30);
}

#[test]
fn a_host_that_is_frozen_and_not_shut_out_would_be_a_second_body() {
    // The same model, asked for what it excuses: the excuse is needed.
    let cloud = Cloud::sound(Budget { freezes: 1, ..NONE });
    let mut state = cloud.init_states().remove(0);
    state = cloud.next_state(&state, Action::Freeze(0)).expect("frozen");
    for _ in 0..12 {
        state = cloud
            .next_state(&state, Action::Step { polls_first: false, lag: None, delay: None })
            .expect("a step");
    }
    assert_eq!((state.moves, state.home), (1, 1));
    assert!(state.hosts[0].body && state.hosts[1].body && state.hosts[0].barred);
}
