//! Microversions: which form of a service's answers a client wants, and the headers that say which one it got.

use super::Service;
use super::answers::Refusal;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use axum::middleware::Next;
use axum::response::IntoResponse;
use std::convert::Infallible;
use std::fmt;

const VERSION: HeaderName = HeaderName::from_static("openstack-api-version");
/// What nova's clients sent before 2.27, and Tempest still does.
const NOVA_VERSION: HeaderName = HeaderName::from_static("x-openstack-nova-api-version");

/// `2.79`: compared part by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Microversion {
    pub major: u16,
    pub minor: u16,
}

impl Microversion {
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    /// Whether it is of this minor or a later one: `version.from(73)`.
    pub fn from(self, minor: u16) -> bool {
        self.minor >= minor
    }

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        let number = |part: &str| {
            let plain = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            (plain && (part == "0" || !part.starts_with('0'))).then(|| part.parse().ok()).flatten()
        };
        Some(Self { major: number(major)?, minor: number(minor)? })
    }
}

impl fmt::Display for Microversion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The oldest and the newest form that a service has; none: the service has no microversions.
pub fn range(service: Service) -> Option<(Microversion, Microversion)> {
    match service {
        Service::Compute => Some((Microversion::new(2, 1), Microversion::new(2, 96))),
        Service::Volume => Some((Microversion::new(3, 0), Microversion::new(3, 70))),
        Service::Placement => Some((Microversion::new(1, 0), Microversion::new(1, 39))),
        Service::Identity | Service::Image | Service::Network => None,
    }
}

/// The name that a service has in `OpenStack-API-Version: NAME VERSION`.
fn name(service: Service) -> &'static str {
    match service {
        Service::Compute => "compute",
        Service::Volume => "volume",
        Service::Placement => "placement",
        Service::Identity => "identity",
        Service::Image => "image",
        Service::Network => "network",
    }
}

/// What the headers ask for. Nothing asked: the oldest form.
fn wanted(service: Service, headers: &HeaderMap) -> Result<Microversion, Refusal> {
    let Some((oldest, newest)) = range(service) else { return Ok(Microversion::new(0, 0)) };
    let standard = headers.get_all(VERSION).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    let mut asked = None;
    for part in standard {
        if let Some((service_name, version)) = part.trim().split_once(char::is_whitespace)
            && service_name.eq_ignore_ascii_case(name(service))
        {
            asked = Some(version.trim());
        }
    }
    let legacy =
        headers.get(NOVA_VERSION).and_then(|v| v.to_str().ok()).filter(|_| service == Service::Compute);
    let Some(text) = asked.or(legacy.map(str::trim)) else { return Ok(oldest) };
    if text == "latest" {
        return Ok(newest);
    }
    let version = Microversion::parse(text).ok_or_else(|| {
        Refusal::bad(format!(
            "API Version String {text} is of invalid format. Must be of format MajorNum.MinorNum."
        ))
    })?;
    if version < oldest || version > newest {
        return Err(Refusal::new(
            StatusCode::NOT_ACCEPTABLE,
            format!(
                "Version {version} is not supported by the API. Minimum is {oldest} and maximum is {newest}."
            ),
        ));
    }
    Ok(version)
}

/// Reads the version for the handlers and writes it on the answer.
pub(super) async fn negotiate(
    State(service): State<Service>,
    mut request: Request,
    next: Next,
) -> Response<axum::body::Body> {
    if range(service).is_none() {
        return next.run(request).await;
    }
    let version = wanted(service, request.headers());
    let mut response = match &version {
        Ok(version) => {
            request.extensions_mut().insert(*version);
            next.run(request).await
        }
        Err(refusal) => refusal.clone().into_response(),
    };
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_name(VERSION));
    if service == Service::Compute {
        headers.append(header::VARY, HeaderValue::from_name(NOVA_VERSION));
    }
    if let Ok(version) = version {
        if let Ok(value) = HeaderValue::from_str(&format!("{} {version}", name(service))) {
            headers.insert(VERSION, value);
        }
        if let (Service::Compute, Ok(value)) = (service, HeaderValue::from_str(&version.to_string())) {
            headers.insert(NOVA_VERSION, value);
        }
    }
    response
}

impl<S: Send + Sync> FromRequestParts<S> for Microversion {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().copied().unwrap_or(Self::new(0, 0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for() {
        let ask = |service, pairs: &[(&'static str, &'static str)]| {
            let headers =
                pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)));
            wanted(service, &headers.collect()).map(|v| v.to_string()).map_err(|r| r.status.as_u16())
        };
        let (standard, legacy) = ("openstack-api-version", "x-openstack-nova-api-version");
        assert_eq!(ask(Service::Compute, &[]), Ok("2.1".into()));
        assert_eq!(ask(Service::Compute, &[(standard, "compute 2.79")]), Ok("2.79".into()));
        assert_eq!(ask(Service::Compute, &[(legacy, "2.60")]), Ok("2.60".into()));
        assert_eq!(ask(Service::Compute, &[(legacy, "2.60"), (standard, "compute 2.61")]), Ok("2.61".into()));
        assert_eq!(ask(Service::Compute, &[(standard, "volume 3.5, compute latest")]), Ok("2.96".into()));
        assert_eq!(ask(Service::Volume, &[(standard, "compute 2.61"), (legacy, "2.60")]), Ok("3.0".into()));
        assert_eq!(ask(Service::Compute, &[(legacy, "2.97")]), Err(406));
        assert_eq!(ask(Service::Compute, &[(legacy, "3.0")]), Err(406));
        for bad in ["2", "2.", "two.one", "2.01", "2.1.1", "-2.1", ""] {
            let headers = HeaderMap::from_iter([(NOVA_VERSION, HeaderValue::from_str(bad).unwrap())]);
            assert_eq!(wanted(Service::Compute, &headers).unwrap_err().status, 400, "{bad}");
        }
    }
}
