//! `GET /hosts/v1/link`: the one long-lived connection of a host. Down go desired states (only the newest: a slow host
//! is never sent a queue of old ones) and questions, up come statuses and answers. A newer link of the same host ends
//! the older.

use super::tls::Peer;
use super::{HostSide, State};
use crate::streams::{HostStream, Registry};
use amphi_api::host::HostSpec;
use amphi_api::instance::Fault;
use amphi_api::streams::{StreamOpen, StreamTarget};
use amphi_api::wire::{Answer, Ask, FromHost, HostDesired, PROTOCOL, SILENCE_SECONDS, ToHost};
use amphi_api::{HostId, InstanceId};
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{ConnectInfo, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use futures_util::stream::SplitSink;
use futures_util::{Sink, SinkExt, StreamExt};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// After a desired state nothing is sent for so many times as long as that took: a host with much on it, on which much
/// changes, gets many changes at once, and takes no more than its share of the controller.
const REST: u32 = 4;
/// The longest such pause.
const REST_MAX: Duration = Duration::from_millis(250);
/// Largest message taken from a host, in bytes.
const MESSAGE_MAX: usize = 16 << 20;
/// A question is answered within this, or not at all.
const ASK: Duration = Duration::from_secs(15);
/// A stream is open within this, or not at all: engines have 20 s for a call.
const STREAM: Duration = Duration::from_secs(25);
/// Tools' image may have to come first.
const TOOLS: Duration = Duration::from_secs(120);
/// A link that was replaced has this long to end.
const HANDOVER: Duration = Duration::from_secs(15);
/// Saying why a link ends takes at most this long.
const FAREWELL: Duration = Duration::from_secs(1);
/// Sending one message takes at most this long: a host that takes none in is gone.
const SEND: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("the host is not connected")]
    NotConnected,
    #[error("the host did not answer in time")]
    Timeout,
    #[error("{}", .0.message)]
    Refused(Fault),
}

/// The hosts that are connected.
pub struct Links {
    open: Mutex<BTreeMap<HostId, Open>>,
    count: AtomicU64,
    patience: Duration,
    streams: Registry,
}

impl Default for Links {
    fn default() -> Self {
        Self::new(ASK)
    }
}

/// One link as the registry knows it.
#[derive(Clone)]
struct Open {
    /// Tells an older link of the same host from a newer one.
    number: u64,
    words: mpsc::Sender<Word>,
    stop: CancellationToken,
    /// Cancelled when its last word has been handled.
    ended: CancellationToken,
}

/// What is said to a host beside its desired state.
enum Word {
    Ask(Ask, oneshot::Sender<Result<Answer, Fault>>),
    Open(StreamOpen),
}

/// Questions under way, by their number.
type Waiting = Mutex<BTreeMap<u64, oneshot::Sender<Result<Answer, Fault>>>>;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Links {
    /// `patience`: how long a host has for an answer.
    pub fn new(patience: Duration) -> Self {
        Self { open: Mutex::default(), count: AtomicU64::new(0), patience, streams: Registry::default() }
    }

    pub fn is_up(&self, host: HostId) -> bool {
        locked(&self.open).contains_key(&host)
    }

    /// Asks a host; its answer, or why there is none.
    pub async fn ask(&self, host: HostId, ask: Ask) -> Result<Answer, AskError> {
        let words = self.words(host)?;
        let (answer, answered) = oneshot::channel();
        let asked = async {
            words.send(Word::Ask(ask, answer)).await.map_err(|_| AskError::NotConnected)?;
            drop(words);
            answered.await.map_err(|_| AskError::NotConnected)?.map_err(AskError::Refused)
        };
        tokio::time::timeout(self.patience, asked).await.map_err(|_| AskError::Timeout)?
    }

    /// Ends a host's link, if one stands.
    pub fn end(&self, host: HostId) {
        if let Some(open) = locked(&self.open).get(&host) {
            open.stop.cancel();
        }
    }

    /// Has a host open something in a body; its stream once it is open, or why it is not.
    pub async fn stream(
        &self,
        host: HostId,
        instance: InstanceId,
        what: StreamTarget,
    ) -> Result<HostStream, AskError> {
        let words = self.words(host)?;
        let mut expected = self.streams.expect(host);
        let limit = if matches!(what, StreamTarget::Tools(_)) { TOOLS } else { STREAM };
        let order = StreamOpen { id: expected.id, secret: expected.secret.clone(), instance, what };
        let opened = async {
            words.send(Word::Open(order)).await.map_err(|_| AskError::NotConnected)?;
            drop(words);
            let socket = (&mut expected.socket).await.map_err(|_| AskError::NotConnected)?;
            HostStream::begin(socket).await.map_err(AskError::Refused)
        };
        tokio::time::timeout(limit, opened).await.map_err(|_| AskError::Timeout)?
    }

    /// Streams that hosts are about to connect for.
    pub(super) fn streams(&self) -> &Registry {
        &self.streams
    }

    fn words(&self, host: HostId) -> Result<mpsc::Sender<Word>, AskError> {
        let words = locked(&self.open).get(&host).map(|open| open.words.clone());
        words.ok_or(AskError::NotConnected)
    }

    /// Ends all links; hosts come back to whoever serves then.
    pub fn shutdown(&self) {
        locked(&self.open).values().for_each(|open| open.stop.cancel());
    }

    /// Puts a new link into the place of an older one, which is told to stop.
    fn enter(&self, host: HostId) -> (Open, mpsc::Receiver<Word>, Option<Open>) {
        let (words, said) = mpsc::channel(64);
        let mut open = locked(&self.open);
        let link = Open {
            number: self.count.fetch_add(1, Ordering::Relaxed),
            words,
            stop: CancellationToken::new(),
            ended: CancellationToken::new(),
        };
        let older = open.insert(host, link.clone());
        if let Some(older) = &older {
            older.stop.cancel();
        }
        (link, said, older)
    }

    /// True when no newer link has taken the place.
    fn leave(&self, host: HostId, number: u64) -> bool {
        let mut open = locked(&self.open);
        let mine = open.get(&host).is_some_and(|o| o.number == number);
        if mine {
            open.remove(&host);
        }
        mine
    }
}

