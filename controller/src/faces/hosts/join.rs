//! `POST /hosts/v1/join`: the one route without a certificate. Only translates, and slows down guessing.

use super::{Refusal, State};
use amphi_api::ErrorCode;
use amphi_api::wire::{JoinAnswer, JoinRequest};
use axum::Json;
use axum::extract::rejection::JsonRejection;
use std::sync::Mutex;
use std::sync::PoisonError;
use tokio::time::{Duration, Instant};

/// Joins allowed in a burst, and how long one takes to grow back. A secret has 256 bits, so this does not guard the
/// secret: it guards the controller's time against whoever reaches the port.
const BURST: u32 = 50;
const REGROW: Duration = Duration::from_millis(100);

static BUDGET: Mutex<Option<(u32, Instant)>> = Mutex::new(None);

pub async fn join(
    axum::extract::State(state): axum::extract::State<State>,
    request: Result<Json<JoinRequest>, JsonRejection>,
) -> Result<Json<JoinAnswer>, Refusal> {
    if !spend() {
        return Err(Refusal::new(
            ErrorCode::Unavailable,
            "too many joins at once; try again in a few seconds",
        ));
    }
    let Json(request) = request.map_err(|e| Refusal::new(ErrorCode::MalformedBody, e.body_text()))?;
    state.side.join(request).await.map(Json)
}

fn spend() -> bool {
    let mut budget = BUDGET.lock().unwrap_or_else(PoisonError::into_inner);
    let (left, since) = budget.unwrap_or((BURST, Instant::now()));
    let grown = (since.elapsed().as_millis() / REGROW.as_millis()) as u32;
    let left = left.saturating_add(grown).min(BURST);
    let since = if grown > 0 { Instant::now() } else { since };
    *budget = Some((left.saturating_sub(1), since));
    left > 0
}
