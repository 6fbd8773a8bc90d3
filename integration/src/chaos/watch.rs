//! Who looks all the time while things break: at most one live body per instance, at most one writer of a volume, no
//! acknowledged instance lost or changed. Owns what was acknowledged. What it finds wrong it keeps; [`Watch::broken`] tells.
//!
//! A host that was frozen past its lease cannot end its bodies before it wakes up; the network has shut it out by then.
//! How long such bodies live beside their successors is measured, and is no fault: being heard would be one, and that is
//! for the probe to say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use amphi_api::InstanceId;
use amphi_api::instance::Instance;
use anyhow::{Context, Result};

use super::bodies::{Eyes, Look};
use crate::lab::Lab;

/// Between two looks at what lives, and at the records.
const LOOK: Duration = Duration::from_millis(100);
const RECORDS: Duration = Duration::from_secs(1);

/// What stays as it is from creation to deletion, and the epoch, which only grows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    name: String,
    addresses: Vec<IpAddr>,
    epoch: u64,
}

#[derive(Default)]
struct Sight {
    known: BTreeMap<InstanceId, Known>,
    broken: BTreeSet<String>,
    woken: BTreeSet<String>,
    /// The longest that a woken host kept a body that lived elsewhere.
    beside: Duration,
    looks: usize,
}

