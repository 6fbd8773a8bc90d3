//! Bodies of requests: JSON of a bounded size, read into a type or taken as it is; numbers and booleans also as text.

use super::answers::Refusal;
use super::query::boolean;
use amphi_api::validate::BODY_MAX;
use axum::extract::{FromRequest, Request};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A JSON body of at most [`BODY_MAX`] bytes. The services read JSON whatever the content type says; an empty body is
/// `null`.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        parse(&read(request.into_body(), BODY_MAX).await?).map(Self)
    }
}

/// All bytes of a body, if they are no more than `limit`.
pub async fn read(body: axum::body::Body, limit: usize) -> Result<bytes::Bytes, Refusal> {
    axum::body::to_bytes(body, limit).await.map_err(|error| {
        let source = std::error::Error::source(&error);
        if source.is_some_and(|s| s.is::<http_body_util::LengthLimitError>()) {
            Refusal::too_large(limit as u64)
        } else {
            Refusal::bad(format!("The body broke off: {error}"))
        }
    })
}

/// Reads JSON; a refusal names the place: `server.networks[0].uuid`.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    let bytes = if bytes.trim_ascii().is_empty() { b"null" } else { bytes };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        if error.is_data() && path != "." {
            Refusal::field(path, error.to_string())
        } else if error.is_data() {
            Refusal::bad(format!("Invalid input: {error}"))
        } else {
            Refusal::bad(format!("Malformed request body: {error}"))
        }
    })?;
    json.end().map_err(|error| Refusal::bad(format!("Malformed request body: {error}")))?;
    Ok(value)
}

/// Reads a part of a body that was taken as it is; `field` is its place.
pub fn part<T: DeserializeOwned>(field: &str, value: Value) -> Result<T, Refusal> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let place = if path == "." { field.to_owned() } else { format!("{field}.{path}") };
        Refusal::field(place, error.into_inner().to_string())
    })
}

/// The object below a body's only key: `{"server": {…}}`.
pub fn envelope(key: &str, body: Value) -> Result<serde_json::Map<String, Value>, Refusal> {
    match body {
        Value::Object(mut map) => match map.remove(key) {
            Some(Value::Object(inner)) => Ok(inner),
            Some(_) => Err(Refusal::field(key, "must be an object")),
            None => Err(Refusal::bad(format!("Invalid input: '{key}' is a required property"))),
        },
        _ => Err(Refusal::bad(format!("Invalid input: an object with the key '{key}' is required"))),
    }
}

/// For `#[serde(deserialize_with = "…")]`: values that clients also send as text. `null` is the type's default.
pub mod lenient {
    use super::*;

    /// An integer, or its digits as text.
    pub fn integer<'de, D: Deserializer<'de>, T: TryFrom<i64> + Default>(from: D) -> Result<T, D::Error> {
        option(from).map(Option::unwrap_or_default)
    }

    /// [`integer`], or none.
    pub fn option<'de, D: Deserializer<'de>, T: TryFrom<i64>>(from: D) -> Result<Option<T>, D::Error> {
        let number = match Value::deserialize(from)? {
            Value::Null => return Ok(None),
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        let fits = number.and_then(|n| T::try_from(n).ok());
        fits.map(Some).ok_or_else(|| D::Error::custom("must be an integer in range"))
    }

    /// A boolean in any of its spellings.
    pub fn flag<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
        option_flag(from).map(Option::unwrap_or_default)
    }

    /// [`flag`], or none.
    pub fn option_flag<'de, D: Deserializer<'de>>(from: D) -> Result<Option<bool>, D::Error> {
        let found = match Value::deserialize(from)? {
            Value::Null => return Ok(None),
            Value::Bool(value) => Some(value),
            Value::Number(number) => boolean(&number.to_string()),
            Value::String(text) => boolean(&text),
            _ => None,
        };
        found.map(Some).ok_or_else(|| D::Error::custom("must be a boolean"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Sample {
        #[serde(default, deserialize_with = "lenient::option")]
        size: Option<u32>,
        #[serde(default, deserialize_with = "lenient::flag")]
        shared: bool,
    }

    #[test]
    fn text_for_numbers() {
        let read = |text: &str| parse::<Sample>(text.as_bytes());
        assert_eq!(read(r#"{"size": "5", "shared": "True"}"#), Ok(Sample { size: Some(5), shared: true }));
        assert_eq!(read(r#"{"size": null, "shared": 1}"#), Ok(Sample { size: None, shared: true }));
        for (text, word) in [
            (r#"{"size": -1}"#, "size"),
            (r#"{"size": 1.5}"#, "size"),
            (r#"{"size": []}"#, "size"),
            (r#"{"size": "99999999999"}"#, "size"),
            (r#"{"shared": "maybe"}"#, "shared"),
            (r#"{"size": 5} x"#, "Malformed"),
            (r#"{"size""#, "Malformed"),
            ("", "Invalid input"),
        ] {
            let refusal = read(text).unwrap_err();
            assert_eq!(refusal.status, 400);
            assert!(refusal.message.contains(word), "{text}: {}", refusal.message);
        }
    }
}
