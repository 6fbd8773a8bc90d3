//! `POST /hosts/v1/lease`: a host's lease process renews. Only translates; nothing here waits for a disk or a lock that
//! others hold for long, since an answer that is late is no answer.

use super::tls::Peer;
use super::{Refusal, State};
use amphi_api::ErrorCode;
use amphi_api::lease::{LeaseGrant, LeaseRenewal};
use axum::Json;
use axum::extract::ConnectInfo;
use axum::extract::rejection::JsonRejection;
use std::time::Instant;

pub async fn renew(
    axum::extract::State(state): axum::extract::State<State>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    renewal: Result<Json<LeaseRenewal>, JsonRejection>,
) -> Result<Json<LeaseGrant>, Refusal> {
    let host = peer.host()?;
    let Json(renewal) = renewal.map_err(|e| Refusal::new(ErrorCode::MalformedBody, e.body_text()))?;
    let grant = state.leases.renewed(host, &renewal, Instant::now());
    grant.map(Json).ok_or_else(|| Refusal::new(ErrorCode::NotFound, format!("no host {host} is known")))
}
