//! `/v2/token`: what a challenge sends clients to (distribution's token protocol). Basic says who asks: a user with the
//! password, or an application credential by id and secret; nobody is answered too, for what is open to everybody.
//! `GET` as Docker and skopeo ask, `POST` as OAuth 2 has it (`grant_type=password`). Refresh tokens are not given.

use super::errors::{Code, Failure};
use super::{Registry, SERVICE, pairs};
use crate::faces::openstack::gate::Base;
use crate::ops::identity::{Access, Act, Login, PASS_LIFETIME};
use axum::Json;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Largest form, in bytes.
const FORM_MAX: usize = 64 << 10;

/// The URL that clients reach this registry by, without a slash at its end.
pub fn base(registry: &Registry, headers: &HeaderMap) -> String {
    registry.public_url.as_deref().map_or_else(|| Base::of(headers).0, str::to_owned)
}

pub async fn issue(
    registry: &Registry,
    parts: Parts,
    body: Body,
    query: Vec<(String, String)>,
) -> Result<Response, Failure> {
    let from = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    let (who, asked) = match parts.method {
        Method::GET => (basic(&parts.headers)?, query),
        Method::POST => {
            let form = form(body).await?;
            (grant(&form)?, form)
        }
        _ => return Err(super::unsupported()),
    };
    if asked.iter().any(|(key, value)| key == "service" && value != SERVICE) {
        return Err(Failure::new(Code::Denied, format!("the service here is '{SERVICE}'")));
    }
    let login: Option<Login> = who.map(|(name, secret)| registry.ops.registry_login(&name, &secret, from));
    let (pass, access) = registry.ops.registry_pass(login.as_ref(), &wanted(&asked)).await?;
    let scope: Vec<String> = access
        .iter()
        .map(|entry| {
            let acts: Vec<&str> = entry.acts.iter().map(|act| act.word()).collect();
            format!("repository:{}:{}", entry.name, acts.join(","))
        })
        .collect();
    let body = json!({
        "token": pass,
        "access_token": pass,
        "expires_in": PASS_LIFETIME.as_secs(),
        "issued_at": Timestamp::now().to_string(),
        "scope": scope.join(" "),
    });
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response())
}

/// Name and secret; none: nobody says who asks.
fn basic(headers: &HeaderMap) -> Result<Option<(String, String)>, Failure> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let read = || {
        let (scheme, rest) = value.to_str().ok()?.split_at_checked(6)?;
        let text = scheme.eq_ignore_ascii_case("Basic ").then(|| STANDARD.decode(rest.trim()))?.ok()?;
        let text = String::from_utf8(text).ok()?;
        text.split_once(':').map(|(name, secret)| (name.to_owned(), secret.to_owned()))
    };
    match read() {
        // Some clients send empty ones when they have none.
        Some((name, secret)) if name.is_empty() && secret.is_empty() => Ok(None),
        Some(pair) => Ok(Some(pair)),
        None => {
            Err(Failure::new(Code::Unauthorized, "Authorization is to be Basic, with a name and a secret"))
        }
    }
}

async fn form(body: Body) -> Result<Vec<(String, String)>, Failure> {
    let bytes = axum::body::to_bytes(body, FORM_MAX).await;
    let bytes =
        bytes.map_err(|e| Failure::new(Code::Unsupported, format!("the form cannot be read: {e}")))?;
    Ok(pairs(std::str::from_utf8(&bytes).unwrap_or_default()))
}

fn grant(form: &[(String, String)]) -> Result<Option<(String, String)>, Failure> {
    let text = |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    match (text("grant_type").as_deref(), text("username"), text("password")) {
        (Some("password"), Some(name), Some(secret)) => Ok(Some((name, secret))),
        _ => Err(Failure::new(Code::Unsupported, "only grant_type=password, with username and password")),
    }
}

/// Every `scope` of the request, each of one repository or several: `repository:shop/web:pull,push`.
fn wanted(asked: &[(String, String)]) -> Vec<Access> {
    let scopes = asked.iter().filter(|(key, _)| key == "scope").flat_map(|(_, value)| value.split(' '));
    scopes.filter_map(one).collect()
}

fn one(scope: &str) -> Option<Access> {
    let rest = scope.strip_prefix("repository:")?;
    let (name, acts) = rest.rsplit_once(':')?;
    let acts: BTreeSet<Act> = acts
        .split(',')
        .flat_map(|word| Act::ALL.into_iter().filter(move |act| word == "*" || word == act.word()))
        .collect();
    Some(Access { name: name.to_owned(), acts })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes() {
        let read = |scope: &str| one(scope).map(|a| (a.name, a.acts.into_iter().collect::<Vec<_>>()));
        let name = "shop/web".to_owned();
        for (scope, want) in [
            ("repository:shop/web:pull", Some((name.clone(), vec![Act::Pull]))),
            ("repository:shop/web:push,pull", Some((name.clone(), vec![Act::Pull, Act::Push]))),
            ("repository:shop/web:*", Some((name.clone(), Act::ALL.to_vec()))),
            ("repository:shop/web:sing", Some((name, vec![]))),
            ("registry:catalog:*", None),
            ("repository:", None),
            ("", None),
        ] {
            assert_eq!(read(scope), want, "{scope}");
        }
        let asked = [("scope".to_owned(), "repository:a/b:pull repository:c/d:pull,push".to_owned())];
        assert_eq!(wanted(&asked).len(), 2);
    }
}
