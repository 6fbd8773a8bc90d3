//! HTTP client of the native face (`/v1`): one method per route, over the shared types. Owns addresses, the token,
//! timeouts and the reading of errors; `find` resolves names, `wait` polls. Refuses: retries of orders (an order that
//! timed out may have been taken), printing, and any decision about what a state means.

mod error;
mod find;
mod groups;
mod prepulls;
mod replication;
mod repositories;
mod rollouts;
mod routes;
mod streams;
mod upload;
mod wait;

pub use error::ClientError;
pub use find::{Named, pick};
pub use streams::{BodyStream, Heard, Listener, Speaker};
pub use upload::{Progress, Section};

use crate::error::ErrorDetail;
use crate::{ErrorBody, ErrorCode};
use bytes::Bytes;
use error::chain;
use futures_util::{Stream, StreamExt};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;

/// How long one call may take, uploads excepted (those may take as long as bytes keep moving).
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may take to come about.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Environment variable with the controller's URL, `http://127.0.0.1:8774`.
pub const URL_VARIABLE: &str = "AMPHI_URL";
/// Environment variable with the API token.
pub const TOKEN_VARIABLE: &str = "AMPHI_TOKEN";

/// A connection to one controller as one caller. Cloning is cheap.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
    /// The token is a project's user's, not the controller's own.
    of_user: bool,
    limit: Duration,
}

/// One call: what it is for, in words for an error, and where it goes.
pub(crate) struct Call {
    operation: String,
    request: RequestBuilder,
    limit: Duration,
}

impl Client {
    /// A client for `url` (scheme, host, port; a path in front of `/v1` is kept) and a bearer token.
    ///
    /// A rustls provider must be installed in the process first (`rustls::crypto::ring::default_provider()`), for
    /// plain `http` too: reqwest panics without one. Proxies of the environment are not used and redirects are not
    /// followed, so that the token goes nowhere but to the controller.
    pub fn new(url: &str, token: &str) -> Result<Self, ClientError> {
        Self::trusting(url, token, None)
    }

    /// The same that trusts these certificates (PEM) and no others.
    pub fn trusting(url: &str, token: &str, ca: Option<&str>) -> Result<Self, ClientError> {
        let bad = |why: String| ClientError::Setup { what: format!("the controller's URL '{url}' {why}") };
        let parsed = Url::parse(url.trim()).map_err(|e| bad(format!("cannot be read: {e}")))?;
        if !matches!(parsed.scheme(), "http" | "https") || parsed.host().is_none() {
            return Err(bad("must begin with http:// or https:// and name a host".to_owned()));
        }
        if token.trim().is_empty() || token.trim().chars().any(|c| !c.is_ascii_graphic()) {
            return Err(ClientError::Setup {
                what: "the API token is empty or has characters that no token has".to_owned(),
            });
        }
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            // A stream whose far end takes nothing for a while is no dead one; keepalive finds those.
            .tcp_user_timeout(None)
            .user_agent(concat!("amphi/", env!("CARGO_PKG_VERSION")));
        if parsed.scheme() == "http" {
            // Without this a machine that has no CA certificates could not even speak plain HTTP: the platform's
            // store is loaded eagerly and an empty one is an error.
            builder = builder.tls_certs_only([]);
        } else if let Some(pem) = ca {
            let unread = |e| ClientError::Setup { what: format!("the certificates to trust: {}", chain(&e)) };
            let roots = reqwest::Certificate::from_pem_bundle(pem.as_bytes()).map_err(unread)?;
            builder = builder.tls_certs_only(roots);
        }
        let http = builder
            .build()
            .map_err(|e| ClientError::Setup { what: format!("no HTTP client: {}", chain(&e)) })?;
        Ok(Self {
            http,
            base: parsed.as_str().trim_end_matches('/').to_owned(),
            token: token.trim().to_owned(),
            of_user: false,
            limit: CALL_TIMEOUT,
        })
    }

