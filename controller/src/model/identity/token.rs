//! What tokens hang on: the keys that seal them, and those that were revoked one by one.

use super::{AuditId, DomainId, TokenKeyId};
use crate::model::Record;
use amphi_api::ProjectId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a token is good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    #[default]
    #[serde(rename = "n")]
    Unscoped,
    #[serde(rename = "p")]
    Project(ProjectId),
    #[serde(rename = "d")]
    Domain(DomainId),
    #[serde(rename = "s")]
    System,
}

/// 256 random bits. They lie in the store, so that every controller opens what any of them has sealed.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenKeyRecord {
    pub id: TokenKeyId,
    /// 64 hexadecimal digits.
    pub secret: String,
    pub created_at: Timestamp,
}

impl fmt::Debug for TokenKeyRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenKeyRecord({})", self.id)
    }
}

impl Record for TokenKeyRecord {
    const PREFIX: &'static str = "/identity-token-key/";
    const NOUN: &'static str = "token key";
    type Id = TokenKeyId;
    fn id(&self) -> TokenKeyId {
        self.id
    }
}

/// One token that is void before its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RevocationRecord {
    pub audit: AuditId,
    /// When the token would have ended anyway: from then on the record is of no use.
    pub expires_at: Timestamp,
}

impl Record for RevocationRecord {
    const PREFIX: &'static str = "/identity-revocation/";
    const NOUN: &'static str = "revocation";
    type Id = AuditId;
    fn id(&self) -> AuditId {
        self.audit
    }
}