pub struct Watch {
    sight: Arc<Mutex<Sight>>,
    ending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Watch {
    pub fn start(lab: &Lab, hosts: &[&str]) -> Result<Self> {
        let hosts: Vec<String> = hosts.iter().map(|h| (*h).to_owned()).collect();
        let eyes = Eyes::new(Lab::attach(lab.layout().clone())?, hosts);
        let layout = lab.layout().clone();
        let (sight, ending) = (Arc::new(Mutex::new(Sight::default())), Arc::new(AtomicBool::new(false)));
        let (of_bodies, of_records) = ((sight.clone(), ending.clone()), (sight.clone(), ending.clone()));
        let bodies = std::thread::spawn(move || watch_bodies(eyes, &of_bodies.0, &of_bodies.1));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start a runtime for the watch")?;
        let records = std::thread::spawn(move || {
            while !of_records.1.load(Ordering::Relaxed) {
                // A controller that is away says nothing, and a client's connections end with it.
                if let Ok(client) = crate::run::client(&layout) {
                    let asked: BTreeSet<InstanceId> = locked(&of_records.0).known.keys().copied().collect();
                    if let Ok(all) = runtime.block_on(client.instances()) {
                        locked(&of_records.0).compare(&asked, &all);
                    }
                }
                std::thread::sleep(RECORDS);
            }
        });
        Ok(Self { sight, ending, threads: vec![bodies, records] })
    }

    /// Its creation was acknowledged.
    pub fn made(&self, instance: &Instance) {
        let known =
            Known { name: instance.name.clone(), addresses: addresses(instance), epoch: instance.epoch };
        locked(&self.sight).known.insert(instance.id, known);
    }

    /// Call it before the order to delete it.
    pub fn goes(&self, id: InstanceId) {
        locked(&self.sight).known.remove(&id);
    }

    /// This host wakes up from a freeze; [`Self::buried`] when it holds nothing any more that lives elsewhere.
    pub fn wakes(&self, host: &str) {
        locked(&self.sight).woken.insert(host.to_owned());
    }

    pub fn buried(&self, host: &str) {
        locked(&self.sight).woken.remove(host);
    }

    /// The longest that a woken host kept a body that lived elsewhere, unheard.
    pub fn beside(&self) -> Duration {
        locked(&self.sight).beside
    }

    pub fn looks(&self) -> usize {
        locked(&self.sight).looks
    }

    /// Faults so far.
    pub fn broken(&self) -> BTreeSet<String> {
        locked(&self.sight).broken.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

// A panic while it is held leaves plain data behind.
fn locked(sight: &Mutex<Sight>) -> MutexGuard<'_, Sight> {
    sight.lock().unwrap_or_else(PoisonError::into_inner)
}

fn addresses(instance: &Instance) -> Vec<IpAddr> {
    instance.addresses.iter().map(|a| a.address).collect()
}

fn watch_bodies(mut eyes: Eyes, sight: &Mutex<Sight>, ending: &AtomicBool) {
    let mut beside: BTreeMap<InstanceId, Instant> = BTreeMap::new();
    while !ending.load(Ordering::Relaxed) {
        let mut now = eyes.look();
        if now.hosts().values().any(|hosts| hosts.len() > 1) || !twice(&now.writers).is_empty() {
            // A look takes a while. What is in two looks one after the other was there in between.
            let again = eyes.look();
            now.processes = now.processes.intersection(&again.processes).cloned().collect();
            now.writers = now.writers.intersection(&again.writers).cloned().collect();
        }
        locked(sight).judge(&now, &mut beside);
        std::thread::sleep(LOOK);
    }
}

/// The volumes with several writers.
fn twice(writers: &BTreeSet<(String, String)>) -> BTreeMap<&str, Vec<&str>> {
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (volume, host) in writers {
        found.entry(volume).or_default().push(host);
    }
    found.retain(|_, hosts| hosts.len() > 1);
    found
}

impl Sight {
    fn judge(&mut self, now: &Look, beside: &mut BTreeMap<InstanceId, Instant>) {
        self.looks += 1;
        let mut still = BTreeSet::new();
        for (id, hosts) in now.hosts().into_iter().filter(|(_, hosts)| hosts.len() > 1) {
            let awake = hosts.iter().filter(|h| !self.woken.contains(**h)).count();
            if awake > 1 {
                self.broken.insert(format!("{id} lives on {hosts:?}"));
            } else {
                still.insert(id);
                let since = *beside.entry(id).or_insert_with(Instant::now);
                self.beside = self.beside.max(since.elapsed() + LOOK);
            }
        }
        beside.retain(|id, _| still.contains(id));
        for (volume, hosts) in twice(&now.writers) {
            if hosts.iter().filter(|h| !self.woken.contains(**h)).count() > 1 {
                self.broken.insert(format!("volume {volume} is mounted on {hosts:?}"));
            }
        }
    }

    /// `asked`: what was known when the controller was asked.
    fn compare(&mut self, asked: &BTreeSet<InstanceId>, all: &[Instance]) {
        let mut faults = Vec::new();
        for (id, known) in self.known.iter_mut().filter(|(id, _)| asked.contains(id)) {
            let Some(now) = all.iter().find(|i| i.id == *id) else {
                faults.push(format!("{} ({id}), which was acknowledged, is not there", known.name));
                continue;
            };
            if addresses(now) != known.addresses {
                faults.push(format!("{} has changed its addresses: {:?}", known.name, now.addresses));
            }
            if now.epoch < known.epoch {
                faults.push(format!("{} fell back from epoch {} to {}", known.name, known.epoch, now.epoch));
            }
            known.epoch = now.epoch;
        }
        self.broken.extend(faults);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::bodies::Process;

    fn look(of: &[(&str, InstanceId)]) -> Look {
        let process = |(host, id): &(&str, InstanceId)| Process {
            host: (*host).to_owned(),
            instance: *id,
            pid: 1,
            started: 1,
        };
        Look { processes: of.iter().map(process).collect(), ..Look::default() }
    }

    #[test]
    fn two_bodies_are_a_fault_unless_one_has_just_woken_up() {
        let id: InstanceId = "0199aaaa-0000-7000-8000-000000000001".parse().unwrap();
        let mut sight = Sight::default();
        let mut beside = BTreeMap::new();
        sight.judge(&look(&[("h1", id), ("h1", id)]), &mut beside);
        assert!(sight.broken.is_empty());
        sight.woken.insert("h1".into());
        sight.judge(&look(&[("h1", id), ("h2", id)]), &mut beside);
        assert!(sight.broken.is_empty() && sight.beside >= LOOK);
        sight.judge(&look(&[("h3", id), ("h2", id)]), &mut beside);
        assert_eq!(sight.broken.len(), 1, "{:?}", sight.broken);
        let writers = [("v", "h1"), ("v", "h2"), ("w", "h2")].map(|(v, h)| (v.into(), h.into())).into();
        assert_eq!(twice(&writers), [("v", vec!["h1", "h2"])].into());
    }
}
