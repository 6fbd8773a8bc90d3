//! Which moving volumes' writes are followed, and after which pass the other host had all but those. Lost with the process,
//! which costs one pass that compares everything. Refuses to say that a pass went well: who made it does.

use crate::crossing::{Blocks, Changes};
use amphi_api::{ExchangeId, InstanceId, VolumeId};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A body that takes longer to stop has its bytes compared once more.
const UNORDERED: Duration = Duration::from_secs(900);

#[derive(Default)]
pub(super) struct Following(BTreeMap<VolumeId, Followed>);

struct Followed {
    exchange: ExchangeId,
    instance: InstanceId,
    changes: Changes,
    /// The pass that is under way or was the last to end well.
    mark: Uuid,
    whole: bool,
    ordered: Instant,
}

/// What is known at the beginning of a pass.
pub(super) struct Known {
    pub changes: Changes,
    /// What the other host lacks, and after which pass. None: all of it.
    pub since: Option<(Blocks, Uuid)>,
}

impl Following {
    /// Takes out what is followed of the volume, if the pass before went well.
    pub(super) fn take(&mut self, volume: VolumeId, exchange: ExchangeId) -> Option<(Changes, Uuid)> {
        let found = self.0.remove(&volume)?;
        (found.exchange == exchange && found.whole).then_some((found.changes, found.mark))
    }

    pub(super) fn begun(
        &mut self,
        volume: VolumeId,
        (instance, exchange): (InstanceId, ExchangeId),
        mark: Uuid,
        changes: Changes,
    ) {
        let ordered = Instant::now();
        self.0.insert(volume, Followed { exchange, instance, changes, mark, whole: false, ordered });
    }

    pub(super) fn went_well(&mut self, volume: VolumeId, mark: Uuid) {
        if let Some(found) = self.0.get_mut(&volume).filter(|found| found.mark == mark) {
            found.whole = true;
        }
    }

    /// Between its passes a move orders none for as long as its body takes to stop.
    pub(super) fn retain(
        &mut self,
        here: impl Fn(InstanceId) -> bool,
        ordered: impl Fn(&InstanceId) -> bool,
    ) {
        self.0.retain(|_, found| {
            if ordered(&found.instance) {
                found.ordered = Instant::now();
            }
            here(found.instance) && found.ordered.elapsed() < UNORDERED
        });
    }
}

/// Asks what has changed.
pub(super) async fn asked(changes: Changes, mark: Uuid) -> Option<Known> {
    blocking(move || {
        let blocks = changes.take()?;
        Some(Known { changes, since: Some((blocks, mark)) })
    })
    .await
}

/// Begins to follow. `mark` has been set before `device` was looked up, so that it is gone if the volume is another by now.
pub(super) async fn begin(
    volume: VolumeId,
    run_dir: PathBuf,
    mark: PathBuf,
    device: PathBuf,
    size: u64,
) -> Option<Known> {
    blocking(move || match Changes::follow(&run_dir, mark, &device, size) {
        Ok(changes) => Some(Known { changes, since: None }),
        Err(error) => {
            tracing::info!(%volume, %error, "its writes cannot be followed: each pass reads all of it");
            None
        }
    })
    .await
}

/// Before the device is looked up.
pub(super) async fn set(mark: &std::path::Path) -> std::io::Result<()> {
    if let Some(folder) = mark.parent() {
        tokio::fs::create_dir_all(folder).await?;
    }
    tokio::fs::write(mark, b"").await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Option<T> + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok().flatten()
}
