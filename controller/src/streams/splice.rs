//! Joins a client's WebSocket with a host's, each way by a loop of its own that reads one message and sends it before it
//! reads the next: so what one side does not take stays where it is made, and nothing piles up here.
//!
//! Both sides are pinged while nothing holds up the sending to them, and silence counts only while they are listened to. A
//! side that is gone while it holds up the other is noticed by the pings of the other loop, or by the kernel.

use super::HostStream;
use amphi_api::streams::{FromBody, MESSAGE_MAX, PING_SECONDS, SILENCE_SECONDS, STDERR, STDIN, STDOUT};
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use std::time::Duration;
use tokio::time::{Interval, MissedTickBehavior};

const SILENCE: Duration = Duration::from_secs(SILENCE_SECONDS);
/// How long a side has to take a goodbye and to give its own. Closing before that would take back what it has yet to read.
const FAREWELL: Duration = Duration::from_secs(5);

/// How a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Channels and words, as on the host's side.
    Framed,
    /// Bytes alone.
    Raw,
}

/// Answers a client's upgrade and joins the two.
pub fn serve(upgrade: WebSocketUpgrade, host: HostStream, form: Form) -> Response {
    // What a client sends goes on with one byte more.
    upgrade
        .max_message_size(MESSAGE_MAX - 1)
        .on_upgrade(move |client| async move { join(client, host, form).await })
}

/// Ends when either side has.
pub async fn join(client: WebSocket, host: HostStream, form: Form) {
    let HostStream { socket, opened } = host;
    let (mut to_client, mut from_client) = client.split();
    let (mut to_host, mut from_host) = socket.split();
    if form == Form::Framed && to_client.send(Message::text(opened)).await.is_err() {
        return;
    }
    let reason = {
        let up = up(&mut from_client, &mut to_host, form);
        let down = down(&mut from_host, &mut to_client, form);
        tokio::select! {
            reason = up => reason,
            reason = down => reason,
        }
    };
    tracing::debug!(reason, "a stream has ended");
    // The host ends what it started when it hears this, or nothing more.
    let _ = tokio::time::timeout(FAREWELL, async {
        let goodbyes = (to_host.send(Message::Close(None)), to_client.send(Message::Close(None)));
        let _ = tokio::join!(goodbyes.0, goodbyes.1);
        while let Some(Ok(_)) = from_client.next().await {}
    })
    .await;
}

fn pings() -> Interval {
    let mut pings = tokio::time::interval(Duration::from_secs(PING_SECONDS));
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings
}

type From = SplitStream<WebSocket>;
type To = SplitSink<WebSocket, Message>;

/// From the client to the host.
async fn up(from: &mut From, to: &mut To, form: Form) -> &'static str {
    let mut pings = pings();
    loop {
        let message = tokio::select! {
            message = tokio::time::timeout(SILENCE, from.next()) => message,
            _ = pings.tick() => {
                if to.send(Message::Ping(Bytes::new())).await.is_err() {
                    return "the host is gone";
                }
                continue;
            }
        };
        let message = match message {
            Err(_) => return "the client is silent",
            Ok(None | Some(Err(_) | Ok(Message::Close(_)))) => return "the client is gone",
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => continue,
            Ok(Some(Ok(message))) => message,
        };
        let message = match (form, message) {
            (Form::Framed, message) => message,
            (Form::Raw, message) => {
                let data = message.into_data();
                let mut framed = BytesMut::with_capacity(data.len() + 1);
                framed.put_u8(STDIN);
                framed.put_slice(&data);
                Message::Binary(framed.freeze())
            }
        };
        if to.send(message).await.is_err() {
            return "the host is gone";
        }
    }
}

/// From the host to the client; a last word is put in the host's mouth where it says none.
async fn down(from: &mut From, to: &mut To, form: Form) -> &'static str {
    let mut pings = pings();
    let lost = |message: &str| FromBody::Failed { code: "host_lost".into(), message: message.into() };
    loop {
        let message = tokio::select! {
            message = tokio::time::timeout(SILENCE, from.next()) => message,
            _ = pings.tick() => {
                if to.send(Message::Ping(Bytes::new())).await.is_err() {
                    return "the client is gone";
                }
                continue;
            }
        };
        let word = match message {
            Err(_) => lost("the host has been silent for too long; what ran there may go on"),
            Ok(None | Some(Err(_) | Ok(Message::Close(_)))) => {
                lost("the host's agent let go of the stream; what ran there has ended or will")
            }
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => continue,
            Ok(Some(Ok(Message::Binary(bytes)))) => {
                let sent = match form {
                    Form::Framed => to.send(Message::Binary(bytes)).await,
                    Form::Raw => match bytes.first() {
                        Some(&(STDOUT | STDERR)) => to.send(Message::Binary(bytes.slice(1..))).await,
                        _ => Ok(()),
                    },
                };
                if sent.is_err() {
                    return "the client is gone";
                }
                continue;
            }
            Ok(Some(Ok(Message::Text(text)))) => match serde_json::from_str::<FromBody>(&text) {
                Ok(word) if word.is_last() => word,
                _ => continue,
            },
        };
        let _ = match form {
            Form::Framed => to.send(Message::text(serde_json::to_string(&word).unwrap_or_default())).await,
            Form::Raw => to.send(Message::Close(Some(goodbye(&word)))).await,
        };
        return "the body's end has ended";
    }
}

/// The last word as a WebSocket's goodbye, whose reason has at most 123 bytes (RFC 6455, 5.5).
fn goodbye(word: &FromBody) -> CloseFrame {
    let (code, reason) = match word {
        FromBody::Opened => (close_code::NORMAL, String::new()),
        FromBody::Ended { reason, .. } => (close_code::NORMAL, reason.clone().unwrap_or_default()),
        FromBody::Failed { message, .. } => (close_code::ERROR, message.clone()),
    };
    CloseFrame { code, reason: Utf8Bytes::from(&reason[..reason.floor_char_boundary(120)]) }
}
