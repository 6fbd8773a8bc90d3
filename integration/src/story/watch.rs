//! Watching, all the time that a dead host takes to come back, that nobody but the one body answers to an address.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use amphi_api::InstanceId;
use anyhow::{Result, ensure};

use super::engines::{Engines, chassis_of};
use super::guest::Member;

/// An instance that moved away, and by what its one body is known.
pub struct Moved {
    pub name: String,
    pub id: InstanceId,
    pub port: String,
    pub address: String,
    pub born: String,
    /// Where it runs now.
    pub chassis: String,
}

/// Looks from the peer, at OVN, and at the engines of the returning host while they answer, until `done` has ended.
/// How often it looked.
pub fn while_doing(
    peer: &Member,
    returning: &Engines,
    moved: &[Moved],
    done: impl FnOnce() -> Result<()>,
) -> Result<u32> {
    let stop = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let flag = Arc::clone(&stop);
        let watcher = scope.spawn(move || {
            let (mut looks, mut violations) = (0, BTreeSet::new());
            while !flag.load(Ordering::Relaxed) {
                look(peer, returning, moved, &mut violations);
                looks += 1;
            }
            (looks, violations)
        });
        let result = done();
        stop.store(true, Ordering::Relaxed);
        let (looks, violations) = watcher.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))?;
        result?;
        ensure!(violations.is_empty(), "{}", violations.into_iter().collect::<Vec<_>>().join("; "));
        Ok(looks)
    })
}

fn look(peer: &Member, returning: &Engines, moved: &[Moved], violations: &mut BTreeSet<String>) {
    for one in moved {
        match peer.get(&one.address, "/born") {
            Ok(born) if born == one.born => {}
            Ok(born) => {
                let _ = violations.insert(format!("another body of {} answered: {born}", one.name));
            }
            Err(error) => {
                let _ = violations.insert(format!("{} did not answer: {error:#}", one.name));
            }
        }
        match chassis_of(peer.lab, &one.port) {
            Ok(chassis) if chassis == one.chassis => {}
            Ok(chassis) => {
                let _ = violations.insert(format!("OVN had the port of {} on '{chassis}'", one.name));
            }
            Err(error) => {
                let _ = violations.insert(format!("OVN did not answer: {error:#}"));
            }
        }
        // Engines that are not up yet hold nothing that runs.
        let containers = returning.containers(one.id, false).unwrap_or_default();
        let domains = returning.domains(false).unwrap_or_default();
        if !containers.is_empty() || domains.contains(&format!("amphi-{}", one.id)) {
            violations
                .insert(format!("a stale body of {} ran on {}: {containers:?}", one.name, returning.host));
        }
        if returning.plugged().unwrap_or_default().contains(&one.port) && !containers.is_empty() {
            violations.insert(format!("the port of {} was plugged in on {}", one.name, returning.host));
        }
    }
}
