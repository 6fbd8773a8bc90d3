//! Runs a task: after every change of the world and at least once per period. Changes that come while it looks are one
//! change. A task that fails is run again by the next period; it never ends the controller.

use crate::store::Revision;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::{Duration, Instant};
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

/// After a look that a change has called for, a task rests so many times as long as the look has kept a thread busy: what
/// looks at all there is takes no more than its share of the controller, however much there is and however much changes.
const REST: u32 = 4;
/// The longest such rest; a shorter one than this is not worth a timer.
const REST_MAX: Duration = Duration::from_secs(1);
const REST_MIN: Duration = Duration::from_millis(2);

/// Drives the task until told to stop.
pub async fn drive(task: Arc<dyn Task>, mut changes: watch::Receiver<Revision>, stop: CancellationToken) {
    let mut failing = false;
    loop {
        changes.borrow_and_update();
        let mut busy = Duration::ZERO;
        let outcome = tokio::select! {
            outcome = timed(task.look(), &mut busy) => outcome,
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
        let rest = (busy * REST).min(REST_MAX);
        let changed = async {
            if rest >= REST_MIN {
                tokio::time::sleep(rest).await;
            }
            changes.changed().await
        };
        tokio::select! {
            changed = changed, if task.wakes() => if changed.is_err() { return },
            () = tokio::time::sleep(task.period().max(rest)) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Counts the time for which a future keeps its thread, and not that for which it waits.
async fn timed<T>(work: impl Future<Output = T>, busy: &mut Duration) -> T {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|context| {
        let began = Instant::now();
        let polled = work.as_mut().poll(context);
        *busy += began.elapsed();
        polled
    })
    .await
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
    async fn only_what_keeps_the_thread_counts() {
        let mut busy = Duration::ZERO;
        let work = async {
            std::thread::sleep(Duration::from_millis(10));
            tokio::time::sleep(Duration::from_millis(300)).await;
        };
        timed(work, &mut busy).await;
        assert!((Duration::from_millis(10)..Duration::from_millis(200)).contains(&busy), "{busy:?}");
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
