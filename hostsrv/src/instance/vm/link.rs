//! Owns the connections to libvirtd: one thread opens one for events, subscribes, and opens it again when libvirtd
//! restarts; calls run on short-lived threads of their own, at most [`CALLS`] at a time, each waited for no longer
//! than its limit. A hung libvirtd so costs a few threads and never the runtime's. Refuses to know what a call means.
//!
//! A connection serves one call at a time, and keepalive is sent on the one for events alone. libvirt's client before 10.4
//! (CVE-2024-4418) leaves a watch on the socket behind, pointing into the stack of a call that has returned, whenever
//! anything else is sent while that call waits for its answer: a second call, or a keepalive out of the event loop. The
//! next answer on that connection then ends the process, and a libvirtd that hung for a while brings both together.

use super::events::{self, Rings, Subscription};
use crate::instance::{Bell, DriverError};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot, watch};
use virt::connect::Connect;
use virt::error::{Error, ErrorNumber};

pub const ENGINE: &str = "libvirt";
/// Calls under way at once. libvirtd itself serves 5 clients' calls at a time by default (libvirtd.conf, max_client_requests).
const CALLS: usize = 5;
/// How long a caller waits for a connection that is being opened.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// Between two attempts to open.
const OPEN_PAUSE: Duration = Duration::from_secs(1);
/// How often an open connection is looked at; costs no round trip.
const LOOK: Duration = Duration::from_secs(5);
/// libvirt's keepalive: after this many unanswered ones, this many seconds apart, a hung libvirtd counts as down.
const KEEPALIVE: (i32, u32) = (5, 3);

/// An open connection with its subscriptions, on which nothing is called, and those for calls. Only `drop` takes the first out.
struct Open {
    events: Option<(Connect, Subscription)>,
    /// For calls; nobody calls on these now.
    idle: Mutex<Vec<Connect>>,
}

impl Open {
    fn alive(&self) -> bool {
        self.events.as_ref().is_some_and(|(connection, _)| is_alive(connection))
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connect>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls on a connection of its own. Besides the outcome: whether that one is still alive.
    fn call<T>(&self, uri: &str, work: &Work<T>) -> (Result<T, Error>, bool) {
        let held = self.idle().pop();
        let connection = match held {
            Some(connection) if is_alive(&connection) => connection,
            stale => {
                stale.into_iter().for_each(close);
                match Connect::open(Some(uri)) {
                    Ok(connection) => connection,
                    Err(error) => return (Err(error), false),
                }
            }
        };
        let done = work(&connection);
        let alive = is_alive(&connection);
        if alive {
            self.idle().push(connection);
        } else {
            close(connection);
        }
        (done, alive)
    }
}

fn is_alive(connection: &Connect) -> bool {
    connection.is_alive().unwrap_or(false)
}

fn close(mut connection: Connect) {
    if let Err(error) = connection.close() {
        tracing::debug!("closing a connection to libvirt: {error}");
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some((connection, subscription)) = self.events.take() else { return };
        let idle = std::mem::take(&mut *self.idle());
        // Saying goodbye to a hung libvirtd blocks until that goes on: never on the caller's thread.
        let goodbye = move || {
            // Local, and no more keepalive beside the calls that follow. On a connection that is dead nothing is sent.
            let _off = connection.set_keep_alive(0, 0);
            events::unsubscribe(&connection, &subscription);
            close(connection);
            idle.into_iter().for_each(close);
        };
        if let Err(error) = std::thread::Builder::new().name("libvirt-close".into()).spawn(goodbye) {
            tracing::debug!("no thread to close libvirt's connection: {error}");
        }
    }
}

#[derive(Clone)]
enum State {
    /// Being opened.
    Opening,
    Up(Arc<Open>),
    /// The last attempt failed, with libvirt's words.
    Down(String),
}

/// What a call does on a connection.
type Work<T> = dyn Fn(&Connect) -> Result<T, Error> + Send + Sync;

#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
    changes: watch::Receiver<u64>,
}

struct Shared {
    uri: String,
    state: watch::Sender<State>,
    nudge: SyncSender<()>,
}

