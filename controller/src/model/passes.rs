//! Copying a move's bytes in passes: what is known of them, and whether another one while the body runs is worth it. Pure.
//!
//! A pass reads everything on both hosts and sends the blocks that differ, so one that is done anew after a death costs its
//! reading and no more. Where the old host follows what is written, the next pass reads only that, and costs little. What is read while it is written may be torn: only the last pass counts, over bytes
//! that hold still, and of it the new host has compared every block.

use amphi_api::instance::{Copied, CopyNow, CopyPass, Fault};
use amphi_api::wire::CopyingStatus;
use serde::{Deserialize, Serialize};

/// So little is left to send that the stop is as long as the reading takes: 16 MiB, a fifth of a second at 1 Gbit/s.
pub const LITTLE: u64 = 16 << 20;
/// A pass this short leaves nothing worth another one.
pub const SHORT_MS: u64 = 1_000;
/// A writer that keeps up with the copying is stopped after so many.
pub const PASSES_MAX: usize = 6;

/// The copying of one move.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CopyRecord {
    /// The root disk goes too that is made of the body's image.
    #[serde(default)]
    pub root: bool,
    #[serde(default)]
    pub passes: Vec<CopyPass>,
    #[serde(default)]
    pub now: Option<CopyNow>,
    #[serde(default)]
    pub fault: Option<Fault>,
}

impl CopyRecord {
    /// The number of the next pass.
    pub fn next(&self) -> u32 {
        self.passes.len() as u32 + 1
    }

    /// Both hosts have the same bytes.
    pub fn is_whole(&self) -> bool {
        self.passes.last().is_some_and(|pass| pass.last)
    }

    /// Whether what is left is better sent while nothing runs: it is little, or becomes no less by trying. What is left is what was
    /// written during the last pass; by how much that one sent it is guessed only where another would read everything.
    pub fn is_enough(&self) -> bool {
        let Some(last) = self.passes.last() else { return false };
        let before = self.passes.iter().rev().nth(1);
        let little = if last.followed { last.read_bytes } else { last.sent_bytes };
        little <= LITTLE
            || last.took_ms <= SHORT_MS
            || self.passes.len() >= PASSES_MAX
            || before.is_some_and(|before| last.sent_bytes > before.sent_bytes / 4 * 3)
    }

    /// What the old host tells, if it is news. `last`: the pass that is ordered now.
    pub fn told(&self, seen: &CopyingStatus, last: bool) -> Option<Self> {
        if seen.pass != self.next() || seen.last != last || self.is_whole() {
            return None;
        }
        let mut record = self.clone();
        record.fault = seen.fault.clone();
        if seen.done {
            record.now = None;
            record.passes.push(CopyPass {
                last,
                read_bytes: seen.read_bytes,
                sent_bytes: seen.sent_bytes,
                took_ms: seen.took_ms,
                followed: seen.followed,
            });
        } else {
            record.now = Some(CopyNow {
                pass: seen.pass,
                all_bytes: seen.all_bytes,
                read_bytes: seen.read_bytes,
                sent_bytes: seen.sent_bytes,
            });
        }
        let news = record.passes != self.passes
            || record.now != self.now
            || !Fault::same(&record.fault, &self.fault);
        news.then_some(record)
    }

    /// As clients see it.
    pub fn view(&self) -> Copied {
        // The second pass and later ones read everything and send what has changed, as the last one will.
        let like_it = self.passes.last().filter(|p| !p.last && self.passes.len() > 1);
        Copied {
            passes: self.passes.clone(),
            now: self.now,
            estimated_stop_ms: like_it.map(|pass| pass.took_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn record(passes: &[(u64, u64)]) -> CopyRecord {
        let pass = |&(mib, took_ms): &(u64, u64)| CopyPass {
            last: false,
            read_bytes: 4096 * MIB,
            sent_bytes: mib * MIB,
            took_ms,
            followed: false,
        };
        CopyRecord { passes: passes.iter().map(pass).collect(), ..CopyRecord::default() }
    }

    #[test]
    fn passes_go_on_while_they_help() {
        type Line<'a> = (&'a [(u64, u64)], bool, &'a str);
        let table: [Line; 10] = [
            (&[], false, "none yet"),
            (&[(4000, 40_000)], false, "all of it, slowly"),
            (&[(300, 900)], true, "all of it within a second"),
            (&[(16, 40_000)], true, "hardly anything is in use"),
            (&[(4000, 40_000), (400, 5_000)], false, "a tenth: another one helps"),
            (&[(4000, 40_000), (400, 5_000), (10, 3_000)], true, "little is left"),
            (&[(4000, 40_000), (3100, 35_000)], true, "the writer is as quick as the copying"),
            (&[(4000, 40_000), (2000, 20_000)], false, "half"),
            (&[(4000, 40_000), (400, 5_000), (390, 5_000)], true, "it shrinks no more"),
            (
                &[(4000, 9_000), (2900, 9_000), (2000, 9_000), (1400, 9_000), (900, 9_000), (600, 9_000)],
                true,
                "bounded",
            ),
        ];
        for (passes, expected, why) in table {
            assert_eq!(record(passes).is_enough(), expected, "{why}");
        }
    }

    /// Where writes are followed it is what a pass read that tells how long it took for how little.
    #[test]
    fn one_more_costs_little_where_writes_are_followed() {
        let of = |passes: &[(u64, u64, u64)]| {
            let mut record = record(&passes.iter().map(|p| (p.1, p.2)).collect::<Vec<_>>());
            for (pass, told) in record.passes.iter_mut().zip(passes) {
                (pass.followed, pass.read_bytes) = (true, told.0 * MIB);
            }
            record.is_enough()
        };
        assert!(!of(&[(4000, 10, 40_000)]), "all was read, and much may have been written meanwhile");
        assert!(of(&[(4000, 10, 900)]), "hardly any time to write in");
        assert!(!of(&[(4000, 900, 40_000), (200, 200, 3_000)]));
        assert!(of(&[(4000, 900, 40_000), (200, 200, 3_000), (16, 16, 1_200)]));
        assert!(of(&[(4000, 900, 40_000), (200, 200, 3_000), (190, 190, 2_900)]), "it shrinks no more");
    }

    #[test]
    fn only_the_ordered_pass_counts() {
        let held = record(&[(4000, 40_000)]);
        let seen = CopyingStatus {
            exchange: amphi_api::ExchangeId::new(),
            pass: 2,
            last: false,
            all_bytes: 9,
            read_bytes: 9,
            sent_bytes: 1,
            took_ms: 3,
            done: true,
            followed: false,
            fault: None,
        };
        assert_eq!(held.told(&seen, true), None, "what ended while it ran is no last pass");
        assert_eq!(held.told(&CopyingStatus { pass: 1, ..seen.clone() }, false), None, "an older one");
        let after = held.told(&seen, false).unwrap();
        assert_eq!((after.passes.len(), after.is_whole(), after.next()), (2, false, 3));
        assert_eq!(after.view().estimated_stop_ms, Some(3));
        let under_way = CopyingStatus { done: false, ..seen.clone() };
        let now = held.told(&under_way, false).unwrap();
        assert_eq!(now.now.unwrap().read_bytes, 9);
        assert_eq!(now.told(&under_way, false), None, "nothing new");
        let last = CopyingStatus { pass: 3, last: true, ..seen };
        let whole = after.told(&last, true).unwrap();
        assert!(whole.is_whole());
        assert_eq!(whole.told(&last, true), None, "twice");
    }
}
