//! Streams between a client and a body: who is waited for, and how the two ends are joined. A host connects for a stream
//! once it is told to; [`registry`] knows for which. [`HostStream`] is the host's end once the body's is open; [`splice`]
//! joins it with a client. Refuses to decide who may open what, and to keep anything that is not on its way: what one side
//! does not take, the other is not asked for.

mod registry;
mod splice;
#[cfg(test)]
mod tests;

pub use registry::{Expected, Registry};
pub use splice::{Form, serve};

use amphi_api::instance::Fault;
use amphi_api::streams::FromBody;
use axum::extract::ws::{Message, WebSocket};
use jiff::Timestamp;
use std::fmt;

/// The host's end of a stream whose body's end is open.
pub struct HostStream {
    socket: WebSocket,
    /// What the host said when it was open, for the client.
    opened: String,
}

impl fmt::Debug for HostStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostStream")
    }
}

impl HostStream {
    /// Waits for the host's first word: that it is open, or why it is not.
    pub async fn begin(mut socket: WebSocket) -> Result<Self, Fault> {
        let fault =
            |code: &str, message: String| Fault { code: code.into(), message, since: Timestamp::now() };
        loop {
            match socket.recv().await {
                Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                    Ok(FromBody::Opened) => return Ok(Self { socket, opened: text.to_string() }),
                    Ok(FromBody::Failed { code, message }) => return Err(fault(&code, message)),
                    Ok(FromBody::Ended { .. }) | Err(_) => {
                        return Err(fault("internal", format!("the host began a stream with: {text}")));
                    }
                },
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Binary(_) | Message::Close(_))) | Some(Err(_)) | None => {
                    return Err(fault(
                        "host_lost",
                        "the host let go of the stream before it was open".into(),
                    ));
                }
            }
        }
    }
}
