//! Waiting by polling, every 200 ms until a deadline. A controller that is away for a moment does not end a wait.

use super::{Client, ClientError};
use crate::conversion::{Conversion, ConversionState};
use crate::instance::{Exchange, ExchangePhase, Fault, Instance};
use crate::rollout::Rollout;
use crate::volume::{Snapshot, Volume};
use crate::{ExchangeId, ImageId, InstanceId, SnapshotId, VolumeId};
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;

/// Time between two looks.
pub const POLL: Duration = Duration::from_millis(200);

/// Looks until `enough` or the deadline. `None` stands for a thing that is not there (any more); `on_change` is
/// called with the first view and with each that differs from the one before.
async fn until<T, F>(
    operation: String,
    deadline: Duration,
    mut look: impl FnMut() -> F,
    mut enough: impl FnMut(Option<&T>) -> bool,
    mut on_change: impl FnMut(&T),
) -> Result<Option<T>, ClientError>
where
    T: PartialEq + Brief,
    F: Future<Output = Result<T, ClientError>>,
{
    let end = Instant::now() + deadline;
    let mut last: Option<T> = None;
    loop {
        let trouble = match look().await {
            Ok(view) => {
                if last.as_ref() != Some(&view) {
                    on_change(&view);
                }
                if enough(Some(&view)) {
                    return Ok(Some(view));
                }
                last = Some(view);
                None
            }
            Err(error) if error.is_not_found() && enough(None) => return Ok(None),
            Err(error) if error.is_passing() => Some(error),
            Err(error) => return Err(error),
        };
        if Instant::now() + POLL > end {
            // A controller that was away to the end is the reason, not the last thing it said.
            return Err(trouble.unwrap_or_else(|| ClientError::Timeout {
                operation,
                after: deadline,
                saw: last.map(|view| view.brief()),
            }));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// One line about a view, for the error of a wait that took too long.
trait Brief {
    fn brief(&self) -> String;
}

/// `error (image_broken: …)`: the state as JSON spells it and the reason, where there is one.
fn brief(state: impl serde::Serialize, reason: Option<String>) -> String {
    let state =
        serde_json::to_value(state).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
    match reason {
        Some(reason) => format!("{state} ({reason})"),
        None => state,
    }
}

fn reason(fault: &Option<Fault>) -> Option<String> {
    fault.as_ref().map(|f| format!("{}: {}", f.code, f.message))
}

impl Brief for Instance {
    fn brief(&self) -> String {
        brief(self.state, reason(&self.fault))
    }
}

impl Brief for Exchange {
    fn brief(&self) -> String {
        brief(self.phase, reason(&self.fault))
    }
}

impl Brief for Conversion {
    fn brief(&self) -> String {
        brief(self.state, reason(&self.fault))
    }
}

impl Brief for Rollout {
    fn brief(&self) -> String {
        brief(self.phase, reason(&self.fault))
    }
}

impl Brief for Volume {
    fn brief(&self) -> String {
        brief(self.state, self.fault.clone())
    }
}

impl Brief for Snapshot {
    fn brief(&self) -> String {
        brief(self.state, self.fault.clone())
    }
}

fn gone(operation: &str) -> ClientError {
    ClientError::Protocol { operation: operation.to_owned(), message: "it disappeared meanwhile".to_owned() }
}

impl Client {
    /// Waits until the instance is as `predicate` wants it. One that disappears is an error (not found).
    pub async fn wait_instance(
        &self,
        id: InstanceId,
        mut predicate: impl FnMut(&Instance) -> bool,
        deadline: Duration,
        on_change: impl FnMut(&Instance),
    ) -> Result<Instance, ClientError> {
        let operation = format!("wait for instance {id}");
        let seen = until(
            operation.clone(),
            deadline,
            || self.instance(id),
            |v| v.is_some_and(&mut predicate),
            on_change,
        );
        seen.await?.ok_or_else(|| gone(&operation))
    }

    /// Waits until the instance is no more, or `stuck` says that it will not go.
    /// `None` when it is gone, else what it was when waiting ended.
    pub async fn wait_instance_gone(
        &self,
        id: InstanceId,
        mut stuck: impl FnMut(&Instance) -> bool,
        deadline: Duration,
        on_change: impl FnMut(&Instance),
    ) -> Result<Option<Instance>, ClientError> {
        let operation = format!("wait for instance {id} to be gone");
        until(operation, deadline, || self.instance(id), |v| v.is_none_or(&mut stuck), on_change).await
    }

    /// Waits until the volume is as `predicate` wants it, where `None` stands for one that is gone.
    pub async fn wait_volume(
        &self,
        id: VolumeId,
        predicate: impl FnMut(Option<&Volume>) -> bool,
        deadline: Duration,
        on_change: impl FnMut(&Volume),
    ) -> Result<Option<Volume>, ClientError> {
        until(format!("wait for volume {id}"), deadline, || self.volume(id), predicate, on_change).await
    }

    /// Waits until the snapshot is as `predicate` wants it, where `None` stands for one that is gone.
    pub async fn wait_snapshot(
        &self,
        id: SnapshotId,
        predicate: impl FnMut(Option<&Snapshot>) -> bool,
        deadline: Duration,
        on_change: impl FnMut(&Snapshot),
    ) -> Result<Option<Snapshot>, ClientError> {
        until(format!("wait for snapshot {id}"), deadline, || self.snapshot(id), predicate, on_change).await
    }

    /// Waits until the update of the set is over, or paused.
    pub async fn wait_rollout(
        &self,
        id: InstanceId,
        mut enough: impl FnMut(&Rollout) -> bool,
        deadline: Duration,
        on_change: impl FnMut(&Rollout),
    ) -> Result<Rollout, ClientError> {
        let operation = format!("wait for the update of {id}");
        let ended = |v: Option<&Rollout>| v.is_some_and(|r| r.ended() || enough(r));
        let seen = until(operation.clone(), deadline, || self.rollout(id), ended, on_change);
        seen.await?.ok_or_else(|| gone(&operation))
    }

    /// Waits until the conversion that an image comes from is `done` or `failed`.
    pub async fn wait_conversion(
        &self,
        image: ImageId,
        deadline: Duration,
        on_change: impl FnMut(&Conversion),
    ) -> Result<Conversion, ClientError> {
        let operation = format!("wait for the conversion to image {image}");
        let ended = |v: Option<&Conversion>| v.is_some_and(|c| c.state != ConversionState::Running);
        let seen = until(operation.clone(), deadline, || self.conversion(image), ended, on_change);
        seen.await?.ok_or_else(|| gone(&operation))
    }

    /// Waits until the exchange is `done` or `failed`.
    pub async fn wait_exchange(
        &self,
        id: ExchangeId,
        deadline: Duration,
        on_change: impl FnMut(&Exchange),
    ) -> Result<Exchange, ClientError> {
        let operation = format!("wait for exchange {id}");
        let ended = |v: Option<&Exchange>| {
            v.is_some_and(|e| matches!(e.phase, ExchangePhase::Done | ExchangePhase::Failed))
        };
        let seen = until(operation.clone(), deadline, || self.exchange(id), ended, on_change);
        seen.await?.ok_or_else(|| gone(&operation))
    }
}
