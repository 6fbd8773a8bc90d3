//! A small client of OpenStack's APIs: a login that is renewed, the catalogue's endpoints, JSON calls, lists over their
//! pages, images' bytes. Owns time limits and the reading of errors. Refuses redirects, and retries of anything that makes.

mod settings;

pub use settings::Settings;

use super::plan::Place;
use crate::failure::Failure;
use reqwest::{Method, Response, StatusCode, header};
use serde_json::Value;
use std::cell::RefCell;
use std::time::Duration;

/// Of one call, bytes of images excepted.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that do not move for so long are given up.
pub const STALL: Duration = Duration::from_secs(120);
/// Largest answer that is taken, in bytes.
const ANSWER_MAX: usize = 64 << 20;
/// Most pages of one list.
const PAGES_MAX: usize = 1000;
/// nova's: from 2.47 on a server tells its flavor's figures itself (Pike, 2017).
const COMPUTE: &str = "compute 2.47";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Compute,
    Image,
    Network,
    Volume,
}

impl Service {
    /// Types in the catalogue, the preferred first.
    fn types(self) -> &'static [&'static str] {
        match self {
            Self::Compute => &["compute"],
            Self::Image => &["image"],
            Self::Network => &["network"],
            Self::Volume => &["block-storage", "volumev3"],
        }
    }

    /// What an endpoint that names no version goes on with.
    fn version(self) -> &'static str {
        match self {
            Self::Image => "/v2",
            Self::Network => "/v2.0",
            Self::Compute | Self::Volume => "",
        }
    }
}

#[derive(Clone, Default)]
struct Session {
    token: String,
    project: String,
    catalogue: Value,
}

/// A project of a cloud, logged in.
pub struct Cloud {
    http: reqwest::Client,
    settings: Settings,
    session: RefCell<Session>,
}

/// Why a call has no result: HTTP's status where there was an answer.
#[derive(Debug)]
pub struct Trouble {
    pub status: Option<u16>,
    what: String,
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        let code = match trouble.status {
            None => 5,
            Some(404) => 3,
            Some(400..500) => 4,
            Some(_) => 1,
        };
        Self::new(code, trouble.what).next("run the same plan again: it goes on where it stopped")
    }
}

impl Trouble {
    pub fn is(&self, status: StatusCode) -> bool {
        self.status == Some(status.as_u16())
    }
}

