//! `/v3/auth`: tokens, and what may be had with one.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::gate::Base;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::lists::list;
use super::{domains, missing, projects, token_body};
use crate::model::identity::Target;
use crate::ops::identity::Caller;
use crate::ops::identity::{DomainRef, Login, ProjectRef, Proof, ScopeWish, UserRef};
use axum::Json;
use axum::extract::{ConnectInfo, FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};

const SUBJECT: HeaderName = HeaderName::from_static("x-subject-token");

pub fn routes(routes: Routes) -> Routes {
    routes
        .post("/v3/auth/tokens", Need::Public, issue)
        .get("/v3/auth/tokens", Need::Token, show)
        .delete("/v3/auth/tokens", Need::Token, revoke)
        .get("/v3/auth/catalog", Need::Token, catalog)
        .get("/v3/auth/projects", Need::Token, list_projects)
        .get("/v3/auth/domains", Need::Token, list_domains)
        .get("/v3/auth/system", Need::Token, list_system)
}

/// Where the request came from.
pub struct Source(pub Option<IpAddr>);

impl<S: Send + Sync> FromRequestParts<S> for Source {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip())))
    }
}

fn required(what: &str) -> Refusal {
    Refusal::bad(format!("Invalid input: '{what}' is a required property"))
}

fn text<'a>(value: &'a Value, place: &str, name: &str) -> Result<Option<&'a str>, Refusal> {
    match value.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Refusal::field(format!("{place}.{name}"), "must be a string")),
    }
}

fn needed(value: &Value, place: &str, name: &str) -> Result<String, Refusal> {
    text(value, place, name)?.map(str::to_owned).ok_or_else(|| required(&format!("{place}.{name}")))
}

fn domain_ref(value: &Value, place: &str) -> Result<DomainRef, Refusal> {
    match (text(value, place, "id")?, text(value, place, "name")?) {
        (Some(id), _) => Ok(DomainRef::Id(id.to_owned())),
        (None, Some(name)) => Ok(DomainRef::Name(name.to_owned())),
        (None, None) => Err(required(&format!("{place}.id"))),
    }
}

fn user_ref(value: &Value, place: &str) -> Result<UserRef, Refusal> {
    match (text(value, place, "id")?, text(value, place, "name")?) {
        (Some(id), _) => Ok(UserRef::Id(id.to_owned())),
        (None, Some(name)) => Ok(UserRef::Named {
            name: name.to_owned(),
            domain: domain_ref(&value["domain"], &format!("{place}.domain"))?,
        }),
        (None, None) => Err(required(&format!("{place}.id"))),
    }
}

fn proof(identity: &Value, method: &str) -> Result<Proof, Refusal> {
    let place = format!("auth.identity.{method}");
    let part = identity.get(method).ok_or_else(|| required(&place))?;
    match method {
        "password" => {
            let place = format!("{place}.user");
            let user = &part["user"];
            Ok(Proof::Password { user: user_ref(user, &place)?, password: needed(user, &place, "password")? })
        }
        "token" => Ok(Proof::Token(needed(part, &place, "id")?)),
        "application_credential" => {
            let secret = needed(part, &place, "secret")?;
            match text(part, &place, "id")? {
                Some(id) => Ok(Proof::AppCredential { id: id.to_owned(), secret }),
                None => Ok(Proof::NamedAppCredential {
                    name: needed(part, &place, "name")?,
                    user: user_ref(&part["user"], &format!("{place}.user"))?,
                    secret,
                }),
            }
        }
        _ => Err(Refusal::unauthorized("Attempted to authenticate with an unsupported method.")),
    }
}

fn scope(auth: &Value) -> Result<ScopeWish, Refusal> {
    let Some(scope) = auth.get("scope") else { return Ok(ScopeWish::Usual) };
    match scope {
        Value::String(word) if word == "unscoped" => return Ok(ScopeWish::Unscoped),
        Value::Object(map) if map.keys().any(|k| k == "unscoped") => return Ok(ScopeWish::Unscoped),
        Value::Object(_) => {}
        _ => return Err(Refusal::field("auth.scope", "must be an object")),
    }
    let known = ["project", "domain", "system"].iter().filter(|name| scope.get(name).is_some()).count();
    if known != 1 {
        return Err(Refusal::field("auth.scope", "must be one of project, domain, system"));
    }
    if let Some(project) = scope.get("project") {
        let place = "auth.scope.project";
        return match (text(project, place, "id")?, text(project, place, "name")?) {
            (Some(id), _) => Ok(ScopeWish::Project(ProjectRef::Id(id.to_owned()))),
            (None, Some(name)) => Ok(ScopeWish::Project(ProjectRef::Named {
                name: name.to_owned(),
                domain: domain_ref(&project["domain"], "auth.scope.project.domain")?,
            })),
            (None, None) => Err(required("auth.scope.project.id")),
        };
    }
    match scope.get("domain") {
        Some(domain) => Ok(ScopeWish::Domain(domain_ref(domain, "auth.scope.domain")?)),
        None => Ok(ScopeWish::System),
    }
}

/// Reads a request for a token.
fn login(body: &Value, from: Option<IpAddr>) -> Result<Login, Refusal> {
    let auth = body.get("auth").filter(|auth| auth.is_object()).ok_or_else(|| required("auth"))?;
    let identity = auth.get("identity").filter(|i| i.is_object()).ok_or_else(|| required("auth.identity"))?;
    let methods =
        identity.get("methods").and_then(Value::as_array).ok_or_else(|| required("auth.identity.methods"))?;
    let proofs = methods.iter().map(|method| match method.as_str() {
        Some(method) => proof(identity, method),
        None => Err(Refusal::field("auth.identity.methods", "must be a list of strings")),
    });
    Ok(Login { proofs: proofs.take(4).collect::<Result<_, _>>()?, scope: scope(auth)?, from })
}

