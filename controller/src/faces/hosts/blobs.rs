//! `GET /hosts/v1/blobs/{sha256}`: bytes of images, to hosts that need them. `PUT` there with `?export={image}`: bytes that
//! a host was told to read, and no others.

use super::tls::Peer;
use super::{Refusal, State};
use amphi_api::{ErrorCode, ImageId};
use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Query};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde::Deserialize;
use std::time::Duration;

/// An upload that stands still for so long is given up.
const STALL: Duration = Duration::from_secs(60);

pub async fn blob(
    axum::extract::State(state): axum::extract::State<State>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(sha256): Path<String>,
) -> Result<Response, Refusal> {
    let host = peer.host()?;
    if !state.side.blob_allowed(host, &sha256).await {
        return Err(Refusal::new(ErrorCode::NotFound, format!("no image of this host has a blob {sha256}")));
    }
    let (bytes, size) = state.side.read_blob(&sha256).await?;
    let body = Body::from_stream(bytes.stream());
    let headers = [(CONTENT_LENGTH, size.to_string()), (CONTENT_TYPE, "application/octet-stream".to_owned())];
    Ok((headers, body).into_response())
}

#[derive(Deserialize)]
pub struct Upload {
    /// The image that the bytes are for.
    export: ImageId,
}

/// Takes the bytes of an export that this host is told to make; durable when it answers 201.
pub async fn put(
    axum::extract::State(state): axum::extract::State<State>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(sha256): Path<String>,
    Query(upload): Query<Upload>,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let host = peer.host()?;
    let desired = state.side.desired(host).await;
    if !desired.exports.iter().any(|export| export.image == upload.export) {
        let message = format!("no export of image {} is asked of this host", upload.export);
        return Err(Refusal::new(ErrorCode::Forbidden, message));
    }
    let pieces = timed(body);
    state.side.take_export(upload.export, &sha256, pieces.boxed()).await?;
    Ok(StatusCode::CREATED)
}

/// The body's pieces; an error in the place of one that does not come.
fn timed(body: Body) -> impl futures_util::Stream<Item = std::io::Result<bytes::Bytes>> + Send {
    let pieces = body.into_data_stream();
    futures_util::stream::unfold(Some(pieces), |pieces| async {
        let mut pieces = pieces?;
        match tokio::time::timeout(STALL, pieces.next()).await {
            Ok(Some(Ok(piece))) => Some((Ok(piece), Some(pieces))),
            Ok(Some(Err(error))) => Some((Err(std::io::Error::other(error)), None)),
            Ok(None) => None,
            Err(_) => {
                let text = format!("nothing came for {} s", STALL.as_secs());
                Some((Err(std::io::Error::other(text)), None))
            }
        }
    })
}
