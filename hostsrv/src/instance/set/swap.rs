//! A member gives way to the container of another description: what is to be done with those that are there (pure), and the
//! doing. The next one is made before the present one ends, and where the description wants it they overlap. What the
//! order keeps stays, stopped, for a way back. Refuses to judge whether the next one is good: whoever orders does.

use super::carry_out::{remove, run};
use super::ending;
use super::observed::{Part, PartState};
use super::shared::Shared;
use super::start::Step;
use crate::instance::DriverError;
use amphi_api::set::UpdateSpec;
use std::sync::Arc;
use std::time::Duration;

/// What a member has for its end that says nothing about it.
const GRACE: Duration = Duration::from_secs(10);
/// What one has that was no good: its forerunner waits to come back.
const GRACE_BAD: Duration = Duration::from_secs(2);

/// What is wanted of one member's containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The number of the description that one is made for.
    pub generation: u64,
    /// One of this number is kept, stopped.
    pub former: Option<u64>,
    pub update: UpdateSpec,
}

/// What is to be done with a member that has containers of other descriptions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turn {
    pub remove: Vec<String>,
    /// None: as if the one that is wanted were alone.
    pub step: Option<Step>,
}

/// How one container does.
pub trait Sight {
    /// Its probes hold.
    fn is_ready(&self, part: &Part) -> bool;
    /// It could not be started; nothing has changed since.
    fn is_broken(&self, part: &Part) -> bool;
}

/// `parts`: all of one member. Containers that run in dead namespaces are no forerunners: they are removed.
pub fn turn(wanted: Wanted, parts: &[&Part], anchor: &Part, sight: &impl Sight, now_us: i64) -> Turn {
    let (own, others): (Vec<&Part>, Vec<&Part>) =
        parts.iter().copied().partition(|part| part.tag.generation == wanted.generation);
    let works = |part: &&Part| part.is_alive() && anchor.is_alive() && !part.is_stale(anchor);
    let keep = |part: &Part| wanted.former == Some(part.tag.generation);
    let old = others.iter().copied().filter(works).max_by_key(|part| part.detail.started_us);
    let useless = |part: &&Part| !works(part) && (part.is_alive() || !keep(part));
    let mut turn = Turn {
        remove: others.iter().copied().filter(useless).map(|part| part.id.clone()).collect(),
        step: None,
    };
    let swap = |made: Option<String>, old: &Part| Step::Swap {
        overlap: wanted.update.overlap && made.is_none(),
        made,
        old: old.id.clone(),
        keep: keep(old),
    };
    let later = |one: &Part, other: &Part| one.detail.started_us > other.detail.started_us;
    turn.step = match (own.first().copied(), old) {
        (None, None) => Some(Step::Create),
        (None, Some(old)) => Some(swap(None, old)),
        (Some(one), Some(old)) => match one.state {
            PartState::Created if sight.is_broken(one) => Some(Step::Keep),
            PartState::Created => {
                turn.remove.push(one.id.clone());
                Some(swap(None, old))
            }
            PartState::Running | PartState::Paused => {
                let since = one.detail.started_us.unwrap_or(now_us);
                let until_us = since.saturating_add(hold_us(wanted.update, one));
                let probed = one.tag.life.probes.tell_ready();
                Some(match wanted.update.overlap && later(one, old) {
                    true if probed && !sight.is_ready(one) => Step::Keep,
                    true if until_us > now_us => Step::Wait { id: one.id.clone(), until_us },
                    _ => Step::Retire { old: old.id.clone(), keep: keep(old) },
                })
            }
            // Started beside the old one, it ended: that is for its restart policy to say.
            PartState::Ended if later(one, old) => None,
            PartState::Ended => Some(swap(Some(one.id.clone()), old)),
        },
        // Its successor has ended, and it is wanted back.
        (Some(one), None)
            if one.state == PartState::Ended
                && anchor.is_alive()
                && others.iter().any(|other| later(other, one)) =>
        {
            Some(Step::Return { id: one.id.clone() })
        }
        (Some(_), None) => None,
    };
    turn
}

fn hold_us(update: UpdateSpec, part: &Part) -> i64 {
    i64::from(update.min_ready_s(part.tag.life.probes.tell_ready())) * 1_000_000
}

