//! Owns which starts come first where a host has many to make at once, as after the loss of another host: a VM's waits
//! until no set's is under way. A set answers after a second of work; a VM boots for many, with all the CPU that it gets,
//! and what it would take from the sets is a small part of its own time. Refuses to hold a VM up for longer than
//! `PATIENCE`, and to know why something starts.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A VM waits for sets at most so long: one of them may be waiting for an image. In a lab of five hosts on two CPUs, 38
/// sets of a lost host were started by the four others within about ten seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many sets are being started.
#[derive(Debug, Default)]
pub struct Turns(watch::Sender<usize>);

/// A set is being started for as long as this lives.
pub struct SetTurn(Arc<Turns>);

impl Drop for SetTurn {
    fn drop(&mut self) {
        self.0.0.send_modify(|sets| *sets -= 1);
    }
}

impl Turns {
    /// A set's start begins.
    pub fn set(self: &Arc<Self>) -> SetTurn {
        self.0.send_modify(|sets| *sets += 1);
        SetTurn(self.clone())
    }

    /// Returns when a VM may start.
    pub async fn vm(&self) {
        self.vm_within(PATIENCE).await;
    }

    async fn vm_within(&self, patience: Duration) {
        let mut sets = self.0.subscribe();
        // Late or never: it starts all the same.
        let _late = tokio::time::timeout(patience, sets.wait_for(|sets| *sets == 0)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_vm_waits_for_sets_but_not_for_ever() {
        let turns = Arc::new(Turns::default());
        turns.vm_within(Duration::MAX).await;

        let (one, two) = (turns.set(), turns.set());
        let waiting = turns.clone();
        let vm = tokio::spawn(async move { waiting.vm_within(Duration::MAX).await });
        drop(one);
        tokio::task::yield_now().await;
        assert!(!vm.is_finished(), "both have to be done");
        turns.vm_within(Duration::from_millis(1)).await;
        drop(two);
        vm.await.unwrap();
    }
}
