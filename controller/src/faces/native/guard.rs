//! What stands before every route: the token and the role it brings, a request id, and a net under panics.

use super::answers::Failure;
use crate::ops::Ops;
use crate::ops::identity::Caller;
use amphi_api::replica::ROLE as REPLICATOR;
use amphi_api::{ErrorCode, ProjectId};
use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response};
use axum::middleware::Next;
use axum::response::IntoResponse;
use sha2::{Digest, Sha256};
use std::any::Any;
use std::sync::Arc;
use std::time::Instant;
use subtle::ConstantTimeEq;

const AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");
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

/// What stands at the door: the controller's own token, and the users behind theirs.
#[derive(Clone)]
pub struct Guard {
    token: Token,
    ops: Arc<Ops>,
}

impl Guard {
    pub fn new(token: &str, ops: Arc<Ops>) -> Self {
        Self { token: Token::new(token), ops }
    }

    fn caller(&self, headers: &HeaderMap) -> Option<Caller> {
        let bearer = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).and_then(|value| {
            let (scheme, rest) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(rest.trim_ascii())
        });
        if bearer.is_some_and(|text| self.token.fits(text)) {
            return Some(Caller::operator());
        }
        let user = headers.get(AUTH_TOKEN).and_then(|value| value.to_str().ok())?;
        self.ops.authenticate(user).ok()
    }
}

/// The project that the request is about: its token's.
pub struct Scope(pub ProjectId);

impl<S: Send + Sync> FromRequestParts<S> for Scope {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let caller = parts.extensions.get::<Caller>();
        let caller = caller.ok_or_else(|| Failure::new(ErrorCode::Unauthenticated, "who are you?"))?;
        Ok(Self(caller.project()?))
    }
}

/// The role that a route needs: looking is a reader's, changing a member's, hosts are the administrator's.
fn need(method: &Method, path: &str) -> &'static str {
    let below = path.strip_prefix("/v1/").unwrap_or_default();
    let noun = below.split('/').next().unwrap_or_default();
    match noun {
        "hosts" | "join-tokens" | "placements" | "failovers" | "projects" => "admin",
        // Another region is another cloud: who may send images there has its administrators' word.
        "regions" | "replications" | "replication-policies" => "admin",
        "replicas" | "replica-blobs" => REPLICATOR,
        // Which host runs what is the operator's business.
        _ if path.ends_with("/moves") => "admin",
        "images" if below.split('/').nth(2) == Some("hosts") => "admin",
        // What runs in a body can be changed from there.
        "instances"
            if below
                .split('/')
                .nth(2)
                .is_some_and(|w| matches!(w, "exec" | "console" | "screen" | "files" | "tools")) =>
        {
            "member"
        }
        _ if method == Method::GET || method == Method::HEAD => "reader",
        _ => "member",
    }
}

pub async fn authenticate(State(guard): State<Guard>, mut request: Request, next: Next) -> Response<Body> {
    let path = request.uri().path();
    if matches!(path, "/healthz" | "/v1/openapi.json") {
        return next.run(request).await;
    }
    let Some(caller) = guard.caller(request.headers()) else {
        let failure = Failure::new(
            ErrorCode::Unauthenticated,
            "send Authorization: Bearer TOKEN or X-Auth-Token: TOKEN with a known token",
        );
        return ([(WWW_AUTHENTICATE, "Bearer")], failure).into_response();
    };
    let need = need(request.method(), path);
    // The service's role stands beside the others: an administrator has it without being given it.
    let may = caller.has_role(need) || (need == REPLICATOR && caller.is_admin());
    if !may {
        return Failure::new(ErrorCode::Forbidden, format!("this needs the role {need}")).into_response();
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_what() {
        for (method, path, role) in [
            (Method::GET, "/v1/instances", "reader"),
            (Method::HEAD, "/v1/volumes/x", "reader"),
            (Method::POST, "/v1/instances", "member"),
            (Method::DELETE, "/v1/instances/x", "member"),
            (Method::PUT, "/v1/images/x/blobs/disk", "member"),
            (Method::GET, "/v1/images/x/hosts", "admin"),
            (Method::PUT, "/v1/images/x/hosts/policy", "admin"),
            (Method::GET, "/v1/hosts", "admin"),
            (Method::POST, "/v1/hosts/x/evacuate", "admin"),
            (Method::POST, "/v1/join-tokens", "admin"),
            (Method::PUT, "/v1/projects/x/image-usage", "admin"),
            (Method::GET, "/v1/market", "reader"),
            (Method::GET, "/v1/regions", "admin"),
            (Method::GET, "/v1/replications/x", "admin"),
            (Method::POST, "/v1/replication-policies", "admin"),
            (Method::GET, "/v1/replicas", "replicator"),
            (Method::PATCH, "/v1/replica-blobs/x", "replicator"),
            (Method::POST, "/v1/blobs/known", "member"),
            (Method::POST, "/v1/placements/explain", "admin"),
            (Method::POST, "/v1/instances/x/moves", "admin"),
            (Method::GET, "/v1/hosts-of-mine", "reader"),
            (Method::GET, "/v1/instances/x/exec", "member"),
            (Method::GET, "/v1/instances/x/console", "member"),
            (Method::GET, "/v1/instances/x/screen", "member"),
            (Method::GET, "/v1/instances/x/files", "member"),
            (Method::GET, "/v1/instances/x/tools", "member"),
            (Method::GET, "/v1/use", "reader"),
            (Method::GET, "/v1/events", "reader"),
            (Method::GET, "/v1/instances/x/logs", "reader"),
            (Method::GET, "/v1/instances/x/console-log", "reader"),
            (Method::POST, "/elsewhere", "member"),
        ] {
            assert_eq!(need(&method, path), role, "{method} {path}");
        }
    }
}