    /// A client for the controller that AMPHI_URL and AMPHI_TOKEN name.
    pub fn from_env() -> Result<Self, ClientError> {
        Self::new(&from_variable(URL_VARIABLE)?, &from_variable(TOKEN_VARIABLE)?)
    }

    /// A client of an application credential of the identity service: logs in now, and is that user of its project for as
    /// long as the token lasts that it was given.
    pub async fn by_credential(
        url: &str,
        id: &str,
        secret: &str,
        ca: Option<&str>,
    ) -> Result<Self, ClientError> {
        let mut client = Self::trusting(url, id, ca)?.of_user();
        let operation = "log in with an application credential".to_owned();
        let method = serde_json::json!({"methods": ["application_credential"],
            "application_credential": {"id": id, "secret": secret}});
        let body = serde_json::json!({"auth": {"identity": method}});
        let request = client.http.post(format!("{}/identity/v3/auth/tokens", client.base)).json(&body);
        let answer = match tokio::time::timeout(client.limit, request.send()).await {
            Err(_) => return Err(ClientError::Timeout { operation, after: client.limit, saw: None }),
            Ok(answer) => answer.map_err(|error| ClientError::transport(operation.clone(), &error))?,
        };
        let token = answer.headers().get("x-subject-token").and_then(|v| v.to_str().ok());
        match (answer.status(), token) {
            (status, Some(token)) if status.is_success() => client.token = token.to_owned(),
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                let message = "it is not known there, has expired, or its secret is another".to_owned();
                let detail = ErrorDetail { code: ErrorCode::Unauthenticated, message, field: None };
                return Err(ClientError::Api { operation, status: 401, detail });
            }
            (status, _) => return Err(refusal(operation, status, b"")),
        }
        Ok(client)
    }

    /// The same client for a token that the identity service gave a user of a project: what is seen and made is that
    /// project's.
    pub fn of_user(mut self) -> Self {
        self.of_user = true;
        self
    }

    /// The same client with another limit for ordinary calls (default [`CALL_TIMEOUT`]).
    pub fn with_call_timeout(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The controller's address as it was given, without a slash at its end.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// A call of `path` (which begins with a slash, and is below `/v1`).
    pub(crate) fn call(&self, operation: impl Into<String>, method: Method, path: &str) -> Call {
        let request = self.http.request(method, format!("{}/v1{path}", self.base));
        let request = match self.of_user {
            true => request.header("x-auth-token", &self.token),
            false => request.bearer_auth(&self.token),
        };
        Call { operation: operation.into(), request, limit: self.limit }
    }
}

fn from_variable(name: &'static str) -> Result<String, ClientError> {
    match std::env::var(name) {
        Ok(text) if !text.trim().is_empty() => Ok(text),
        _ => Err(ClientError::Setup {
            what: format!("{name} is not set; in the lab: `set -a; source target/lab/env; set +a`"),
        }),
    }
}

impl Call {
    pub(crate) fn json<T: Serialize + ?Sized>(mut self, body: &T) -> Self {
        self.request = self.request.json(body);
        self
    }

    pub(crate) fn query<T: Serialize + ?Sized>(mut self, query: &T) -> Self {
        self.request = self.request.query(query);
        self
    }

    pub(crate) fn map(mut self, change: impl FnOnce(RequestBuilder) -> RequestBuilder) -> Self {
        self.request = change(self.request);
        self
    }