async fn issue(
    State(state): State<OpenStack>,
    Source(from): Source,
    base: Base,
    query: Query,
    Body(body): Body<Value>,
) -> Result<Response, Refusal> {
    let (token, caller) = state.ops.login(&login(&body, from)?).await?;
    let body = {
        let view = state.ops.world().read();
        token_body::token(&view.identity, &base, &caller, !query.has("nocatalog"))
    };
    let headers = [(SUBJECT, token.as_str()), (header::VARY, "X-Auth-Token")];
    Ok((StatusCode::CREATED, headers, Json(json!({"token": body}))).into_response())
}

/// The token that is spoken about: one's own, or any for an administrator.
fn subject(state: &OpenStack, caller: &Caller, headers: &HeaderMap) -> Result<(String, Caller), Refusal> {
    let text = headers.get(SUBJECT).and_then(|value| value.to_str().ok());
    let text = text.ok_or_else(|| required("X-Subject-Token"))?;
    let found = state.ops.authenticate(text).map_err(|_| missing("token", "the one in X-Subject-Token"))?;
    if found.user != caller.user && !caller.is_admin() {
        return Err(super::forbidden());
    }
    Ok((text.to_owned(), found))
}

async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let (token, found) = subject(&state, &caller, &headers)?;
    let body = {
        let view = state.ops.world().read();
        token_body::token(&view.identity, &base, &found, !query.has("nocatalog"))
    };
    Ok(([(SUBJECT, token.as_str())], Json(json!({"token": body}))).into_response())
}

async fn revoke(
    State(state): State<OpenStack>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<StatusCode, Refusal> {
    let (token, _) = subject(&state, &caller, &headers)?;
    state.ops.revoke_token(&token).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn catalog(State(state): State<OpenStack>, caller: Caller, base: Base) -> Result<Json<Value>, Refusal> {
    if caller.scope() == crate::model::identity::Scope::Unscoped {
        return Err(super::forbidden());
    }
    let view = state.ops.world().read();
    Ok(Json(json!({
        "catalog": token_body::catalog(&view.identity, &base, caller.project),
        "links": {"self": format!("{}{}/auth/catalog", base.0, super::ROOT), "next": null, "previous": null},
    })))
}

async fn list_projects(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    let items: Vec<Value> = {
        let view = state.ops.world().read();
        let identity = &view.identity;
        let rows = identity.projects_of(caller.user).into_iter().filter_map(|id| identity.projects.get(id));
        rows.filter(|row| row.enabled).map(|row| projects::render(&base, row)).collect()
    };
    list(&base, "/auth/projects", &query, "projects", items)
}

async fn list_domains(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    let items: Vec<Value> = {
        let view = state.ops.world().read();
        let identity = &view.identity;
        let rows = identity.domains_of(caller.user).into_iter().filter_map(|id| identity.domains.get(id));
        rows.filter(|row| row.enabled).map(|row| domains::render(&base, row)).collect()
    };
    list(&base, "/auth/domains", &query, "domains", items)
}

async fn list_system(State(state): State<OpenStack>, caller: Caller, base: Base) -> Json<Value> {
    let granted = state.ops.world().read().identity.granted(caller.user, Target::System);
    let system = if granted.is_empty() { json!([]) } else { json!([{"all": true}]) };
    let own = format!("{}{}/auth/system", base.0, super::ROOT);
    Json(json!({"system": system, "links": {"self": own, "next": null, "previous": null}}))
}

/// For tests of the reading alone.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_for_tokens() {
        let read = |auth: Value| login(&json!({"auth": auth}), None);
        let password = json!({"methods": ["password"], "password": {"user": {
            "name": "a", "domain": {"id": "default"}, "password": "p"}}});
        for (wish, wanted) in [
            (json!({"project": {"id": "x"}}), ScopeWish::Project(ProjectRef::Id("x".into()))),
            (json!({"domain": {"name": "d"}}), ScopeWish::Domain(DomainRef::Name("d".into()))),
            (json!({"system": {"all": true}}), ScopeWish::System),
            (json!("unscoped"), ScopeWish::Unscoped),
        ] {
            let login =
                read(json!({"identity": password, "scope": wish})).unwrap_or_else(|e| panic!("{e:?}"));
            assert_eq!(login.scope, wanted);
            assert_eq!(login.proofs.len(), 1);
        }
        for bad in [
            json!(null),
            json!([]),
            json!({}),
            json!({"identity": []}),
            json!({"identity": {"methods": "password"}}),
            json!({"identity": {"methods": [1]}}),
            json!({"identity": {"methods": ["password"]}}),
            json!({"identity": {"methods": ["password"], "password": {"user": {"name": "a", "password": "p"}}}}),
            json!({"identity": {"methods": ["password"], "password": {"user": {"id": 5, "password": "p"}}}}),
            json!({"identity": {"methods": ["token"], "token": {}}}),
            json!({"identity": password, "scope": []}),
            json!({"identity": password, "scope": {}}),
            json!({"identity": password, "scope": {"project": {"name": "x"}}}),
            json!({"identity": password, "scope": {"project": {"id": "x"}, "domain": {"id": "y"}}}),
        ] {
            assert_eq!(read(bad.clone()).err().map(|r| r.status.as_u16()), Some(400), "{bad}");
        }
    }
}
