//! Streams for which a host's connection is waited for. Each has a secret that is good once, from the host that was told.

use amphi_api::HostId;
use axum::extract::ws::WebSocket;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use subtle::ConstantTimeEq;
use tokio::sync::oneshot;
use uuid::Uuid;

#[derive(Default)]
pub struct Registry {
    waited: Mutex<HashMap<Uuid, Waited>>,
}

struct Waited {
    host: HostId,
    secret: [u8; 32],
    hand: oneshot::Sender<WebSocket>,
}

/// A stream that is waited for, for as long as this lives.
pub struct Expected<'a> {
    registry: &'a Registry,
    pub id: Uuid,
    pub secret: String,
    pub socket: oneshot::Receiver<WebSocket>,
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.registry.waited().remove(&self.id);
    }
}

impl Registry {
    pub fn expect(&self, host: HostId) -> Expected<'_> {
        let (id, secret) = (Uuid::new_v4(), crate::tokens::new_secret());
        let (hand, socket) = oneshot::channel();
        let digest = Sha256::digest(secret.as_bytes()).into();
        self.waited().insert(id, Waited { host, secret: digest, hand });
        Expected { registry: self, id, secret, socket }
    }

    /// Where the connection goes to, if this host was told to make it. Whoever has not the secret spoils nothing.
    pub fn claim(&self, id: Uuid, host: HostId, secret: &str) -> Option<oneshot::Sender<WebSocket>> {
        let mut waited = self.waited();
        let entry = waited.get(&id)?;
        let digest: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
        if entry.host != host || !bool::from(entry.secret.ct_eq(&digest)) {
            return None;
        }
        waited.remove(&id).map(|entry| entry.hand)
    }

    fn waited(&self) -> MutexGuard<'_, HashMap<Uuid, Waited>> {
        self.waited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_handed_over_once_to_whom_it_was_told() {
        let registry = Registry::default();
        let (host, other) = (HostId::new(), HostId::new());
        let expected = registry.expect(host);
        let (id, secret) = (expected.id, expected.secret.clone());
        assert!(registry.claim(id, other, &secret).is_none(), "another host");
        assert!(registry.claim(id, host, "guess").is_none(), "another secret");
        assert!(registry.claim(Uuid::new_v4(), host, &secret).is_none(), "another stream");
        assert!(registry.claim(id, host, &secret).is_some());
        assert!(registry.claim(id, host, &secret).is_none(), "once");
        drop(expected);
        let given_up = registry.expect(host);
        let (id, secret) = (given_up.id, given_up.secret.clone());
        drop(given_up);
        assert!(registry.claim(id, host, &secret).is_none(), "nobody waits");
    }
}