impl Cloud {
    /// Logs in.
    pub async fn enter(settings: Settings) -> Result<Self, Failure> {
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("amphi/", env!("CARGO_PKG_VERSION")));
        if settings.auth_url.starts_with("http://") {
            // A machine without CA certificates can speak plain HTTP all the same.
            builder = builder.tls_certs_only([]);
        } else if let Some(file) = &settings.cacert {
            let bad = |why: String| Failure::new(2, format!("cacert {}: {why}", file.display()));
            let pem = std::fs::read(file).map_err(|e| bad(e.to_string()))?;
            let all = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| bad(e.to_string()))?;
            builder = builder.tls_certs_merge(all);
        }
        let http = builder.build().map_err(|e| Failure::new(2, format!("no HTTP client: {e}")))?;
        let cloud = Self { http, settings, session: RefCell::default() };
        cloud.log_in().await?;
        Ok(cloud)
    }

    /// A new token.
    pub async fn renew(&self) -> Result<(), Failure> {
        Ok(self.log_in().await?)
    }

    async fn log_in(&self) -> Result<(), Trouble> {
        let url = format!("{}/auth/tokens", self.settings.auth_url);
        let body = serde_json::json!({ "auth": self.settings.login });
        let request = self.http.post(&url).timeout(CALL_TIMEOUT).json(&body);
        let what = format!("log in at {url}");
        let answer = request.send().await.map_err(|e| unreachable(&what, &e))?;
        let token = answer.headers().get("x-subject-token").and_then(|v| v.to_str().ok()).map(str::to_owned);
        let body = checked(&what, answer).await?;
        let lacks = |part: &str| Trouble { status: None, what: format!("{what}: the answer has no {part}") };
        let project = body.pointer("/token/project/id").and_then(Value::as_str);
        let session = Session {
            token: token.ok_or_else(|| lacks("token"))?,
            project: project.ok_or_else(|| lacks("project: name one"))?.to_owned(),
            catalogue: body.pointer("/token/catalog").cloned().ok_or_else(|| lacks("catalogue"))?,
        };
        self.session.replace(session);
        Ok(())
    }

    pub fn place(&self) -> Place {
        Place { auth_url: self.settings.auth_url.clone(), project: self.session.borrow().project.clone() }
    }

    pub fn project(&self) -> String {
        self.session.borrow().project.clone()
    }

    /// The present token.
    pub fn token(&self) -> String {
        self.session.borrow().token.clone()
    }

    /// The base URL of Amphi's native face, where this cloud is one.
    pub fn base(&self) -> String {
        let url = self.settings.auth_url.trim_end_matches("/v3");
        url.trim_end_matches("/identity").to_owned()
    }

    fn endpoint(&self, service: Service) -> Result<String, Trouble> {
        let session = self.session.borrow();
        endpoint(&session.catalogue, service, self.settings.region.as_deref(), &self.settings.interface)
            .ok_or_else(|| {
                let what = format!(
                    "the catalogue has no {} endpoint of the {} service in this region",
                    self.settings.interface,
                    service.types()[0]
                );
                Trouble { status: None, what }
            })
    }

    fn request(&self, method: &Method, url: &str, service: Service) -> reqwest::RequestBuilder {
        let request = self.http.request(method.clone(), url).header("x-auth-token", self.token());
        match service {
            Service::Compute => request
                .header("openstack-api-version", COMPUTE)
                .header("x-openstack-nova-api-version", COMPUTE.trim_start_matches("compute ")),
            _ => request,
        }
    }

    /// A call, once more with a new token where the old one has run out.
    async fn send(
        &self,
        what: &str,
        service: Service,
        method: Method,
        url: &str,
        body: Option<&Value>,
    ) -> Result<Response, Trouble> {
        let go = |request: reqwest::RequestBuilder| async {
            let request = body.iter().fold(request, |request, body| request.json(body));
            request.send().await.map_err(|e| unreachable(what, &e))
        };
        let limited = || self.request(&method, url, service).timeout(CALL_TIMEOUT);
        let answer = go(limited()).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        self.log_in().await?;
        go(limited()).await
    }

    async fn call(
        &self,
        service: Service,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Trouble> {
        let what = format!("{method} {path} ({})", service.types()[0]);
        let url = format!("{}{path}", self.endpoint(service)?);
        let answer = self.send(&what, service, method, &url, body).await?;
        checked(&what, answer).await
    }

    pub async fn get(&self, service: Service, path: &str) -> Result<Value, Trouble> {
        self.call(service, Method::GET, path, None).await
    }

    pub async fn post(&self, service: Service, path: &str, body: &Value) -> Result<Value, Trouble> {
        self.call(service, Method::POST, path, Some(body)).await
    }

    pub async fn put(&self, service: Service, path: &str, body: &Value) -> Result<Value, Trouble> {
        self.call(service, Method::PUT, path, Some(body)).await
    }

    /// Not there is as good as gone.
    pub async fn delete(&self, service: Service, path: &str) -> Result<(), Trouble> {
        match self.call(service, Method::DELETE, path, None).await {
            Err(trouble) if !trouble.is(StatusCode::NOT_FOUND) => Err(trouble),
            _ => Ok(()),
        }
    }

    /// The thing, or none where there is none.
    pub async fn find(&self, service: Service, path: &str) -> Result<Option<Value>, Trouble> {
        match self.get(service, path).await {
            Ok(found) => Ok(Some(found)),
            Err(trouble) if trouble.is(StatusCode::NOT_FOUND) => Ok(None),
            Err(trouble) => Err(trouble),
        }
    }

    /// All of a list, page by page. `path` may have a query.
    pub async fn list(&self, service: Service, path: &str, key: &str) -> Result<Vec<Value>, Trouble> {
        let base = self.endpoint(service)?;
        let mut url = format!("{base}{path}");
        let (mut all, what) = (Vec::new(), format!("list {path} ({})", service.types()[0]));
        for _ in 0..PAGES_MAX {
            let answer = self.send(&what, service, Method::GET, &url, None).await?;
            let mut page = checked(&what, answer).await?;
            let next = next(&page, key);
            match page.get_mut(key).map(Value::take) {
                Some(Value::Array(things)) if things.is_empty() => return Ok(all),
                Some(Value::Array(things)) => all.extend(things),
                _ => return Err(Trouble { status: None, what: format!("{what}: the answer has no {key}") }),
            }
            match next {
                None => return Ok(all),
                Some(next) => url = joined(&base, &next),
            }
        }
        Err(Trouble { status: None, what: format!("{what}: more than {PAGES_MAX} pages") })
    }

    /// An image's bytes as they come.
    pub async fn download(&self, image: &str) -> Result<Response, Trouble> {
        let (what, url) = (format!("download image {image}"), self.endpoint(Service::Image)?);
        let url = format!("{url}/images/{image}/file");
        let go = || async {
            let asked = self.request(&Method::GET, &url, Service::Image).send();
            let late =
                |_| Trouble { status: None, what: format!("{what}: no answer within {} s", STALL.as_secs()) };
            tokio::time::timeout(STALL, asked).await.map_err(late)?.map_err(|e| unreachable(&what, &e))
        };
        let mut answer = go().await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.log_in().await?;
            answer = go().await?;
        }
        match answer.status() {
            StatusCode::OK => Ok(answer),
            StatusCode::NO_CONTENT => {
                Err(Trouble { status: Some(204), what: format!("{what}: it has no bytes") })
            }
            _ => checked(&what, answer).await.and_then(|_| {
                Err(Trouble { status: None, what: format!("{what}: an answer without bytes") })
            }),
        }
    }

    /// Sends an image's bytes; as long as it takes while they move. The token must be fresh: a stream is sent once.
    pub async fn upload(&self, image: &str, body: reqwest::Body) -> Result<(), Trouble> {
        self.log_in().await?;
        let (what, url) = (format!("upload image {image}"), self.endpoint(Service::Image)?);
        let request = self
            .request(&Method::PUT, &format!("{url}/images/{image}/file"), Service::Image)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .body(body);
        let answer = request.send().await.map_err(|e| unreachable(&what, &e))?;
        checked(&what, answer).await.map(drop)
    }
}

