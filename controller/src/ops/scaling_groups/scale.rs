//! A group's own policy: figures in hand, what it would do is asked of the model, done by the task, told to whoever asks.

use super::health;
use crate::model::*;
use crate::ops::list::find;
use crate::ops::{Draft, Ops, OpsError, View};
use amphi_api::group::{Autoscale, ScaleFigure, ScalingExplained};
use amphi_api::{ProjectId, ScalingGroupId};
use jiff::Timestamp;
use std::time::Duration;

impl Ops {
    /// Follows the group's policy, where it has one.
    pub(super) async fn scale_itself(&self, id: ScalingGroupId) -> Result<(), OpsError> {
        let due = {
            let view = self.world().read();
            let group = view.scaling_groups.get(id).filter(|g| g.intent == Intent::Live);
            group.is_some_and(|g| self.verdict(&view, g).is_some_and(|(v, _)| v.desired != g.wanted))
        };
        if !due {
            return Ok(());
        }
        self.transact(|view| {
            let mut draft = Draft::default();
            let Some(row) = view.scaling_groups.get(id).filter(|g| g.intent == Intent::Live) else {
                return Ok((draft, ()));
            };
            if let Some((verdict, _)) = self.verdict(view, row)
                && verdict.desired != row.wanted
            {
                tracing::info!(group = %row.name, to = verdict.desired, why = verdict.why, "a group scales");
                let mut next = (*row.record).clone();
                let now = Timestamp::now();
                next.wanted = verdict.desired;
                next.scaled = Some(Scaled { at: now, why: verdict.why });
                super::retry(&mut next, now);
                draft.update(row, &next);
            }
            Ok((draft, ()))
        })
        .await
    }

    /// What the policy would do now, and why; nothing is done.
    pub fn explain_scaling(
        &self,
        scope: ProjectId,
        id: ScalingGroupId,
    ) -> Result<ScalingExplained, OpsError> {
        let view = self.world().read();
        let group = find(&view.scaling_groups, scope, id)?;
        let scaled_at = group.scaled.as_ref().map(|s| s.at);
        let Some((verdict, figures)) = self.verdict(&view, group) else {
            let last = group.scaled.as_ref().map(|s| format!("; last: {}", s.why)).unwrap_or_default();
            return Ok(ScalingExplained {
                count: group.wanted,
                desired: group.wanted,
                why: format!("it has no policy: its size is what was ordered{last}"),
                metric: None,
                value: None,
                target: None,
                min: None,
                max: None,
                figures: Vec::new(),
                scaled_at,
            });
        };
        let policy = group.autoscale.as_ref();
        Ok(ScalingExplained {
            count: group.wanted,
            desired: verdict.desired,
            why: verdict.why,
            metric: policy.map(|p| p.metric.clone()),
            value: verdict.value,
            target: policy.map(|p| p.target),
            min: Some(verdict.min),
            max: Some(verdict.max),
            figures,
            scaled_at,
        })
    }

    fn verdict(&self, view: &View, group: &ScalingGroupRecord) -> Option<(ScaleVerdict, Vec<ScaleFigure>)> {
        let policy = group.autoscale.as_ref()?;
        let ready = group.slots.iter().filter(|(_, slot)| {
            let row = view.instances.get(slot.instance);
            slot.withdrawn().is_none() && row.is_some_and(|row| health::look(view, row).reason.is_none())
        });
        let ready: Vec<(u32, &Slot)> = ready.map(|(index, slot)| (*index, slot)).collect();
        let fresh = |age: Duration| age <= Duration::from_secs(policy.stale_s.into());
        let measured: Vec<ScaleFigure> = ready
            .iter()
            .filter(|_| policy.is_measured())
            .filter_map(|(index, slot)| {
                let (figures, age) = self.figures.of(slot.instance)?;
                Some(ScaleFigure {
                    index: *index,
                    value: chosen(policy, &figures),
                    age_s: age.as_secs() as u32,
                })
            })
            .collect();
        let counted: Vec<f64> = match policy.is_measured() {
            true => measured.iter().filter(|f| f.age_s <= policy.stale_s).map(|f| f.value).collect(),
            false => {
                let posted = self.figures.posted(group.id, &policy.metric);
                posted.filter(|(_, age)| fresh(*age)).map(|(value, _)| value).into_iter().collect()
            }
        };
        let verdict = autoscale(&ScaleSight {
            policy,
            wanted: group.wanted,
            ready: ready.len() as u32,
            figures: &counted,
            scaled: group.scaled.as_ref(),
            now: Timestamp::now(),
        });
        Some((verdict, measured))
    }
}

fn chosen(policy: &Autoscale, figures: &amphi_api::group::InstanceFigures) -> f64 {
    f64::from(if policy.metric == "memory" { figures.memory } else { figures.cpu })
}
