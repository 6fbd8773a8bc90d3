//! `GET /hosts/v1/blobs/{sha256}`: bytes of images, to hosts that need them.

use super::tls::Peer;
use super::{Refusal, State};
use crate::images::BlobError;
use amphi_api::ErrorCode;
use axum::body::Body;
use axum::extract::{ConnectInfo, Path};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use tokio_util::io::ReaderStream;

/// Read ahead, in bytes.
const CHUNK: usize = 256 << 10;

pub async fn blob(
    axum::extract::State(state): axum::extract::State<State>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(sha256): Path<String>,
) -> Result<Response, Refusal> {
    let host = peer.host()?;
    if !state.side.blob_allowed(host, &sha256).await {
        return Err(Refusal::new(ErrorCode::NotFound, format!("no image of this host has a blob {sha256}")));
    }
    let (file, size) = state.blobs.read(&sha256).await.map_err(|error| match error {
        BlobError::Unknown { .. } | BlobError::NoDigest { .. } => {
            Refusal::new(ErrorCode::NotFound, error.to_string())
        }
        error => Refusal::new(ErrorCode::Unavailable, error.to_string()),
    })?;
    let body = Body::from_stream(ReaderStream::with_capacity(file, CHUNK));
    let headers = [(CONTENT_LENGTH, size.to_string()), (CONTENT_TYPE, "application/octet-stream".to_owned())];
    Ok((headers, body).into_response())
}
