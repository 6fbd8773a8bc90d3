//! What comes in: JSON bodies, ids in paths, queries; each refused in the face's own words, with the field's name.

use super::answers::Failure;
use super::shape;
use crate::ops::ListQuery;
use amphi_api::ErrorCode;
use amphi_api::validate::BODY_MAX;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::str::FromStr;
use utoipa::IntoParams;

/// A JSON body of at most [`BODY_MAX`] bytes.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(Failure::new(
                ErrorCode::UnsupportedMediaType,
                "the body must be JSON, with Content-Type: application/json",
            ));
        }
        let too_large =
            || Failure::new(ErrorCode::TooLarge, format!("the body must have at most {BODY_MAX} bytes"));
        let announced = request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok());
        if announced.and_then(|v| v.parse::<usize>().ok()).is_some_and(|length| length > BODY_MAX) {
            return Err(too_large());
        }
        let bytes = axum::body::to_bytes(request.into_body(), BODY_MAX).await.map_err(|error| {
            let source = std::error::Error::source(&error);
            if source.is_some_and(|s| s.is::<http_body_util::LengthLimitError>()) {
                too_large()
            } else {
                Failure::new(ErrorCode::MalformedBody, format!("the body broke off: {error}"))
            }
        })?;
        parse(&bytes).map(Self)
    }
}

/// Reads JSON; a refusal names the place: `bodies[0].set.members[1].index`.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let malformed = |message: String| Failure::new(ErrorCode::MalformedBody, message);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        let message = error.to_string();
        if !error.is_data() {
            return malformed(format!("the body is not JSON: {message}"));
        }
        let path = if path == "." { String::new() } else { path };
        let missing = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
        let field = match missing {
            Some(field) if path.is_empty() => field.to_owned(),
            Some(field) => format!("{path}.{field}"),
            None => path,
        };
        malformed(message).at(field)
    })?;
    json.end().map_err(|error| malformed(format!("the body is not JSON: {error}")))?;
    let again = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
    shape::check::<T>(again).map_err(|error| {
        let path = error.path().to_string();
        malformed(error.inner().to_string()).at(if path == "." { "" } else { &path })
    })?;
    Ok(value)
}

/// The id in the path. One that is none belongs to nothing.
pub struct Id<T>(pub T);

impl<S: Send + Sync, T: FromStr> FromRequestParts<S> for Id<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let text = Path::<String>::from_request_parts(parts, state).await;
        id(text.map(|Path(text)| text).unwrap_or_default()).map(Self)
    }
}

/// An id of a path with several.
pub fn id<T: FromStr>(text: String) -> Result<T, Failure> {
    text.parse().map_err(|_| Failure::new(ErrorCode::NotFound, format!("'{text}' is no id")))
}

/// The query string.
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(value)| Self(value)).map_err(|rejection| {
            let text = rejection.body_text();
            let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
            match text.split_once(": ") {
                Some((field, message)) => Failure::new(ErrorCode::InvalidField, message).at(field),
                None => {
                    let field = text.split('`').nth(1).unwrap_or_default();
                    Failure::new(ErrorCode::InvalidField, text).at(field)
                }
            }
        })
    }
}

/// What every list of a project's things takes.
#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListParams {
    /// Exactly this name.
    name: Option<String>,
    /// 1 to 1,000 entries. Default: all.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// Only what comes after this id.
    marker: Option<String>,
}

impl From<ListParams> for ListQuery {
    fn from(params: ListParams) -> Self {
        Self { name: params.name, limit: params.limit, marker: params.marker }
    }
}
