//! The leases of hosts: the [`book`] with a clock, a lock and the words of the wire. Nothing is kept: a controller that
//! starts waits for a whole lease before it ends any. Refuses to read records: a task tells it who the hosts are.

pub mod book;

pub use book::{Known, Verdict};

use amphi_api::HostId;
use amphi_api::lease::{LeaseGrant, LeaseRenewal, LeaseState, LeaseTiming, Voter};
use book::{Book, Millis};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use uuid::Uuid;

/// What the records say of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownHost {
    pub name: String,
    /// Where it answers other hosts, as long as it has not said so itself.
    pub address: Option<SocketAddr>,
    pub known: Known,
}

/// All leases of the cloud, as this controller has granted them.
pub struct Leases {
    /// Tells grants of this process from those of one before.
    controller: Uuid,
    origin: Instant,
    state: Mutex<State>,
}

struct State {
    book: Book,
    hosts: BTreeMap<HostId, KnownHost>,
    /// Where hosts said that they answer.
    addresses: BTreeMap<HostId, SocketAddr>,
    /// What the host last said of itself.
    said: BTreeMap<HostId, (LeaseState, Option<Uuid>)>,
    /// Names the voters with their addresses: raised when any of that changes.
    list: u64,
    listed: Vec<Voter>,
}

/// Lets a lease be read: how a host stands, for tellers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub verdict: Verdict,
    /// What the host last said of itself; none: it has never renewed here.
    pub said: Option<LeaseState>,
    /// Milliseconds since its last renewal here.
    pub age: Option<Millis>,
}

impl Leases {
    /// `automatic`: whether failover is wanted at all; without it hosts do not fence themselves.
    pub fn new(timing: LeaseTiming, automatic: bool) -> Self {
        let state = State {
            book: Book::new(timing, automatic, 0),
            hosts: BTreeMap::new(),
            addresses: BTreeMap::new(),
            said: BTreeMap::new(),
            list: 0,
            listed: Vec::new(),
        };
        Self { controller: Uuid::new_v4(), origin: Instant::now(), state: Mutex::new(state) }
    }

    // A panic while it is held leaves plain data behind.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn millis(&self, now: Instant) -> Millis {
        now.saturating_duration_since(self.origin).as_millis() as Millis
    }

    pub fn timing(&self) -> LeaseTiming {
        *self.state().book.timing()
    }

    /// Takes over what the records say; called whenever they may say something new.
    pub fn know(&self, hosts: BTreeMap<HostId, KnownHost>, now: Instant) {
        let now = self.millis(now);
        let mut state = self.state();
        let known = hosts.iter().map(|(id, host)| (*id, host.known)).collect();
        state.hosts = hosts;
        state.book.know(&known, now);
        state.relist();
    }

    /// A host renews its lease. None: the records do not know it (any more).
    pub fn renewed(&self, host: HostId, renewal: &LeaseRenewal, now: Instant) -> Option<LeaseGrant> {
        let now = self.millis(now);
        let mut state = self.state();
        let echo = renewal.echo.filter(|echo| echo.controller == self.controller);
        let enforces = renewal.state != LeaseState::Off;
        let reply = state.book.renewed(host, echo.map(|e| e.number), enforces, now)?;
        let before = state.said.insert(host, (renewal.state, renewal.boot));
        if before.is_none_or(|(said, _)| said != renewal.state) {
            tracing::info!(%host, state = ?renewal.state, "a host's lease");
        }
        if state.addresses.insert(host, renewal.address) != Some(renewal.address) {
            state.relist();
        }
        let known = echo.is_some_and(|e| e.list == state.list);
        Some(LeaseGrant {
            sequence: renewal.sequence,
            controller: self.controller,
            number: reply.number,
            on: reply.on,
            barred: reply.barred,
            timing: *state.book.timing(),
            list: state.list,
            voters: (!known).then(|| state.listed.clone()),
            given_up: reply.given_up.into_iter().filter(|id| *id != host).collect(),
        })
    }

    /// What has become of every host's lease. Only [`Verdict::Ended`] allows failover, and only after [`Self::seize`].
    pub fn verdicts(&self, now: Instant) -> BTreeMap<HostId, Verdict> {
        let now = self.millis(now);
        self.state().book.verdicts(now)
    }

    /// See [`Book::seize`].
    pub fn seize(&self, host: HostId, now: Instant) -> bool {
        let now = self.millis(now);
        self.state().book.seize(host, now)
    }

    /// See [`Book::seize_fenced`].
    pub fn seize_fenced(&self, host: HostId) {
        self.state().book.seize_fenced(host);
    }

    /// See [`Book::admit`]. Where the bar is in the records, it is lifted there first.
    pub fn admit(&self, host: HostId, now: Instant) {
        let now = self.millis(now);
        self.state().book.admit(host, now);
    }

    /// Whether hosts fence themselves now.
    pub fn is_on(&self) -> bool {
        self.state().book.is_on()
    }

    /// How a host stands, for tellers. None: nobody has told of it yet.
    pub fn standing(&self, host: HostId, now: Instant) -> Option<Standing> {
        let now = self.millis(now);
        let mut state = self.state();
        let verdict = state.book.verdict(host, now)?;
        let said = state.said.get(&host).map(|(said, _)| *said);
        let age = state.book.renewed_at(host).map(|at| now.saturating_sub(at));
        Some(Standing { verdict, said, age })
    }

    /// Hosts that fence themselves, and whether they still must: see [`Book::enforcing`].
    pub fn enforcing(&self) -> (BTreeSet<HostId>, bool) {
        self.state().book.enforcing()
    }

    /// See [`Book::free`].
    pub fn free(&self, host: HostId) {
        self.state().book.free(host);
    }
}

impl State {
    fn relist(&mut self) {
        let voters = self.book.voters().filter_map(|id| {
            let host = self.hosts.get(&id)?;
            let address = self.addresses.get(&id).copied().or(host.address);
            Some(Voter { id, name: host.name.clone(), address })
        });
        let listed: Vec<Voter> = voters.collect();
        if listed != self.listed {
            self.listed = listed;
            self.list += 1;
        }
    }
}

#[cfg(test)]
mod tests;
