//! The recycle bin: a tag with a time on the LV, and the pure rule when its stay is over.
//!
//! Nothing here removes anything. The rule is what a controller (or an operator's listing) asks; a purge
//! happens only by an explicit `BinOrder::Purge`, so a wrong clock on a host cannot destroy a volume.

use std::time::Duration;

use super::ObservedVolume;

/// Followed by unix seconds.
pub const TRASH_TAG: &str = "amphi.trash=";

/// How long the bin keeps a volume when nobody says otherwise.
pub const DEFAULT_STAY: Duration = Duration::from_secs(7 * 24 * 3600);

/// The tag for a volume trashed at `at` (unix seconds).
pub fn trash_tag(at: i64) -> String {
    format!("{TRASH_TAG}{at}")
}

/// When the tags say that the volume was trashed: the earliest time, should there be several. A time that
/// is no number counts as 0: trash all the same, and never attached.
pub fn trashed_at<'a>(tags: impl IntoIterator<Item = &'a str>) -> Option<i64> {
    tags.into_iter().filter_map(|tag| tag.strip_prefix(TRASH_TAG)).map(|at| at.parse().unwrap_or(0)).min()
}

/// Whether the stay of a volume trashed at `trashed_at` is over at `now` (both unix seconds).
pub fn is_expired(trashed_at: i64, now: i64, stay: Duration) -> bool {
    let stay = i64::try_from(stay.as_secs()).unwrap_or(i64::MAX);
    now.saturating_sub(trashed_at) >= stay
}

/// What lies in the bin, oldest first.
pub fn contents(observed: &[ObservedVolume]) -> Vec<&ObservedVolume> {
    let mut bin: Vec<_> = observed.iter().filter(|volume| volume.trashed_at.is_some()).collect();
    bin.sort_by_key(|volume| volume.trashed_at);
    bin
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stay_ends_after_seven_days() {
        let day = 24 * 3600;
        for (trashed, now, over) in
            [(0, 7 * day, true), (0, 7 * day - 1, false), (100, 0, false), (i64::MIN, i64::MAX, true)]
        {
            assert_eq!(is_expired(trashed, now, DEFAULT_STAY), over, "{trashed} {now}");
        }
    }

    #[test]
    fn tags_tell_the_time() {
        assert_eq!(trashed_at(["amphi", "amphi.trash=12", "amphi.trash=7"]), Some(7));
        assert_eq!(trashed_at(["amphi.trash=soon"]), Some(0));
        assert_eq!(trashed_at(["amphi", "amphi.fs=xfs"]), None);
        assert_eq!(trash_tag(5), "amphi.trash=5");
    }
}
