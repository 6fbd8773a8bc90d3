//! Where passwords are checked: argon2 off the executor and two at a time, so that logins never starve other requests;
//! and whoever guesses waits longer and longer.

use super::guesses::{Guesses, Knock};
use crate::model::identity::Digest;
use crate::ops::OpsError;
use crate::tokens::random;
use argon2::password_hash::{Output, ParamsString, PasswordHash, Salt, SaltString};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// argon2id with 19 MiB, 2 passes, 1 lane: OWASP's Password Storage Cheat Sheet, "Argon2id".
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// Digests at once.
const AT_ONCE: usize = 2;
/// Most logins that wait out a short penalty at a time.
const WAITING_MAX: usize = 256;
/// How long a login waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest password, in bytes: keystone's default bound.
pub const PASSWORD_MAX: usize = 4096;

pub struct Door {
    turns: Arc<Semaphore>,
    guesses: Arc<Guesses>,
    memory: Arc<Memory>,
    /// Logins that wait until they may be tried.
    waiting: Semaphore,
    /// What unknown users are checked against, so that they take as long as known ones.
    nobody: OnceLock<Digest>,
}

impl Default for Door {
    fn default() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            guesses: Arc::default(),
            memory: Arc::default(),
            waiting: Semaphore::new(WAITING_MAX),
            nobody: OnceLock::new(),
        }
    }
}

impl Door {
    /// The digest of a password. Bounded by argon2's own time.
    pub async fn digest(&self, password: String) -> Result<Digest, OpsError> {
        let memory = self.memory.clone();
        self.in_turn(move || memory.lend(|blocks| digest_of(&password, blocks))).await?
    }

    /// Whether the password fits; without a digest it never does, and takes as long. Who has to wait is refused when
    /// the turn has come: a thousand guesses at once are no way around it.
    pub async fn fits(
        &self,
        knock: Knock,
        password: String,
        digest: Option<Digest>,
    ) -> Result<bool, OpsError> {
        let known = digest.is_some();
        let digest = match digest {
            Some(digest) => digest,
            None => match self.nobody.get() {
                Some(nobody) => nobody.clone(),
                None => {
                    let made = self.digest(crate::tokens::new_secret()).await?;
                    self.nobody.get_or_init(|| made).clone()
                }
            },
        };
        let (guesses, memory) = (self.guesses.clone(), self.memory.clone());
        // Waited out here where it is short, by few at a time; whoever meets it again after that is refused.
        let patience = guesses.patience(&knock, Instant::now());
        if !patience.is_zero()
            && let Ok(_waiting) = self.waiting.try_acquire()
        {
            tokio::time::sleep(patience).await;
        }
        self.in_turn(move || {
            guesses.admit(&knock, Instant::now())?;
            let fits = memory.lend(|blocks| fits(&password, &digest, blocks)) && known;
            if fits {
                guesses.opened(&knock, Instant::now())
            } else {
                guesses.failed(knock, Instant::now())
            }
            Ok(fits)
        })
        .await?
    }

    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, OpsError> {
        let turn = tokio::time::timeout(TURN_TIMEOUT, self.turns.clone().acquire_owned()).await;
        let turn = match turn {
            Ok(Ok(turn)) => turn,
            _ => return Err(OpsError::Unavailable("too many logins at once; try again".into())),
        };
        // The turn is kept by the work itself: whoever stops waiting does not let in a third one.
        let work = tokio::task::spawn_blocking(move || {
            let answer = work();
            drop(turn);
            answer
        });
        work.await.map_err(|e| OpsError::Internal(format!("checking a password: {e}")))
    }
}

/// What argon2 fills, kept from one digest to the next: freed each time, blocks of this size stay with the allocator, one
/// in the arena of every thread that ever checked a password.
#[derive(Default)]
struct Memory(Mutex<Vec<Vec<Block>>>);

impl Memory {
    fn lend<T>(&self, work: impl FnOnce(&mut [Block]) -> T) -> T {
        let kept = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let held = kept().pop();
        let mut blocks = held.unwrap_or_else(|| vec![Block::default(); MEMORY_KIB as usize]);
        let answer = work(&mut blocks);
        kept().push(blocks);
        answer
    }
}

/// A digest's raw bytes under these parameters.
fn raw(params: Params, password: &str, salt: &[u8], blocks: &mut [Block]) -> Result<Output, argon2::Error> {
    let mut out = [0; Params::DEFAULT_OUTPUT_LEN];
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_into_with_memory(password.as_bytes(), salt, &mut out, blocks)?;
    Output::new(&out).map_err(|_| argon2::Error::OutputTooLong)
}

fn digest_of(password: &str, blocks: &mut [Block]) -> Result<Digest, OpsError> {
    let mut made = || {
        let params = Params::new(MEMORY_KIB, PASSES, LANES, None)?;
        let bytes = random::<16>();
        let salt = SaltString::encode_b64(&bytes)?;
        let hash = PasswordHash {
            algorithm: Algorithm::Argon2id.ident(),
            version: Some(Version::V0x13.into()),
            params: ParamsString::try_from(&params)?,
            salt: Some(salt.as_salt()),
            hash: Some(raw(params, password, &bytes, blocks)?),
        };
        Ok(Digest(hash.to_string()))
    };
    made().map_err(|e: argon2::password_hash::Error| OpsError::Internal(format!("argon2: {e}")))
}

/// False too for a digest that is none, or that wants more memory than ours do.
fn fits(password: &str, digest: &Digest, blocks: &mut [Block]) -> bool {
    let mut fits = || {
        let hash =
            PasswordHash::new(&digest.0).ok().filter(|h| h.algorithm == Algorithm::Argon2id.ident())?;
        let mut bytes = [0; Salt::MAX_LENGTH];
        let salt = hash.salt?.decode_b64(&mut bytes).ok()?;
        let made = raw(Params::try_from(&hash).ok()?, password, salt, blocks).ok()?;
        // Compared in constant time (password_hash::Output).
        Some(made == hash.hash?)
    };
    fits().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_fits_its_digest_and_nothing_else() {
        let door = Door::default();
        let digest = door.digest("correct horse".into()).await.unwrap();
        assert!(digest.0.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", digest.0);
        let knock = Knock { who: "default/admin".into(), from: None };
        let fits = async |password: &str, digest| door.fits(knock.clone(), password.into(), digest).await;
        assert!(fits("correct horse", Some(digest.clone())).await.unwrap());
        assert!(!fits("correct horse ", Some(digest.clone())).await.unwrap());
        assert!(!fits("correct horse", None).await.unwrap());
        assert!(!format!("{digest:?}").contains("argon2"));
        assert_ne!(door.digest("correct horse".into()).await.unwrap(), digest, "salted");
    }

    #[tokio::test]
    async fn many_guesses_at_once_are_few() {
        let door = Door::default();
        let knock = Knock { who: "default/admin".into(), from: None };
        let all = (0..40).map(|n| door.fits(knock.clone(), n.to_string(), None));
        let answers = futures_util::future::join_all(all).await;
        let tried = answers.iter().filter(|a| a.is_ok()).count();
        assert!(tried <= 8, "{tried} guesses were checked");
    }
}
