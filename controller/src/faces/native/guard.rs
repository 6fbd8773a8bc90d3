//! What stands before every route: the token, a request id, and a net under panics.

use super::answers::Failure;
use amphi_api::ErrorCode;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, Response};
use axum::middleware::Next;
use axum::response::IntoResponse;
use sha2::{Digest, Sha256};
use std::any::Any;
use std::time::Instant;
use subtle::ConstantTimeEq;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What is kept of the token: comparing digests takes the same time whatever is sent.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl Token {
    pub fn new(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    fn fits(&self, text: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(text).into();
        self.0.ct_eq(&digest).into()
    }
}

pub async fn authenticate(State(token): State<Token>, request: Request, next: Next) -> Response<Body> {
    let path = request.uri().path();
    if matches!(path, "/healthz" | "/v1/openapi.json") {
        return next.run(request).await;
    }
    let sent = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
    let bearer = sent.and_then(|value| {
        let (scheme, rest) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(rest.trim_ascii())
    });
    if bearer.is_some_and(|text| token.fits(text)) {
        return next.run(request).await;
    }
    let failure =
        Failure::new(ErrorCode::Unauthenticated, "send Authorization: Bearer TOKEN with a known token");
    ([(WWW_AUTHENTICATE, "Bearer")], failure).into_response()
}

/// Every answer carries `X-Request-Id`: the caller's, if it is a decent one, or a new one. The log has it too.
pub async fn identify(request: Request, next: Next) -> Response<Body> {
    let sent = request.headers().get(&REQUEST_ID).filter(|value| {
        let decent = |b: &u8| b.is_ascii_alphanumeric() || b"-_.".contains(b);
        (1..=64).contains(&value.len()) && value.as_bytes().iter().all(decent)
    });
    let fresh = || HeaderValue::from_str(&uuid::Uuid::now_v7().to_string());
    let id = sent.cloned().or_else(|| fresh().ok()).unwrap_or(HeaderValue::from_static("-"));
    let (method, path, began) = (request.method().clone(), request.uri().path().to_owned(), Instant::now());
    let mut response = next.run(request).await;
    tracing::debug!(request = ?id, %method, %path, status = response.status().as_u16(),
        took_us = began.elapsed().as_micros() as u64, "answered");
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// A panic is a fault of ours: the log has its text, the answer has none of it.
pub fn panicked(panic: Box<dyn Any + Send>) -> Response<Body> {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words");
    tracing::error!(%text, "a handler panicked");
    Failure::new(ErrorCode::Internal, "something went wrong here; the controller's log says what")
        .into_response()
}
