//! The socket that dockerd talks to: Docker's plug-in protocol, a few JSON POSTs over HTTP on a
//! unix socket. Owns the protocol's frame (activation, errors, the bound on every request); the
//! drivers bring their own routes.
//!
//! The process behind it keeps nothing in memory that a restart between two calls could lose.

mod ipam;
mod network;
mod options;
mod records;

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
use tokio::net::UnixListener;

pub use ipam::ipam_router;
pub use network::{NetworkDriver, network_router};
pub use records::Records;

/// Bound on one request. Longer than any single bound inside, shorter than Docker's patience.
const REQUEST: Duration = Duration::from_secs(25);

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
