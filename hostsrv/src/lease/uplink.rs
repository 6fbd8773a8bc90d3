//! Guests' way onto physical networks, leased from second to second. Between hosts the network itself shuts out one that was
//! frozen and wakes up (its tunnels are closed by its peers); on a physical network nobody does. So what comes from the
//! integration bridge passes there by a flow that the switch forgets by itself, and only this process renews it, as long as
//! the host may keep its guests. Refuses to stand in the guard's way: nothing waits for it.
//!
//! A switch that is away, or does not answer, is tried again at each turn; it forgets meanwhile, as it should.

use super::clock;
use super::rule::Passage;
use super::shared::Shared;
use crate::network::Switch;
use crate::network::openflow::{Change, Session};
use crate::network::ovs::{Ways, ways};
use amphi_api::lease::LeaseState;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// How often flows are renewed.
const TURN: Duration = Duration::from_millis(500);
/// A switch has so long to answer.
const ANSWER: Duration = Duration::from_millis(400);
/// How long the switch's database may take to be read for the first time, before it is asked anew.
const READ: Duration = Duration::from_secs(10);

/// One bridge to a physical network.
#[derive(Default)]
struct Bridge {
    session: Option<Session>,
    /// The ports that it has flows for. None: that is not known, and all of them are made anew.
    held: Option<BTreeSet<u32>>,
    /// It was told so already.
    silent: bool,
}

/// Runs until the process ends; with a switch that is elsewhere there is nothing to keep.
pub async fn keep(switch: Switch, shared: Arc<Shared>) {
    let mut bridges: BTreeMap<String, Bridge> = BTreeMap::new();
    loop {
        let replica = match switch.watch_physical().await {
            Ok(replica) if replica.synced(READ).await.is_ok() => replica,
            // Whoever has no switch yet has no guests on it.
            _ => {
                tokio::time::sleep(TURN).await;
                continue;
            }
        };
        let mut turns = interval(TURN);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut passage = shared.passage();
        loop {
            tokio::select! {
                _ = turns.tick() => {}
                // What is closed is closed at once.
                changed = passage.changed() => if changed.is_err() { return },
            }
            // While the database is away its last word stands: ports do not change without it.
            let now: Ways = replica.read(ways);
            bridges.retain(|name, _| now.contains_key(name));
            for (name, ports) in now {
                let bridge = bridges.entry(name.clone()).or_default();
                // Asked for anew each time: the switch may have kept us waiting.
                let may = match shared.state() {
                    // Others' words open nothing again; only a grant does.
                    LeaseState::Fenced => Passage::Closed,
                    _ => shared.rule(|rule| rule.passage(clock::now())),
                };
                let Some(socket) = switch.management(&name) else { return };
                bridge.turn(&socket, &name, &ports, may).await;
            }
        }
    }
}

impl Bridge {
    async fn turn(&mut self, socket: &Path, name: &str, ports: &BTreeSet<u32>, may: Passage) {
        let changes = changes(self.held.as_ref(), ports, may);
        if changes.is_empty() {
            return;
        }
        let done = timeout(ANSWER, async {
            let session = match &mut self.session {
                Some(session) => session,
                none => none.insert(Session::open(socket).await?),
            };
            session.carry_out(&changes).await
        });
        match done.await.unwrap_or_else(|_| Err(std::io::Error::other("no answer in time"))) {
            Ok(()) => {
                self.held = Some(if may == Passage::Free { BTreeSet::new() } else { ports.clone() });
                self.silent = false;
            }
            Err(error) => {
                self.session = None;
                self.held = None;
                if !std::mem::replace(&mut self.silent, true) {
                    tracing::warn!(bridge = name, %error, "guests' way onto a physical network cannot be renewed");
                }
            }
        }
    }
}

/// What is to be done on a bridge that has flows for the ports in `held`, if that is known.
fn changes(held: Option<&BTreeSet<u32>>, ports: &BTreeSet<u32>, may: Passage) -> Vec<Change> {
    let mut changes = Vec::new();
    let wanted = if may == Passage::Free { &BTreeSet::new() } else { ports };
    let anew = held != Some(wanted);
    if anew {
        // A port's number may come to be another's.
        changes.push(Change::Clear);
    }
    match may {
        Passage::Free | Passage::Lapsing if !anew => return changes,
        Passage::Free | Passage::Lapsing => {}
        Passage::Open { seconds } => {
            changes.extend(wanted.iter().map(|port| Change::Pass { port: *port, seconds }))
        }
        Passage::Closed => changes.push(Change::Close),
    }
    if anew {
        changes.extend(wanted.iter().map(|port| Change::Stop { port: *port }));
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use Change::{Clear, Close, Pass, Stop};

    #[test]
    fn flows_follow_the_lease() {
        let ports = |list: &[u32]| list.iter().copied().collect::<BTreeSet<u32>>();
        let open = Passage::Open { seconds: 2 };
        for (held, now, may, expected) in [
            (None, &[4][..], open, vec![Clear, Pass { port: 4, seconds: 2 }, Stop { port: 4 }]),
            (Some(&[4][..]), &[4], open, vec![Pass { port: 4, seconds: 2 }]),
            (Some(&[4]), &[4], Passage::Lapsing, vec![]),
            (Some(&[4]), &[4], Passage::Closed, vec![Close]),
            (Some(&[4]), &[5], Passage::Closed, vec![Clear, Close, Stop { port: 5 }]),
            (Some(&[4]), &[5], Passage::Lapsing, vec![Clear, Stop { port: 5 }]),
            (Some(&[4]), &[4], Passage::Free, vec![Clear]),
            (Some(&[]), &[4], Passage::Free, vec![]),
            (None, &[], open, vec![Clear]),
            (Some(&[]), &[], open, vec![]),
        ] {
            let held = held.map(ports);
            assert_eq!(changes(held.as_ref(), &ports(now), may), expected, "{held:?} {now:?} {may:?}");
        }
    }
}
