//! The layers of one image, one after the other, the lowest first: an engine unpacks in that order, and can begin with the first
//! one while the next is on its way. Several at once would all be there only at the end. Refuses to order layers of different images: one
//! that hangs holds up its own image alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Engines ask for some layers at the same time, in no certain order: so long, others may come that go first.
const GATHER: Duration = Duration::from_millis(20);

#[derive(Default)]
pub(super) struct Turns {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    taken: bool,
    /// Indices of the layers that are asked for; one may be there twice.
    waiting: Vec<usize>,
}

/// As long as this lives, it is this layer's turn.
pub(super) struct Turn(Arc<Turns>);

/// Takes the index back, also when nobody waits any more.
struct Waiting<'a>(&'a Turns, usize);

impl Turns {
    /// Waits until no other layer has the turn and none below this one wants it.
    pub async fn take(self: Arc<Self>, index: usize) -> Turn {
        self.state().waiting.push(index);
        let waiting = Waiting(&self, index);
        tokio::time::sleep(GATHER).await;
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state();
                if !state.taken && state.waiting.iter().min() == Some(&index) {
                    state.taken = true;
                    break;
                }
            }
            changed.await;
        }
        drop(waiting);
        Turn(self)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if let Some(at) = state.waiting.iter().position(|index| *index == self.1) {
            state.waiting.swap_remove(at);
        }
        drop(state);
        self.0.changed.notify_waiters();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.state().taken = false;
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    #[tokio::test]
    async fn the_lowest_of_those_that_wait_goes_first() {
        let turns = Arc::new(Turns::default());
        let order = Mutex::new(Vec::new());
        let ask = async |index: usize| {
            let _turn = turns.clone().take(index).await;
            order.lock().unwrap().push(index);
            tokio::task::yield_now().await;
            order.lock().unwrap().push(index);
        };
        tokio::join!(ask(2), ask(0), ask(1));
        assert_eq!(*order.lock().unwrap(), [0, 0, 1, 1, 2, 2], "one at a time, the lowest first");
        // Who gives up while waiting, or with the turn, holds nobody up.
        let mut given_up = Box::pin(turns.clone().take(0));
        assert!(given_up.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let mut waits = pin!(turns.clone().take(3));
        assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(given_up);
        drop(tokio::time::timeout(Duration::from_secs(1), waits).await.expect("its turn"));
        drop(tokio::time::timeout(Duration::from_secs(1), turns.take(4)).await.expect("its turn"));
    }
}
