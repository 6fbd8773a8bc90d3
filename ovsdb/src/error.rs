//! What can go wrong, told apart by what the caller may conclude from it.

use std::fmt;
use std::time::Duration;

/// Cloneable, so that one lost connection can be reported to every call that waited on it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("`{0}` is no OVSDB endpoint; want unix:PATH or tcp:HOST:PORT")]
    Endpoint(String),
    /// The call was never sent: nothing has happened.
    #[error("{method} on {endpoint}: not connected within {after:?}: {reason}")]
    Unavailable { endpoint: String, method: String, after: Duration, reason: String },
    /// The call was sent; whether it took effect is unknown.
    #[error("{method} on {endpoint}: the connection was lost before the reply: {reason}")]
    Lost { endpoint: String, method: String, reason: String },
    /// The call was sent; whether it took effect is unknown.
    #[error("{method} on {endpoint}: no reply within {after:?}")]
    Timeout { endpoint: String, method: String, after: Duration },
    /// The server refused the whole call.
    #[error("{method} on {endpoint} refused: {error}")]
    Refused { endpoint: String, method: String, error: String },
    /// The transaction was rolled back.
    #[error("transaction on {database} failed at {failure}")]
    Operation { database: String, failure: Box<OperationFailure> },
    #[error("{endpoint} answered {method} with something unexpected: {what}")]
    Protocol { endpoint: String, method: String, what: String },
    #[error("the replica of {database} did not reach the awaited state within {after:?}")]
    NotReached { database: String, after: Duration },
}

/// The operation that made a transaction fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationFailure {
    /// Position in the transaction; None when every operation passed and the commit failed, as
    /// deferred constraints do (references, unique indexes, set sizes).
    pub index: Option<usize>,
    /// `insert`, `wait` …; `commit` for a failed commit.
    pub op: String,
    /// Empty when unknown.
    pub table: String,
    /// RFC 7047's error word, such as `constraint violation`, `referential integrity violation`.
    pub error: String,
    pub details: String,
}

impl fmt::Display for OperationFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "operation {index} ({}", self.op)?,
            None => write!(f, "the end ({}", self.op)?,
        }
        if !self.table.is_empty() {
            write!(f, " {}", self.table)?;
        }
        write!(f, "): {}", self.error)?;
        if !self.details.is_empty() {
            write!(f, ": {}", self.details)?;
        }
        Ok(())
    }
}

impl Error {
    pub fn failure(&self) -> Option<&OperationFailure> {
        match self {
            Error::Operation { failure, .. } => Some(failure),
            _ => None,
        }
    }

    /// A `wait` guard did not hold: somebody else was quicker, or the caller's picture is old.
    pub fn is_guard(&self) -> bool {
        self.failure().is_some_and(|failure| failure.op == "wait" && failure.error == "timed out")
    }

    /// The database's own rules refused the data.
    pub fn is_constraint(&self) -> bool {
        self.failure().is_some_and(|failure| {
            matches!(failure.error.as_str(), "constraint violation" | "referential integrity violation")
        })
    }

    /// The call may succeed later without any change by the caller.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Error::Unavailable { .. } | Error::Lost { .. } | Error::Timeout { .. } | Error::NotReached { .. }
        )
    }
}
