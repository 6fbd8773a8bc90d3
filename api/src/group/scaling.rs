//! By what a group scales itself, and what it says about that.

use super::COUNT_MAX;
use crate::{FieldError, InstanceId, validate};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a named number is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NumberOf {
    /// The whole group, as the length of a queue is: `target` is each instance's share of it.
    #[default]
    Group,
    /// The average instance, as a load is.
    Instance,
}

/// By what a group changes its size.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Autoscale {
    /// `cpu` and `memory`: percent of what an instance may use, on average; any other name: the number of that name that was
    /// posted last to the group's `metrics`.
    #[schema(min_length = 1, max_length = 63)]
    pub metric: String,
    /// What each instance should have of it; above 0.
    #[schema(exclusive_minimum = 0.0)]
    pub target: f64,
    #[schema(minimum = 0, maximum = 1000)]
    pub min: u32,
    #[schema(minimum = 0, maximum = 1000)]
    pub max: u32,
    /// What a number that is posted is of.
    #[serde(default)]
    pub of: NumberOf,
    /// Seconds after a change of size before more are made: 0 to 86,400. Default 60.
    #[serde(default = "up")]
    #[schema(minimum = 0, maximum = 86400)]
    pub cooldown_up_s: u32,
    /// Seconds after a change of size before some are taken away: 0 to 86,400. Default 300.
    #[serde(default = "down")]
    #[schema(minimum = 0, maximum = 86400)]
    pub cooldown_down_s: u32,
    /// A number older than this counts for nothing, and the size stays: 1 to 86,400 seconds. Default 120.
    #[serde(default = "stale")]
    #[schema(minimum = 1, maximum = 86400)]
    pub stale_s: u32,
    /// Other bounds at certain hours; the first that holds counts. At most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 32)]
    pub schedule: Vec<ScaleWindow>,
    /// Of the schedule, in tz database's words: `Europe/Berlin`. Default `UTC`.
    #[serde(default = "utc")]
    #[schema(min_length = 1, max_length = 63)]
    pub time_zone: String,
}

fn up() -> u32 {
    60
}

fn down() -> u32 {
    300
}

fn stale() -> u32 {
    120
}

fn utc() -> String {
    "UTC".to_owned()
}

/// Bounds that hold from one hour to another, on some days of the week.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScaleWindow {
    /// `mon` to `sun`: the days on which it begins. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 7)]
    pub days: Vec<String>,
    /// `08:00`.
    pub from: String,
    /// `20:00`; not later than `from`: it ends on the next day.
    pub to: String,
    #[schema(minimum = 0, maximum = 1000)]
    pub min: u32,
    #[schema(minimum = 0, maximum = 1000)]
    pub max: u32,
}

pub(crate) const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Minutes since midnight of `08:30`.
pub fn clock(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let two = |s: &str| (s.len() == 2 && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse().ok())?;
    let (hours, minutes): (u32, u32) = (two(hours)?, two(minutes)?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

fn bounds(min: u32, max: u32) -> Result<(), FieldError> {
    validate::within("max", max.into(), 0, COUNT_MAX.into(), "instances")?;
    validate::within("min", min.into(), 0, max.into(), "instances")
}

impl Autoscale {
    pub fn is_measured(&self) -> bool {
        matches!(self.metric.as_str(), "cpu" | "memory")
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        validate::label("metric", &self.metric)?;
        if !(self.target.is_finite() && self.target > 0.0) {
            return Err(FieldError::new("target", "must be above 0"));
        }
        bounds(self.min, self.max)?;
        let least = self.schedule.iter().map(|window| window.min).chain([self.min]).min();
        if self.is_measured() && least == Some(0) {
            return Err(FieldError::new("min", "must be 1 or more: without members nothing can be measured"));
        }
        for (field, value, least) in [
            ("cooldown_up_s", self.cooldown_up_s, 0),
            ("cooldown_down_s", self.cooldown_down_s, 0),
            ("stale_s", self.stale_s, 1),
        ] {
            validate::within(field, value.into(), least, 86_400, "seconds")?;
        }
        validate::within("schedule", self.schedule.len() as u64, 0, 32, "windows")?;
        for (at, window) in self.schedule.iter().enumerate() {
            window.check().map_err(|e| e.under(&format!("schedule[{at}]")))?;
        }
        validate::name("time_zone", &self.time_zone)
    }
}

impl ScaleWindow {
    fn check(&self) -> Result<(), FieldError> {
        if let Some(at) = self.days.iter().position(|day| !DAYS.contains(&day.as_str())) {
            let why = format!("must be one of {}", DAYS.join(", "));
            return Err(FieldError::new(format!("days[{at}]"), why));
        }
        for (field, text) in [("from", &self.from), ("to", &self.to)] {
            clock(text).ok_or_else(|| FieldError::new(field, "must be a time of day: 08:30"))?;
        }
        bounds(self.min, self.max)
    }

    /// Whether it holds at this time in its time zone.
    pub fn holds(&self, at: &jiff::Zoned) -> bool {
        let (Some(from), Some(to)) = (clock(&self.from), clock(&self.to)) else { return false };
        let minute = at.hour() as u32 * 60 + at.minute() as u32;
        let today = usize::from(at.weekday().to_monday_zero_offset().unsigned_abs());
        let on = |day: usize| self.days.is_empty() || self.days.iter().any(|d| d == DAYS[day % 7]);
        match from < to {
            true => on(today) && (from..to).contains(&minute),
            false => (on(today) && minute >= from) || (on(today + 6) && minute < to),
        }
    }
}

/// A number that something outside knows of the group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricPost {
    #[schema(min_length = 1, max_length = 63)]
    pub name: String,
    /// 0 or more.
    #[schema(minimum = 0.0)]
    pub value: f64,
}

impl MetricPost {
    pub fn check(&self) -> Result<(), FieldError> {
        validate::label("name", &self.name)?;
        if matches!(self.name.as_str(), "cpu" | "memory") {
            return Err(FieldError::new("name", "is measured, and cannot be posted"));
        }
        if !(self.value.is_finite() && self.value >= 0.0) {
            return Err(FieldError::new("value", "must be 0 or more"));
        }
        Ok(())
    }
}

/// What a host measures of an instance, coarsely: whole percent of what it may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceFigures {
    pub id: InstanceId,
    /// Of all its CPUs together; more than 100 where it may borrow.
    pub cpu: u16,
    pub memory: u16,
}

/// The figure of one member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ScaleFigure {
    pub index: u32,
    pub value: f64,
    /// Seconds since it was measured.
    pub age_s: u32,
}

/// What a group's policy would do now, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ScalingExplained {
    /// Members wanted now.
    pub count: u32,
    /// Members that it would want.
    pub desired: u32,
    pub why: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// The number that counts: the group's, or the members' average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<f64>,
    /// The bounds that hold now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// What the members have of a measured metric.
    pub figures: Vec<ScaleFigure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    #[schema(value_type = Option<String>)]
    pub scaled_at: Option<Timestamp>,
}
