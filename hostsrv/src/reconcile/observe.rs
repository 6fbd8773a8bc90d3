//! One look at all engines. Each answers or is noted as silent; none can hold up another beyond its own bound.

use super::plan::Observed;
use super::{Drivers, Troubles};
use crate::instance::ObservedBody;
use crate::storage::ObservedVolume;
use amphi_api::instance::BodyKind;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// How long a look at LVM stays good while nobody here has changed a volume. Each look forks a process (about 20 ms),
/// and nobody else changes our volumes.
const VOLUMES_GOOD_FOR: Duration = Duration::from_secs(60);

/// What one look saw.
#[derive(Debug, Default)]
pub struct World {
    pub bodies: Vec<ObservedBody>,
    pub answered: BTreeSet<BodyKind>,
    pub volumes: Option<BTreeMap<Uuid, ObservedVolume>>,
    troubles: Troubles,
}

impl World {
    pub fn observed(&self) -> Observed<'_> {
        Observed { bodies: &self.bodies, answered: &self.answered, volumes: self.volumes.as_ref() }
    }

    pub fn troubles(&self) -> Troubles {
        self.troubles.clone()
    }
}

/// Keeps the last good look at LVM.
#[derive(Default)]
pub struct Observer {
    volumes: Option<(Instant, BTreeMap<Uuid, ObservedVolume>)>,
    /// How often volumes had been touched when that look began.
    touched_before: u64,
}

impl Observer {
    /// `touched` counts what may have changed a volume, each at its end.
    pub async fn look(&mut self, drivers: &Drivers, touched: u64) -> World {
        let mut world = World::default();
        let looks =
            drivers.bodies.iter().map(|(kind, driver)| async move { (*kind, driver.observe().await) });
        let (bodies, volumes) =
            tokio::join!(futures_util::future::join_all(looks), self.look_at_volumes(drivers, touched));
        for (kind, result) in bodies {
            match result {
                Ok(bodies) => {
                    world.answered.insert(kind);
                    world.bodies.extend(bodies);
                }
                Err(error) => {
                    world.troubles.bodies.insert(kind, error.to_string());
                }
            }
        }
        match volumes {
            Ok(volumes) => world.volumes = Some(volumes),
            Err(error) => world.troubles.volumes = Some(error),
        }
        world
    }

    async fn look_at_volumes(
        &mut self,
        drivers: &Drivers,
        touched: u64,
    ) -> Result<BTreeMap<Uuid, ObservedVolume>, String> {
        if let Some((at, volumes)) = &self.volumes
            && self.touched_before == touched
            && at.elapsed() < VOLUMES_GOOD_FOR
        {
            return Ok(volumes.clone());
        }
        match drivers.volumes.observe().await {
            Ok(list) => {
                let volumes: BTreeMap<_, _> = list.into_iter().map(|v| (v.id, v)).collect();
                self.volumes = Some((Instant::now(), volumes.clone()));
                self.touched_before = touched;
                Ok(volumes)
            }
            Err(error) => {
                self.volumes = None;
                Err(error.to_string())
            }
        }
    }
}