/// A service's URL without a slash at its end.
fn endpoint(catalogue: &Value, service: Service, region: Option<&str>, interface: &str) -> Option<String> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let url = service.types().iter().find_map(|kind| {
        let entry = catalogue.as_array()?.iter().find(|e| text(e, "type").as_deref() == Some(kind))?;
        let fits = |e: &&Value| {
            text(e, "interface").as_deref() == Some(interface)
                && region.is_none_or(|r| text(e, "region_id").or(text(e, "region")).as_deref() == Some(r))
        };
        text(entry.get("endpoints")?.as_array()?.iter().find(fits)?, "url")
    })?;
    let url = url.trim_end_matches('/');
    let versioned = url.rsplit('/').next().is_some_and(|last| last.starts_with('v') && last.len() > 1);
    Some(if versioned { url.to_owned() } else { format!("{url}{}", service.version()) })
}

/// Where the next page is: glance's `next`, nova's, cinder's and neutron's `<key>_links`.
fn next(page: &Value, key: &str) -> Option<String> {
    if let Some(next) = page.get("next").and_then(Value::as_str) {
        return Some(next.to_owned());
    }
    let links = page.get(format!("{key}_links"))?.as_array()?;
    let next = links.iter().find(|link| link.get("rel").and_then(Value::as_str) == Some("next"))?;
    next.get("href")?.as_str().map(str::to_owned)
}

/// The next page's URL, at the endpoint whatever host the link names: a token goes nowhere else.
fn joined(base: &str, next: &str) -> String {
    let path = match next.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("", |at| &rest[at..]),
        None => next,
    };
    // What comes after the collection's name: the query.
    match path.split_once('?') {
        Some((collection, query)) => {
            let last = collection.rsplit('/').next().unwrap_or_default();
            let collection = match last {
                "detail" => collection.rsplit('/').nth(1).map(|c| format!("{c}/detail")).unwrap_or_default(),
                last => last.to_owned(),
            };
            format!("{base}/{collection}?{query}")
        }
        None => format!("{base}{path}"),
    }
}

