//! Who lives where, in all of a cloud: told of every start and end before it happens, so that nothing between two looks is
//! missed. Owns the list of what must never be: two bodies of one instance, two writers of a volume, one address twice, an
//! epoch that comes back, bytes that were lost.

use super::calls::Body;
use amphi_api::instance::BodyKind;
use amphi_api::{InstanceId, NetworkId, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

/// Violations that are kept; one is too many already.
const MOST: usize = 50;

#[derive(Default)]
pub struct Registry(Mutex<Book>);

#[derive(Default)]
struct Book {
    /// By host and kind; more than one entry is a violation.
    live: BTreeMap<InstanceId, Vec<Life>>,
    /// Who has each volume and each address; more than one is a violation.
    holders: BTreeMap<Thing, BTreeSet<InstanceId>>,
    epochs: BTreeMap<InstanceId, u64>,
    /// The count of the body that last wrote.
    written: BTreeMap<Uuid, u64>,
    count: u64,
    violations: Vec<String>,
}

/// What only one instance may have at a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Volume(VolumeId),
    Address(NetworkId, IpAddr),
}

impl Thing {
    fn held_twice(self, one: InstanceId, other: InstanceId) -> String {
        match self {
            Thing::Volume(volume) => format!("volume {volume} has two writers: {one} and {other}"),
            Thing::Address(_, address) => format!("address {address} lives twice: {one} and {other}"),
        }
    }
}

#[derive(Clone, PartialEq)]
struct Life {
    host: String,
    kind: BodyKind,
    epoch: u64,
    writes: Vec<VolumeId>,
    addresses: Vec<(NetworkId, IpAddr)>,
}

impl Life {
    fn of(host: &str, body: &Body) -> Self {
        Self {
            host: host.to_owned(),
            kind: body.kind,
            epoch: body.epoch,
            writes: body.writes.clone(),
            addresses: body.addresses.clone(),
        }
    }

    fn things(&self) -> impl Iterator<Item = Thing> {
        let volumes = self.writes.iter().map(|volume| Thing::Volume(*volume));
        volumes.chain(self.addresses.iter().map(|(network, address)| Thing::Address(*network, *address)))
    }

    fn place(&self) -> String {
        format!("{} on {} at epoch {}", self.kind, self.host, self.epoch)
    }
}

impl Book {
    /// Lives of the instance end.
    fn end(&mut self, instance: InstanceId, ends: impl Fn(&Life) -> bool) {
        let Some(lives) = self.live.get_mut(&instance) else { return };
        let ended: Vec<_> = lives.extract_if(.., |life| ends(life)).collect();
        for thing in ended.iter().flat_map(Life::things) {
            if lives.iter().any(|life| life.things().any(|t| t == thing)) {
                continue;
            }
            if let Some(holders) = self.holders.get_mut(&thing) {
                holders.remove(&instance);
                if holders.is_empty() {
                    self.holders.remove(&thing);
                }
            }
        }
        if lives.is_empty() {
            self.live.remove(&instance);
        }
    }
}

impl Registry {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A body starts, or takes up other volumes or addresses while it lives. `bytes` tells what a volume here holds;
    /// the answer is what it holds from now on.
    pub fn lives(&self, host: &str, body: &Body, bytes: impl Fn(Uuid) -> Option<u64>) -> u64 {
        let mut book = self.book();
        let life = Life::of(host, body);
        let mut wrong = Vec::new();
        let own = |other: &Life| other.host == life.host && other.kind == life.kind;
        for other in book.live.get(&body.instance).into_iter().flatten().filter(|o| !own(o)) {
            wrong.push(format!(
                "instance {} lives twice: {} and {}",
                body.instance,
                life.place(),
                other.place()
            ));
        }
        for thing in life.things() {
            let others = book.holders.get(&thing).into_iter().flatten().filter(|id| **id != body.instance);
            wrong.extend(others.map(|other| thing.held_twice(body.instance, *other)));
        }
        let newest = book.epochs.get(&body.instance).copied().unwrap_or_default();
        if body.epoch < newest {
            wrong.push(format!(
                "instance {} is back at {}, after epoch {newest}",
                body.instance,
                life.place()
            ));
        }
        let fresh = !book.live.get(&body.instance).into_iter().flatten().any(own);
        for volume in &life.writes {
            let (here, last) = (bytes(volume.0), book.written.get(&volume.0).copied());
            if fresh && last.is_some() && here != last {
                wrong.push(format!("volume {volume} on {host} holds {here:?}; {last:?} was written last"));
            }
        }
        if fresh {
            book.count += 1;
        }
        let count = book.count;
        for volume in &life.writes {
            book.written.insert(volume.0, count);
        }
        book.epochs.insert(body.instance, newest.max(body.epoch));
        book.end(body.instance, own);
        for thing in life.things() {
            book.holders.entry(thing).or_default().insert(body.instance);
        }
        book.live.entry(body.instance).or_default().push(life);
        let room = MOST.saturating_sub(book.violations.len());
        book.violations.extend(wrong.into_iter().take(room));
        count
    }

