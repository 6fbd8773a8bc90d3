//! Refusals. Handlers say what is wrong in words that no service owns; the layer around each service gives them that
//! service's body. No text of an internal fault leaves the controller.

use super::Service;
use crate::model::{QuotaService, Resource};
use crate::ops::{OpsError, OverQuota};
use amphi_api::FieldError;
use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// An answer that is no success.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    pub status: StatusCode,
    /// The service's own name of the fault where it has one: neutron's `NetworkNotFound`, nova's `conflictingRequest`.
    /// Empty: the status' usual one.
    pub kind: &'static str,
    pub message: String,
    /// Seconds after which asking again makes sense (`Retry-After`).
    pub retry_after: Option<u32>,
}

impl Refusal {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, kind: "", message: message.into(), retry_after: None }
    }

    /// With the service's own name of this fault.
    pub fn kind(mut self, kind: &'static str) -> Self {
        self.kind = kind;
        self
    }

    /// 400: something in the request is wrong; the message names the field.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400, with the field's name in the message.
    pub fn field(field: impl AsRef<str>, message: impl AsRef<str>) -> Self {
        Self::bad(format!("Invalid input for field/attribute {}: {}", field.as_ref(), message.as_ref()))
    }

    /// 401.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }

    /// 403.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// 404: there is no such thing, or it is not the caller's.
    pub fn not_found(noun: &str, id: impl std::fmt::Display) -> Self {
        let mut letters = noun.chars();
        let noun: String =
            letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default();
        Self::new(StatusCode::NOT_FOUND, format!("{noun} {id} could not be found."))
    }

    /// 409.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// A limit is reached: nova says 403, cinder and glance 413, neutron 409 with a kind of its own.
    fn over_quota(over: &OverQuota) -> Self {
        let OverQuota { resource, asked, used, limit } = over;
        // Limits of volume types are in no table: their names have the type's behind them.
        let known = Resource::ALL.iter().find(|known| known.word() == resource);
        match known.map_or(QuotaService::Volume, |known| known.service()) {
            QuotaService::Compute => Self::forbidden(format!(
                "Quota exceeded for {resource}: Requested {asked}, but already used {used} of {limit} {resource}"
            )),
            QuotaService::Volume => Self {
                retry_after: Some(0),
                ..Self::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("Requested {asked} exceeds the quota '{resource}': {used} of {limit} are used."),
                )
            },
            // glance/api/v2/image_data.py, `LimitExceeded`.
            QuotaService::Image => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!(
                    "Resource {resource} is over limit of {limit} due to current usage {used} and delta {asked}."
                ),
            ),
            QuotaService::Network => {
                Self::conflict(format!("Quota exceeded for resources: ['{resource}'].")).kind("OverQuota")
            }
        }
    }

    /// 413.
    pub fn too_large(limit: u64) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("The body is larger than {limit} bytes."))
    }
}

impl From<OpsError> for Refusal {
    fn from(error: OpsError) -> Self {
        match error {
            OpsError::Field(FieldError { field, message }) => Self::field(field, message),
            OpsError::NotFound { noun, id } => Self::not_found(noun, id),
            OpsError::Quota(over) => Self::over_quota(&over),
            OpsError::Internal(message) => {
                tracing::error!(%message, "internal error");
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "Something went wrong here; the controller's log says what.",
                )
            }
            OpsError::Unavailable(message) => {
                Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
            }
            // glance/api/v2/image_data.py, `upload`: a full store is told as a body too large.
            OpsError::StorageFull(message) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, message),
            OpsError::TooMany { seconds } => Self {
                retry_after: Some(u32::try_from(seconds).unwrap_or(u32::MAX)),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, error.to_string())
            },
            error => {
                let status = StatusCode::from_u16(error.code().status());
                Self::new(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), error.to_string())
            }
        }
    }
}

impl From<FieldError> for Refusal {
    fn from(error: FieldError) -> Self {
        Self::field(error.field, error.message)
    }
}

/// Carries the refusal to the service's layer, which writes the body.
impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes a refusal's body in the service's words; other answers pass as they are. What the router itself refuses (no
/// such route, a method that is not there) becomes a refusal here.
pub fn in_words_of(service: Service, mut response: Response) -> Response {
    let refusal = match response.extensions_mut().remove::<Refusal>() {
        Some(refusal) => refusal,
        None if response.status() == StatusCode::METHOD_NOT_ALLOWED => {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "The method is not allowed for this resource.")
        }
        None => return response,
    };
    let mut answer = (refusal.status, Json(body(service, &refusal))).into_response();
    let kept: HeaderMap = std::mem::take(response.headers_mut());
    for (name, value) in kept {
        if let Some(name) = name.filter(|n| *n != header::CONTENT_LENGTH && *n != header::CONTENT_TYPE) {
            answer.headers_mut().append(name, value);
        }
    }
    if let Some(seconds) = refusal.retry_after {
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if refusal.status == StatusCode::UNAUTHORIZED {
        // As keystonemiddleware says it: clients read from it that a new token may help.
        answer
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Keystone uri=\"/identity\""));
    }
    answer
}

/// A refusal's body: keystone's, nova's and cinder's, neutron's, glance's and placement's forms differ.
fn body(service: Service, refusal: &Refusal) -> serde_json::Value {
    let (code, message) = (refusal.status.as_u16(), &refusal.message);
    let title = refusal.status.canonical_reason().unwrap_or("Error");
    let named = |usual: &'static str| if refusal.kind.is_empty() { usual } else { refusal.kind };
    match service {
        Service::Identity => json!({"error": {"code": code, "message": message, "title": title}}),
        // The middleware before these services answers this one, in its own form.
        _ if code == 401 => json!({"error": {"code": code, "message": message, "title": title}}),
        Service::Compute | Service::Volume => {
            let mut fault = json!({"code": code, "message": message});
            if let Some(seconds) = refusal.retry_after {
                fault["retryAfter"] = json!(seconds.to_string());
            }
            json!({ named(usual_fault(code)): fault })
        }
        Service::Network => json!({"NeutronError": {
            "type": named(match code {
                400 => "HTTPBadRequest",
                403 => "PolicyNotAuthorized",
                404 => "HTTPNotFound",
                409 => "HTTPConflict",
                503 => "ServiceUnavailable",
                _ => "HTTPError",
            }),
            "message": message,
            "detail": "",
        }}),
        Service::Image => json!({"message": message, "code": format!("{code} {title}"), "title": title}),
        Service::Placement => json!({"errors": [{
            "status": code, "title": title, "detail": message, "code": named("placement.undefined_code"),
        }]}),
    }
}

/// Nova's and cinder's names of the statuses (nova/api/openstack/wsgi.py, `Fault._fault_names`).
fn usual_fault(code: u16) -> &'static str {
    match code {
        400 => "badRequest",
        401 => "unauthorized",
        403 => "forbidden",
        404 => "itemNotFound",
        405 => "badMethod",
        409 => "conflictingRequest",
        413 => "overLimit",
        415 => "badMediaType",
        429 => "overLimit",
        501 => "notImplemented",
        503 => "serviceUnavailable",
        _ => "computeFault",
    }
}

/// A panic is a fault of ours: the log has its text, the answer has none of it.
pub fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response<Body> {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words");
    Refusal::from(OpsError::Internal(format!("a handler panicked: {text}"))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_has_its_own_form() {
        let refusal = Refusal::not_found("network", "n1").kind("NetworkNotFound");
        let bodies: Vec<_> =
            Service::ALL.into_iter().map(|s| format!("{s:?} {}", body(s, &refusal))).collect();
        insta::assert_snapshot!(bodies.join("\n"));
    }
}
