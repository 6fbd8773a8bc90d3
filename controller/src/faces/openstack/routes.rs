//! Routes and what each needs, declared once: the router and the policy table are made of the same list, so that a route
//! without a need cannot be written.

use super::answers::{Refusal, in_words_of, panicked};
use super::body::Body;
use super::gate::{Base, RequestId, authenticate, identify};
use super::microversion::{Microversion, negotiate};
use super::{OpenStack, Service, words};
use crate::ops::identity::Caller;
use amphi_api::ProjectId;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::handler::Handler;
use axum::http::{Method, Uri};
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::Response;
use axum::routing::{MethodFilter, on};
use axum::{Extension, Router};
use futures_util::future::BoxFuture;
use serde_json::Value;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use tower::util::MapRequestLayer;
use tower_http::catch_panic::CatchPanicLayer;

/// What a caller must have. Roles imply the lesser ones: admin, member, reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Nothing: discovery, and the request for a token itself.
    Public,
    /// A valid token, whatever its scope.
    Token,
    Reader,
    Member,
    Admin,
}

impl Need {
    /// The role that must be among the caller's; none: any token will do.
    pub fn role(self) -> Option<&'static str> {
        match self {
            Self::Public | Self::Token => None,
            Self::Reader => Some("reader"),
            Self::Member => Some("member"),
            Self::Admin => Some("admin"),
        }
    }

    pub(super) fn check(self, caller: &Caller) -> Result<(), Refusal> {
        match self.role() {
            Some(role) if !caller.has_role(role) => Err(Refusal::forbidden(format!(
                "Policy doesn't allow this to be performed: it needs the role {role}."
            ))),
            _ => Ok(()),
        }
    }
}

/// One line of the policy table.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub service: Service,
    pub method: Method,
    /// Below the service's root: `/v2.1/servers/{id}`.
    pub path: &'static str,
    /// The key of the body that chooses it, where one path has many: `os-start`.
    pub action: Option<&'static str>,
    pub need: Need,
}

/// What an action's handler gets.
pub struct Call {
    pub state: OpenStack,
    pub caller: Caller,
    pub version: Microversion,
    pub base: Base,
    pub request: RequestId,
    /// From the path: what it is done to.
    pub id: String,
    /// What the body has below the action's name.
    pub argument: Value,
}

type Act = Arc<dyn Fn(Call) -> BoxFuture<'static, Result<Response, Refusal>> + Send + Sync>;

#[derive(Clone)]
struct Action {
    name: &'static str,
    need: Need,
    act: Act,
}

/// A service's routes.
pub struct Routes {
    service: Service,
    router: Router<OpenStack>,
    table: Vec<Route>,
    actions: BTreeMap<&'static str, Vec<Action>>,
    rewrite: Option<fn(&str) -> Option<String>>,
}

impl Routes {
    pub fn new(service: Service) -> Self {
        Self { service, router: Router::new(), table: Vec::new(), actions: BTreeMap::new(), rewrite: None }
    }

    pub fn service(&self) -> Service {
        self.service
    }

    /// A route. `path` is below the service's root.
    pub fn on<H, T>(mut self, method: Method, path: &'static str, need: Need, handler: H) -> Self
    where
        H: Handler<T, OpenStack>,
        T: 'static,
    {
        self.table.push(Route { service: self.service, method: method.clone(), path, action: None, need });
        // Only methods that have a filter are ever written down here: each route is made by the tests.
        let filter = MethodFilter::try_from(method).unwrap_or(MethodFilter::TRACE);
        let guarded = on(filter, handler).route_layer(from_fn(
            move |Extension(state): Extension<OpenStack>, request: Request, next| {
                authenticate(state, need, request, next)
            },
        ));
        self.router = self.router.route(path, guarded);
        self
    }

    pub fn get<H: Handler<T, OpenStack>, T: 'static>(
        self,
        path: &'static str,
        need: Need,
        handler: H,
    ) -> Self {
        self.on(Method::GET, path, need, handler)
    }

