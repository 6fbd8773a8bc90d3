//! What can go wrong with a call, told apart by what the caller can do about it.

use crate::{ErrorCode, error::ErrorDetail};
use std::error::Error as _;
use std::time::Duration;

/// Why a call has no result. Every variant but `Setup` names the operation.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The controller answered, and refused or failed. `status` is HTTP's.
    #[error("{operation}: {}{}", field_of(detail), detail.message)]
    Api { operation: String, status: u16, detail: ErrorDetail },
    /// No connection, or it broke. Whether an order was taken is not known.
    #[error("{operation}: the controller{} does not answer: {reason}", if url.is_empty() { String::new() } else { format!(" at {url}") })]
    Unreachable { operation: String, url: String, reason: String },
    /// Nothing within the time; `saw` is the last thing that a wait observed.
    #[error("{operation}: not within {} s{}", after.as_secs_f32(), saw.as_ref().map(|s| format!("; last seen: {s}")).unwrap_or_default())]
    Timeout { operation: String, after: Duration, saw: Option<String> },
    /// The answer is no answer of this API.
    #[error("{operation}: {message}")]
    Protocol { operation: String, message: String },
    /// Nothing has this name or id.
    #[error("no {noun} '{name}'")]
    NoSuch { noun: &'static str, name: String },
    /// Several things have this name.
    #[error("{} {noun}s are named '{name}'; use an id: {}", ids.len(), ids.join(", "))]
    Ambiguous { noun: &'static str, name: String, ids: Vec<String> },
    /// A file to be sent cannot be read.
    #[error("{operation}: {message}")]
    File { operation: String, message: String },
    /// URL or token are missing or cannot be used.
    #[error("{what}")]
    Setup { what: String },
}

fn field_of(detail: &ErrorDetail) -> String {
    detail.field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default()
}

impl ClientError {
    pub(crate) fn transport(operation: String, error: &reqwest::Error) -> Self {
        if error.is_timeout() && !error.is_connect() {
            return Self::Timeout { operation, after: super::CALL_TIMEOUT, saw: None };
        }
        if error.is_builder() || error.is_decode() {
            return Self::Protocol { operation, message: chain(error) };
        }
        let url = error.url().map(|u| u.origin().ascii_serialization()).unwrap_or_default();
        Self::Unreachable { operation, url, reason: chain(error) }
    }

    /// Whether the thing asked for is not there.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Api { status, .. } => *status == 404,
            Self::NoSuch { .. } => true,
            _ => false,
        }
    }

    /// Whether asking again later can help: a read may be repeated after these.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } => true,
            Self::Api { detail, .. } => detail.code == ErrorCode::Unavailable,
            _ => false,
        }
    }

    /// The API's own error, where the controller gave one.
    pub fn detail(&self) -> Option<&ErrorDetail> {
        match self {
            Self::Api { detail, .. } => Some(detail),
            _ => None,
        }
    }
}

/// The innermost causes are the telling ones ("Connection refused"); reqwest shows only the outermost.
pub(crate) fn chain(error: &reqwest::Error) -> String {
    let mut text = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push(cause.to_string());
        next = cause.source();
    }
    text.dedup();
    match text.last() {
        Some(last) if text.len() > 1 && !text[text.len() - 2].contains(last.as_str()) => {
            format!("{}: {last}", text[text.len() - 2])
        }
        Some(last) => last.clone(),
        None => error.to_string(),
    }
}