/// The new one takes the place of the old one, or starts beside it. `back`: it was there before the old one. One that cannot be started leaves the old one where it
/// was.
pub async fn take_over(
    shared: &Arc<Shared>,
    old: &Part,
    new: &str,
    back: bool,
    keep: bool,
    overlap: bool,
) -> Result<(), DriverError> {
    if !overlap {
        ending::end(shared, old, if back { GRACE_BAD } else { GRACE }).await?;
    }
    if let Err(error) = run(shared, new).await {
        if let DriverError::EngineRefused { message, .. } = &error {
            shared.health.note_end(new, message);
        }
        if !overlap {
            run(shared, &old.id).await?;
        }
        return Err(error);
    }
    match keep || overlap {
        true => Ok(()),
        false => remove(shared, &old.id).await,
    }
}

/// The old one goes; the new one runs.
pub async fn retire(shared: &Arc<Shared>, old: &Part, keep: bool) -> Result<(), DriverError> {
    ending::end(shared, old, GRACE).await?;
    match keep {
        true => Ok(()),
        false => remove(shared, &old.id).await,
    }
}

/// Ends a member in an orderly way, by order: it starts again at once, and that is no failure of its own.
pub async fn end(shared: &Arc<Shared>, part: &Part) -> Result<(), DriverError> {
    shared.restarts.order(&part.id);
    if part.is_alive() {
        ending::end(shared, part, GRACE).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::labels::{Life, Role, Tag};
    use super::super::observed::Detail;
    use super::*;
    use PartState::{Created, Ended, Running};
    use amphi_api::InstanceId;
    use serde_json::json;

    const NOW: i64 = 100_000_000;

    /// Started so many seconds before now; what ended did so at once.
    fn part(generation: u64, state: PartState, ago: i64, life: &Life) -> Part {
        let started_us = NOW - ago * 1_000_000;
        let tag = Tag {
            instance: InstanceId(uuid::Uuid::nil()),
            epoch: 1,
            role: Role::Member { index: 0, name: "web".to_owned() },
            spec: String::new(),
            generation,
            life: life.clone(),
        };
        let detail = Detail {
            started_us: (state != Created).then_some(started_us),
            finished_us: (state == Ended).then_some(started_us),
            namespace: (state == Running).then_some(7),
            ..Detail::default()
        };
        Part { id: format!("g{generation}"), tag, state, detail }
    }

    struct Seen {
        ready: bool,
        broken: bool,
    }

    impl Sight for Seen {
        fn is_ready(&self, _: &Part) -> bool {
            self.ready
        }
        fn is_broken(&self, part: &Part) -> bool {
            self.broken && part.state == Created
        }
    }

    fn says(turn: &Turn) -> String {
        let step = match &turn.step {
            None => "alone".to_owned(),
            Some(Step::Create) => "create".to_owned(),
            Some(Step::Keep) => "keep".to_owned(),
            Some(Step::Return { id }) => format!("return {id}"),
            Some(Step::Wait { until_us, .. }) => format!("wait {} s", (until_us - NOW) / 1_000_000),
            Some(Step::Retire { old, keep }) => format!("retire {old}{}", if *keep { ", kept" } else { "" }),
            Some(Step::Swap { made, old, keep, overlap }) => format!(
                "swap {old}{} for {}{}",
                if *keep { ", kept," } else { "" },
                made.as_deref().unwrap_or("a new one"),
                if *overlap { ", beside" } else { "" }
            ),
            Some(other) => format!("{other:?}"),
        };
        match turn.remove.is_empty() {
            true => step,
            false => format!("remove {}; {step}", turn.remove.join(", ")),
        }
    }

    #[test]
    fn every_sight_has_its_step() {
        let plain = Life::default();
        let one = |generation, state, ago| part(generation, state, ago, &plain);
        // What should be there is of description 5.
        let table: Vec<(&str, Vec<Part>, Option<u64>, &str)> = vec![
            ("nothing", vec![], None, "create"),
            ("as wanted", vec![one(5, Running, 9)], None, "alone"),
            ("as wanted, ended", vec![one(5, Ended, 9)], None, "alone"),
            ("another", vec![one(0, Running, 9)], Some(0), "swap g0, kept, for a new one"),
            ("another, and nobody wants it back", vec![one(0, Running, 9)], None, "swap g0 for a new one"),
            ("another that ended", vec![one(0, Ended, 9)], Some(0), "create"),
            ("another that ended for good", vec![one(0, Ended, 9)], None, "remove g0; create"),
            (
                "half made",
                vec![one(5, Created, 0), one(0, Running, 9)],
                Some(0),
                "remove g5; swap g0, kept, for a new one",
            ),
            ("swapped", vec![one(5, Running, 1), one(0, Ended, 9)], Some(0), "alone"),
            ("swapped, over", vec![one(5, Running, 1), one(0, Ended, 9)], None, "remove g0; alone"),
            ("swapped, and ended", vec![one(5, Ended, 1), one(0, Ended, 9)], Some(0), "alone"),
            ("both run", vec![one(5, Running, 1), one(0, Running, 9)], Some(0), "retire g0, kept"),
            ("back: the other runs", vec![one(5, Ended, 9), one(6, Running, 1)], None, "swap g6 for g5"),
            ("back: the other ended", vec![one(5, Ended, 9), one(6, Ended, 1)], None, "remove g6; return g5"),
            ("back: it never stopped", vec![one(5, Running, 9), one(6, Running, 1)], None, "retire g6"),
            (
                "back: it never stopped, the other ended",
                vec![one(5, Running, 9), one(6, Ended, 1)],
                None,
                "remove g6; alone",
            ),
            ("back, and it is gone", vec![one(6, Running, 1)], None, "swap g6 for a new one"),
        ];
        let anchor = part(0, Running, 50, &plain);
        let sight = Seen { ready: false, broken: false };
        for (what, parts, former, wanted) in table {
            let all: Vec<&Part> = parts.iter().collect();
            let order = Wanted { generation: 5, former, ..Wanted::default() };
            assert_eq!(says(&turn(order, &all, &anchor, &sight, NOW)), wanted, "{what}");
        }
    }

    #[test]
    fn one_that_cannot_start_is_not_tried_again() {
        let plain = Life::default();
        let parts = [part(5, Created, 0, &plain), part(0, Running, 9, &plain)];
        let all: Vec<&Part> = parts.iter().collect();
        let order = Wanted { generation: 5, former: Some(0), ..Wanted::default() };
        let anchor = part(0, Running, 50, &plain);
        let sight = Seen { ready: false, broken: true };
        assert_eq!(says(&turn(order, &all, &anchor, &sight, NOW)), "keep");
    }

    #[test]
    fn overlapping_members_end_when_the_next_is_good() {
        let probed = Life {
            probes: serde_json::from_value(json!({"readiness": {"tcp": {"port": 1}}})).unwrap(),
            ..Life::default()
        };
        let plain = Life::default();
        let update = |min_ready_s| UpdateSpec { overlap: true, min_ready_s, deadline_s: None };
        let table: Vec<(&str, &Life, Option<u32>, bool, Vec<Part>, &str)> = vec![
            (
                "begin",
                &plain,
                None,
                false,
                vec![part(0, Running, 9, &plain)],
                "swap g0, kept, for a new one, beside",
            ),
            (
                "young",
                &plain,
                None,
                false,
                vec![part(5, Running, 2, &plain), part(0, Running, 9, &plain)],
                "wait 3 s",
            ),
            (
                "old enough",
                &plain,
                None,
                false,
                vec![part(5, Running, 5, &plain), part(0, Running, 9, &plain)],
                "retire g0, kept",
            ),
            (
                "not ready",
                &probed,
                None,
                false,
                vec![part(5, Running, 8, &probed), part(0, Running, 9, &plain)],
                "keep",
            ),
            (
                "ready",
                &probed,
                None,
                true,
                vec![part(5, Running, 1, &probed), part(0, Running, 9, &plain)],
                "retire g0, kept",
            ),
            (
                "ready, and young",
                &probed,
                Some(4),
                true,
                vec![part(5, Running, 1, &probed), part(0, Running, 9, &plain)],
                "wait 3 s",
            ),
            (
                "it ended",
                &plain,
                None,
                false,
                vec![part(5, Ended, 1, &plain), part(0, Running, 9, &plain)],
                "alone",
            ),
        ];
        let anchor = part(0, Running, 50, &plain);
        for (what, _, least, ready, parts, wanted) in table {
            let all: Vec<&Part> = parts.iter().collect();
            let order = Wanted { generation: 5, former: Some(0), update: update(least) };
            let sight = Seen { ready, broken: false };
            assert_eq!(says(&turn(order, &all, &anchor, &sight, NOW)), wanted, "{what}");
        }
    }

    #[test]
    fn a_dead_anchor_makes_no_forerunners() {
        let plain = Life::default();
        let parts = [part(0, Running, 9, &plain)];
        let all: Vec<&Part> = parts.iter().collect();
        let order = Wanted { generation: 5, former: Some(0), ..Wanted::default() };
        let anchor = part(0, Ended, 50, &plain);
        let sight = Seen { ready: false, broken: false };
        assert_eq!(says(&turn(order, &all, &anchor, &sight, NOW)), "remove g0; create");
    }
}
