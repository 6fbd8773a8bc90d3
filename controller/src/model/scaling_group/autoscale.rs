//! How many members a group's policy wants: pure. Figures and times in, a number and its reason out.
//!
//! The wish is `members × average ÷ target`, or for a number of the whole group `number ÷ target`, rounded up and kept within
//! the bounds that hold now. Within a tenth of the target nothing changes; nor before the cool-down is over, unless the bounds
//! are broken; nor on figures that are missing or old.

use super::Scaled;
use amphi_api::group::{Autoscale, NumberOf};
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// How far the figures may be off the target: a size that follows every breath is no size.
const TOLERANCE: f64 = 0.1;

/// All that the decision looks at.
#[derive(Clone, Debug)]
pub struct ScaleSight<'a> {
    pub policy: &'a Autoscale,
    /// Members wanted now, and ready now.
    pub wanted: u32,
    pub ready: u32,
    /// Figures of ready members that are not stale; of a posted number, that one alone.
    pub figures: &'a [f64],
    pub scaled: Option<&'a Scaled>,
    pub now: Timestamp,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ScaleVerdict {
    pub desired: u32,
    pub why: String,
    /// The number that counted.
    pub value: Option<f64>,
    pub min: u32,
    pub max: u32,
}

pub fn autoscale(sight: &ScaleSight) -> ScaleVerdict {
    let policy = sight.policy;
    let (min, max, by) = bounds(policy, sight.now);
    let verdict =
        |desired: u32, value: Option<f64>, why: String| ScaleVerdict { desired, why, value, min, max };
    let wanted = sight.wanted;
    if wanted < min || wanted > max {
        let to = wanted.clamp(min, max);
        return verdict(to, None, format!("{wanted} is out of the bounds {min} to {max}{by}: {to}"));
    }
    let Some(value) = counted(sight) else {
        let why = match policy.is_measured() {
            true => format!(
                "{} of {} ready members say how much {} they use, too few to judge by: {wanted} stay",
                sight.figures.len(),
                sight.ready,
                policy.metric
            ),
            false => {
                format!("nobody has posted '{}' within {} s: {wanted} stay", policy.metric, policy.stale_s)
            }
        };
        return verdict(wanted, None, why);
    };
    let whole = !policy.is_measured() && policy.of == NumberOf::Group;
    // What the members that are there have to bear; those that are not ready yet bear nothing.
    let load = if whole { value } else { value * f64::from(sight.ready) };
    let bearing = if whole { wanted } else { sight.ready };
    let each = if bearing == 0 { f64::INFINITY } else { load / f64::from(bearing) };
    let what = match (policy.is_measured(), whole) {
        (true, _) => format!("{} is {value:.0} % on average of {} ready", policy.metric, sight.ready),
        (_, true) => format!("'{}' is {value}", policy.metric),
        (_, false) => format!("'{}' is {value} on average of {} ready", policy.metric, sight.ready),
    };
    let target = policy.target;
    let ideal = (load / target - 1e-9).ceil().clamp(0.0, f64::from(u32::MAX)) as u32;
    let near = load > 0.0 && (each / target - 1.0).abs() <= TOLERANCE;
    let desired = if near && bearing == wanted { wanted } else { ideal }.clamp(min, max);
    let share = format!("{what}, {target} each are the target");
    if desired == wanted {
        let why = match (near, ideal == wanted) {
            (true, _) => format!("{share}: within a tenth of it, {wanted} stay"),
            (_, true) => format!("{share}: {wanted} are right"),
            _ => format!("{share}: {ideal} would be right, the bounds are {min} to {max}{by}"),
        };
        return verdict(wanted, Some(value), why);
    }
    if desired > wanted && !whole && sight.ready < wanted {
        let why = format!(
            "{share}: {desired} would be right, {} of {wanted} are not ready yet",
            wanted - sight.ready
        );
        return verdict(wanted, Some(value), why);
    }
    let pause = i64::from(if desired > wanted { policy.cooldown_up_s } else { policy.cooldown_down_s });
    let since = sight.scaled.map_or(i64::MAX, |s| sight.now.duration_since(s.at).as_secs());
    if since < pause {
        let why =
            format!("{share}: {desired} would be right, in {} s when the cool-down is over", pause - since);
        return verdict(wanted, Some(value), why);
    }
    verdict(desired, Some(value), format!("{share}: {desired} instead of {wanted}"))
}

/// The number that counts; none: too little is known.
fn counted(sight: &ScaleSight) -> Option<f64> {
    if sight.figures.is_empty() {
        return None;
    }
    // Half of those that work must have spoken.
    if sight.policy.is_measured() && (sight.figures.len() as u32) * 2 < sight.ready {
        return None;
    }
    Some(sight.figures.iter().sum::<f64>() / sight.figures.len() as f64)
}

/// The bounds that hold now, and whose they are.
fn bounds(policy: &Autoscale, now: Timestamp) -> (u32, u32, String) {
    // Checked when it was ordered; should the zone be gone, UTC is better than none.
    let zone = TimeZone::get(&policy.time_zone).unwrap_or(TimeZone::UTC);
    let local = now.to_zoned(zone);
    match policy.schedule.iter().find(|window| window.holds(&local)) {
        Some(w) => (w.min, w.max, format!(" of {} to {}", w.from, w.to)),
        None => (policy.min, policy.max, String::new()),
    }
}
