//! Streams of the native face: a command, a console, output that is followed. Owns the handshake and the messages' forms.
//! Refuses terminals and files: whoever calls moves bytes.

use super::{Client, ClientError};
use crate::InstanceId;
use crate::looking::{CopySpec, CopyWay};
use crate::streams::{
    ExecSpec, FromBody, LogsSpec, MESSAGE_MAX, PIECE_MAX, SILENCE_SECONDS, STDIN, SUBPROTOCOL, TerminalSize,
    ToBody,
};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use reqwest::{Method, Upgraded};
use std::time::Duration;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

/// How long a stream may take to open; tools' image may have to come to the host first.
const OPEN: Duration = Duration::from_secs(130);

type Socket = WebSocketStream<Upgraded>;

/// A stream that is open.
pub struct BodyStream {
    socket: Socket,
    operation: String,
}

/// The half that speaks. Dropping it does not end the stream.
pub struct Speaker {
    sink: SplitSink<Socket, Message>,
    operation: String,
}

/// The half that listens.
pub struct Listener {
    stream: SplitStream<Socket>,
    operation: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// Bytes of a channel, [`crate::streams::STDOUT`] or [`crate::streams::STDERR`].
    Output(u8, Bytes),
    Word(FromBody),
}

impl Client {
    /// Runs a command in a set's member.
    pub async fn exec(&self, id: InstanceId, spec: &ExecSpec) -> Result<BodyStream, ClientError> {
        let query = Query::of_exec(spec);
        self.open(format!("run a command in instance {id}"), &format!("/instances/{id}/exec"), query).await
    }

    /// Runs a command of another container image, by name or id, beside a set's member.
    pub async fn tools(
        &self,
        id: InstanceId,
        image: &str,
        spec: &ExecSpec,
    ) -> Result<BodyStream, ClientError> {
        let mut query = Query::of_exec(spec);
        query.word("image", Some(image));
        self.open(format!("bring tools to instance {id}"), &format!("/instances/{id}/tools"), query).await
    }

    /// Files of a set's member: a tar archive out of it or into it, or what is there at all.
    pub async fn files(&self, id: InstanceId, spec: &CopySpec) -> Result<BodyStream, ClientError> {
        let mut query = Query::default();
        query.word("member", spec.member.as_deref());
        query.word("path", Some(&spec.path));
        let way = match spec.way {
            CopyWay::Out => "out",
            CopyWay::In => "in",
            CopyWay::Look => "look",
        };
        query.word("way", Some(way));
        self.open(format!("copy files of instance {id}"), &format!("/instances/{id}/files"), query).await
    }

    /// A VM's serial console, or a shell in a set's member.
    pub async fn console(
        &self,
        id: InstanceId,
        member: Option<&str>,
        size: Option<TerminalSize>,
    ) -> Result<BodyStream, ClientError> {
        let mut query = Query::default();
        query.word("member", member);
        query.size(size);
        self.open(format!("open the console of instance {id}"), &format!("/instances/{id}/console"), query)
            .await
    }

    /// A VM's screen: bytes of RFB, both ways.
    pub async fn screen(&self, id: InstanceId) -> Result<BodyStream, ClientError> {
        let path = format!("/instances/{id}/screen");
        self.open(format!("open the screen of instance {id}"), &path, Query::default()).await
    }

    /// Output of a member, or what a VM wrote on its console.
    pub async fn logs(&self, id: InstanceId, spec: &LogsSpec) -> Result<BodyStream, ClientError> {
        let mut query = Query::default();
        query.word("member", spec.member.as_deref());
        query.flag("follow", spec.follow);
        query.word("since", spec.since.map(|t| t.to_string()).as_deref());
        query.word("tail", spec.tail.map(|n| n.to_string()).as_deref());
        query.flag("timestamps", spec.timestamps);
        self.open(format!("read the output of instance {id}"), &format!("/instances/{id}/logs"), query).await
    }

    async fn open(&self, operation: String, path: &str, query: Query) -> Result<BodyStream, ClientError> {
        let key = generate_key();
        let call =
            self.call(operation.clone(), Method::GET, path).limit(OPEN).query(&query.0).map(|request| {
                request
                    .header("connection", "Upgrade")
                    .header("upgrade", "websocket")
                    .header("sec-websocket-version", "13")
                    .header("sec-websocket-key", &key)
                    .header("sec-websocket-protocol", SUBPROTOCOL)
            });
        let (upgraded, headers) = call.upgrade().await?;
        let accept = headers.get("sec-websocket-accept").map(|v| v.as_bytes());
        if accept != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
            let message = "the answer is no WebSocket handshake; is a proxy in between?".to_owned();
            return Err(ClientError::Protocol { operation, message });
        }
        let limits =
            WebSocketConfig::default().max_message_size(Some(MESSAGE_MAX)).max_frame_size(Some(MESSAGE_MAX));
        let socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(limits)).await;
        Ok(BodyStream { socket, operation })
    }
}

