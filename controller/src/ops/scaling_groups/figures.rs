//! What instances use and what is told of groups: in memory alone, the newest of each. Whoever takes the controller's place
//! hears of it again within seconds; until then nothing scales.

use crate::ops::{Ops, OpsError, list::find};
use amphi_api::group::{InstanceFigures, MetricPost};
use amphi_api::{HostId, InstanceId, ProjectId, ScalingGroupId};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Older figures are of nobody's use: no policy may ask for them.
const KEPT: Duration = Duration::from_secs(86_400);
/// Names of numbers that are kept of one group.
const NAMES_MAX: usize = 64;

#[derive(Default)]
pub struct Figures(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    measured: HashMap<InstanceId, (InstanceFigures, Instant)>,
    posted: HashMap<ScalingGroupId, HashMap<String, (f64, Instant)>>,
    swept: Option<Instant>,
}

impl Figures {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Every change is a single insert or removal: a panic elsewhere leaves the maps whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it uses, and how old that is.
    pub fn of(&self, instance: InstanceId) -> Option<(InstanceFigures, Duration)> {
        self.lock().measured.get(&instance).map(|(figures, at)| (*figures, at.elapsed()))
    }

    pub fn posted(&self, group: ScalingGroupId, name: &str) -> Option<(f64, Duration)> {
        self.lock().posted.get(&group)?.get(name).map(|(value, at)| (*value, at.elapsed()))
    }
}

impl Ops {
    /// A host says what its instances use. Of one that is said to be elsewhere it is not believed.
    pub fn take_figures(&self, host: HostId, figures: &[InstanceFigures]) {
        if figures.is_empty() {
            return;
        }
        let view = self.world().read();
        let now = Instant::now();
        let mut kept = self.figures.lock();
        let here = |id| view.instances.get(id).is_some_and(|row| row.host == Some(host));
        for one in figures.iter().filter(|one| here(one.id)) {
            kept.measured.insert(one.id, (*one, now));
        }
        if kept.swept.is_none_or(|at| at.elapsed() > Duration::from_secs(60)) {
            kept.swept = Some(now);
            kept.measured.retain(|id, (_, at)| at.elapsed() < KEPT && view.instances.get(*id).is_some());
            kept.posted.retain(|id, _| view.scaling_groups.get(*id).is_some());
        }
    }

    /// A number that something outside knows of the group.
    pub fn post_metric(
        &self,
        scope: ProjectId,
        id: ScalingGroupId,
        post: &MetricPost,
    ) -> Result<(), OpsError> {
        post.check()?;
        find(&self.world().read().scaling_groups, scope, id)?;
        let mut kept = self.figures.lock();
        let numbers = kept.posted.entry(id).or_default();
        if numbers.len() >= NAMES_MAX && !numbers.contains_key(&post.name) {
            return Err(OpsError::conflict(format!("the group has {NAMES_MAX} numbers already")));
        }
        numbers.insert(post.name.clone(), (post.value, Instant::now()));
        Ok(())
    }
}
