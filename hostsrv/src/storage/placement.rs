//! Where a contiguous LV goes: pure decisions over the extents of the physical volumes.
//!
//! With loop activation an LV is one piece of one physical volume, and it can only grow into the free
//! extents behind it. So a new volume is not put right behind its neighbour: up to the neighbour's own
//! size (it may double), and at most half of what is left over, stays free in between. Snapshots never
//! grow; they fill the smallest gap that fits, from its end. Knows nothing of commands or devices.

/// A half-open run of extents of one physical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentRange {
    pub pv: String,
    pub start: u64,
    pub count: u64,
}

impl ExtentRange {
    pub fn end(&self) -> u64 {
        self.start + self.count
    }

    /// As LVM commands take it: `PV:first-last`.
    pub fn argument(&self) -> String {
        format!("{}:{}-{}", self.pv, self.start, self.end() - 1)
    }
}

/// Something that takes extents; `grows` is false for snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub range: ExtentRange,
    pub grows: bool,
}

/// A physical volume and how many extents it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extents {
    pub pv: String,
    pub count: u64,
}

/// Figures in extents for the error message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoRoom {
    /// The largest free piece that would have counted (for growth: the one behind the LV).
    pub largest: u64,
    pub free: u64,
}

struct Gap {
    range: ExtentRange,
    /// Extents of the growing neighbour in front, 0 when there is none.
    neighbour: u64,
}

fn gaps(pvs: &[Extents], taken: &[Taken]) -> Vec<Gap> {
    let mut gaps = Vec::new();
    for pv in pvs {
        let mut here: Vec<&Taken> = taken.iter().filter(|t| t.range.pv == pv.pv).collect();
        here.sort_by_key(|t| t.range.start);
        let (mut at, mut neighbour) = (0, 0);
        for next in here {
            if next.range.start > at {
                let range = ExtentRange { pv: pv.pv.clone(), start: at, count: next.range.start - at };
                gaps.push(Gap { range, neighbour });
            }
            at = next.range.end().max(at);
            neighbour = if next.grows { next.range.count } else { 0 };
        }
        if pv.count > at {
            gaps.push(Gap {
                range: ExtentRange { pv: pv.pv.clone(), start: at, count: pv.count - at },
                neighbour,
            });
        }
    }
    gaps
}

/// Chooses `count` contiguous extents for a new LV.
pub fn place(pvs: &[Extents], taken: &[Taken], count: u64, grows: bool) -> Result<ExtentRange, NoRoom> {
    let gaps = gaps(pvs, taken);
    let fitting = gaps.iter().filter(|gap| gap.range.count >= count && count > 0);
    let chosen = if grows {
        // Ties go to the first gap, so the choice is stable.
        fitting.rev().max_by_key(|gap| gap.range.count)
    } else {
        fitting.min_by_key(|gap| gap.range.count)
    };
    let Some(gap) = chosen else {
        return Err(NoRoom {
            largest: gaps.iter().map(|gap| gap.range.count).max().unwrap_or(0),
            free: gaps.iter().map(|gap| gap.range.count).sum(),
        });
    };
    let spare = gap.range.count - count;
    let skip = if grows { gap.neighbour.min(spare / 2) } else { spare };
    Ok(ExtentRange { pv: gap.range.pv.clone(), start: gap.range.start + skip, count })
}

