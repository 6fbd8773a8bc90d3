//! Docker's way to hand over a connection: an HTTP request that is answered with bytes of a process, both ways. Done here by
//! hand because the client library takes bytes of a terminal apart at line feeds, and control characters for headers.

use super::ENGINE;
use crate::instance::DriverError;
use crate::instance::streams::Piece;
use amphi_api::streams::STDOUT;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{BoxStream, StreamExt, unfold};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;

/// Read at once, in bytes.
const PIECE: usize = 32 << 10;
/// Longest head of an answer, or body of a refusal, in bytes.
const HEAD_MAX: usize = 64 << 10;

/// A connection that is handed over: what the process writes, undivided, and where its input goes.
pub struct Hijacked {
    pub output: Box<dyn AsyncRead + Send + Unpin>,
    pub input: OwnedWriteHalf,
}

/// `POST path` with a JSON body.
pub async fn hijack(
    socket: &str,
    doing: &str,
    limit: Duration,
    path: &str,
    body: &serde_json::Value,
) -> Result<Hijacked, DriverError> {
    let asked = async {
        let mut stream = UnixStream::connect(socket).await?;
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nConnection: Upgrade\r\n\
             Upgrade: tcp\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut read = BytesMut::new();
        let head = loop {
            if let Some(at) = read.windows(4).position(|end| end == b"\r\n\r\n") {
                break read.split_to(at + 4);
            }
            if read.len() > HEAD_MAX || stream.read_buf(&mut read).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::InvalidData));
            }
        };
        // A daemon that does not upgrade answers 200 and goes on just the same (Docker's API, "Attach to a container").
        if matches!(status(&head), Some(101 | 200)) {
            return Ok(Ok((stream, read)));
        }
        while read.len() < HEAD_MAX && !is_whole(&head, &read) && stream.read_buf(&mut read).await? > 0 {}
        Ok(Err(message(&read)))
    };
    match tokio::time::timeout(limit, asked).await {
        Err(_) => Err(DriverError::EngineTimeout { engine: ENGINE, doing: doing.into(), limit }),
        Ok(Err(error)) => {
            let source = anyhow::Error::from(error);
            Err(DriverError::EngineDown { engine: ENGINE, doing: doing.into(), source })
        }
        Ok(Ok(Err(message))) => {
            Err(DriverError::EngineRefused { engine: ENGINE, doing: doing.into(), message })
        }
        Ok(Ok(Ok((stream, begun)))) => {
            let (output, input) = stream.into_split();
            let output = Box::new(io::Cursor::new(begun.freeze()).chain(output));
            Ok(Hijacked { output, input })
        }
    }
}

fn status(head: &[u8]) -> Option<u16> {
    std::str::from_utf8(head).ok()?.split(' ').nth(1)?.parse().ok()
}

fn is_whole(head: &[u8], body: &[u8]) -> bool {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    length.is_some_and(|length: usize| body.len() >= length)
}

/// `{"message":"…"}`, perhaps within a chunk.
fn message(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let json = text.find('{').zip(text.rfind('}')).and_then(|(begin, end)| text.get(begin..=end));
    let parsed = json.and_then(|json| serde_json::from_str::<serde_json::Value>(json).ok());
    parsed.and_then(|v| v["message"].as_str().map(str::to_owned)).unwrap_or_else(|| text.trim().to_owned())
}

/// Bytes of a terminal: one channel.
pub fn undivided(output: impl AsyncRead + Send + Unpin + 'static) -> BoxStream<'static, io::Result<Piece>> {
    unfold(output, |mut output| async {
        let mut bytes = BytesMut::with_capacity(PIECE);
        match output.read_buf(&mut bytes).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(Piece { channel: STDOUT, bytes: bytes.freeze() }), output)),
            Err(error) => Some((Err(error), output)),
        }
    })
    .boxed()
}

/// Two channels over one connection: each part has a head of 8 bytes, the channel first and the length last.
pub fn divided(output: impl AsyncRead + Send + Unpin + 'static) -> BoxStream<'static, io::Result<Piece>> {
    unfold((output, 0, 0), |(mut output, mut channel, mut left): (_, u8, usize)| async move {
        let read = async {
            while left == 0 {
                let mut head = [0; 8];
                // An end between two parts is the end.
                if output.read(&mut head[..1]).await? == 0 {
                    return Ok(None);
                }
                output.read_exact(&mut head[1..]).await?;
                channel = head[0];
                left = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
            }
            let mut bytes = BytesMut::with_capacity(PIECE.min(left));
            let mut limited = (&mut output).take(PIECE.min(left) as u64);
            if limited.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(Some(bytes.freeze()))
        };
        let read: io::Result<Option<Bytes>> = read.await;
        match read {
            Ok(None) => None,
            Ok(Some(bytes)) => {
                left -= bytes.len();
                Some((Ok(Piece { channel, bytes }), (output, channel, left)))
            }
            Err(error) => Some((Err(error), (output, channel, 0))),
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::streams::STDERR;
    use futures_util::TryStreamExt;

    #[test]
    fn answers_are_read() {
        assert_eq!(status(b"HTTP/1.1 101 UPGRADED\r\n\r\n"), Some(101));
        assert_eq!(status(b"nonsense"), None);
        assert_eq!(message(b"{\"message\":\"Container x is not running\"}\n"), "Container x is not running");
        assert_eq!(message(b"1f\r\n{\"message\":\"y\"}\r\n0\r\n\r\n"), "y");
        assert_eq!(message(b"page not found\n"), "page not found");
        assert!(is_whole(b"A: b\r\nContent-Length: 3\r\n\r\n", b"abc"));
        assert!(!is_whole(b"A: b\r\nContent-Length: 3\r\n\r\n", b"ab"));
    }

    #[tokio::test]
    async fn channels_are_told_apart_and_nothing_is_lost() {
        let big = vec![7; PIECE + 5];
        let mut wire = vec![1, 0, 0, 0, 0, 0, 0, 2, 0, 10, 2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
        wire.extend_from_slice(&u32::try_from(big.len()).unwrap().to_be_bytes());
        wire.extend_from_slice(&big);
        let pieces: Vec<Piece> = divided(io::Cursor::new(wire)).try_collect().await.unwrap();
        let joined = |channel| {
            let parts = pieces.iter().filter(|p| p.channel == channel).map(|p| p.bytes.to_vec());
            parts.collect::<Vec<_>>().concat()
        };
        assert_eq!(joined(STDOUT), [0, 10]);
        assert_eq!(joined(STDERR), big);
        let cut: io::Result<Vec<Piece>> =
            divided(io::Cursor::new(vec![1, 0, 0, 0, 0, 0, 0, 9, 1])).try_collect().await;
        assert!(cut.is_err(), "an end within a part is no end");
        let raw = vec![0, 1, 2, 10, 0];
        let pieces: Vec<Piece> = undivided(io::Cursor::new(raw.clone())).try_collect().await.unwrap();
        assert_eq!(pieces[0].bytes, raw);
    }
}