    pub fn post<H: Handler<T, OpenStack>, T: 'static>(
        self,
        path: &'static str,
        need: Need,
        handler: H,
    ) -> Self {
        self.on(Method::POST, path, need, handler)
    }

    pub fn put<H: Handler<T, OpenStack>, T: 'static>(
        self,
        path: &'static str,
        need: Need,
        handler: H,
    ) -> Self {
        self.on(Method::PUT, path, need, handler)
    }

    pub fn patch<H: Handler<T, OpenStack>, T: 'static>(
        self,
        path: &'static str,
        need: Need,
        handler: H,
    ) -> Self {
        self.on(Method::PATCH, path, need, handler)
    }

    pub fn delete<H: Handler<T, OpenStack>, T: 'static>(
        self,
        path: &'static str,
        need: Need,
        handler: H,
    ) -> Self {
        self.on(Method::DELETE, path, need, handler)
    }

    /// One of the actions of a `POST` route whose path has `{id}`: the body's only key chooses it.
    pub fn action<F, R>(mut self, path: &'static str, name: &'static str, need: Need, act: F) -> Self
    where
        F: Fn(Call) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Response, Refusal>> + Send + 'static,
    {
        self.table.push(Route {
            service: self.service,
            method: Method::POST,
            path,
            action: Some(name),
            need,
        });
        let act: Act = Arc::new(move |call| Box::pin(act(call)));
        self.actions.entry(path).or_default().push(Action { name, need, act });
        self
    }

    /// Paths that have two forms: the function gives the other form's usual one, or none when it is that already.
    pub fn rewrite(mut self, rewrite: fn(&str) -> Option<String>) -> Self {
        self.rewrite = Some(rewrite);
        self
    }

    pub fn table(self) -> Vec<Route> {
        self.table
    }

    pub(super) fn into_service(self, state: OpenStack) -> Router {
        let service = self.service;
        let mut router = self.router;
        for (path, actions) in self.actions {
            let guarded = on(MethodFilter::POST, dispatch)
                .route_layer(Extension(Arc::new(actions)))
                .route_layer(from_fn(|Extension(state): Extension<OpenStack>, request: Request, next| {
                    authenticate(state, Need::Token, request, next)
                }));
            router = router.route(path, guarded);
        }
        let router = router
            .fallback(|| async {
                Refusal::new(axum::http::StatusCode::NOT_FOUND, "The resource could not be found.")
            })
            .with_state(state.clone())
            // Bodies are bounded where they are read: images have no bound.
            .layer(DefaultBodyLimit::disable())
            .layer(CatchPanicLayer::custom(panicked))
            .layer(from_fn_with_state(service, negotiate))
            .layer(map_response(move |response: Response| std::future::ready(in_words_of(service, response))))
            .layer(from_fn_with_state(service, identify))
            .layer(Extension(state));
        match self.rewrite {
            None => router,
            // The path must be changed before the router sees it.
            Some(rewrite) => Router::new().fallback_service(tower::Layer::layer(
                &MapRequestLayer::new(move |request| rewritten(request, rewrite)),
                router,
            )),
        }
    }
}

/// A project that a path names before all else, as cinder's and nova's older paths do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PathProject(pub ProjectId);

/// The request with its path in the usual form.
fn rewritten(mut request: Request, rewrite: fn(&str) -> Option<String>) -> Request {
    if let Some(path) = rewrite(request.uri().path()) {
        if let Some(project) = request.uri().path().split('/').find_map(words::id) {
            request.extensions_mut().insert(PathProject(ProjectId(project)));
        }
        let text = match request.uri().query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        if let Ok(uri) = text.parse::<Uri>() {
            *request.uri_mut() = uri;
        }
    }
    request
}

#[allow(clippy::too_many_arguments)]
async fn dispatch(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    base: Base,
    request: RequestId,
    Extension(actions): Extension<Arc<Vec<Action>>>,
    Path(parameters): Path<BTreeMap<String, String>>,
    Body(body): Body<Value>,
) -> Result<Response, Refusal> {
    let Value::Object(body) = body else {
        return Err(Refusal::bad("Malformed request body: an object with one action is required"));
    };
    // Some clients send further keys beside the action; the first that is an action counts.
    let mut known =
        body.iter().filter_map(|(key, argument)| Some((actions.iter().find(|a| a.name == key)?, argument)));
    let Some((action, argument)) = known.next() else {
        let name = body.keys().next().map(String::as_str).unwrap_or_default();
        return Err(Refusal::bad(format!("There is no such action: {name}")));
    };
    if known.next().is_some() {
        return Err(Refusal::bad("Malformed request body: more than one action"));
    }
    action.need.check(&caller)?;
    let id = parameters.get("id").cloned().unwrap_or_default();
    let argument = argument.clone();
    (action.act)(Call { state, caller, version, base, request, id, argument }).await
}
