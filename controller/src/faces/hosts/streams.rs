//! `GET /hosts/v1/streams/{id}`: the connection of a host that was told to open a stream. Bearer token: the secret that
//! went with the order, good once.

use super::tls::Peer;
use super::{Refusal, State};
use amphi_api::ErrorCode;
use amphi_api::streams::MESSAGE_MAX;
use axum::extract::{ConnectInfo, Path, WebSocketUpgrade};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::response::Response;
use uuid::Uuid;

pub async fn stream(
    axum::extract::State(state): axum::extract::State<State>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(id): Path<Uuid>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Refusal> {
    let host = peer.host()?;
    let secret = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let hand = state.links.streams().claim(id, host, secret.unwrap_or_default());
    let hand = hand.ok_or_else(|| Refusal::new(ErrorCode::NotFound, "nobody waits for this stream"))?;
    Ok(upgrade.max_message_size(MESSAGE_MAX).on_upgrade(move |socket| async move {
        // Whoever waited may have left meanwhile: then the connection ends here, and with it what it was for.
        let _ = hand.send(socket);
    }))
}
