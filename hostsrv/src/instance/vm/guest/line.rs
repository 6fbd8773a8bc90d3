//! Owns the lines to guests: one connection per running body, over the socket that QEMU keeps. Whatever breaks, it is
//! opened again and everything is asked anew; what is known in between is what was told last.

use crate::instance::Bell;
use amphi_api::InstanceId;
use amphi_api::instance::MemberStatus;
use amphi_guest::VERSION;
use amphi_guest::words::{FromGuest, Lines, MemberLimits, MemberState, ToGuest, line};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(250);
/// Orders that wait for the guest to take them.
const ORDERS: usize = 64;

/// What a guest has told, and whether it is heard now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// The guest has answered on this connection.
    pub heard: bool,
    pub members: Vec<MemberStatus>,
    pub trouble: Option<String>,
}

impl Told {
    /// Every member is as it should be: it runs, or has ended for good.
    pub fn whole(&self) -> bool {
        !self.members.is_empty() && self.members.iter().all(|member| member.running || member.finished)
    }
}

/// What comes for a stream.
#[derive(Debug)]
pub enum Event {
    Opened,
    Refused(String),
    Output(u8, Vec<u8>),
    Taken(u64),
    Ended(Option<i64>),
}

/// One guest's line.
pub struct Guest {
    path: PathBuf,
    told: Mutex<Told>,
    streams: Mutex<BTreeMap<u32, mpsc::UnboundedSender<Event>>>,
    next: std::sync::atomic::AtomicU32,
    orders: mpsc::Sender<ToGuest>,
    /// The members' limits since its size has changed: said again to a guest that has started anew.
    limits: Mutex<Option<ToGuest>>,
    task: Mutex<Option<AbortHandle>>,
}

/// All lines of this agent.
#[derive(Default)]
pub struct Guests {
    lines: Mutex<BTreeMap<InstanceId, Arc<Guest>>>,
}

impl Guests {
    /// Keeps a line to each of these bodies, and lets go of all others.
    pub fn keep(&self, running: &BTreeMap<InstanceId, PathBuf>, bell: &Bell) {
        let mut lines = self.lock();
        lines.retain(|instance, guest| {
            let kept = running.get(instance) == Some(&guest.path);
            if !kept {
                guest.end();
            }
            kept
        });
        for (instance, path) in running {
            lines.entry(*instance).or_insert_with(|| Guest::open(path, bell.clone()));
        }
    }

    pub fn get(&self, instance: InstanceId) -> Option<Arc<Guest>> {
        self.lock().get(&instance).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Arc<Guest>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        self.lock().values().for_each(|guest| guest.end());
    }
}

impl Guest {
    fn open(path: &Path, bell: Bell) -> Arc<Self> {
        let (orders, mut taken) = mpsc::channel(ORDERS);
        let guest = Arc::new(Self {
            path: path.to_owned(),
            told: Mutex::default(),
            streams: Mutex::default(),
            next: 1.into(),
            orders,
            limits: Mutex::default(),
            task: Mutex::default(),
        });
        let weak = Arc::downgrade(&guest);
        let path = path.to_owned();
        let task = tokio::spawn(async move {
            let mut number = u64::from(std::process::id()) << 32;
            loop {
                number += 1;
                let Some(guest) = weak.upgrade() else { return };
                // Weakly held while it waits for the next try; one that speaks is ended by whoever lets go of it.
                if let Err(error) = guest.speak(&path, number, &mut taken, &bell).await {
                    tracing::debug!(path = %path.display(), %error, "a guest's line");
                }
                guest.cut_off(&bell);
                drop(guest);
                tokio::time::sleep(PAUSE).await;
            }
        });
        *guest.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
        guest
    }

    /// Hangs up: QEMU speaks with one at a time.
    fn end(&self) {
        if let Some(task) = self.task.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }

    /// What is known now.
    pub fn told(&self) -> Told {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says something; waits while the guest takes nothing.
    pub async fn say(&self, order: ToGuest) -> bool {
        self.orders.send(order).await.is_ok()
    }

    /// Holds the members to these limits.
    pub async fn limit(&self, members: Vec<MemberLimits>) {
        let order = ToGuest::Limits { members };
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = Some(order.clone());
        self.say(order).await;
    }

    /// Says something if there is room for it, as those do who cannot wait.
    pub fn try_say(&self, order: ToGuest) {
        // A guest that takes nothing any more has lost more than this.
        let _full = self.orders.try_send(order);
    }

    /// A number for a stream, and what comes for it.
    pub fn stream(&self) -> (u32, mpsc::UnboundedReceiver<Event>) {
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // Bounded by the stream's window: a guest that sends more than it may is cut off.
        let (events, come) = mpsc::unbounded_channel();
        self.streams().insert(number, events);
        (number, come)
    }

    pub fn forget(&self, stream: u32) {
        self.streams().remove(&stream);
    }

    fn streams(&self) -> MutexGuard<'_, BTreeMap<u32, mpsc::UnboundedSender<Event>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every stream of the connection ends; members are as they were told last.
    fn cut_off(&self, bell: &Bell) {
        self.streams().clear();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut told.heard) {
            bell.notify_one();
        }
    }

