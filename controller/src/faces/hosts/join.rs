//! `POST /hosts/v1/join`: the one route without a certificate. Only translates, and slows down guessing.

use super::{Refusal, State};
use amphi_api::ErrorCode;
use amphi_api::wire::{JoinAnswer, JoinRequest};
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::{Extension, Json};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Joins under way and joins that failed allowed in a burst, and how long one takes to grow back. A secret has 256 bits, so
/// this does not guard the secret: it guards the controller's time against whoever reaches the port. Who has a secret
/// is no such guest, and gives back what was spent.
const BURST: u32 = 50;
const REGROW: Duration = Duration::from_millis(100);

/// What is left, and since when it grows back. One per face.
#[derive(Clone)]
pub struct Budget(Arc<Mutex<(u32, Instant)>>);

impl Budget {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new((BURST, Instant::now()))))
    }

    /// False: nothing is left.
    fn spend(&self, now: Instant) -> bool {
        let mut budget = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = *budget;
        let grown = (now.duration_since(since).as_millis() / REGROW.as_millis()) as u32;
        let left = left.saturating_add(grown).min(BURST);
        // What has grown is counted; the rest of the time goes on counting.
        *budget = (left.saturating_sub(1), since + REGROW * grown);
        left > 0
    }

    fn give_back(&self) {
        let mut budget = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        budget.0 = (budget.0 + 1).min(BURST);
    }
}

pub async fn join(
    axum::extract::State(state): axum::extract::State<State>,
    Extension(budget): Extension<Budget>,
    request: Result<Json<JoinRequest>, JsonRejection>,
) -> Result<Json<JoinAnswer>, Refusal> {
    if !budget.spend(Instant::now()) {
        let message = "too many joins at once; try again in a few seconds";
        return Err(Refusal::new(ErrorCode::Unavailable, message));
    }
    let Json(request) = request.map_err(|error| {
        let code = match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ErrorCode::TooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => ErrorCode::UnsupportedMediaType,
            _ => ErrorCode::MalformedBody,
        };
        Refusal::new(code, error.body_text())
    })?;
    let answer = state.side.join(request).await?;
    budget.give_back();
    Ok(Json(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_grows_back() {
        let (budget, start) = (Budget::new(), Instant::now());
        assert_eq!((0..BURST * 2).filter(|_| budget.spend(start)).count(), BURST as usize);
        let later = start + REGROW * 4;
        assert_eq!((0..BURST).filter(|_| budget.spend(later)).count(), 4);
        budget.give_back();
        assert_eq!((0..BURST).filter(|_| budget.spend(later)).count(), 1);
    }
}