#[derive(Default)]
struct Query(Vec<(&'static str, String)>);

impl Query {
    fn of_exec(spec: &ExecSpec) -> Self {
        let mut query = Self::default();
        query.word("member", spec.member.as_deref());
        spec.command.iter().for_each(|word| query.word("command", Some(word)));
        spec.env.iter().for_each(|pair| query.word("env", Some(pair)));
        query.word("user", spec.user.as_deref());
        query.word("directory", spec.directory.as_deref());
        query.flag("tty", spec.tty);
        query.flag("stdin", spec.stdin);
        query.size(spec.size);
        query
    }

    fn word(&mut self, name: &'static str, value: Option<&str>) {
        self.0.extend(value.map(|value| (name, value.to_owned())));
    }

    fn flag(&mut self, name: &'static str, on: bool) {
        self.word(name, on.then_some("true"));
    }

    fn size(&mut self, size: Option<TerminalSize>) {
        let Some(TerminalSize { columns, rows }) = size else { return };
        self.word("columns", Some(&columns.to_string()));
        self.word("rows", Some(&rows.to_string()));
    }
}

impl BodyStream {
    pub fn split(self) -> (Speaker, Listener) {
        let (sink, stream) = self.socket.split();
        (Speaker { sink, operation: self.operation.clone() }, Listener { stream, operation: self.operation })
    }
}

impl Speaker {
    /// Sends input; returns when the connection has taken it, which is slow where the command is.
    pub async fn input(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        for piece in bytes.chunks(PIECE_MAX) {
            let mut message = BytesMut::with_capacity(piece.len() + 1);
            message.put_u8(STDIN);
            message.put_slice(piece);
            self.send(Message::Binary(message.freeze())).await?;
        }
        Ok(())
    }

    pub async fn say(&mut self, word: &ToBody) -> Result<(), ClientError> {
        let protocol = |e: serde_json::Error| ClientError::Protocol {
            operation: self.operation.clone(),
            message: e.to_string(),
        };
        let text = serde_json::to_string(word).map_err(protocol)?;
        self.send(Message::text(text)).await
    }

    /// Says that we are there; due every [`crate::streams::PING_SECONDS`].
    pub async fn ping(&mut self) -> Result<(), ClientError> {
        self.send(Message::Ping(Bytes::new())).await
    }

    /// Says goodbye: what was started is ended.
    pub async fn close(&mut self) -> Result<(), ClientError> {
        self.send(Message::Close(None)).await
    }

    async fn send(&mut self, message: Message) -> Result<(), ClientError> {
        self.sink.send(message).await.map_err(|error| broken(&self.operation, &error))
    }
}

impl Listener {
    /// What comes next; none after the last word and at a stream's end without one.
    pub async fn next(&mut self) -> Result<Option<Heard>, ClientError> {
        let silence = Duration::from_secs(SILENCE_SECONDS);
        let protocol = |message: String| ClientError::Protocol { operation: self.operation.clone(), message };
        loop {
            let message = tokio::time::timeout(silence, self.stream.next()).await.map_err(|_| {
                ClientError::Unreachable {
                    operation: self.operation.clone(),
                    url: String::new(),
                    reason: format!("silent for {SILENCE_SECONDS} s"),
                }
            })?;
            match message {
                None | Some(Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed)) => {
                    return Ok(None);
                }
                Some(Err(error)) => return Err(broken(&self.operation, &error)),
                Some(Ok(Message::Binary(mut bytes))) if !bytes.is_empty() => {
                    let rest = bytes.split_off(1);
                    return Ok(Some(Heard::Output(bytes[0], rest)));
                }
                Some(Ok(Message::Text(text))) => {
                    let word = serde_json::from_str(&text).map_err(|e| protocol(e.to_string()))?;
                    return Ok(Some(Heard::Word(word)));
                }
                Some(Ok(_)) => {}
            }
        }
    }
}

fn broken(operation: &str, error: &Error) -> ClientError {
    ClientError::Unreachable {
        operation: operation.to_owned(),
        url: String::new(),
        reason: error.to_string(),
    }
}
