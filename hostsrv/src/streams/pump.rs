//! Moves bytes and words between a stream's connection and what is open in a body. Each way is a loop of its own that takes
//! one piece and hands it on before it takes the next, so that a reader who is slow slows down the writer, and nothing
//! piles up. Whoever leaves without the last word has been cut off: what was opened is ended.

use crate::instance::DriverError;
use crate::instance::streams::{Inside, Opened, Piece};
use amphi_api::streams::{FromBody, PIECE_MAX, PING_SECONDS, SILENCE_SECONDS, STDIN, ToBody};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{BoxStream, SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use std::pin::Pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::MissedTickBehavior;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

const SILENCE: Duration = Duration::from_secs(SILENCE_SECONDS);
/// How long the last word may take to be taken, and the connection to be closed from there.
const FAREWELL: Duration = Duration::from_secs(5);

type To<S> = SplitSink<WebSocketStream<S>, Message>;
type From<S> = SplitStream<WebSocketStream<S>>;

/// Opens, and moves bytes until either side ends; how it ended.
pub async fn run<S>(
    socket: WebSocketStream<S>,
    open: impl Future<Output = Result<Opened, DriverError>>,
) -> &'static str
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut to, mut from) = socket.split();
    let Opened { input, mut output, inside } = match open.await {
        Ok(opened) => opened,
        Err(error) => {
            let word = FromBody::Failed { code: error.code().into(), message: error.to_string() };
            farewell(&mut to, &mut from, word).await;
            return "not opened";
        }
    };
    let last = {
        let hear = hear(&mut from, input, inside.as_ref());
        let tell = tell(&mut to, &mut output);
        tokio::select! {
            reason = hear => Err(reason),
            told = tell => told,
        }
    };
    match last {
        Err(reason) => {
            drop(output);
            inside.end().await;
            reason
        }
        Ok(Some(error)) => {
            inside.end().await;
            let word = FromBody::Failed { code: error.code().into(), message: error.to_string() };
            farewell(&mut to, &mut from, word).await;
            "broken"
        }
        Ok(None) => {
            let word = match inside.exit_code().await {
                Ok(exit_code) => FromBody::Ended { exit_code, reason: None },
                Err(error) => FromBody::Failed { code: error.code().into(), message: error.to_string() },
            };
            farewell(&mut to, &mut from, word).await;
            "ended"
        }
    }
}

/// Says the last word, and waits until the other side has closed: closing first would take back what it has yet to read.
async fn farewell<S: AsyncRead + AsyncWrite + Unpin>(to: &mut To<S>, from: &mut From<S>, word: FromBody) {
    let _ = tokio::time::timeout(FAREWELL, async {
        if say(to, &word).await.is_ok() && to.send(Message::Close(None)).await.is_ok() {
            while let Some(Ok(_)) = from.next().await {}
        }
    })
    .await;
}

async fn say<S: AsyncRead + AsyncWrite + Unpin>(to: &mut To<S>, word: &FromBody) -> Result<(), ()> {
    let text = serde_json::to_string(word).map_err(drop)?;
    to.send(Message::text(text)).await.map_err(drop)
}

/// Input and words from the client; why they ended.
async fn hear<S: AsyncRead + AsyncWrite + Unpin>(
    from: &mut From<S>,
    mut input: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    inside: &dyn Inside,
) -> &'static str {
    loop {
        let message = match tokio::time::timeout(SILENCE, from.next()).await {
            Err(_) => return "the controller is silent",
            Ok(None | Some(Err(_) | Ok(Message::Close(_)))) => return "the client is gone",
            Ok(Some(Ok(message))) => message,
        };
        match message {
            Message::Binary(bytes) if bytes.first() == Some(&STDIN) => {
                let Some(writer) = &mut input else { continue };
                let written = async {
                    writer.write_all(&bytes[1..]).await?;
                    writer.flush().await
                };
                if written.await.is_err() {
                    // It reads no more; what it writes still counts.
                    input = None;
                }
            }
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(ToBody::Resize(size)) => {
                    if let Err(error) = inside.resize(size).await {
                        tracing::debug!(%error, "a terminal keeps its size");
                    }
                }
                Ok(ToBody::InputEnd) => {
                    if let Some(mut writer) = input.take() {
                        let _ = writer.shutdown().await;
                    }
                }
                Err(error) => tracing::debug!(%error, "a word that nobody knows"),
            },
            _ => {}
        }
    }
}

