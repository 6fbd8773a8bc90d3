//! The bytes of an upload as `ops` takes them. Owns what becomes of those that nobody wants any more: an answer given in the
//! middle of an upload would close the connection, and a client that is still sending would see a broken pipe in place of
//! the reason. So they are heard out, within bounds. Refuses to keep any of them.

use axum::body::{Body, Bytes};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// What is heard of an upload after its refusal, at most: some images' worth, and no longer than a client waits.
const BYTES: usize = 1 << 30;
const TIME: Duration = Duration::from_secs(30);

/// The body's bytes. Dropped before their end, the rest is read and forgotten beside the answer.
pub fn bytes_of(body: Body) -> BoxStream<'static, io::Result<Bytes>> {
    let bytes = body.into_data_stream().map(|part| part.map_err(io::Error::other)).boxed();
    Heard(Some(bytes)).boxed()
}

struct Heard(Option<BoxStream<'static, io::Result<Bytes>>>);

impl Stream for Heard {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(bytes) = &mut self.0 else { return Poll::Ready(None) };
        let next = std::task::ready!(bytes.poll_next_unpin(context));
        if !matches!(next, Some(Ok(_))) {
            self.0 = None;
        }
        Poll::Ready(next)
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        let (Some(mut rest), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        runtime.spawn(async move {
            let mut heard = 0;
            let hear_out = async {
                while let Some(Ok(part)) = rest.next().await {
                    heard += part.len();
                    if heard > BYTES {
                        return;
                    }
                }
            };
            // Who goes on sending after that finds the line closed.
            let _ = tokio::time::timeout(TIME, hear_out).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A client that reads nothing before it has sent all, as most do.
    #[tokio::test]
    async fn a_client_that_is_still_sending_hears_the_answer() {
        const SENT: usize = 16 << 20;
        let refuse = async |body: Body| {
            let first = bytes_of(body).next().await.unwrap().unwrap();
            assert!(!first.is_empty());
            (axum::http::StatusCode::INSUFFICIENT_STORAGE, "no room")
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = axum::Router::new()
            .route("/", axum::routing::put(refuse))
            .layer(axum::extract::DefaultBodyLimit::disable());
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        let mut line = tokio::net::TcpStream::connect(address).await.unwrap();
        line.write_all(
            format!("PUT / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {SENT}\r\n\r\n")
                .as_bytes(),
        )
        .await
        .unwrap();
        for _ in 0..SENT >> 20 {
            line.write_all(&vec![7; 1 << 20]).await.unwrap();
        }
        let mut answer = String::new();
        line.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 507") && answer.ends_with("no room"), "{answer}");
        server.abort();
    }
}
