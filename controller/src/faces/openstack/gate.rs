//! What stands before every route: the token and the need of the route, a request id, the base URL.

use super::answers::Refusal;
use super::routes::{Need, PathProject};
use super::{OpenStack, Service};
use crate::ops::identity::Caller;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use axum::middleware::Next;
use axum::response::IntoResponse;
use std::convert::Infallible;
use std::time::Instant;

pub const AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-openstack-request-id");
const COMPUTE_REQUEST_ID: HeaderName = HeaderName::from_static("x-compute-request-id");
/// The caller's own id, kept in the log beside ours (oslo.middleware's rule: `req-` and a UUID).
const GLOBAL_REQUEST_ID: HeaderName = HeaderName::from_static("x-openstack-request-id-global");

/// Lets a request pass whose token has what the route needs; its handler finds the [`Caller`].
pub(super) async fn authenticate(
    state: OpenStack,
    need: Need,
    mut request: Request,
    next: Next,
) -> Response<axum::body::Body> {
    if need != Need::Public {
        #[cfg(test)]
        let said = request.extensions().get::<Caller>().cloned();
        #[cfg(not(test))]
        let said = None;
        let caller = match said.map_or_else(|| caller_of(&state, request.headers()), Ok) {
            Ok(caller) => caller,
            Err(refusal) => return refusal.into_response(),
        };
        if let Err(refusal) = need.check(&caller) {
            return refusal.into_response();
        }
        // A path below a project that is not the caller's leads nowhere.
        let named = request.extensions().get::<PathProject>();
        if named.is_some_and(|PathProject(project)| !caller.may_see(*project)) {
            return Refusal::new(StatusCode::NOT_FOUND, "The resource could not be found.").into_response();
        }
        request.extensions_mut().insert(caller);
    }
    next.run(request).await
}

fn caller_of(state: &OpenStack, headers: &HeaderMap) -> Result<Caller, Refusal> {
    let refused = || Refusal::unauthorized("The request you have made requires authentication.");
    let token = headers.get(AUTH_TOKEN).and_then(|value| value.to_str().ok()).ok_or_else(refused)?;
    state.ops.authenticate(token).map_err(|_| refused())
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        // Only a route that needs nothing has no caller.
        let caller = parts.extensions.get::<Caller>().cloned();
        caller.ok_or_else(|| Refusal::unauthorized("The request you have made requires authentication."))
    }
}

/// `req-` and a UUID: on every answer, in the log, and on a server's list of actions.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestId(pub String);

impl<S: Send + Sync> FromRequestParts<S> for RequestId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or(Self("req-unknown".into())))
    }
}

/// Gives the request its id, and the answer too.
pub(super) async fn identify(
    State(service): State<Service>,
    mut request: Request,
    next: Next,
) -> Response<axum::body::Body> {
    let id = format!("req-{}", uuid::Uuid::new_v4());
    let global = request.headers().get(GLOBAL_REQUEST_ID).cloned();
    let (method, path, began) = (request.method().clone(), request.uri().path().to_owned(), Instant::now());
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).await;
    tracing::debug!(request = %id, ?global, ?service, %method, %path, status = response.status().as_u16(),
        took_us = began.elapsed().as_micros() as u64, "answered");
    if let Ok(value) = HeaderValue::from_str(&id) {
        if service == Service::Compute {
            response.headers_mut().insert(COMPUTE_REQUEST_ID, value.clone());
        }
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// The base URL as the client sees it, without a slash at its end: `http://cloud.example:8774`. Settings say it, else the
/// request does.
#[derive(Clone, Debug, PartialEq)]
pub struct Base(pub String);

impl Base {
    pub fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).filter(|v| decent(v));
        let scheme = text("x-forwarded-proto").filter(|s| matches!(*s, "http" | "https")).unwrap_or("http");
        let host = text("x-forwarded-host").or_else(|| text("host")).unwrap_or("localhost");
        Self(format!("{scheme}://{host}"))
    }
}

/// What a header may bring into links: an authority's characters.
fn decent(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:[]".contains(&b))
}

impl<S: Send + Sync> FromRequestParts<S> for Base {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let said = parts.extensions.get::<OpenStack>().and_then(|state| state.public_url.as_deref());
        Ok(said.map_or_else(|| Self::of(&parts.headers), |url| Self(url.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls() {
        let base = |pairs: &[(&'static str, &'static str)]| {
            let headers =
                pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)));
            Base::of(&headers.collect()).0
        };
        assert_eq!(base(&[("host", "127.0.0.1:8774")]), "http://127.0.0.1:8774");
        assert_eq!(
            base(&[("host", "a"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "b:1")]),
            "https://b:1"
        );
        assert_eq!(base(&[("host", "a/<script>")]), "http://localhost");
        assert_eq!(base(&[]), "http://localhost");
    }

    #[tokio::test]
    async fn settings_say_the_base_url_before_requests_do() {
        let cloud = crate::ops::tests::Cloud::new().await;
        for (said, expected) in [(None, "http://a"), (Some("https://cloud/amphi"), "https://cloud/amphi")] {
            let state = OpenStack { public_url: said.map(Into::into), ..OpenStack::new(cloud.ops.clone()) };
            let mut request = Request::new(axum::body::Body::empty());
            request.headers_mut().insert("host", HeaderValue::from_static("a"));
            request.extensions_mut().insert(state);
            let (mut parts, _) = request.into_parts();
            let Ok(base) = Base::from_request_parts(&mut parts, &()).await;
            assert_eq!(base.0, expected);
        }
    }
}
