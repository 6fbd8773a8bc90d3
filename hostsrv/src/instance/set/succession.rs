//! Which of a member's containers counts. One at most does its work at a time, but while a member is updated there are two:
//! the present one and the one to come, or the present one and its forerunner, kept for a way back. Pure.

use super::observed::{Part, PartState};

/// A member's containers by what they are to it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Standing<'a> {
    /// The one that does the work, or did it last.
    pub present: Option<&'a Part>,
    /// The one that is to take its place.
    pub coming: Option<&'a Part>,
    /// The one whose place it took.
    pub former: Option<&'a Part>,
}

/// When it came, for the order of a member's containers: what never ran comes last.
fn came(part: &Part) -> i64 {
    part.detail.started_us.filter(|_| part.state != PartState::Created).unwrap_or(i64::MAX)
}

/// `parts`: all of one member, of one epoch. Of several that run, the first does the work until it ends; of those that do
/// not, the one that ran last did it.
pub fn standing<'a>(parts: &[&'a Part]) -> Standing<'a> {
    let alive = parts.iter().copied().filter(|part| part.is_alive()).min_by_key(|part| came(part));
    let ran =
        parts.iter().copied().filter(|part| part.state == PartState::Ended).max_by_key(|part| came(part));
    let Some(present) = alive.or(ran).or(parts.first().copied()) else { return Standing::default() };
    let others = || parts.iter().copied().filter(|part| part.id != present.id);
    Standing {
        present: Some(present),
        coming: others().filter(|part| came(part) > came(present)).max_by_key(|part| came(part)),
        former: others()
            .filter(|part| !part.is_alive() && came(part) <= came(present) && part.state == PartState::Ended)
            .max_by_key(|part| came(part)),
    }
}

impl Standing<'_> {
    /// From the end of the former one to the start of the present one, in milliseconds; 0 where they overlapped.
    pub fn gap_ms(&self) -> Option<u64> {
        let from = self.former?.detail.finished_us?;
        let to = self.present?.detail.started_us?;
        Some(u64::try_from(to.saturating_sub(from)).unwrap_or(0) / 1000)
    }
}

/// The container of a member that counts, among parts of one epoch.
pub fn present<'a>(parts: impl Iterator<Item = &'a Part>, member: &str) -> Option<&'a Part> {
    let mine: Vec<&Part> =
        parts.filter(|part| part.tag.role.member().is_some_and(|(_, name)| name == member)).collect();
    standing(&mine).present
}

#[cfg(test)]
mod tests {
    use super::super::labels::{Role, Tag};
    use super::super::observed::Detail;
    use super::*;
    use PartState::{Created, Ended, Running};
    use amphi_api::InstanceId;

    /// Times in milliseconds.
    pub fn part(id: &str, state: PartState, started: i64, finished: i64) -> Part {
        let tag = Tag {
            instance: InstanceId(uuid::Uuid::nil()),
            epoch: 1,
            role: Role::Member { index: 0, name: "web".to_owned() },
            spec: String::new(),
            generation: 0,
            life: Default::default(),
        };
        let detail = Detail {
            started_us: (state != Created).then_some(started * 1000),
            finished_us: (state == Ended).then_some(finished * 1000),
            ..Detail::default()
        };
        Part { id: id.to_owned(), tag, state, detail }
    }

    #[test]
    fn one_counts() {
        let old = |state| part("old", state, 100, 500);
        let new = |state, started| part("new", state, started, started + 50);
        let table: Vec<(&str, Vec<Part>, &str, Option<u64>)> = vec![
            ("nothing", vec![], "- - -", None),
            ("one", vec![old(Running)], "old - -", None),
            ("one that never ran", vec![old(Created)], "old - -", None),
            ("the next is made", vec![new(Created, 0), old(Running)], "old new -", None),
            ("swapped", vec![new(Running, 800), old(Ended)], "new - old", Some(300)),
            ("swapped, and it failed", vec![old(Ended), new(Ended, 800)], "new - old", Some(300)),
            ("beside each other", vec![new(Running, 300), old(Running)], "old new -", None),
            ("beside each other, and it failed", vec![new(Ended, 300), old(Running)], "old new -", None),
            ("the old one has ended", vec![new(Running, 300), old(Ended)], "new - old", Some(0)),
            (
                "the old one is back",
                vec![new(Ended, 300), part("old", Running, 900, 0)],
                "old - new",
                Some(550),
            ),
        ];
        for (what, parts, wanted, gap) in table {
            let all: Vec<&Part> = parts.iter().collect();
            let found = standing(&all);
            let id = |part: Option<&Part>| part.map_or("-".to_owned(), |part| part.id.clone());
            let says = format!("{} {} {}", id(found.present), id(found.coming), id(found.former));
            assert_eq!((says.as_str(), found.gap_ms()), (wanted, gap), "{what}");
        }
    }
}