pub async fn link(
    axum::extract::State(state): axum::extract::State<State>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
) -> Response {
    let host = match peer.host() {
        Ok(host) => host,
        Err(refusal) => return refusal.into_response(),
    };
    let (mut parts, _) = request.into_parts();
    match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(upgrade) => upgrade.max_message_size(MESSAGE_MAX).on_upgrade(move |socket| async move {
            tracing::info!(%host, address = %peer.address, "a host connects");
            session(state, host, socket).await;
        }),
        Err(rejection) => rejection.into_response(),
    }
}

/// From the first word to the last. The place in the registry is taken before the records hear of the host, so that the
/// end of an older link can never be told after the beginning of this one.
async fn session(state: State, host: HostId, mut socket: WebSocket) {
    let spec = match first_words(&mut socket).await {
        Ok(spec) => spec,
        Err(reason) => {
            tracing::warn!(%host, reason, "a link is refused");
            close(&mut socket, &reason).await;
            return;
        }
    };
    let (link, words, older) = state.links.enter(host);
    if let Some(older) = older
        && tokio::time::timeout(HANDOVER, older.ended.cancelled()).await.is_err()
    {
        tracing::warn!(%host, "the older link of this host does not end");
    }
    let reason = match state.side.hello(host, spec).await {
        Ok(ovn_remote) => {
            tracing::debug!(%host, "hello");
            talk(&state, host, socket, ovn_remote, words, &link.stop).await
        }
        Err(refusal) => {
            close(&mut socket, &refusal.message).await;
            refusal.message
        }
    };
    tracing::info!(%host, reason, "the link has ended");
    link.ended.cancel();
    if state.links.leave(host, link.number) {
        state.side.gone(host).await;
    }
}

async fn close(socket: &mut (impl Sink<Message> + Unpin), reason: &str) {
    // A close frame holds 123 bytes of reason (RFC 6455, 5.5).
    let reason = &reason[..reason.floor_char_boundary(120)];
    let frame = CloseFrame { code: close_code::POLICY, reason: reason.into() };
    let _ = tokio::time::timeout(FAREWELL, socket.send(Message::Close(Some(frame)))).await;
}

/// Hello, if it is one that we can take.
async fn first_words(socket: &mut WebSocket) -> Result<HostSpec, String> {
    let silence = Duration::from_secs(SILENCE_SECONDS);
    let hello = async {
        loop {
            match socket.recv().await {
                Some(Ok(Message::Text(text))) => return Ok(text),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err("the connection ended before a hello".to_owned()),
            }
        }
    };
    let text = tokio::time::timeout(silence, hello).await.map_err(|_| "no hello came in time")??;
    // The version first: of another one, nothing else need be of a known form.
    let protocol = serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|v| v["protocol"].as_u64());
    if let Some(protocol) = protocol.filter(|p| *p != u64::from(PROTOCOL)) {
        return Err(format!(
            "the host speaks protocol {protocol}, this controller {PROTOCOL}: upgrade the older"
        ));
    }
    match serde_json::from_str(&text) {
        Ok(FromHost::Hello { spec, .. }) => Ok(spec),
        Ok(_) => Err("the first message must be a hello".to_owned()),
        Err(error) => Err(format!("a hello that cannot be read: {error}")),
    }
}

