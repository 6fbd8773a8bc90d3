//! Who has which blob, and who gets it from whom: a tree per blob, so that many hosts that ask at once cost the controller
//! few copies. Kept in memory: it is a hint, and a host that cannot use it asks again and is served. Pure but for its lock;
//! refuses to know addresses.

use amphi_api::HostId;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Smaller blobs are quicker served than pointed at, in bytes.
pub const LEAST: u64 = 1 << 20;
/// Hosts that are pointed at one holder within [`WHILE`].
const ABREAST: usize = 2;
/// How long a holder counts as busy with one that it was named to.
const WHILE: Duration = Duration::from_secs(60);
/// How long a host is taken to hold what it asked for.
const HELD: Duration = Duration::from_secs(1800);
/// Blobs that are remembered; where there are more, those asked for longest ago are forgotten.
const BLOBS: usize = 4096;

/// The trees.
#[derive(Default)]
pub struct Sharing(Mutex<HashMap<String, Vec<Holder>>>);

struct Holder {
    host: HostId,
    since: Instant,
    /// When others were pointed at it.
    named: Vec<Instant>,
}

impl Sharing {
    /// A host that can take blobs from others, and will hand on what it gets, asks for one. Answers where from; none: from
    /// the controller. A host that asks once more has not got it where it was sent, and is not sent anywhere.
    pub fn place(
        &self,
        sha256: &str,
        host: HostId,
        now: Instant,
        usable: impl Fn(HostId) -> bool,
    ) -> Option<HostId> {
        let mut trees = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if trees.len() >= BLOBS && !trees.contains_key(sha256) {
            let newest = |holders: &Vec<Holder>| holders.iter().map(|h| h.since).max();
            let oldest =
                trees.iter().min_by_key(|(_, holders)| newest(holders)).map(|(blob, _)| blob.clone());
            oldest.map(|blob| trees.remove(&blob));
        }
        let holders = trees.entry(sha256.to_owned()).or_default();
        holders.retain(|h| now.saturating_duration_since(h.since) < HELD);
        let again = holders.iter().any(|h| h.host == host);
        holders.retain(|h| h.host != host);
        let mut from = None;
        if !again {
            for holder in holders.iter_mut().filter(|h| usable(h.host)) {
                holder.named.retain(|named| now.saturating_duration_since(*named) < WHILE);
                if holder.named.len() < ABREAST {
                    holder.named.push(now);
                    from = Some(holder.host);
                    break;
                }
            }
        }
        holders.push(Holder { host, since: now, named: Vec::new() });
        from
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_hosts_make_a_tree() {
        let (sharing, now) = (Sharing::default(), Instant::now());
        let hosts: Vec<HostId> = (0..8).map(|_| HostId::new()).collect();
        let from: Vec<_> = hosts.iter().map(|h| sharing.place("b", *h, now, |_| true)).collect();
        let named = |at: usize| hosts.iter().position(|h| Some(*h) == from[at]);
        let tree: Vec<_> = (0..8).map(named).collect();
        assert_eq!(tree, [None, Some(0), Some(0), Some(1), Some(1), Some(2), Some(2), Some(3)]);
        assert_eq!(sharing.place("c", hosts[1], now, |_| true), None, "another blob");
        // It comes back: what it was sent to did not help.
        assert_eq!(sharing.place("b", hosts[5], now, |_| true), None);
        // A later one finds the first free again.
        let later = now + WHILE;
        assert_eq!(sharing.place("b", HostId::new(), later, |_| true), Some(hosts[0]));
        assert_eq!(sharing.place("b", HostId::new(), later, |h| h == hosts[7]), Some(hosts[7]));
        assert_eq!(sharing.place("b", HostId::new(), later, |_| false), None, "nobody is there");
        assert_eq!(sharing.place("b", HostId::new(), now + HELD * 2, |_| true), None, "long ago");
    }

    #[test]
    fn memory_is_bounded() {
        let (sharing, now) = (Sharing::default(), Instant::now());
        let host = HostId::new();
        for number in 0..BLOBS as u64 + 10 {
            sharing.place(&number.to_string(), host, now + Duration::from_millis(number), |_| true);
        }
        let trees = sharing.0.lock().unwrap();
        assert_eq!(trees.len(), BLOBS);
        assert!(!trees.contains_key("0") && trees.contains_key("4100"));
    }
}
