//! Making, replacing and revoking tokens, and the keys that seal them.

use super::Caller;
use super::caller::{caller_of, open};
use crate::model::identity::*;
use crate::ops::{Draft, Ops, OpsError};
use crate::tokens::{self, Payload};
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;

/// How long a token lives: keystone's default.
pub const TOKEN_LIFETIME: SignedDuration = SignedDuration::from_hours(1);
/// How long a key seals. Keys before the last one are dropped at the next change: whatever they sealed has ended long ago.
const KEY_LIFETIME: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Ended revocations that are dropped when a new one is made.
const SWEEP: usize = 32;

impl Ops {
    /// Seals a payload that holds; answers the token and who it speaks for.
    pub(super) async fn issue(&self, payload: &Payload) -> Result<(String, Caller), OpsError> {
        let key = self.sealing_key().await?;
        let now = Timestamp::now();
        let caller = caller_of(&self.world().read().identity, payload, now)?;
        let token = tokens::seal(&key, payload).map_err(|e| OpsError::Internal(e.to_string()))?;
        Ok((token, caller))
    }

    /// The key that seals now; a new one, where the newest is old.
    pub(in crate::ops) async fn sealing_key(&self) -> Result<Arc<TokenKeyRecord>, OpsError> {
        let newest = || {
            let view = self.world().read();
            view.identity.token_keys.iter().next_back().map(|row| row.record.clone())
        };
        let now = Timestamp::now();
        if let Some(key) = newest().filter(|key| now.duration_since(key.created_at) < KEY_LIFETIME) {
            return Ok(key);
        }
        self.rotate_token_key(KEY_LIFETIME).await?;
        newest().ok_or_else(|| OpsError::Internal("no token key".into()))
    }

    /// A new key for new tokens, if the present one is at least so old. The one before it still opens what it sealed.
    pub async fn rotate_token_key(&self, age: SignedDuration) -> Result<(), OpsError> {
        self.transact(|view| {
            let keys = &view.identity.token_keys;
            let now = Timestamp::now();
            let mut draft = Draft::default();
            let newest = keys.iter().next_back();
            if newest.is_some_and(|key| now.duration_since(key.created_at) < age) {
                return Ok((draft, ()));
            }
            // Two controllers that do this at once must not drop each other's key.
            newest.into_iter().for_each(|key| draft.touch(key));
            let old: Vec<_> = keys.iter().rev().skip(1).take(16).collect();
            old.into_iter()
                .filter(|key| now.duration_since(key.created_at) > TOKEN_LIFETIME)
                .for_each(|key| draft.delete(key));
            draft.create(&TokenKeyRecord {
                id: TokenKeyId::new(),
                secret: tokens::new_secret(),
                created_at: now,
            });
            Ok((draft, ()))
        })
        .await
    }

    /// Makes one token void.
    pub async fn revoke_token(&self, token: &str) -> Result<(), OpsError> {
        let payload = open(&self.world().read(), token)?;
        let expires_at = Timestamp::from_microsecond(payload.expires)
            .map_err(|_| OpsError::Unauthenticated("the token's time is out of range".into()))?;
        self.transact(|view| {
            let revocations = &view.identity.revocations;
            let mut draft = Draft::default();
            if revocations.get(payload.audit).is_none() && expires_at > Timestamp::now() {
                draft.create(&RevocationRecord { audit: payload.audit, expires_at });
                let ended = revocations.iter().filter(|r| r.expires_at < Timestamp::now());
                ended.take(SWEEP).for_each(|old| draft.delete(old));
            }
            Ok((draft, ()))
        })
        .await
    }
}
