//! The hosts' face: where agents join, connect and fetch blobs. Mutual TLS; only `join` works without a certificate.
//! Owns the links. Refuses to know what a desired state is made of: that comes from a [`HostSide`].

mod blobs;
mod door;
mod join;
mod lease;
mod link;
mod sharing;
mod streams;
mod tls;

pub use link::{AskError, Links};
pub use tls::serve;

use crate::images::BlobRead;
use crate::leases::Leases;
use amphi_api::group::InstanceFigures;
use amphi_api::host::{Engine, HostSpec};
use amphi_api::prepull::HostImages;
use amphi_api::wire::{HostDesired, HostStatus, JoinAnswer, JoinRequest};
use amphi_api::{ErrorBody, ErrorCode, HostId, ImageId};
use async_trait::async_trait;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use futures_util::stream::BoxStream;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// Bytes on their way in.
pub type BlobStream = BoxStream<'static, std::io::Result<bytes::Bytes>>;

/// Why a host is refused: becomes an [`ErrorBody`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub code: ErrorCode,
    pub message: String,
}

impl Refusal {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let error = amphi_api::error::ErrorDetail { code: self.code, message: self.message, field: None };
        (status, axum::Json(ErrorBody { error })).into_response()
    }
}

/// What the records have to say to hosts, and take from them.
#[async_trait]
pub trait HostSide: Send + Sync + 'static {
    /// Checks the secret, spends it, makes the host's record and signs its certificate.
    async fn join(&self, request: JoinRequest) -> Result<JoinAnswer, Refusal>;
    /// A host has connected and says what it is. Answers where OVN's southbound database is.
    async fn hello(&self, host: HostId, spec: HostSpec) -> Result<String, Refusal>;
    /// The host is there. Called every few seconds by every host: must cost nearly nothing.
    async fn heartbeat(&self, host: HostId, engines: Vec<Engine>, volume_group_free_bytes: u64);
    /// What instances there use; kept in memory alone.
    fn figures(&self, host: HostId, figures: &[InstanceFigures]);
    /// What images are there.
    async fn images(&self, host: HostId, images: HostImages);
    async fn status(&self, host: HostId, status: HostStatus);
    /// The host's link has ended and no newer one has taken its place.
    async fn gone(&self, host: HostId);
    /// The whole desired state of the host.
    async fn desired(&self, host: HostId) -> Arc<HostDesired>;
    /// Changes whenever `desired` may have changed.
    fn desired_generation(&self, host: HostId) -> watch::Receiver<u64>;
    /// Whether the host may have this blob: it belongs to an image that its desired state names.
    async fn blob_allowed(&self, host: HostId, sha256: &str) -> bool;
    /// Where its agent takes connections of other hosts.
    fn listens_at(&self, host: HostId) -> Option<SocketAddr>;
    /// A blob's bytes from the given one on, and how many all of them are, for a host that may have it.
    async fn read_blob(&self, sha256: &str, from: u64) -> Result<(BlobRead, u64), Refusal>;
    /// Takes the bytes that a host was told to read for an image, and no others; they are durable when it returns.
    async fn take_export(&self, image: ImageId, sha256: &str, bytes: BlobStream) -> Result<(), Refusal>;
}

/// Shared by the handlers.
#[derive(Clone)]
pub struct State {
    pub side: Arc<dyn HostSide>,
    pub links: Arc<Links>,
    pub leases: Arc<Leases>,
}

/// Largest body of a join request, in bytes: a CSR and two short strings.
const JOIN_MAX: usize = 32 << 10;
/// Largest body of a lease's renewal, in bytes.
const LEASE_MAX: usize = 4 << 10;

/// All routes of the face.
pub fn router(state: State) -> Router {
    Router::new()
        .route("/hosts/v1/join", post(join::join).layer(DefaultBodyLimit::max(JOIN_MAX)))
        .layer(Extension(join::Budget::new()))
        .route(
            "/hosts/v1/blobs/{sha256}",
            get(blobs::blob).put(blobs::put).layer(DefaultBodyLimit::disable()),
        )
        .layer(Extension(Arc::new(sharing::Sharing::default())))
        .route("/hosts/v1/link", get(link::link))
        .route("/hosts/v1/streams/{id}", get(streams::stream))
        .with_state(state.clone())
        .merge(door::routes(state))
}
