//! Why bytes cannot be taken, given or kept.

/// What went wrong with a blob.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("there is no blob {sha256}")]
    Unknown { sha256: String },
    #[error("{text:?} is no SHA-256 digest in lower-case hexadecimal")]
    NoDigest { text: String },
    #[error("the bytes are of digest {found}, not {expected}; nothing was kept")]
    WrongDigest { expected: String, found: String },
    #[error("the upload broke off after {received} bytes: {reason}; nothing was kept")]
    Interrupted { received: u64, reason: String },
    #[error("more than {limit} bytes; nothing was kept")]
    TooLarge { limit: u64 },
    #[error("cannot {doing}: no space is left on the image store's disk; nothing was kept")]
    Full { doing: &'static str },
    #[error("cannot {doing}: the blob store, bucket {at}: {message}")]
    Away { doing: &'static str, at: String, message: String },
    #[error("cannot {doing}: {source}")]
    Io { doing: &'static str, source: std::io::Error },
    /// The bytes are not what their format says; in whole sentences, for whoever sent them.
    #[error("{0}")]
    Broken(String),
}

/// What went wrong with an upload that goes on later.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("there is no such upload; it may have expired: begin anew")]
    Unknown,
    #[error("{received} bytes are here; go on there")]
    WrongOffset { received: u64 },
    #[error("another request writes to this upload; {received} bytes are here")]
    Superseded { received: u64 },
    #[error("the line broke: {reason}; {received} bytes are here: go on there")]
    Cut { received: u64, reason: String },
    #[error(transparent)]
    Blob(#[from] BlobError),
}

/// A failure of the file system in words of the store.
pub(super) fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> BlobError {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    move |source| match source.kind() {
        StorageFull | QuotaExceeded => BlobError::Full { doing },
        _ => BlobError::Io { doing, source },
    }
}
