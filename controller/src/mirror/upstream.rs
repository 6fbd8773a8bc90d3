//! An outside registry, asked over HTTP: manifests, blobs, and the token that it wants for them. Refuses to keep anything
//! but tokens; what is fetched is checked by whoever asked for it.

use crate::model::Digest;
use anyhow::{Context, ensure};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use jiff::SignedDuration;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, Method, Response, StatusCode, Url};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// A blob in which nothing comes for so long has broken off.
const STALL: Duration = Duration::from_secs(30);
/// How long a manifest or a token may take.
const SMALL: Duration = Duration::from_secs(20);
/// Largest manifest, in bytes.
const MANIFEST_MAX: usize = 4 << 20;
/// A token that says no lifetime has this one, in seconds (distribution's token specification).
const TOKEN_SECONDS: u64 = 60;
/// Tokens that are kept.
const TOKENS_MAX: usize = 1024;
/// What manifests a client may be given.
const KINDS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// `[mirror.NAME]`: images of another registry as `mirror/NAME/…`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct MirrorConfig {
    /// `https://registry.example`; images are below its `/v2/`.
    pub url: String,
    #[serde(default)]
    pub user: Option<String>,
    /// Holds the password and nothing else.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// A certificate (PEM) to trust beside the usual ones.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// How long a tag is taken to be what it was, in seconds.
    #[serde(default = "expiry_seconds")]
    pub expiry_seconds: u32,
}

/// An hour.
fn expiry_seconds() -> u32 {
    3600
}

/// Why an upstream gives nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// It says that there is no such thing.
    #[error("the upstream has no such thing")]
    Absent,
    /// It does not let us have it.
    #[error("the upstream refuses: {0}")]
    Refused(String),
    /// It does not answer, or not as a registry does.
    #[error("the upstream does not answer: {0}")]
    Down(String),
}

fn down(error: reqwest::Error) -> UpstreamError {
    // The URL may hold what is nobody's business.
    let mut text = error.without_url().to_string();
    text.truncate(text.char_indices().nth(300).map_or(text.len(), |(at, _)| at));
    UpstreamError::Down(text)
}

/// Bytes as they come.
pub type Bytestream = BoxStream<'static, std::io::Result<Bytes>>;

pub struct Upstream {
    base: Url,
    client: Client,
    credentials: Option<(String, PathBuf)>,
    pub expiry: SignedDuration,
    /// By repository: what to send, and until when.
    tokens: Mutex<HashMap<String, (String, Instant)>>,
}

impl Upstream {
    pub fn open(config: &MirrorConfig) -> anyhow::Result<Self> {
        let base: Url = config.url.parse().with_context(|| format!("url = {:?}", config.url))?;
        ensure!(matches!(base.scheme(), "http" | "https"), "url must begin with https:// or http://");
        ensure!(
            base.username().is_empty() && base.password().is_none(),
            "user and password do not stand in url"
        );
        let mut client = Client::builder().connect_timeout(CONNECT).read_timeout(STALL);
        if let Some(path) = &config.ca_file {
            let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            client = client.add_root_certificate(reqwest::Certificate::from_pem(&pem)?);
        }
        let credentials = match (&config.user, &config.password_file) {
            (Some(user), Some(file)) => Some((user.clone(), file.clone())),
            (None, None) => None,
            _ => anyhow::bail!("user and password_file go together"),
        };
        Ok(Self {
            base,
            client: client.build()?,
            credentials,
            expiry: SignedDuration::from_secs(config.expiry_seconds.into()),
            tokens: Mutex::default(),
        })
    }

    /// The digest that a tag has there now; none: the upstream does not say it, ask for the manifest.
    pub async fn tag_digest(&self, name: &str, tag: &str) -> Result<Option<Digest>, UpstreamError> {
        let what = format!("manifests/{tag}");
        let answer = self.ask(Method::HEAD, name, &what, true);
        let answer = tokio::time::timeout(SMALL, answer).await.map_err(|_| slow())??;
        let said = answer.headers().get("docker-content-digest").and_then(|v| v.to_str().ok());
        Ok(said.and_then(|text| text.strip_prefix("sha256:")).and_then(|hex| hex.parse().ok()))
    }

    /// A manifest's media type and bytes. `reference`: a tag, or `sha256:…`.
    pub async fn manifest(&self, name: &str, reference: &str) -> Result<(String, Bytes), UpstreamError> {
        let fetch = async {
            let answer = self.ask(Method::GET, name, &format!("manifests/{reference}"), true).await?;
            let kind = answer.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
            let kind = kind.split(';').next().unwrap_or_default().trim().to_owned();
            let (mut bytes, mut parts) = (Vec::new(), answer.bytes_stream());
            while let Some(part) = parts.next().await {
                bytes.extend_from_slice(&part.map_err(down)?);
                if bytes.len() > MANIFEST_MAX {
                    return Err(UpstreamError::Refused(format!(
                        "its manifest has more than {MANIFEST_MAX} bytes"
                    )));
                }
            }
            Ok((kind, bytes.into()))
        };
        tokio::time::timeout(SMALL, fetch).await.map_err(|_| slow())?
    }

    /// A blob's size in bytes, and its bytes.
    pub async fn blob(&self, name: &str, digest: Digest) -> Result<(u64, Bytestream), UpstreamError> {
        let what = format!("blobs/sha256:{digest}");
        let answer = self.ask(Method::GET, name, &what, false);
        let answer = tokio::time::timeout(SMALL, answer).await.map_err(|_| slow())??;
        let size = answer.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        let size =
            size.ok_or_else(|| UpstreamError::Refused("it does not say how long the blob is".into()))?;
        let bytes =
            answer.bytes_stream().map(|part| part.map_err(|e| std::io::Error::other(e.without_url())));
        Ok((size, bytes.boxed()))
    }

