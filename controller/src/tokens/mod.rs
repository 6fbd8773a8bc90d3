//! Tokens: who asks, for what, until when, sealed with a key that lies in the store. Opaque to clients, opened by any
//! controller without asking another. What roles they carry is not in them: that is looked up at each use.
//!
//! Form: base64url without padding of `key id (16 bytes) ‖ nonce (12) ‖ AES-256-GCM(payload) ‖ tag (16)`, the key id being
//! authenticated with it. The nonce is random: a key seals far fewer than the 2^32 messages that NIST SP 800-38D (8.3)
//! allows, because it is replaced every month. Refuses to know records: keys are handed in.

use crate::model::identity::{AppCredentialId, AuditId, Scope, TokenKeyId, TokenKeyRecord, UserId};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use uuid::Uuid;

/// Longest token that is looked at, in characters: a registry's pass names repositories.
const TEXT_MAX: usize = 4096;

/// How somebody showed who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    Password,
    Token,
    ApplicationCredential,
}

impl Method {
    pub fn word(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Token => "token",
            Self::ApplicationCredential => "application_credential",
        }
    }
}

/// What a token says. Times are microseconds since the epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Payload {
    #[serde(rename = "u")]
    pub user: UserId,
    #[serde(rename = "s")]
    pub scope: Scope,
    #[serde(rename = "m")]
    pub methods: BTreeSet<Method>,
    #[serde(rename = "i")]
    pub issued: i64,
    #[serde(rename = "e")]
    pub expires: i64,
    #[serde(rename = "a")]
    pub audit: AuditId,
    /// The audit id of the first token of the chain.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<AuditId>,
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub app_credential: Option<AppCredentialId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is malformed")]
    Malformed,
    #[error("the token's key is not known")]
    UnknownKey,
    #[error("the token was not made here")]
    Forged,
    #[error("the token's key is unusable")]
    BadKey,
}

/// 256 random bits as hexadecimal digits.
pub fn new_secret() -> String {
    hex::encode(random::<32>())
}

/// A new audit id: random, since it is shown to clients.
pub fn new_audit_id() -> AuditId {
    AuditId(Uuid::from_bytes(random()))
}

/// How an audit id is shown: 22 characters of base64url, as keystone's.
pub fn audit_word(id: AuditId) -> String {
    URL_SAFE_NO_PAD.encode(id.0.as_bytes())
}

pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // The kernel's generator has no way to fail once the machine runs; without it nothing here may go on.
    SystemRandom::new().fill(&mut bytes).expect("the operating system has random bits");
    bytes
}

fn cipher(key: &TokenKeyRecord) -> Result<LessSafeKey, TokenError> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(&key.secret, &mut bytes).map_err(|_| TokenError::BadKey)?;
    UnboundKey::new(&AES_256_GCM, &bytes).map(LessSafeKey::new).map_err(|_| TokenError::BadKey)
}

pub fn seal(key: &TokenKeyRecord, payload: &Payload) -> Result<String, TokenError> {
    seal_for(key, b"", payload)
}

/// Opens what [`seal`] made. Says nothing about time or revocation.
pub fn open<'a>(
    text: &str,
    key: impl FnOnce(TokenKeyId) -> Option<&'a TokenKeyRecord>,
) -> Result<Payload, TokenError> {
    open_for(text, b"", key)
}

/// Seals anything, for one purpose: it is authenticated with it, so that what was sealed for another does not open.
pub fn seal_for(
    key: &TokenKeyRecord,
    purpose: &[u8],
    content: &impl Serialize,
) -> Result<String, TokenError> {
    let nonce: [u8; NONCE_LEN] = random();
    let mut message = serde_json::to_vec(content).map_err(|_| TokenError::Malformed)?;
    let id = key.id.0.into_bytes();
    let context = [&id[..], purpose].concat();
    cipher(key)?
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), &mut message)
        .map_err(|_| TokenError::BadKey)?;
    Ok(URL_SAFE_NO_PAD.encode([&id[..], &nonce[..], &message[..]].concat()))
}

/// Opens what [`seal_for`] made for the same purpose.
pub fn open_for<'a, T: DeserializeOwned>(
    text: &str,
    purpose: &[u8],
    key: impl FnOnce(TokenKeyId) -> Option<&'a TokenKeyRecord>,
) -> Result<T, TokenError> {
    if text.len() > TEXT_MAX {
        return Err(TokenError::Malformed);
    }
    let mut bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Malformed)?;
    let (id, rest) = bytes.split_first_chunk_mut::<16>().ok_or(TokenError::Malformed)?;
    let (nonce, message) = rest.split_first_chunk_mut::<NONCE_LEN>().ok_or(TokenError::Malformed)?;
    let key = key(TokenKeyId(Uuid::from_bytes(*id))).ok_or(TokenError::UnknownKey)?;
    let context = [&id[..], purpose].concat();
    let plain = cipher(key)?
        .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(context), message)
        .map_err(|_| TokenError::Forged)?;
    serde_json::from_slice(plain).map_err(|_| TokenError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::ProjectId;
    use jiff::Timestamp;

    fn key() -> TokenKeyRecord {
        TokenKeyRecord { id: TokenKeyId::new(), secret: new_secret(), created_at: Timestamp::now() }
    }

    fn payload() -> Payload {
        Payload {
            user: UserId::new(),
            scope: Scope::Project(ProjectId::DEFAULT),
            methods: [Method::Password, Method::Token].into(),
            issued: 1,
            expires: 2,
            audit: new_audit_id(),
            parent: Some(new_audit_id()),
            app_credential: None,
        }
    }

    #[test]
    fn what_is_sealed_is_opened() {
        let (key, payload) = (key(), payload());
        let token = seal(&key, &payload).unwrap();
        assert_eq!(open(&token, |id| (id == key.id).then_some(&key)), Ok(payload.clone()));
        assert_ne!(seal(&key, &payload).unwrap(), token, "no two tokens are alike");
        assert!(token.len() < 512, "{} characters", token.len());
    }

    #[test]
    fn what_was_touched_is_not() {
        let (key, other) = (key(), key());
        let token = seal(&key, &payload()).unwrap();
        let open_with = |text: &str| open(text, |_| Some(&key));
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(open_with(&changed).is_err(), "a change at {at} goes unseen");
        }
        for cut in 0..token.len() {
            assert!(open_with(&token[..cut]).is_err(), "cut at {cut}");
        }
        assert_eq!(open(&token, |_| None), Err(TokenError::UnknownKey));
        let twin = TokenKeyRecord { id: key.id, ..other };
        assert_eq!(open(&token, |_| Some(&twin)), Err(TokenError::Forged));
        assert_eq!(open_with(""), Err(TokenError::Malformed));
        assert_eq!(open_with("gAAAA é"), Err(TokenError::Malformed));
        assert_eq!(open_with(&"A".repeat(5000)), Err(TokenError::Malformed));
    }
}
