//! The socket that dockerd talks to: Docker's plug-in protocol, a few JSON POSTs over HTTP on a
//! unix socket. Owns the protocol's frame (activation, errors, the bound on every request); the
//! drivers bring their own routes.
//!
//! The process behind it keeps nothing in memory that a restart between two calls could lose.

mod ipam;
mod network;
mod options;
mod records;

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};

pub use ipam::ipam_router;
pub use network::{NetworkDriver, network_router};
pub use records::Records;

/// Bound on one request. Longer than any single bound inside, shorter than Docker's patience.
const REQUEST: Duration = Duration::from_secs(25);

/// Bound on finding out whether somebody listens already.
const PROBE: Duration = Duration::from_secs(2);

/// Why a call failed, as Docker shows it to its user.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

macro_rules! refusal_from {
    ($($error:ty),*) => { $(
        impl From<$error> for Refusal {
            fn from(error: $error) -> Refusal {
                Refusal(error.to_string())
            }
        }
    )* };
}

refusal_from!(super::NetworkError, records::RecordError, options::OptionError);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        tracing::warn!(error = self.0, "refused a call by Docker");
        // Network and volume drivers read `Err`, IPAM drivers `Error`.
        (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({"Err": self.0, "Error": self.0}))).into_response()
    }
}

/// Docker sends JSON without saying so, and no body at all where there is nothing to say.
pub fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    let text: &[u8] = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(text).map_err(|error| Refusal(format!("malformed request: {error}")))
}

/// The handshake: which of `NetworkDriver`, `IpamDriver`, `VolumeDriver` this socket serves.
pub fn activation_router(implements: &[&str]) -> Router {
    let implements: Vec<String> = implements.iter().map(|&driver| driver.to_owned()).collect();
    Router::new()
        .route("/Plugin.Activate", post(move || async move { Json(json!({"Implements": implements})) }))
}

/// Listens at a path, in place of a dead socket of an earlier run; a live one is refused.
pub async fn bind(path: &Path) -> std::io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match tokio::time::timeout(PROBE, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
        Ok(Err(error)) if error.kind() == ErrorKind::NotFound => {}
        Ok(Err(error)) => return Err(error),
        Ok(Ok(_)) | Err(_) => return Err(ErrorKind::AddrInUse.into()),
    }
    UnixListener::bind(path)
}

/// Serves until the task is dropped or the listener fails.
pub async fn serve(listener: UnixListener, router: Router) -> std::io::Result<()> {
    let router = router.fallback(|request: Request| async move {
        Refusal(format!("this driver has no call {}", request.uri().path()))
    });
    axum::serve(listener, router.layer(middleware::from_fn(frame))).await
}

async fn frame(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let started = std::time::Instant::now();
    let mut response = match tokio::time::timeout(REQUEST, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Refusal(format!("{path} took longer than {} s", REQUEST.as_secs())).into_response(),
    };
    tracing::debug!(path, took = ?started.elapsed(), status = %response.status(), "Docker called");
    let kind = header::HeaderValue::from_static("application/vnd.docker.plugins.v1.2+json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn post(path: &Path, call: &str) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        let request =
            format!("POST {call} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plugins/amphi.sock");
        drop(bind(&path).await.unwrap());
        let listener = bind(&path).await.unwrap();
        assert_eq!(bind(&path).await.unwrap_err().kind(), ErrorKind::AddrInUse);
        tokio::spawn(serve(listener, activation_router(&["NetworkDriver"]).merge(ipam_router())));
        let answer = post(&path, "/Plugin.Activate").await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("{\"Implements\":[\"NetworkDriver\"]}"),
            "{answer}"
        );
        let answer = post(&path, "/NetworkDriver.Nonsense").await;
        assert!(
            answer.starts_with("HTTP/1.1 500") && answer.contains("no call /NetworkDriver.Nonsense"),
            "{answer}"
        );
        let answer = post(&path, "/IpamDriver.RequestPool").await;
        assert!(answer.contains("--subnet"), "{answer}");
    }
}
