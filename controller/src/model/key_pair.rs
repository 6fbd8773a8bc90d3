//! Key pairs: a user's public keys by name. A private key is never kept.

use super::Record;
use amphi_api::{ProjectId, UserId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// A key pair's place in the store: made of its user and its name (UUIDv5), so that no user has a name twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyPairKey(Uuid);

impl KeyPairKey {
    pub fn of(user: UserId, name: &str) -> Self {
        Self(Uuid::new_v5(&user.0, name.as_bytes()))
    }

    /// A number for clients that want one: nova's key pairs have a serial number. 31 bits of the key.
    pub fn number(self) -> u32 {
        (self.0.as_u128() as u32) & 0x7fff_ffff
    }
}

impl fmt::Display for KeyPairKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for KeyPairKey {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    #[default]
    Ssh,
    X509,
}

impl KeyKind {
    /// As nova says it: `ssh`, `x509`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ssh => "ssh",
            Self::X509 => "x509",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyPairRecord {
    pub user: UserId,
    pub name: String,
    #[serde(default)]
    pub kind: KeyKind,
    /// An OpenSSH public key line, or a certificate in PEM.
    pub public_key: String,
    /// Colon-separated bytes in hexadecimal: MD5 of an SSH key, SHA-1 of a certificate, as nova's `crypto` has them.
    pub fingerprint: String,
    pub created_at: Timestamp,
}

impl Record for KeyPairRecord {
    const PREFIX: &'static str = "/key-pair/";
    const NOUN: &'static str = "key pair";
    type Id = KeyPairKey;
    fn id(&self) -> KeyPairKey {
        KeyPairKey::of(self.user, &self.name)
    }
    /// Key pairs belong to users: a user's id stands where others have a project's. The two are never asked for in the
    /// same table.
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((ProjectId(self.user.0), &self.name))
    }
}