    /// Asks, with the token that is wanted if one is. Redirects are followed; credentials stay with this host.
    async fn ask(
        &self,
        method: Method,
        name: &str,
        what: &str,
        manifest: bool,
    ) -> Result<Response, UpstreamError> {
        let url = format!("{}/v2/{name}/{what}", self.base.as_str().trim_end_matches('/'));
        let send = async |authorization: Option<&str>| {
            let mut request = self.client.request(method.clone(), &url);
            if manifest {
                request = request.header(ACCEPT, HeaderValue::from_static(KINDS));
            }
            if let Some(text) = authorization {
                request = request.header(reqwest::header::AUTHORIZATION, text);
            }
            request.send().await.map_err(down)
        };
        let known = self.token(name);
        let mut answer = send(known.as_deref()).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            let challenge =
                answer.headers().get(WWW_AUTHENTICATE).and_then(|v| v.to_str().ok()).unwrap_or_default();
            let authorization = self.authorization(name, challenge).await?;
            answer = send(Some(&authorization)).await?;
        }
        match answer.status() {
            status if status.is_success() => Ok(answer),
            StatusCode::NOT_FOUND => Err(UpstreamError::Absent),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                Err(UpstreamError::Refused(format!("it answers {status}")))
            }
            status => Err(UpstreamError::Down(format!("it answers {status}"))),
        }
    }

    fn token(&self, name: &str) -> Option<String> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(name).filter(|(_, until)| *until > Instant::now()).map(|(text, _)| text.clone())
    }

    async fn password(&self) -> Result<Option<(String, String)>, UpstreamError> {
        let Some((user, file)) = &self.credentials else { return Ok(None) };
        let text = tokio::fs::read_to_string(file).await;
        let text = text.map_err(|e| UpstreamError::Refused(format!("{}: {e}", file.display())))?;
        Ok(Some((user.clone(), text.trim().to_owned())))
    }

    /// What a challenge asks for: a token of its realm, or the password itself.
    async fn authorization(&self, name: &str, challenge: &str) -> Result<String, UpstreamError> {
        let password = self.password().await?;
        let Some(challenge) = Challenge::read(challenge) else {
            let (user, secret) =
                password.ok_or_else(|| UpstreamError::Refused("it wants a password".into()))?;
            use base64::Engine;
            let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{secret}"));
            return Ok(format!("Basic {pair}"));
        };
        let realm: Url =
            challenge.realm.parse().map_err(|_| UpstreamError::Down("its realm is no URL".into()))?;
        if realm.scheme() != "https" && realm.scheme() != self.base.scheme() {
            return Err(UpstreamError::Refused("its realm is less safe than itself".into()));
        }
        let scope = format!("repository:{name}:pull");
        let mut request = self.client.get(realm).timeout(SMALL).query(&[("scope", scope.as_str())]);
        if let Some(service) = &challenge.service {
            request = request.query(&[("service", service)]);
        }
        if let Some((user, secret)) = password {
            request = request.basic_auth(user, Some(secret));
        }
        let answer = request.send().await.map_err(down)?;
        if !answer.status().is_success() {
            return Err(UpstreamError::Refused(format!("its token service answers {}", answer.status())));
        }
        let token: Token = answer.json().await.map_err(down)?;
        let text = token.token.or(token.access_token);
        let text = text.ok_or_else(|| UpstreamError::Down("its token service gives no token".into()))?;
        let authorization = format!("Bearer {text}");
        // A little less than said: it is to hold while the request is on its way.
        let lifetime =
            Duration::from_secs(token.expires_in.unwrap_or(TOKEN_SECONDS).clamp(10, 3600) * 9 / 10);
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if tokens.len() >= TOKENS_MAX {
            tokens.retain(|_, (_, until)| *until > now);
        }
        if tokens.len() < TOKENS_MAX {
            tokens.insert(name.to_owned(), (authorization.clone(), now + lifetime));
        }
        Ok(authorization)
    }
}

fn slow() -> UpstreamError {
    UpstreamError::Down(format!("nothing within {} s", SMALL.as_secs()))
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// `Bearer realm="…",service="…"`.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    realm: String,
    service: Option<String>,
}

impl Challenge {
    fn read(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let value = |name: &str| {
            let at = rest.find(&format!("{name}=\""))? + name.len() + 2;
            rest[at..].split('"').next().map(str::to_owned)
        };
        Some(Self { realm: value("realm")?, service: value("service") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let text = r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a:pull""#;
        let read = Challenge::read(text).unwrap();
        assert_eq!(
            (read.realm.as_str(), read.service.as_deref()),
            ("https://auth.example/token", Some("registry.example"))
        );
        assert_eq!(Challenge::read("Basic realm=\"x\""), None);
        assert_eq!(Challenge::read(""), None);
        assert_eq!(Challenge::read("Bearer service=\"x\""), None);
    }

    #[test]
    fn settings() {
        let config = |change: &str| {
            let text = format!("url = \"https://registry.example\"\n{change}");
            toml::from_str::<MirrorConfig>(&text).map_err(|e| e.to_string())
        };
        let _ = rustls::crypto::ring::default_provider().install_default();
        assert_eq!(config("").unwrap().expiry_seconds, 3600);
        assert!(Upstream::open(&config("").unwrap()).is_ok());
        assert!(config("colour = 1").unwrap_err().contains("colour"));
        assert!(Upstream::open(&config("user = \"a\"").unwrap()).is_err(), "a user without a password");
        for url in ["ftp://x", "x", "https://a:b@c"] {
            let config = MirrorConfig { url: url.into(), ..config("").unwrap() };
            assert!(Upstream::open(&config).is_err(), "{url}");
        }
    }
}