    pub(crate) fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Sends, and reads the answer as `T`.
    pub(crate) async fn read<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let operation = self.operation.clone();
        let text = self.send().await?;
        serde_json::from_slice(&text).map_err(|e| ClientError::Protocol {
            operation,
            message: format!("the answer is not what this version of the client knows: {e}"),
        })
    }

    /// Sends, and drops what a success carries.
    pub(crate) async fn done(self) -> Result<(), ClientError> {
        self.send().await.map(drop)
    }

    /// Sends, and reads a success's headers alone.
    pub(crate) async fn headers(self) -> Result<HeaderMap, ClientError> {
        let Call { operation, request, limit } = self;
        match tokio::time::timeout(limit, request.send()).await {
            Err(_) => Err(ClientError::Timeout { operation, after: limit, saw: None }),
            Ok(Err(error)) => Err(ClientError::transport(operation, &error)),
            Ok(Ok(response)) if response.status().is_success() => Ok(response.headers().clone()),
            Ok(Ok(response)) => Err(refusal(operation, response.status(), b"")),
        }
    }

    /// Sends within the limit; a success's bytes as they come, for as long as they do.
    pub(crate) async fn stream(
        self,
    ) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + 'static, ClientError> {
        let Call { operation, request, limit } = self;
        let answer = async {
            let response = request.send().await?;
            match response.status() {
                status if status.is_success() => Ok(Ok(response)),
                status => Ok::<_, reqwest::Error>(Err((status, response.bytes().await?))),
            }
        };
        match tokio::time::timeout(limit, answer).await {
            Err(_) => Err(ClientError::Timeout { operation, after: limit, saw: None }),
            Ok(Err(error)) => Err(ClientError::transport(operation, &error)),
            Ok(Ok(Err((status, bytes)))) => Err(refusal(operation, status, &bytes)),
            Ok(Ok(Ok(response))) => {
                let broken = |error: reqwest::Error| std::io::Error::other(chain(&error.without_url()));
                Ok(response.bytes_stream().map(move |part| part.map_err(broken)))
            }
        }
    }

    /// Sends within the limit; the bytes of a success.
    pub(crate) async fn send(self) -> Result<Vec<u8>, ClientError> {
        let Call { operation, request, limit } = self;
        let answer = async {
            let response = request.send().await?;
            let status = response.status();
            let bytes = response.bytes().await?;
            Ok::<_, reqwest::Error>((status, bytes))
        };
        match tokio::time::timeout(limit, answer).await {
            Err(_) => Err(ClientError::Timeout { operation, after: limit, saw: None }),
            Ok(Err(error)) => Err(ClientError::transport(operation, &error)),
            Ok(Ok((status, bytes))) if status.is_success() => Ok(bytes.to_vec()),
            Ok(Ok((status, bytes))) => Err(refusal(operation, status, &bytes)),
        }
    }
}

impl Call {
    /// Sends, and takes the connection over once the other side has agreed.
    pub(crate) async fn upgrade(self) -> Result<(reqwest::Upgraded, HeaderMap), ClientError> {
        let Call { operation, request, limit } = self;
        let answer = async {
            let response = request.send().await?;
            let (status, headers) = (response.status(), response.headers().clone());
            if status == StatusCode::SWITCHING_PROTOCOLS {
                return Ok(Ok((response.upgrade().await?, headers)));
            }
            Ok::<_, reqwest::Error>(Err((status, response.bytes().await?)))
        };
        match tokio::time::timeout(limit, answer).await {
            Err(_) => Err(ClientError::Timeout { operation, after: limit, saw: None }),
            Ok(Err(error)) => Err(ClientError::transport(operation, &error)),
            Ok(Ok(Ok(upgraded))) => Ok(upgraded),
            Ok(Ok(Err((status, bytes)))) => Err(refusal(operation, status, &bytes)),
        }
    }
}

/// What an answer that is no success says.
fn refusal(operation: String, status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => ClientError::Api { operation, status: status.as_u16(), detail: body.error },
        Err(_) => {
            let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
            let text = text.trim();
            let message = if text.is_empty() {
                format!("HTTP {status} without an error body; is this an Amphi controller?")
            } else {
                format!("HTTP {status} with a body that is not Amphi's: {text}")
            };
            ClientError::Protocol { operation, message }
        }
    }
}
