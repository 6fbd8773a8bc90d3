//! What projects used: hours of instances between two moments, of those that are and of those that are gone.

use super::view::Row;
use super::{Draft, View};
use crate::model::{InstanceRecord, PAST_KEPT, PastInstanceRecord};
use amphi_api::ProjectId;
use jiff::Timestamp;

/// One instance's share of a period.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceUsage {
    /// As it was, or is; `deleted_at` is meaningless where `ended` is none.
    pub instance: PastInstanceRecord,
    pub ended: Option<Timestamp>,
    /// Within the period.
    pub hours: f64,
}

/// Keeps what an instance used when it is buried; what has been kept long enough goes, a little at a time.
pub(super) fn remember(view: &View, draft: &mut Draft, row: &Row<InstanceRecord>, now: Timestamp) {
    draft.put_record(view.past_instances.get(row.id), &PastInstanceRecord::of(row, now));
    let old = view.past_instances.iter().take(2);
    old.filter(|past| past.id != row.id && now.duration_since(past.deleted_at) > PAST_KEPT)
        .for_each(|past| draft.delete(past));
}

/// The instances of a project that were there in the period, in order of id.
pub fn of_project(
    view: &View,
    project: ProjectId,
    start: Timestamp,
    end: Timestamp,
    now: Timestamp,
) -> Vec<InstanceUsage> {
    let past = view.past_instances.of_project(project).map(|row| ((*row.record).clone(), true));
    let live =
        view.instances.of_project(project).map(|row| (PastInstanceRecord::of(&row.record, now), false));
    let mut all: Vec<InstanceUsage> = past
        .chain(live)
        .filter_map(|(instance, gone)| {
            let ended = gone.then_some(instance.deleted_at);
            let hours = hours_within(instance.created_at, ended, start, end, now)?;
            Some(InstanceUsage { instance, ended, hours })
        })
        .collect();
    all.sort_by_key(|usage| usage.instance.id);
    all
}

/// Projects that have or had instances, in order.
pub fn projects(view: &View) -> Vec<ProjectId> {
    let past = view.past_instances.iter().map(|row| row.project);
    let mut all: Vec<_> = view.instances.iter().map(|row| row.project).chain(past).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The hours of a life that fall into a period; none: they do not meet.
fn hours_within(
    began: Timestamp,
    ended: Option<Timestamp>,
    start: Timestamp,
    end: Timestamp,
    now: Timestamp,
) -> Option<f64> {
    if began > end || ended.is_some_and(|ended| ended < start) {
        return None;
    }
    let from = began.max(start);
    let to = ended.unwrap_or(now).min(end);
    Some(to.duration_since(from).as_secs_f64().max(0.0) / 3600.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_meets_the_period_counts() {
        let at = |hour: i64| Timestamp::from_second(hour * 3600).unwrap();
        // began, ended, start, end, now, hours
        let table = [
            (0, None, 0, 10, 4, Some(4.0)),
            (0, Some(2), 0, 10, 4, Some(2.0)),
            (0, Some(2), 3, 10, 4, None),
            (0, Some(8), 3, 5, 9, Some(2.0)),
            (6, None, 0, 5, 9, None),
            (4, None, 3, 20, 9, Some(5.0)),
            (4, None, 10, 20, 9, Some(0.0)),
        ];
        for (began, ended, start, end, now, want) in table {
            let found = hours_within(at(began), ended.map(at), at(start), at(end), at(now));
            assert_eq!(found, want, "{began} {ended:?} {start} {end} {now}");
        }
    }
}