/// Reads here, writes in a task beside it: a host that is busy sending may be slow to take in, and the other way round.
async fn talk(
    state: &State,
    host: HostId,
    socket: WebSocket,
    ovn_remote: String,
    words: mpsc::Receiver<Word>,
    stop: &CancellationToken,
) -> String {
    let (mut sink, mut stream) = socket.split();
    let waiting = Arc::new(Waiting::default());
    let writer = tokio::spawn({
        let (state, stop, waiting) = (state.clone(), stop.clone(), waiting.clone());
        async move {
            let told = tell(&state, host, &mut sink, ovn_remote, words, &waiting);
            let reason = tokio::select! {
                Err(reason) = told => Some(reason),
                () = stop.cancelled() => None,
            };
            stop.cancel();
            close(&mut sink, reason.as_deref().unwrap_or("the link ends")).await;
            reason
        }
    });
    let silence = Duration::from_secs(SILENCE_SECONDS);
    // Silence counts while we listen, not while what was heard is being handled.
    let heard = loop {
        let message = tokio::select! {
            message = tokio::time::timeout(silence, stream.next()) => message,
            () = stop.cancelled() => break None,
        };
        let outcome = match message {
            Ok(Some(Ok(Message::Text(text)))) => match serde_json::from_str(&text) {
                Ok(message) => hear(state.side.as_ref(), host, message, &waiting).await,
                Err(error) => Err(format!("a message that cannot be read: {error}")),
            },
            Ok(Some(Ok(Message::Close(_))) | None) => Err("the host closed it".to_owned()),
            Ok(Some(Ok(_))) => Ok(()),
            Ok(Some(Err(error))) => Err(error.to_string()),
            Err(_) => Err(format!("silent for {SILENCE_SECONDS} s")),
        };
        if let Err(reason) = outcome {
            break Some(reason);
        }
    };
    stop.cancel();
    let told = writer.await.unwrap_or_else(|_| Some("the writer failed".into()));
    heard.or(told).unwrap_or_else(|| "told to stop, or a newer link took its place".into())
}

/// Welcome, then the newest desired state whenever it changes, and questions.
async fn tell(
    state: &State,
    host: HostId,
    sink: &mut SplitSink<WebSocket, Message>,
    ovn_remote: String,
    mut words: mpsc::Receiver<Word>,
    waiting: &Waiting,
) -> Result<std::convert::Infallible, String> {
    let mut generation = state.side.desired_generation(host);
    generation.mark_changed();
    let mut asked = 0;
    let mut sent = None;
    let mut rested = Instant::now();
    send(sink, &ToHost::Welcome { host, ovn_remote }).await?;
    loop {
        tokio::select! {
            changed = async {
                tokio::time::sleep_until(rested).await;
                generation.changed().await
            } => {
                changed.map_err(|_| "the records let go of this host")?;
                let began = Instant::now();
                let desired = state.side.desired(host).await;
                // The watch may ring for a change that does not concern this host.
                if sent != Some(desired.generation) {
                    send(sink, &Down::Desired(&desired)).await?;
                    sent = Some(desired.generation);
                }
                rested = Instant::now() + (began.elapsed() * REST).min(REST_MAX);
            }
            Some(word) = words.recv() => match word {
                Word::Ask(ask, answer) => {
                    asked += 1;
                    {
                        let mut waiting = locked(waiting);
                        waiting.retain(|_, answer| !answer.is_closed());
                        waiting.insert(asked, answer);
                    }
                    send(sink, &ToHost::Ask { id: asked, ask }).await?;
                }
                Word::Open(order) => send(sink, &ToHost::Open(order)).await?,
            },
        }
    }
}

/// [`ToHost`], of what is borrowed.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Down<'a> {
    Desired(&'a HostDesired),
}

async fn hear(side: &dyn HostSide, host: HostId, message: FromHost, waiting: &Waiting) -> Result<(), String> {
    match message {
        FromHost::Hello { spec, .. } => side.hello(host, spec).await.map(drop).map_err(|r| r.message)?,
        FromHost::Heartbeat { engines, volume_group_free_bytes, figures, images } => {
            side.figures(host, &figures);
            if let Some(images) = images {
                side.images(host, images).await;
            }
            side.heartbeat(host, engines, volume_group_free_bytes).await;
        }
        FromHost::Status(status) => side.status(host, status).await,
        FromHost::Answer { id, answer } => {
            let asker = locked(waiting).remove(&id);
            if let Some(asker) = asker {
                let _ = asker.send(answer);
            }
        }
    }
    Ok(())
}

async fn send(sink: &mut SplitSink<WebSocket, Message>, message: &impl Serialize) -> Result<(), String> {
    let text = serde_json::to_string(message).map_err(|e| e.to_string())?;
    match tokio::time::timeout(SEND, sink.send(Message::text(text))).await {
        Ok(sent) => sent.map_err(|e| e.to_string()),
        Err(_) => Err(format!("took no message for {} s", SEND.as_secs())),
    }
}
