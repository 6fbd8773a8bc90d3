//! The book of leases: renewals in, verdicts out. Pure: no clock, no network, no record; time is a parameter, in
//! milliseconds on the controller's own clock.
//!
//! A host that has not renewed for `doubt` is **given up**: every grant to the others from then on names it. While most
//! voters are missing, and for twice `doubt` after they are back, nobody is given up but who is shut out: the first to
//! return would otherwise tip the majority against those that return a moment later. A grant's number is a time, and names
//! all who were given up by then; so a host that goes by a grant of that time or later (its next renewal says so) knows. Once at least half of all voters know, no majority is left that could tell the host to
//! hold out; after `settle` nothing it heard before counts any more. Then, and when its lease has run out with margin,
//! the host has ended its guests, wherever it is: its verdict is [`Verdict::Ended`]. A renewal before takes all that back.
//!
//! Refuses: to end the lease of a host that may not fence itself, to end any while most voters are missing, and to renew
//! one that was seized.

use amphi_api::HostId;
use amphi_api::lease::{LeaseTiming, VOTERS_MIN};
use std::collections::{BTreeMap, BTreeSet};

/// Milliseconds on the controller's clock.
pub type Millis = u64;

/// Who is given up is looked up at most this often: a thousand hosts renew twice a second.
const LOOK: Millis = 20;

/// What the lease of a host has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Fresh,
    /// No renewal for a while; it may still come back by itself.
    Late,
    /// It would have ended, but nobody may act on that.
    HeldBack {
        why: String,
    },
    /// The host has ended its guests, and starts none before it is granted anew. Failover may begin; see [`Book::seize`].
    Ended,
}

/// What the records say of a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Known {
    pub voter: bool,
    /// It fences itself when its lease runs out: its lease process has said so, and was not told otherwise since.
    pub enforces: bool,
    /// It is shut out until it has buried what it lost.
    pub barred: bool,
}

