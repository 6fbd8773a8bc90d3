//! The registry face: the OCI distribution API 1.1 below `/v2/`, one file per resource. It translates and decides nothing:
//! what may be done is said in `ops`, who may ask by the pass that comes with a request and by the roles behind it.
//!
//! Names are `PROJECT/REPOSITORY`, the project by its name in the asker's domain or by its id; `mirror/UPSTREAM/NAME` is
//! another registry's, fetched when it is asked for. What a visitor may not see is refused in the same words as what is
//! not there.

mod blobs;
mod catalog;
mod errors;
mod manifests;
mod page;
mod path;
mod referrers;
mod tags;
#[cfg(test)]
mod tests;
mod token;
mod uploads;

use crate::mirror::Mirror;
use crate::ops::Ops;
use crate::ops::identity::{Act, Place, Visitor};
use amphi_api::repository::repository_name;
use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use errors::{Code, Failure};
use path::Target;
use std::sync::Arc;
use tower_http::catch_panic::CatchPanicLayer;

const VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// What passes are asked for with, and the name of this registry in them.
const SERVICE: &str = "amphi";

/// Shared by the handlers.
#[derive(Clone)]
pub struct Registry {
    pub ops: Arc<Ops>,
    pub mirror: Arc<Mirror>,
    /// In the challenge's realm in place of what the request says; without a slash at its end.
    pub public_url: Option<Arc<str>>,
}

/// All routes of the face. Repositories' names have slashes, so that one route takes all paths and `path` reads them.
pub fn router(registry: Registry) -> Router {
    Router::new()
        .route("/v2", any(serve))
        .route("/v2/", any(serve))
        .route("/v2/{*rest}", any(serve))
        .with_state(registry)
        // Bodies are bounded where they are read: blobs have no bound.
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(errors::panicked))
        .layer(from_fn(identify))
}

/// Every answer says which protocol this is.
async fn identify(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let began = std::time::Instant::now();
    let mut response = next.run(request).await;
    tracing::debug!(%method, %path, status = response.status().as_u16(),
        took_us = began.elapsed().as_micros() as u64, "the registry answered");
    response.headers_mut().insert(VERSION, HeaderValue::from_static("registry/2.0"));
    response
}

/// A request that has found its repository and may go on.
struct Call {
    registry: Registry,
    visitor: Visitor,
    place: Place,
    query: Vec<(String, String)>,
    method: Method,
    headers: HeaderMap,
}

impl Call {
    fn asked(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }
}

async fn serve(State(registry): State<Registry>, request: Request) -> Response {
    answer(registry, request).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(registry: Registry, request: Request) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    let path = path::decoded(parts.uri.path());
    let target = path.as_deref().and_then(path::read);
    let target = target.ok_or_else(|| Failure::new(Code::NameUnknown, "no such resource of a registry"))?;
    let query = pairs(parts.uri.query().unwrap_or_default());
    if target == Target::Token {
        return token::issue(&registry, parts, body, query).await;
    }
    let method = parts.method.clone();
    let place = |visitor: &Visitor, name: &str| visitor.place(&registry.ops.world().read(), name);
    let (name, act) = match &target {
        Target::Base | Target::Catalog | Target::Token => (None, Act::Pull),
        Target::Tags { name } | Target::Referrers { name, .. } => (Some(name.clone()), Act::Pull),
        Target::Uploads { name } | Target::Upload { name, .. } => (Some(name.clone()), Act::Push),
        Target::Blob { name, .. } | Target::Manifest { name, .. } => {
            let act = match method {
                Method::GET | Method::HEAD => Act::Pull,
                Method::DELETE => Act::Delete,
                _ => Act::Push,
            };
            (Some(name.clone()), act)
        }
    };
    // Before anything is said of it: a name goes into the challenge.
    if let Some(name) = name.as_deref().filter(|n| !n.contains('/') || !repository_name(n)) {
        return Err(Failure::new(
            Code::NameInvalid,
            format!("'{name}' is not of the form PROJECT/REPOSITORY"),
        ));
    }
    let challenge = |why: &str| {
        let base = token::base(&registry, &parts.headers);
        let scope = match (&name, act) {
            (None, _) if target == Target::Catalog => ",scope=\"registry:catalog:*\"".to_owned(),
            (None, _) => String::new(),
            (Some(name), Act::Push) => format!(",scope=\"repository:{name}:pull,push\""),
            (Some(name), act) => format!(",scope=\"repository:{name}:{}\"", act.word()),
        };
        let error = if why.is_empty() { String::new() } else { format!(",error=\"{why}\"") };
        Failure::new(Code::Unauthorized, "log in, or ask for a token that is for this").with(
            header::WWW_AUTHENTICATE,
            &format!("Bearer realm=\"{base}/v2/token\",service=\"{SERVICE}\"{scope}{error}"),
        )
    };
    let Some(text) = bearer(&parts.headers) else { return Err(challenge("")) };
    let visitor = registry
        .ops
        .open_registry_pass(text)
        .or_else(|_| registry.ops.authenticate(text).map(Visitor::of))
        .map_err(|_| challenge("invalid_token"))?;
    let Some(name) = &name else {
        return match (target, method) {
            (Target::Base, Method::GET | Method::HEAD) => Ok(base_answer()),
            (Target::Catalog, Method::GET) => catalog::list(&registry, &visitor, &query),
            _ => Err(unsupported()),
        };
    };
    let place = place(&visitor, name).ok_or_else(|| challenge("insufficient_scope"))?;
    if !visitor.is_let(&registry.ops.world().read(), &place, act) {
        return Err(challenge("insufficient_scope"));
    }
    let call = Call { registry, visitor, place, query, method: method.clone(), headers: parts.headers };
    match (target, method) {
        (Target::Tags { .. }, Method::GET) => tags::list(&call),
        (Target::Referrers { digest, .. }, Method::GET) => referrers::list(&call, &digest).await,
        (Target::Uploads { .. }, Method::POST) => uploads::begin(call, body).await,
        (Target::Upload { id, .. }, Method::GET) => uploads::show(call, &id).await,
        (Target::Upload { id, .. }, Method::PATCH) => uploads::append(call, body, &id).await,
        (Target::Upload { id, .. }, Method::PUT) => uploads::finish(call, body, &id).await,
        (Target::Upload { id, .. }, Method::DELETE) => uploads::cancel(call, &id).await,
        (Target::Blob { digest, .. }, Method::GET | Method::HEAD) => blobs::read(call, &digest).await,
        (Target::Manifest { reference, .. }, Method::GET | Method::HEAD) => {
            manifests::read(call, &reference).await
        }
        (Target::Manifest { reference, .. }, Method::PUT) => manifests::put(call, body, &reference).await,
        (Target::Manifest { reference, .. }, Method::DELETE) => manifests::delete(call, &reference).await,
        _ => Err(unsupported()),
    }
}

fn base_answer() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], "{}").into_response()
}

/// Blobs are deleted by nobody: they go when nothing names them any more.
fn unsupported() -> Failure {
    Failure::new(Code::Unsupported, "the resource is there, this operation on it is not")
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = text.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case("Bearer ").then_some(rest.trim())
}

fn pairs(query: &str) -> Vec<(String, String)> {
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

/// An answer without a body but with what its headers say, a HEAD's length included.
fn bare(status: StatusCode, headers: impl IntoIterator<Item = (HeaderName, String)>) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    for (name, value) in headers {
        response.headers_mut().extend(HeaderValue::from_str(&value).ok().map(|value| (name, value)));
    }
    response
}