/// The `more` extents right behind `current`.
pub fn extend(
    pvs: &[Extents],
    taken: &[Taken],
    current: &ExtentRange,
    more: u64,
) -> Result<ExtentRange, NoRoom> {
    let gaps = gaps(pvs, taken);
    let behind = gaps
        .iter()
        .find(|gap| gap.range.pv == current.pv && gap.range.start == current.end())
        .map_or(0, |gap| gap.range.count);
    if behind < more {
        return Err(NoRoom { largest: behind, free: gaps.iter().map(|gap| gap.range.count).sum() });
    }
    Ok(ExtentRange { pv: current.pv.clone(), start: current.end(), count: more })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pv(count: u64) -> Vec<Extents> {
        vec![Extents { pv: "/dev/a".into(), count }]
    }

    fn taken(start: u64, count: u64, grows: bool) -> Taken {
        Taken { range: ExtentRange { pv: "/dev/a".into(), start, count }, grows }
    }

    #[test]
    fn volumes_leave_their_neighbours_room_and_snapshots_do_not_need_any() {
        type Case<'a> = (&'a [Taken], u64, bool, Result<u64, (u64, u64)>);
        // (already there, count, grows, where)
        let cases: &[Case] = &[
            (&[], 10, true, Ok(0)),
            (&[taken(0, 10, true)], 10, true, Ok(20)),
            (&[taken(0, 60, true)], 20, true, Ok(70)),
            (&[taken(0, 60, false)], 20, true, Ok(60)),
            (&[taken(0, 10, true)], 10, false, Ok(90)),
            (&[taken(10, 10, true), taken(30, 70, true)], 10, false, Ok(0)),
            (&[taken(0, 10, true)], 90, true, Ok(10)),
            (&[taken(40, 20, true)], 50, true, Err((40, 80))),
            (&[taken(40, 20, true)], 0, true, Err((40, 80))),
        ];
        for (index, (there, count, grows, want)) in cases.iter().enumerate() {
            let got = place(&pv(100), there, *count, *grows);
            let got = got.map(|range| range.start).map_err(|no| (no.largest, no.free));
            assert_eq!(got, *want, "case {index}");
        }
    }

    #[test]
    fn growth_is_what_lies_behind() {
        let there = [taken(0, 10, true), taken(30, 10, true)];
        let grown = extend(&pv(100), &there, &there[0].range, 20).expect("fits exactly");
        assert_eq!((grown.start, grown.count), (10, 20));
        assert_eq!(extend(&pv(100), &there, &there[0].range, 21), Err(NoRoom { largest: 20, free: 80 }));
        assert_eq!(grown.argument(), "/dev/a:10-29");
    }

    proptest! {
        #[test]
        fn never_overlaps_and_grows_where_its_gap_allows(
            sizes in prop::collection::vec((1u64..40, any::<bool>(), any::<prop::sample::Index>(), 1u64..30), 1..30)
        ) {
            let pvs = vec![
                Extents { pv: "/dev/a".into(), count: 200 },
                Extents { pv: "/dev/b".into(), count: 90 },
            ];
            let mut there: Vec<Taken> = Vec::new();
            for (count, grows, which, more) in sizes {
                let free: u64 = 290 - there.iter().map(|t| t.range.count).sum::<u64>();
                match place(&pvs, &there, count, grows) {
                    Ok(range) => {
                        prop_assert_eq!(range.count, count);
                        there.push(Taken { range, grows });
                    }
                    Err(no) => { prop_assert!(no.largest < count); prop_assert_eq!(no.free, free); }
                }
                if !there.is_empty() {
                    let index = which.index(there.len());
                    let current = there[index].range.clone();
                    let limit = pvs.iter().find(|p| p.pv == current.pv).map_or(0, |p| p.count);
                    let next = there.iter().filter(|t| t.range.pv == current.pv && t.range.start >= current.end())
                        .map(|t| t.range.start).min().unwrap_or(limit);
                    let grown = extend(&pvs, &there, &current, more);
                    prop_assert_eq!(grown.is_ok(), next - current.end() >= more);
                    if grown.is_ok() { there[index].range.count += more; }
                }
                for (i, a) in there.iter().enumerate() {
                    let limit = pvs.iter().find(|p| p.pv == a.range.pv).map_or(0, |p| p.count);
                    prop_assert!(a.range.end() <= limit);
                    for b in &there[i + 1..] {
                        prop_assert!(a.range.pv != b.range.pv || a.range.end() <= b.range.start || b.range.end() <= a.range.start);
                    }
                }
            }
        }
    }
}
