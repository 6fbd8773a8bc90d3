//! Runs a task: after every change of the world and at least once per period. Changes that come while it looks are one
//! change. A task that fails is run again by the next period; it never ends the controller.

use crate::store::Revision;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[async_trait]
pub trait Task: Send + Sync + 'static {
    fn name(&self) -> &'static str;
    /// The longest time between two looks.
    fn period(&self) -> Duration;
    /// Whether changes of the records wake it.
    fn wakes(&self) -> bool {
        true
    }
    /// One look at the world, and what follows from it.
    async fn look(&self) -> anyhow::Result<()>;
}

/// Drives the task until told to stop.
pub async fn drive(task: Arc<dyn Task>, mut changes: watch::Receiver<Revision>, stop: CancellationToken) {
    let mut failing = false;
    loop {
        changes.borrow_and_update();
        let outcome = tokio::select! {
            outcome = task.look() => outcome,
            () = stop.cancelled() => return,
        };
        // Told once when it begins and once when it is over: an engine that is away for an hour fills no log.
        match outcome {
            Err(error) if !failing => {
                tracing::warn!(
                    task = task.name(),
                    error = format!("{error:#}"),
                    "a task fails; it is tried again"
                );
                failing = true;
            }
            Ok(()) if failing => {
                tracing::info!(task = task.name(), "a task works again");
                failing = false;
            }
            _ => {}
        }
        tokio::select! {
            changed = changes.changed(), if task.wakes() => if changed.is_err() { return },
            () = tokio::time::sleep(task.period()) => {}
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    struct Count(mpsc::UnboundedSender<()>);

    #[async_trait]
    impl Task for Count {
        fn name(&self) -> &'static str {
            "count"
        }
        fn period(&self) -> Duration {
            Duration::from_secs(3600)
        }
        async fn look(&self) -> anyhow::Result<()> {
            self.0.send(())?;
            anyhow::bail!("a failure ends nothing")
        }
    }

    #[tokio::test]
    async fn looks_at_once_and_after_a_change() {
        let (sender, mut looks) = mpsc::unbounded_channel();
        let changes = watch::Sender::new(0);
        let stop = CancellationToken::new();
        let driven = tokio::spawn(drive(Arc::new(Count(sender)), changes.subscribe(), stop.clone()));
        looks.recv().await.unwrap();
        changes.send(1).unwrap();
        looks.recv().await.unwrap();
        stop.cancel();
        driven.await.unwrap();
    }
}
