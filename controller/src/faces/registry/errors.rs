//! Refusals in the words of the OCI distribution specification 1.1 ("Error Codes").

use crate::images::BlobError;
use crate::ops::OpsError;
use crate::ops::blobs::PushRefused;
use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// The specification's codes, and distribution's for pages and the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    SizeInvalid,
    Unauthorized,
    Denied,
    Unsupported,
    TooManyRequests,
    PageInvalid,
    Unavailable,
    Unknown,
}

impl Code {
    fn word(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::Unsupported => "UNSUPPORTED",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::PageInvalid => "PAGINATION_NUMBER_INVALID",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unknown => "UNKNOWN",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::BlobUnknown
            | Self::BlobUploadUnknown
            | Self::ManifestBlobUnknown
            | Self::ManifestUnknown
            | Self::NameUnknown => StatusCode::NOT_FOUND,
            Self::DigestInvalid
            | Self::ManifestInvalid
            | Self::NameInvalid
            | Self::SizeInvalid
            | Self::PageInvalid
            | Self::BlobUploadInvalid => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// An answer that is no success.
#[derive(Debug)]
pub struct Failure {
    code: Code,
    status: StatusCode,
    message: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, status: code.status(), message: message.into(), headers: Vec::new() }
    }

    pub fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    pub fn with(mut self, name: HeaderName, value: &str) -> Self {
        self.headers.extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
        self
    }

    /// What came in the body was no use: what `code` says of it, where the refusal does not say better itself.
    pub fn about(code: Code) -> impl Fn(PushRefused) -> Self {
        move |refused| match refused {
            PushRefused::Ops(OpsError::Field(field)) => {
                Self::new(code_of_field(&field.field, code), field.to_string())
            }
            refused => refused.into(),
        }
    }
}

fn code_of_field(field: &str, otherwise: Code) -> Code {
    match field {
        "digest" => Code::DigestInvalid,
        "name" => Code::NameInvalid,
        _ => otherwise,
    }
}

impl From<PushRefused> for Failure {
    fn from(refused: PushRefused) -> Self {
        let text = refused.to_string();
        match refused {
            PushRefused::NoUpload(_) => Self::new(Code::BlobUploadUnknown, text),
            PushRefused::WrongOffset { received } => Self::new(Code::BlobUploadInvalid, text)
                .status(StatusCode::RANGE_NOT_SATISFIABLE)
                .with(header::RANGE, &super::uploads::range(received)),
            PushRefused::Blob(BlobError::WrongDigest { .. } | BlobError::NoDigest { .. }) => {
                Self::new(Code::DigestInvalid, text)
            }
            PushRefused::Blob(BlobError::Interrupted { .. }) => Self::new(Code::BlobUploadInvalid, text),
            PushRefused::Cut { .. } => Self::new(Code::BlobUploadInvalid, text),
            PushRefused::Blob(error) => OpsError::from(error).into(),
            PushRefused::Manifest { .. } => Self::new(Code::ManifestInvalid, text),
            PushRefused::BlobsMissing(_) => Self::new(Code::ManifestBlobUnknown, text),
            PushRefused::Ops(error) => error.into(),
        }
    }
}

impl From<OpsError> for Failure {
    fn from(error: OpsError) -> Self {
        let text = error.to_string();
        match error {
            OpsError::Field(field) => Self::new(code_of_field(&field.field, Code::ManifestInvalid), text),
            OpsError::NotFound { noun, .. } => Self::new(
                match noun {
                    "blob" => Code::BlobUnknown,
                    "repository" => Code::NameUnknown,
                    _ => Code::ManifestUnknown,
                },
                text,
            ),
            OpsError::Conflict { .. } | OpsError::Quota(_) | OpsError::NoRoom(_) => {
                Self::new(Code::Denied, text).status(StatusCode::CONFLICT)
            }
            OpsError::Unauthenticated(_) => {
                Self::new(Code::Unauthorized, "the name or the password is wrong")
            }
            OpsError::Forbidden(_) | OpsError::BadToken(_) => Self::new(Code::Denied, text),
            OpsError::TooMany { seconds } => {
                Self::new(Code::TooManyRequests, text).with(header::RETRY_AFTER, &seconds.to_string())
            }
            OpsError::TooLarge(_) => Self::new(Code::SizeInvalid, text).status(StatusCode::PAYLOAD_TOO_LARGE),
            OpsError::StorageFull(_) => {
                Self::new(Code::Unavailable, text).status(StatusCode::INSUFFICIENT_STORAGE)
            }
            OpsError::Unavailable(_) => Self::new(Code::Unavailable, text),
            OpsError::Internal(message) => {
                tracing::error!(%message, "internal error");
                Self::new(Code::Unknown, "something went wrong here; the controller's log says what")
            }
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = json!({"errors": [{"code": self.code.word(), "message": self.message, "detail": null}]});
        let mut response = (self.status, Json(body)).into_response();
        response.headers_mut().extend(self.headers);
        response
    }
}

/// A panic is a fault of ours: the log has its text, the answer has none of it.
pub fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words");
    tracing::error!(%text, "a handler of the registry panicked");
    Failure::new(Code::Unknown, "something went wrong here; the controller's log says what").into_response()
}