/// What a renewal is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub number: Millis,
    pub on: bool,
    pub barred: bool,
    pub given_up: BTreeSet<HostId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Book {
    timing: LeaseTiming,
    automatic: bool,
    /// The voters, and those before them: a host may go by an older list than the newest.
    lists: Vec<List>,
    hosts: BTreeMap<HostId, Entry>,
    /// Since when at least half of the voters have renewed without a break.
    quorum: Option<Millis>,
    /// When it was last looked who is given up, and who was.
    looked: Millis,
    given_up: BTreeSet<HostId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct List {
    since: Millis,
    voters: BTreeSet<HostId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Entry {
    voter: bool,
    enforces: bool,
    barred: bool,
    seized: bool,
    /// Has renewed in this book.
    met: bool,
    /// The last renewal, or when the book first knew the host.
    renewed: Millis,
    /// The newest grant that the host goes by.
    echoed: Option<Millis>,
    /// The newest grant that freed it from fencing itself.
    freed: Option<Millis>,
    /// Since when every grant has named it.
    named: Option<Millis>,
    /// When it was seen that enough voters know that it is given up.
    agreed: Option<Millis>,
}

impl Entry {
    fn shut_out(&self) -> bool {
        self.barred || self.seized
    }
}

impl Book {
    pub fn new(timing: LeaseTiming, automatic: bool, now: Millis) -> Self {
        Self {
            timing,
            automatic,
            lists: Vec::new(),
            hosts: BTreeMap::new(),
            quorum: None,
            looked: now,
            given_up: BTreeSet::new(),
        }
    }

    pub fn timing(&self) -> &LeaseTiming {
        &self.timing
    }

    /// Takes over what the records say of all hosts. A host that is new here counts as renewed now: nobody knows what
    /// another controller has granted it.
    pub fn know(&mut self, known: &BTreeMap<HostId, Known>, now: Millis) {
        self.hosts.retain(|id, _| known.contains_key(id));
        for (id, known) in known {
            let entry = self.hosts.entry(*id).or_insert_with(|| Entry {
                voter: known.voter,
                enforces: known.enforces,
                barred: known.barred,
                seized: false,
                met: false,
                renewed: now,
                echoed: None,
                freed: None,
                named: None,
                agreed: None,
            });
            entry.voter = known.voter;
            entry.barred = known.barred;
        }
        let voters: BTreeSet<HostId> =
            self.hosts.iter().filter(|(_, e)| e.voter).map(|(id, _)| *id).collect();
        if self.lists.last().is_none_or(|list| list.voters != voters) {
            // Grants of this very moment may still go by the list before.
            self.lists.push(List { since: now + 1, voters });
        }
        let oldest = self.hosts.values().map(|entry| self.first_list(entry)).min().unwrap_or_default();
        self.lists.drain(..oldest);
    }

    /// The voters whose majority counts now.
    pub fn voters(&self) -> impl Iterator<Item = HostId> {
        self.lists.last().into_iter().flat_map(|list| list.voters.iter().copied())
    }

    /// Whether hosts must fence themselves: switched on, enough voters, and most of them do take part.
    pub fn is_on(&self) -> bool {
        let Some(list) = self.lists.last() else { return false };
        let take_part = |id: &&HostId| self.hosts.get(id).is_some_and(|e| e.met || e.enforces);
        let part = list.voters.iter().filter(take_part).count();
        self.automatic && list.voters.len() >= VOTERS_MIN && 2 * part > list.voters.len()
    }

    /// A host renews. `echo`: the number of the newest grant of this book that it goes by; `enforces`: by that grant, it
    /// fences itself when it must. None: this book does not know the host.
    pub fn renewed(
        &mut self,
        host: HostId,
        echo: Option<Millis>,
        enforces: bool,
        now: Millis,
    ) -> Option<Reply> {
        let on = self.is_on();
        let entry = self.hosts.get_mut(&host)?;
        // What it says of itself counts unless it was said before we last freed it.
        entry.enforces |= enforces && entry.freed.is_none_or(|freed| echo > Some(freed));
        entry.echoed = entry.echoed.max(echo.filter(|e| *e <= now));
        entry.met = true;
        let barred = entry.shut_out();
        if !barred {
            entry.renewed = now;
            (entry.named, entry.agreed) = (None, None);
        }
        // One that still may fence itself is freed by `freed` alone, when that is durable.
        let on = on || entry.enforces;
        if now >= self.looked + LOOK {
            self.look(now);
        }
        if !on && let Some(entry) = self.hosts.get_mut(&host) {
            entry.freed = Some(self.looked);
        }
        Some(Reply { number: self.looked, on, barred, given_up: self.given_up.clone() })
    }

    /// Looks who is given up, and of whom enough voters know.
    pub fn look(&mut self, now: Millis) {
        self.looked = now;
        let (present, count) = self.present(now);
        self.quorum = (2 * present >= count).then(|| self.quorum.unwrap_or(now));
        let settled = self.quorum.is_some_and(|since| now >= since + 2 * self.timing.doubt);
        let doubt = self.timing.doubt;
        for entry in self.hosts.values_mut() {
            if entry.shut_out() || settled && now >= entry.renewed + doubt {
                entry.named.get_or_insert(now);
            } else {
                (entry.named, entry.agreed) = (None, None);
            }
        }
        self.given_up = self.hosts.iter().filter(|(_, e)| e.named.is_some()).map(|(id, _)| *id).collect();
        for host in self.given_up.clone() {
            let agreed =
                self.hosts.get(&host).is_some_and(|e| e.agreed.is_none() && self.lack(host, e).is_none());
            if agreed && let Some(entry) = self.hosts.get_mut(&host) {
                entry.agreed = Some(now);
            }
        }
    }

    /// How many voters renew, of how many.
    fn present(&self, now: Millis) -> (usize, usize) {
        let Some(list) = self.lists.last() else { return (0, 0) };
        let fresh = |id: &&HostId| self.hosts.get(id).is_some_and(|e| now < e.renewed + self.timing.doubt);
        (list.voters.iter().filter(fresh).count(), list.voters.len())
    }

    /// The oldest list of voters that the host may go by.
    fn first_list(&self, entry: &Entry) -> usize {
        let held = entry.echoed.unwrap_or(0);
        self.lists.iter().rposition(|list| list.since <= held).unwrap_or(0)
    }

    /// How many know that the host is given up, and how many must: of every list of voters that it may go by, at least
    /// half, itself not counted. None: enough do.
    fn lack(&self, host: HostId, entry: &Entry) -> Option<(usize, usize)> {
        let since = entry.named;
        self.lists[self.first_list(entry)..].iter().find_map(|list| {
            let knows = |id: &&HostId| {
                **id != host && since.is_some() && self.hosts.get(id).is_some_and(|e| e.echoed >= since)
            };
            let (know, need) = (list.voters.iter().filter(knows).count(), list.voters.len().div_ceil(2));
            (know < need).then_some((know, need))
        })
    }

    /// What has become of every host's lease.
    pub fn verdicts(&mut self, now: Millis) -> BTreeMap<HostId, Verdict> {
        self.look(now);
        self.hosts.iter().map(|(id, entry)| (*id, self.judge(*id, entry, now))).collect()
    }

    pub fn verdict(&mut self, host: HostId, now: Millis) -> Option<Verdict> {
        self.look(now);
        self.hosts.get(&host).map(|entry| self.judge(host, entry, now))
    }

    fn judge(&self, host: HostId, entry: &Entry, now: Millis) -> Verdict {
        let timing = &self.timing;
        let held_back = |why: String| Verdict::HeldBack { why };
        if entry.shut_out() {
            // It was ended, and nobody has granted it anything since.
            return Verdict::Ended;
        }
        if now < entry.renewed + timing.doubt {
            return Verdict::Fresh;
        }
        if !self.automatic {
            return held_back("automatic failover is switched off".into());
        }
        let (present, count) = self.present(now);
        if count < VOTERS_MIN {
            return held_back(format!("{count} hosts can form no majority, {VOTERS_MIN} are needed"));
        }
        if !entry.enforces {
            return held_back(
                "its lease process has not taken part: nobody knows whether its guests have ended".into(),
            );
        }
        if now < entry.renewed + timing.term + timing.margin {
            return Verdict::Late;
        }
        if 2 * present < count {
            return held_back(format!("only {present} of {count} hosts renew their leases"));
        }
        if let Some((know, need)) = self.lack(host, entry) {
            return held_back(format!("{know} hosts know that it is given up, {need} must"));
        }
        match entry.agreed {
            Some(agreed) if now >= agreed + timing.settle() => Verdict::Ended,
            _ => Verdict::Late,
        }
    }

    /// Takes an ended lease away: from now on the host is granted nothing until [`Self::admit`]. False when its lease has
    /// not ended, or was renewed in the meantime. Whoever starts its instances elsewhere does this first.
    pub fn seize(&mut self, host: HostId, now: Millis) -> bool {
        let ended = self.verdict(host, now) == Some(Verdict::Ended);
        if ended && let Some(entry) = self.hosts.get_mut(&host) {
            entry.seized = true;
        }
        ended
    }

    /// As [`Self::seize`], for a host that is known to be off by other means: a fence device has said so.
    pub fn seize_fenced(&mut self, host: HostId) {
        if let Some(entry) = self.hosts.get_mut(&host) {
            entry.seized = true;
        }
    }

    /// The host may be granted a lease again: it holds nothing any more that runs elsewhere. `now` is as if it had renewed.
    pub fn admit(&mut self, host: HostId, now: Millis) {
        if let Some(entry) = self.hosts.get_mut(&host) {
            entry.seized = false;
            entry.barred = false;
            entry.renewed = now;
            (entry.named, entry.agreed) = (None, None);
        }
    }

    /// Hosts that fence themselves, as far as this book knows, with whether they still must.
    pub fn enforcing(&self) -> (BTreeSet<HostId>, bool) {
        let enforcing = self.hosts.iter().filter(|(_, e)| e.enforces).map(|(id, _)| *id);
        (enforcing.collect(), self.is_on())
    }

    /// Nothing rests any more, also not in the records, on the host's fencing itself: it may be told not to.
    pub fn free(&mut self, host: HostId) {
        if let Some(entry) = self.hosts.get_mut(&host) {
            entry.enforces = false;
        }
    }

    /// For tellers: when the host last renewed, if it ever did.
    pub fn renewed_at(&self, host: HostId) -> Option<Millis> {
        self.hosts.get(&host).filter(|e| e.met).map(|e| e.renewed)
    }

    /// Moves all that happened `by` milliseconds into the past, as far as `floor`: the book as it will be, seen with the
    /// same clock. A model checker finds equal states equal by this; nothing else needs it.
    pub fn age(&mut self, by: Millis, floor: Millis) {
        let back = |time: &mut Millis| *time = time.saturating_sub(by).max(floor.min(*time));
        back(&mut self.looked);
        self.quorum.iter_mut().for_each(back);
        self.lists.iter_mut().for_each(|list| back(&mut list.since));
        for entry in self.hosts.values_mut() {
            back(&mut entry.renewed);
            let times = [&mut entry.echoed, &mut entry.freed, &mut entry.named, &mut entry.agreed];
            times.into_iter().flatten().for_each(back);
        }
    }
}