/// Output to the client until it ends; the error that it ended with. Err: the client takes no more.
async fn tell<S: AsyncRead + AsyncWrite + Unpin>(
    to: &mut To<S>,
    output: &mut BoxStream<'static, Result<Piece, DriverError>>,
) -> Result<Option<DriverError>, &'static str> {
    let gone = |_| "the client is gone";
    say(to, &FromBody::Opened).await.map_err(gone)?;
    let mut pings = tokio::time::interval(Duration::from_secs(PING_SECONDS));
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let piece = tokio::select! {
            piece = output.next() => piece,
            _ = pings.tick() => {
                to.send(Message::Ping(Bytes::new())).await.map_err(|_| "the client is gone")?;
                continue;
            }
        };
        let Piece { channel, bytes } = match piece {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => return Ok(Some(error)),
            None => return Ok(None),
        };
        for part in bytes.chunks(PIECE_MAX) {
            let mut message = BytesMut::with_capacity(part.len() + 1);
            message.put_u8(channel);
            message.put_slice(part);
            to.send(Message::Binary(message.freeze())).await.map_err(|_| "the client is gone")?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::streams::{STDERR, STDOUT, TerminalSize};
    use std::sync::{Arc, Mutex};
    use tokio::io::DuplexStream;
    use tokio_tungstenite::tungstenite::protocol::Role;

    const LIMIT: Duration = Duration::from_secs(10);

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<String>>>);

    #[async_trait::async_trait]
    impl Inside for Seen {
        async fn resize(&self, size: TerminalSize) -> Result<(), DriverError> {
            self.0.lock().unwrap().push(format!("resize {}x{}", size.columns, size.rows));
            Ok(())
        }
        async fn exit_code(&self) -> Result<Option<i64>, DriverError> {
            Ok(Some(3))
        }
        async fn end(&self) {
            self.0.lock().unwrap().push("end".into());
        }
    }

    /// Something that writes back what it reads, and ends with its input.
    fn echo(seen: &Seen) -> Opened {
        let (input, inner) = tokio::io::duplex(1024);
        let output = tokio_util::io::ReaderStream::new(inner)
            .map(|bytes| Ok(Piece { channel: STDERR, bytes: bytes.unwrap() }))
            .boxed();
        Opened { input: Some(Box::pin(input)), output, inside: Box::new(seen.clone()) }
    }

    async fn pair() -> (WebSocketStream<DuplexStream>, WebSocketStream<DuplexStream>) {
        let (a, b) = tokio::io::duplex(64 << 10);
        tokio::join!(
            WebSocketStream::from_raw_socket(a, Role::Server, None),
            WebSocketStream::from_raw_socket(b, Role::Client, None)
        )
    }

    async fn next(socket: &mut WebSocketStream<DuplexStream>) -> Message {
        loop {
            let message = tokio::time::timeout(LIMIT, socket.next()).await.unwrap().unwrap().unwrap();
            if !matches!(message, Message::Ping(_)) {
                return message;
            }
        }
    }

    #[tokio::test]
    async fn bytes_in_bytes_out_and_the_exit_code_last() {
        let seen = Seen::default();
        let (mut client, host) = pair().await;
        let opened = echo(&seen);
        let run = tokio::spawn(async move { run(host, async { Ok(opened) }).await });
        assert_eq!(next(&mut client).await, Message::text(r#"{"type":"opened"}"#));
        client.send(Message::text(r#"{"type":"resize","columns":80,"rows":24}"#)).await.unwrap();
        client.send(Message::binary(vec![STDIN, 0, 1, 255])).await.unwrap();
        client.send(Message::binary(vec![STDOUT, 9])).await.unwrap();
        assert_eq!(next(&mut client).await, Message::binary(vec![STDERR, 0, 1, 255]));
        client.send(Message::text(r#"{"type":"input_end"}"#)).await.unwrap();
        assert_eq!(next(&mut client).await, Message::text(r#"{"type":"ended","exit_code":3,"reason":null}"#));
        assert!(matches!(next(&mut client).await, Message::Close(_)));
        drop(client);
        assert_eq!(tokio::time::timeout(LIMIT, run).await.unwrap().unwrap(), "ended");
        assert_eq!(*seen.0.lock().unwrap(), ["resize 80x24"], "what ended by itself is not ended again");
    }

    #[tokio::test]
    async fn a_client_that_leaves_ends_what_it_opened() {
        let seen = Seen::default();
        let (mut client, host) = pair().await;
        let opened = echo(&seen);
        let run = tokio::spawn(async move { run(host, async { Ok(opened) }).await });
        next(&mut client).await;
        drop(client);
        assert_eq!(tokio::time::timeout(LIMIT, run).await.unwrap().unwrap(), "the client is gone");
        assert_eq!(*seen.0.lock().unwrap(), ["end"]);
    }

    #[tokio::test]
    async fn what_cannot_be_opened_is_told() {
        let (mut client, host) = pair().await;
        let refused = DriverError::EngineRefused {
            engine: "Docker",
            doing: "run it".into(),
            message: "it is paused".into(),
        };
        let run = tokio::spawn(async move { run(host, async { Err(refused) }).await });
        assert_eq!(
            next(&mut client).await,
            Message::text(
                r#"{"type":"failed","code":"engine_refused","message":"Docker refused to run it: it is paused"}"#
            )
        );
        assert!(matches!(next(&mut client).await, Message::Close(_)));
        drop(client);
        assert_eq!(tokio::time::timeout(LIMIT, run).await.unwrap().unwrap(), "not opened");
    }
}
