//! The native face's error body, and the error that names a field. Other faces have bodies of their own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What kind of trouble it is; each has one HTTP status on the native face.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// 400: a field is wrong; `field` names it.
    InvalidField,
    /// 400: the body is not JSON, or of the wrong shape; `field` names the place where that is known.
    MalformedBody,
    /// 401: no token, or one that is not known.
    Unauthenticated,
    /// 403: known, but not allowed.
    Forbidden,
    /// 404: no such thing, or not yours.
    NotFound,
    /// 405: the path is there, the method is not.
    MethodNotAllowed,
    /// 409: the thing is in a state that does not allow this, or the name or address is taken.
    Conflict,
    /// 409: no host has room, or none is fit; the message says why, host by host.
    NoRoom,
    /// 413: the body is larger than allowed.
    TooLarge,
    /// 415: not `application/json`.
    UnsupportedMediaType,
    /// 507: no space is left for the bytes; nothing of them was kept.
    StorageFull,
    /// 503: something this needs does not answer now; trying again later is right.
    Unavailable,
    /// 500: a fault of ours.
    Internal,
}

impl ErrorCode {
    /// The HTTP status of this code on the native face.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidField | Self::MalformedBody => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Conflict | Self::NoRoom => 409,
            Self::TooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Unavailable => 503,
            Self::StorageFull => 507,
            Self::Internal => 500,
        }
    }
}

/// Every answer of the native face that is not a success carries this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ErrorDetail {
    pub code: ErrorCode,
    /// What is wrong and what to do next, for a person.
    pub message: String,
    /// The field at fault, as a path into the request: `bodies[0].set.members[1].index`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// A field that was refused, with its path into the request and the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    pub field: String,
    pub message: String,
}

impl FieldError {
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }

    /// The same error seen from an enclosing object: `index` under `members[1]` is `members[1].index`.
    pub fn under(mut self, parent: &str) -> Self {
        self.field = match self.field.as_str() {
            "" => parent.to_owned(),
            field if field.starts_with('[') => format!("{parent}{field}"),
            field => format!("{parent}.{field}"),
        };
        self
    }
}
