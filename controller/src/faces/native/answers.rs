//! Refusals as this face tells them, and their place in the API's description.

use crate::ops::OpsError;
use amphi_api::error::ErrorDetail;
use amphi_api::{ErrorBody, ErrorCode, FieldError};
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use std::collections::BTreeMap;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{IntoResponses, PartialSchema, ToSchema};

/// An answer that is no success.
#[derive(Debug)]
pub struct Failure(ErrorDetail);

impl Failure {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(ErrorDetail { code, message: message.into(), field: None })
    }

    pub fn at(mut self, field: impl Into<String>) -> Self {
        let field = field.into();
        self.0.field = (!field.is_empty()).then_some(field);
        self
    }
}

impl From<OpsError> for Failure {
    fn from(error: OpsError) -> Self {
        let code = error.code();
        match error {
            OpsError::Field(FieldError { field, message }) => Self::new(code, message).at(field),
            OpsError::Conflict { field, message } => Self::new(code, message).at(field.unwrap_or_default()),
            OpsError::Internal(message) => {
                tracing::error!(%message, "internal error");
                Self::new(code, "something went wrong here; the controller's log says what")
            }
            error => Self::new(code, error.to_string()),
        }
    }
}

impl From<FieldError> for Failure {
    fn from(error: FieldError) -> Self {
        Self::new(ErrorCode::InvalidField, error.message).at(error.field)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(ErrorBody { error: self.0 })).into_response()
    }
}

/// What may go wrong where nothing is changed.
pub struct ReadRefusals;
/// What may go wrong where something is.
pub struct WriteRefusals;

const READ: &[(&str, &str)] = &[
    ("400", "a parameter is wrong; `field` names it"),
    ("401", "no token, or one that is not known"),
    ("403", "the token's role, or its scope, does not allow it"),
    ("404", "no such thing"),
    ("500", "a fault of the controller"),
    ("503", "something this needs does not answer now; try again later"),
];
const WRITE: &[(&str, &str)] = &[
    ("400", "the body is malformed or a field is wrong; `field` names it"),
    ("401", "no token, or one that is not known"),
    ("403", "the token's role, or its scope, does not allow it"),
    ("404", "no such thing"),
    ("409", "the state does not allow it, a name or address is taken, or no host has room"),
    ("413", "the body is too large"),
    ("415", "the body is not `application/json`"),
    ("500", "a fault of the controller"),
    ("503", "something this needs does not answer now; try again later"),
    ("507", "no space is left for the bytes that were sent"),
];

impl IntoResponses for ReadRefusals {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        described(READ)
    }
}

impl IntoResponses for WriteRefusals {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        described(WRITE)
    }
}

fn described(table: &[(&str, &str)]) -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
    // The schema itself is registered by the routes that name it.
    debug_assert!(!matches!(ErrorBody::schema(), RefOr::Ref(_)));
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(ErrorBody::name()))).build();
    let response = |text: &str| {
        ResponseBuilder::new().description(text).content("application/json", content.clone()).build()
    };
    table.iter().map(|(status, text)| ((*status).to_owned(), response(text).into())).collect()
}