fn unreachable(what: &str, error: &reqwest::Error) -> Trouble {
    let mut why = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        why = cause.to_string();
        source = cause.source();
    }
    Trouble { status: None, what: format!("{what}: {why}") }
}

/// The answer's JSON; null where it has none. What the service says of a refusal is in the error.
async fn checked(what: &str, mut answer: Response) -> Result<Value, Trouble> {
    let status = answer.status();
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|e| unreachable(what, &e))? {
        body.extend_from_slice(&piece);
        if body.len() > ANSWER_MAX {
            return Err(Trouble {
                status: None,
                what: format!("{what}: an answer of more than {ANSWER_MAX} bytes"),
            });
        }
    }
    if status.is_success() {
        if body.is_empty() {
            return Ok(Value::Null);
        }
        return serde_json::from_slice(&body)
            .map_err(|e| Trouble { status: None, what: format!("{what}: the answer is no JSON: {e}") });
    }
    let said = serde_json::from_slice::<Value>(&body).ok().as_ref().and_then(message);
    let said = said.unwrap_or_else(|| String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned());
    Err(Trouble { status: Some(status.as_u16()), what: format!("{what}: {status}: {}", said.trim()) })
}

/// The message wherever the service keeps it: `{"badRequest": {"message": …}}`, `{"NeutronError": {"message": …}}`.
fn message(body: &Value) -> Option<String> {
    let own = body.get("message").and_then(Value::as_str);
    let inner = || body.as_object()?.values().find_map(|v| v.get("message")?.as_str());
    let flat = || body.as_object()?.values().find_map(Value::as_str);
    own.or_else(inner).or_else(flat).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn endpoints_by_type_interface_and_region() {
        let at = |interface: &str, region: &str, url: &str| json!({"interface": interface, "region_id": region, "url": url});
        let catalogue = json!([
            {"type": "image", "endpoints": [at("public", "one", "http://c:9292"), at("public", "two", "http://d:9292/v2/")]},
            {"type": "network", "endpoints": [at("internal", "one", "http://n:9696/"), at("public", "one", "http://c:9696")]},
            {"type": "volumev3", "endpoints": [at("public", "one", "http://c/volume/v3/0af1")]},
            {"type": "compute", "endpoints": [at("public", "one", "http://c/compute/v2.1")]},
        ]);
        let of = |service, region| endpoint(&catalogue, service, region, "public");
        assert_eq!(of(Service::Image, None).as_deref(), Some("http://c:9292/v2"));
        assert_eq!(of(Service::Image, Some("two")).as_deref(), Some("http://d:9292/v2"));
        assert_eq!(of(Service::Network, Some("one")).as_deref(), Some("http://c:9696/v2.0"));
        assert_eq!(of(Service::Volume, None).as_deref(), Some("http://c/volume/v3/0af1"));
        assert_eq!(of(Service::Compute, Some("three")), None);
    }

    #[test]
    fn pages_stay_at_the_endpoint() {
        let nova = json!({"servers": [], "servers_links": [{"rel": "next", "href": "http://evil/v2.1/servers/detail?limit=1&marker=a"}]});
        let link = next(&nova, "servers").unwrap();
        assert_eq!(
            joined("http://c/compute/v2.1", &link),
            "http://c/compute/v2.1/servers/detail?limit=1&marker=a"
        );
        let glance = json!({"images": [], "next": "/v2/images?marker=b"});
        assert_eq!(
            joined("http://c/image/v2", &next(&glance, "images").unwrap()),
            "http://c/image/v2/images?marker=b"
        );
        assert_eq!(next(&json!({"images": []}), "images"), None);
    }

    #[test]
    fn refusals_say_why() {
        for body in [
            json!({"badRequest": {"code": 400, "message": "no"}}),
            json!({"NeutronError": {"type": "X", "message": "no", "detail": ""}}),
            json!({"message": "no"}),
        ] {
            assert_eq!(message(&body).as_deref(), Some("no"), "{body}");
        }
    }
}