impl Link {
    /// Starts the thread that connects; returns at once.
    pub fn new(uri: String, bell: Bell) -> Self {
        let (nudge, nudged) = sync_channel(1);
        let (changes, follow) = watch::channel(0);
        let shared = Arc::new(Shared {
            uri: uri.clone(),
            state: watch::Sender::new(State::Opening),
            nudge: nudge.clone(),
        });
        let rings = Rings { bell, changes, link: nudge };
        let weak = Arc::downgrade(&shared);
        let keep = move || keep_connected(&uri, &weak, &rings, &nudged);
        if let Err(error) = std::thread::Builder::new().name("libvirt-link".into()).spawn(keep) {
            shared.state.send_replace(State::Down(format!("no thread for the connection: {error}")));
        }
        Self { shared, permits: Arc::new(Semaphore::new(CALLS)), changes: follow }
    }

    /// A counter that moves with every event of a domain of ours.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Runs `work` against libvirtd, for at most `limit` altogether. When the connection breaks under it, once more
    /// on a new one: so it has to be idempotent.
    pub async fn call<T: Send + 'static>(
        &self,
        doing: &str,
        limit: Duration,
        work: impl Fn(&Connect) -> Result<T, Error> + Send + Sync + 'static,
    ) -> Result<T, DriverError> {
        self.call_bounded(doing, limit, Arc::new(work), true).await
    }

    /// The same, and never a second time: for what does harm if it is done twice.
    pub async fn call_once<T: Send + 'static>(
        &self,
        doing: &str,
        limit: Duration,
        work: impl Fn(&Connect) -> Result<T, Error> + Send + Sync + 'static,
    ) -> Result<T, DriverError> {
        self.call_bounded(doing, limit, Arc::new(work), false).await
    }

    async fn call_bounded<T: Send + 'static>(
        &self,
        doing: &str,
        limit: Duration,
        work: Arc<Work<T>>,
        again: bool,
    ) -> Result<T, DriverError> {
        let bounded = tokio::time::timeout(limit, self.call_unbounded(doing, work, again));
        bounded.await.unwrap_or_else(|_| {
            Err(DriverError::EngineTimeout { engine: ENGINE, doing: doing.to_owned(), limit })
        })
    }

    async fn call_unbounded<T: Send + 'static>(
        &self,
        doing: &str,
        work: Arc<Work<T>>,
        mut again: bool,
    ) -> Result<T, DriverError> {
        let down = |message: String| DriverError::EngineDown {
            engine: ENGINE,
            doing: doing.to_owned(),
            source: anyhow::anyhow!(message),
        };
        loop {
            // Never closed: the semaphore lives as long as the link.
            let permit = self.permits.clone().acquire_owned().await.map_err(|e| down(e.to_string()))?;
            let open = self.open(doing).await?;
            let (tell, told) = oneshot::channel();
            let task = (work.clone(), open.clone(), self.shared.clone());
            std::thread::Builder::new()
                .name("libvirt-call".into())
                .spawn(move || {
                    let (work, open, shared) = task;
                    // Nobody listens any more when the limit has passed; the permit is held until here all the same.
                    let _late = tell.send(open.call(&shared.uri, &*work));
                    drop(permit);
                })
                .map_err(|e| down(e.to_string()))?;
            match told.await {
                Ok((Ok(value), _)) => return Ok(value),
                Ok((Err(error), true)) => return Err(refusal(doing, &error)),
                Ok((Err(error), false)) => {
                    self.lost(&open);
                    if !again {
                        return Err(down(error.message().to_owned()));
                    }
                    again = false;
                }
                Err(_) => return Err(down("the call died".into())),
            }
        }
    }

    /// Forgets a connection that broke, unless another has taken its place, and has a new one opened.
    fn lost(&self, open: &Arc<Open>) {
        self.shared.state.send_if_modified(|state| match state {
            State::Up(current) if Arc::ptr_eq(current, open) => {
                *state = State::Opening;
                true
            }
            _ => false,
        });
        let _told = self.shared.nudge.try_send(());
    }

    async fn open(&self, doing: &str) -> Result<Arc<Open>, DriverError> {
        let mut state = self.shared.state.subscribe();
        if let State::Up(open) = &*state.borrow_and_update()
            && open.alive()
        {
            return Ok(open.clone());
        }
        // Down or broken: what the next attempt says counts, not what the last one said.
        let _told = self.shared.nudge.try_send(());
        let next = async {
            loop {
                if state.changed().await.is_err() {
                    return Err("the connection's thread has ended".to_owned());
                }
                match &*state.borrow_and_update() {
                    State::Up(open) => return Ok(open.clone()),
                    State::Down(message) => return Err(message.clone()),
                    State::Opening => {}
                }
            }
        };
        match tokio::time::timeout(OPEN_LIMIT, next).await {
            Ok(Ok(open)) => Ok(open),
            Ok(Err(message)) => Err(DriverError::EngineDown {
                engine: ENGINE,
                doing: doing.to_owned(),
                source: anyhow::anyhow!(message),
            }),
            Err(_) => Err(DriverError::EngineTimeout {
                engine: ENGINE,
                doing: format!("{doing}: opening a connection"),
                limit: OPEN_LIMIT,
            }),
        }
    }
}

