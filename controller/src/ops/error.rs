//! The kinds of refusal. Faces translate them, each into its protocol's own words.

use crate::model::Record;
use crate::scheduler::NoRoom;
use crate::store::StoreError;
use amphi_api::{ErrorCode, FieldError};

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OpsError {
    /// A field of the request is wrong.
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("no {noun} {id}")]
    NotFound { noun: &'static str, id: String },
    /// It is in a state that does not allow this, or what was asked for is taken.
    #[error("{message}")]
    Conflict { field: Option<String>, message: String },
    #[error("{0}")]
    NoRoom(#[from] NoRoom),
    /// A limit is reached.
    #[error(transparent)]
    Quota(#[from] OverQuota),
    #[error("not a valid join token: {0}")]
    BadToken(&'static str),
    /// Nobody that is known asks: a token or a password is wrong, expired or revoked.
    #[error("{0}")]
    Unauthenticated(String),
    /// Known, but not allowed.
    #[error("{0}")]
    Forbidden(String),
    /// Passwords are being guessed; try again after so many seconds.
    #[error("too many failed attempts; try again in {seconds} s")]
    TooMany { seconds: u64 },
    #[error("the body is larger than {0} bytes")]
    TooLarge(u64),
    /// No room for bytes on this machine.
    #[error("{0}")]
    StorageFull(String),
    /// Something that this needs does not answer now.
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Internal(String),
}

/// A limit that a request would go beyond; faces say it in their service's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("quota exceeded for {resource}: {asked} asked, {used} of {limit} used")]
pub struct OverQuota {
    /// The service's word: `cores`, `gigabytes_fast`, `floatingip`.
    pub resource: String,
    pub asked: u64,
    pub used: u64,
    pub limit: i64,
}

impl OpsError {
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Field(FieldError::new(field, message))
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Self::Conflict { field: None, message: message.into() }
    }

    pub fn taken(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Conflict { field: Some(field.into()), message: message.into() }
    }

    pub fn not_found<R: Record>(id: impl ToString) -> Self {
        Self::NotFound { noun: R::NOUN, id: id.to_string() }
    }

    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Field(_) => ErrorCode::InvalidField,
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::Conflict { .. } => ErrorCode::Conflict,
            Self::NoRoom(_) => ErrorCode::NoRoom,
            Self::Quota(_) => ErrorCode::Conflict,
            Self::BadToken(_) => ErrorCode::Forbidden,
            Self::Unauthenticated(_) => ErrorCode::Unauthenticated,
            Self::Forbidden(_) => ErrorCode::Forbidden,
            Self::TooMany { .. } => ErrorCode::Unavailable,
            Self::TooLarge(_) => ErrorCode::TooLarge,
            Self::StorageFull(_) => ErrorCode::StorageFull,
            Self::Unavailable(_) => ErrorCode::Unavailable,
            Self::Internal(_) => ErrorCode::Internal,
        }
    }
}

impl From<StoreError> for OpsError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable { .. } | StoreError::Compacted(_) => Self::Unavailable(error.to_string()),
            StoreError::Conflict { .. } => Self::conflict(error.to_string()),
            StoreError::Invalid(_) | StoreError::NoLease(_) => Self::Internal(error.to_string()),
        }
    }
}
