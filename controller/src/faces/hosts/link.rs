//! `GET /hosts/v1/link`: the one long-lived connection of a host. Down go desired states (only the newest: a slow host
//! is never sent a queue of old ones) and questions, up come statuses and answers. A newer link of the same host ends
//! the older.

use super::tls::Peer;
use super::{HostSide, Refusal, State};
use amphi_api::HostId;
use amphi_api::instance::Fault;
use amphi_api::wire::{Answer, Ask, FromHost, PROTOCOL, SILENCE_SECONDS, ToHost};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{ConnectInfo, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Largest message taken from a host, in bytes.
const MESSAGE_MAX: usize = 16 << 20;
/// A question is answered within this, or not at all.
const ASK: Duration = Duration::from_secs(15);
/// Sending one message takes at most this long: a host that takes none in is gone.
const SEND: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("the host is not connected")]
    NotConnected,
    #[error("the host did not answer within {} s", ASK.as_secs())]
    Timeout,
    #[error("{}", .0.message)]
    Refused(Fault),
}

/// The hosts that are connected.
#[derive(Default)]
pub struct Links {
    open: Mutex<BTreeMap<HostId, Open>>,
    count: AtomicU64,
}

#[derive(Clone)]
struct Open {
    /// Tells an older link of the same host from a newer one.
    number: u64,
    questions: mpsc::Sender<Question>,
}

struct Question {
    ask: Ask,
    answer: oneshot::Sender<Result<Answer, Fault>>,
}

impl Links {
    fn open(&self) -> MutexGuard<'_, BTreeMap<HostId, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_up(&self, host: HostId) -> bool {
        self.open().contains_key(&host)
    }

    /// Asks a host; its answer, or why there is none.
    pub async fn ask(&self, host: HostId, ask: Ask) -> Result<Answer, AskError> {
        let link = self.open().get(&host).cloned().ok_or(AskError::NotConnected)?;
        let (answer, answered) = oneshot::channel();
        let asked = async {
            link.questions.send(Question { ask, answer }).await.map_err(|_| AskError::NotConnected)?;
            answered.await.map_err(|_| AskError::NotConnected)?.map_err(AskError::Refused)
        };
        tokio::time::timeout(ASK, asked).await.map_err(|_| AskError::Timeout)?
    }

    fn enter(&self, host: HostId) -> (u64, mpsc::Receiver<Question>) {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let (questions, asked) = mpsc::channel(64);
        // The older link's sender goes with this, which ends it.
        self.open().insert(host, Open { number, questions });
        (number, asked)
    }

    /// True when no newer link has taken the place.
    fn leave(&self, host: HostId, number: u64) -> bool {
        let mut open = self.open();
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

async fn session(state: State, host: HostId, mut socket: WebSocket) {
    let ovn_remote = match first_words(&state, host, &mut socket).await {
        Ok(ovn_remote) => ovn_remote,
        Err(reason) => {
            tracing::warn!(%host, reason = %reason.message, "a link is refused");
            let frame = axum::extract::ws::CloseFrame {
                code: 1008,
                reason: reason.message.chars().take(100).collect::<String>().into(),
            };
            let _ = socket.send(Message::Close(Some(frame))).await;
            return;
        }
    };
    let (number, questions) = state.links.enter(host);
    tracing::debug!(%host, "hello");
    let ended = talk(&state, host, &mut socket, ovn_remote, questions).await;
    tracing::info!(%host, reason = %ended, "the link has ended");
    if state.links.leave(host, number) {
        state.side.gone(host).await;
    }
}

/// Hello, and whether it is one that we can take.
async fn first_words(state: &State, host: HostId, socket: &mut WebSocket) -> Result<String, Refusal> {
    let malformed = |what: &str| Refusal::new(amphi_api::ErrorCode::MalformedBody, what);
    let silence = Duration::from_secs(SILENCE_SECONDS);
    loop {
        let message = tokio::time::timeout(silence, socket.recv()).await;
        let message = message.map_err(|_| malformed("no hello came in time"))?;
        match message {
            Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                Ok(FromHost::Hello { protocol: PROTOCOL, spec }) => {
                    return state.side.hello(host, spec).await;
                }
                Ok(FromHost::Hello { protocol, spec }) => {
                    return Err(malformed(&format!(
                        "host {} speaks protocol {protocol}, this controller {PROTOCOL}: upgrade the older of the two",
                        spec.name
                    )));
                }
                Ok(_) | Err(_) => return Err(malformed("the first message must be a hello of a known form")),
            },
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Err(malformed("the connection ended before a hello")),
        }
    }
}