    /// It has ended, or has been halted to disk.
    pub fn ends(&self, host: &str, kind: BodyKind, instance: InstanceId) {
        self.book().end(instance, |life| life.host == host && life.kind == kind);
    }

    /// Everything on a host has ended at once.
    pub fn dark(&self, host: &str) {
        let mut book = self.book();
        let all: Vec<_> = book.live.keys().copied().collect();
        all.into_iter().for_each(|instance| book.end(instance, |life| life.host == host));
    }

    /// What must never be and was.
    pub fn violations(&self) -> Vec<String> {
        self.book().violations.clone()
    }

    /// Instances with a live body, and where.
    pub fn living(&self) -> BTreeMap<InstanceId, String> {
        let place = |lives: &Vec<Life>| lives.iter().map(Life::place).collect::<Vec<_>>().join(", ");
        self.book().live.iter().map(|(id, lives)| (*id, place(lives))).collect()
    }

    /// How many instances have a live body.
    pub fn population(&self) -> usize {
        self.book().live.len()
    }

    /// Bodies that have started so far.
    pub fn starts(&self) -> u64 {
        self.book().count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::calls::State;

    fn body(instance: InstanceId, kind: BodyKind, epoch: u64) -> Body {
        Body {
            instance,
            kind,
            epoch,
            state: State::Running,
            ports: vec![],
            addresses: vec![],
            extras: vec![],
            writes: vec![],
            members: vec![],
            rescued: false,
        }
    }

    #[test]
    fn each_wrong_is_seen() {
        let (one, two, volume) = (InstanceId::new(), InstanceId::new(), VolumeId::new());
        let set = |id, epoch| body(id, BodyKind::Set, epoch);
        let network = NetworkId::new();
        let address = (network, "10.0.0.9".parse().unwrap());
        type Story<'a> = &'a dyn Fn(&Registry);
        let none = |_: Uuid| None;
        let table: [(&str, Story<'_>, usize); 8] = [
            (
                "one after the other",
                &|r| {
                    r.lives("h1", &set(one, 1), none);
                    r.ends("h1", BodyKind::Set, one);
                    r.lives("h2", &set(one, 2), none);
                    r.lives("h2", &set(one, 2), none);
                },
                0,
            ),
            (
                "on two hosts",
                &|r| {
                    r.lives("h1", &set(one, 1), none);
                    r.lives("h2", &set(one, 2), none);
                },
                1,
            ),
            (
                "of two kinds",
                &|r| {
                    r.lives("h1", &set(one, 1), none);
                    r.lives("h1", &body(one, BodyKind::Vm, 2), none);
                },
                1,
            ),
            (
                "an old epoch",
                &|r| {
                    r.lives("h1", &set(one, 2), none);
                    r.dark("h1");
                    r.lives("h1", &set(one, 1), none);
                },
                1,
            ),
            (
                "two writers",
                &|r| {
                    r.lives("h1", &Body { writes: vec![volume], ..set(one, 1) }, none);
                    r.lives("h1", &Body { writes: vec![volume], ..set(two, 1) }, |_| Some(1));
                },
                1,
            ),
            (
                "an address twice",
                &|r| {
                    r.lives("h1", &Body { addresses: vec![address], ..set(one, 1) }, none);
                    r.lives("h2", &Body { addresses: vec![address], ..set(two, 1) }, none);
                },
                1,
            ),
            (
                "bytes that are there",
                &|r| {
                    let count = r.lives("h1", &Body { writes: vec![volume], ..set(one, 1) }, none);
                    r.dark("h1");
                    r.lives("h2", &Body { writes: vec![volume], ..set(one, 2) }, |_| Some(count));
                },
                0,
            ),
            (
                "bytes that are not",
                &|r| {
                    r.lives("h1", &Body { writes: vec![volume], ..set(one, 1) }, none);
                    r.dark("h1");
                    r.lives("h2", &Body { writes: vec![volume], ..set(one, 2) }, |_| Some(0));
                },
                1,
            ),
        ];
        for (what, story, want) in table {
            let registry = Registry::default();
            story(&registry);
            assert_eq!(registry.violations().len(), want, "{what}: {:?}", registry.violations());
        }
    }
}