    async fn speak(
        &self,
        path: &Path,
        number: u64,
        orders: &mut mpsc::Receiver<ToGuest>,
        bell: &Bell,
    ) -> std::io::Result<()> {
        let (mut from, mut to) = UnixStream::connect(path).await?.into_split();
        // Ends the line that a former connection may have left half said.
        to.write_all(b"\n").await?;
        to.write_all(&line(&ToGuest::Hello { number, version: VERSION })).await?;
        let reads = async {
            let mut lines = Lines::default();
            let mut piece = vec![0; 64 << 10];
            let mut greeted = false;
            loop {
                let length = from.read(&mut piece).await?;
                if length == 0 {
                    return Ok::<(), std::io::Error>(());
                }
                for text in lines.take(&piece[..length]) {
                    // Before the answer to this hello: a former connection's rest, or half of a line.
                    match serde_json::from_slice::<FromGuest>(&text) {
                        Ok(FromGuest::Hello { number: told, version }) if told == number => {
                            greeted = true;
                            let limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner).clone();
                            limits.into_iter().for_each(|order| self.try_say(order));
                            self.greeted(version, bell);
                        }
                        Ok(word) if greeted => self.hear(word, bell),
                        Ok(_) => {}
                        Err(error) => tracing::debug!(%error, "a guest says what means nothing"),
                    }
                }
            }
        };
        let writes = async {
            while let Some(order) = orders.recv().await {
                to.write_all(&line(&order)).await?;
            }
            Ok(())
        };
        tokio::select! {
            ended = reads => ended,
            ended = writes => ended,
        }
    }

    fn greeted(&self, version: u32, bell: &Bell) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.heard = true;
        told.trouble = (version != VERSION).then(|| {
            format!("its guest speaks version {version}, this agent {VERSION}: stop and start it, so that it takes the host's kit")
        });
        bell.notify_one();
    }

    fn hear(&self, word: FromGuest, bell: &Bell) {
        let (stream, event) = match word {
            FromGuest::Hello { .. } => return,
            FromGuest::Members { members, trouble } => {
                let members: Vec<MemberStatus> = members.into_iter().map(status).collect();
                let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                if told.members != members || told.trouble != trouble {
                    (told.members, told.trouble) = (members, trouble);
                    bell.notify_one();
                }
                return;
            }
            FromGuest::Opened { stream } => (stream, Event::Opened),
            FromGuest::Refused { stream, message } => (stream, Event::Refused(message)),
            FromGuest::Output { stream, channel, data } => (stream, Event::Output(channel, data.0)),
            FromGuest::Taken { stream, bytes } => (stream, Event::Taken(bytes)),
            FromGuest::Ended { stream, exit_code } => (stream, Event::Ended(exit_code)),
        };
        let mut streams = self.streams();
        let gone = streams.get(&stream).is_some_and(|events| events.send(event).is_err());
        if gone {
            streams.remove(&stream);
        }
    }
}

fn status(state: MemberState) -> MemberStatus {
    MemberStatus {
        name: state.name,
        index: state.index,
        running: state.running,
        restarts: state.restarts,
        exit_code: state.exit_code,
        started_at_us: state.started_at_us,
        ready: state.ready,
        finished: state.finished,
        out_of_memory: state.out_of_memory,
        reason: state.reason,
        ..MemberStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_guest::words::{Bytes, Open};
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::UnixListener;

    const LIMIT: Duration = Duration::from_secs(10);

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let waits = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(tokio::time::timeout(LIMIT, waits).await.is_ok(), "{what}");
    }

    /// A guest's end: reads until the hello, answers what a former connection has left, then its own words.
    async fn answer(listener: &UnixListener, junk: &[u8], words: &[FromGuest]) -> BufReader<UnixStream> {
        let (socket, _) = listener.accept().await.unwrap();
        let mut socket = BufReader::new(socket);
        let mut text = String::new();
        let number = loop {
            text.clear();
            socket.read_line(&mut text).await.unwrap();
            if let Ok(ToGuest::Hello { number, .. }) = serde_json::from_str(&text) {
                break number;
            }
        };
        socket.get_mut().write_all(junk).await.unwrap();
        socket.get_mut().write_all(&line(&FromGuest::Hello { number, version: VERSION })).await.unwrap();
        for word in words {
            socket.get_mut().write_all(&line(word)).await.unwrap();
        }
        socket
    }

    #[tokio::test]
    async fn everything_is_asked_anew_after_a_line_was_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guest.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (guests, bell, instance) = (Guests::default(), Bell::default(), InstanceId::new());
        let running = BTreeMap::from([(instance, path)]);
        guests.keep(&running, &bell);
        let guest = guests.get(instance).unwrap();
        let state =
            |restarts| MemberState { name: "web".into(), running: true, restarts, ..MemberState::default() };
        let members = |restarts| FromGuest::Members { members: vec![state(restarts)], trouble: None };
        // What was meant for a former connection counts for nothing.
        let stale = [b"a\":1}\n".to_vec(), line(&members(9))].concat();
        let socket = answer(&listener, &stale, &[members(1)]).await;
        until("the members are known", || guest.told().members.first().is_some_and(|m| m.restarts == 1))
            .await;
        assert!(guest.told().heard);
        let (number, mut events) = guest.stream();
        assert!(guest.say(ToGuest::Open { stream: number, what: Open::Logs(Default::default()) }).await);
        drop(socket);
        assert!(tokio::time::timeout(LIMIT, events.recv()).await.unwrap().is_none(), "the stream goes on");
        let told = [members(2), FromGuest::Output { stream: number, channel: 1, data: Bytes(vec![1]) }];
        let _socket = answer(&listener, b"", &told).await;
        until("the members are known anew", || guest.told().members[0].restarts == 2).await;
        guests.keep(&BTreeMap::new(), &bell);
        assert!(guests.get(instance).is_none());
    }
}