async fn talk(
    state: &State,
    host: HostId,
    socket: &mut WebSocket,
    ovn_remote: String,
    mut questions: mpsc::Receiver<Question>,
) -> String {
    let silence = Duration::from_secs(SILENCE_SECONDS);
    let mut waiting: BTreeMap<u64, oneshot::Sender<Result<Answer, Fault>>> = BTreeMap::new();
    let mut asked = 0;
    let mut generation = state.side.desired_generation(host);
    generation.mark_changed();
    let mut heard = Instant::now();
    let mut sent = None;
    if let Err(error) = send(socket, &ToHost::Welcome { host, ovn_remote }).await {
        return error;
    }
    loop {
        let outcome = tokio::select! {
            message = socket.recv() => {
                heard = Instant::now();
                match message {
                    Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                        Ok(message) => hear(state.side.as_ref(), host, message, &mut waiting).await,
                        Err(error) => Err(format!("a message that cannot be read: {error}")),
                    },
                    Some(Ok(Message::Close(_))) | None => Err("the host closed it".to_owned()),
                    Some(Ok(_)) => Ok(()),
                    Some(Err(error)) => Err(error.to_string()),
                }
            }
            changed = generation.changed() => {
                if changed.is_err() {
                    return "the controller is ending".to_owned();
                }
                generation.borrow_and_update();
                let desired = state.side.desired(host).await;
                // The watch may ring for a change that does not concern this host.
                if sent.as_ref() == Some(&desired) {
                    Ok(())
                } else {
                    sent = Some(desired.clone());
                    send(socket, &ToHost::Desired((*desired).clone())).await
                }
            }
            question = questions.recv() => match question {
                Some(Question { ask, answer }) => {
                    asked += 1;
                    waiting.retain(|_, answer| !answer.is_closed());
                    waiting.insert(asked, answer);
                    send(socket, &ToHost::Ask { id: asked, ask }).await
                }
                None => Err("a newer link of the same host took its place".to_owned()),
            },
            () = tokio::time::sleep_until(heard + silence) => Err(format!("silent for {SILENCE_SECONDS} s")),
        };
        if let Err(reason) = outcome {
            return reason;
        }
    }
}

async fn hear(
    side: &dyn HostSide,
    host: HostId,
    message: FromHost,
    waiting: &mut BTreeMap<u64, oneshot::Sender<Result<Answer, Fault>>>,
) -> Result<(), String> {
    match message {
        FromHost::Hello { spec, .. } => side.hello(host, spec).await.map(drop).map_err(|r| r.message)?,
        FromHost::Heartbeat { engines, volume_group_free_bytes } => {
            side.heartbeat(host, engines, volume_group_free_bytes).await;
        }
        FromHost::Status(status) => side.status(host, status).await,
        FromHost::Answer { id, answer } => {
            if let Some(asker) = waiting.remove(&id) {
                let _ = asker.send(answer);
            }
        }
    }
    Ok(())
}

async fn send(socket: &mut WebSocket, message: &ToHost) -> Result<(), String> {
    let text = serde_json::to_string(message).map_err(|e| e.to_string())?;
    match tokio::time::timeout(SEND, socket.send(Message::text(text))).await {
        Ok(sent) => sent.map_err(|e| e.to_string()),
        Err(_) => Err(format!("took no message for {} s", SEND.as_secs())),
    }
}