/// The thread's whole life: ends when the link is dropped.
fn keep_connected(uri: &str, shared: &Weak<Shared>, rings: &Rings, nudged: &Receiver<()>) {
    events::run_loop();
    while let Some(shared) = shared.upgrade() {
        let up = matches!(&*shared.state.borrow(), State::Up(open) if open.alive());
        let mut pause = LOOK;
        if !up {
            shared.state.send_replace(State::Opening);
            match connect(uri, rings) {
                Ok(open) => {
                    shared.state.send_replace(State::Up(Arc::new(open)));
                    // Whatever happened in between went unheard.
                    rings.ring();
                }
                Err(error) => {
                    shared.state.send_replace(State::Down(error.message().to_owned()));
                    pause = OPEN_PAUSE;
                }
            }
        }
        drop(shared);
        match nudged.recv_timeout(pause) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn connect(uri: &str, rings: &Rings) -> Result<Open, Error> {
    let connection = Connect::open(Some(uri))?;
    match events::subscribe(&connection, rings) {
        Ok(subscription) => {
            // Last of all: from here on nothing is called on it.
            if let Err(error) = connection.set_keep_alive(KEEPALIVE.0, KEEPALIVE.1) {
                tracing::debug!("libvirt's connection has no keepalive: {error}");
            }
            Ok(Open { events: Some((connection, subscription)), idle: Mutex::default() })
        }
        Err(error) => {
            close(connection);
            Err(error)
        }
    }
}

/// libvirt's no, in the driver's words.
fn refusal(doing: &str, error: &Error) -> DriverError {
    let message = error.message().to_owned();
    let doing = doing.to_owned();
    if error.code() == ErrorNumber::OperationTimeout {
        let source = anyhow::anyhow!(message);
        return DriverError::EngineDown { engine: ENGINE, doing, source };
    }
    if of_the_network(&message) {
        return DriverError::NetworkDown { doing, message };
    }
    DriverError::EngineRefused { engine: ENGINE, doing, message }
}

/// Whether libvirt's message speaks of the switch or a tap. There is no code for it: libvirt reports them as internal
/// or system errors (src/util/virnetdevopenvswitch.c, virnetdevtap.c, virnetdev.c).
fn of_the_network(message: &str) -> bool {
    const SIGNS: [&str; 9] = [
        "OVS bridge",
        "tap device",
        "ovs-vsctl",
        "Open vSwitch",
        "add port",
        "tap interface",
        "interface MTU",
        "get interface",
        "network interface",
    ];
    SIGNS.iter().any(|sign| message.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_trouble_is_told_apart() {
        for (message, network) in [
            ("Unable to add port va0199 to OVS bridge br-int", true),
            ("Unable to create tap device va0199: Device or resource busy", true),
            ("Cannot get interface MTU on 'br-int': No such device", true),
            ("Cannot access storage file '/x': No such file or directory", false),
        ] {
            assert_eq!(of_the_network(message), network, "{message}");
        }
    }

    #[tokio::test]
    async fn an_engine_that_is_not_there() {
        let link = Link::new("qemu+unix:///system?socket=/nonexistent/sock".into(), Bell::default());
        let error = link.call("try", Duration::from_secs(9), |c| c.get_lib_version()).await.unwrap_err();
        assert_eq!(error.code(), "engine_down", "{error}");
        assert!(error.to_string().contains("/nonexistent/sock"), "{error}");
    }
}
