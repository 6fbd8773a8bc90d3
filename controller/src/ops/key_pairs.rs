//! Key pairs: import, generate, delete. A generated private key is answered once and kept nowhere.
//!
//! What is generated is Ed25519 for SSH (nova made RSA, until 2.92 took generating away) and ECDSA P-256 for x509. What
//! is imported may be of any algorithm that OpenSSH has.

use super::quotas;
use super::{Draft, Ops, OpsError};
use crate::model::*;
use amphi_api::{ProjectId, UserId};
use jiff::Timestamp;
use md5::{Digest, Md5};
use rcgen::{CertificateParams, DnType, KeyPair};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use ssh_key::private::{Ed25519Keypair, Ed25519PrivateKey, KeypairData};
use ssh_key::public::Ed25519PublicKey;
use ssh_key::{LineEnding, PrivateKey, PublicKey};

/// Longest public key in bytes, as nova's column has it (`MEDIUMTEXT` apart): more is no key.
const PUBLIC_KEY_MAX: usize = 65_535;
/// The comment of a generated key.
const COMMENT: &str = "Generated-by-Amphi";

/// What is asked of a new key pair.
#[derive(Clone, Debug)]
pub struct KeyPairSpec {
    pub name: String,
    pub kind: KeyKind,
    /// None: a pair is generated.
    pub public_key: Option<String>,
}

impl Ops {
    /// Answers the private key too, if it was generated. `project` is the caller's: its limit counts.
    pub async fn create_key_pair(
        &self,
        project: ProjectId,
        user: UserId,
        spec: &KeyPairSpec,
    ) -> Result<(KeyPairRecord, Option<String>), OpsError> {
        amphi_api::validate::name("name", &spec.name)?;
        let (public_key, private_key) = match (&spec.public_key, spec.kind) {
            (Some(public_key), _) => (public_key.clone(), None),
            (None, KeyKind::Ssh) => generate_ssh()?,
            (None, KeyKind::X509) => generate_x509(user)?,
        };
        let record = KeyPairRecord {
            user,
            name: spec.name.clone(),
            kind: spec.kind,
            fingerprint: fingerprint(spec.kind, &public_key)?,
            public_key,
            created_at: Timestamp::now(),
        };
        self.transact(|view| {
            quotas::check_for(view, project, Some(user), &[(Resource::KeyPairs, 1)])?;
            if view.key_pairs.get(record.id()).is_some() {
                return Err(OpsError::taken("name", format!("Key pair '{}' already exists.", record.name)));
            }
            let mut draft = Draft::default();
            draft.create(&record);
            Ok((draft, ()))
        })
        .await?;
        Ok((record, private_key))
    }

    /// Instances keep the keys that they were made with.
    pub async fn delete_key_pair(&self, user: UserId, name: &str) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = view.key_pairs.get(KeyPairKey::of(user, name));
            let row = row.ok_or_else(|| OpsError::not_found::<KeyPairRecord>(name))?;
            let mut draft = Draft::default();
            draft.delete(row);
            Ok((draft, ()))
        })
        .await
    }
}

/// nova/crypto.py: MD5 over an SSH key's bytes, SHA-1 over a certificate's.
fn fingerprint(kind: KeyKind, public_key: &str) -> Result<String, OpsError> {
    let refused = |why: &str| OpsError::field("public_key", format!("Keypair data is invalid: {why}"));
    if public_key.len() > PUBLIC_KEY_MAX {
        return Err(refused("failed to generate fingerprint"));
    }
    match kind {
        KeyKind::Ssh => {
            let key = PublicKey::from_openssh(public_key.trim())
                .map_err(|_| refused("failed to generate fingerprint"))?;
            let bytes = key.to_bytes().map_err(|_| refused("failed to generate fingerprint"))?;
            Ok(colons(&Md5::digest(bytes)))
        }
        KeyKind::X509 => {
            let (_, pem) = x509_parser::pem::parse_x509_pem(public_key.trim().as_bytes())
                .map_err(|_| refused("failed to generate X509 fingerprint. Error message: no PEM"))?;
            pem.parse_x509()
                .map_err(|_| refused("failed to generate X509 fingerprint. Error message: no certificate"))?;
            let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &pem.contents);
            Ok(colons(digest.as_ref()))
        }
    }
}

fn colons(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

fn broken(error: impl std::fmt::Display) -> OpsError {
    OpsError::Internal(format!("cannot generate a key pair: {error}"))
}

/// (public, private) in OpenSSH's formats.
fn generate_ssh() -> Result<(String, Option<String>), OpsError> {
    let mut seed = [0; 32];
    SystemRandom::new().fill(&mut seed).map_err(broken)?;
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(broken)?;
    let public: [u8; 32] = pair.public_key().as_ref().try_into().map_err(broken)?;
    let pair =
        Ed25519Keypair { public: Ed25519PublicKey(public), private: Ed25519PrivateKey::from_bytes(&seed) };
    let key = PrivateKey::new(KeypairData::Ed25519(pair), COMMENT).map_err(broken)?;
    let private = key.to_openssh(LineEnding::LF).map_err(broken)?;
    Ok((key.public_key().to_openssh().map_err(broken)?, Some(private.to_string())))
}

/// (certificate, private key) in PEM, for WinRM as nova's `generate_winrm_x509_cert`.
fn generate_x509(user: UserId) -> Result<(String, Option<String>), OpsError> {
    let pair = KeyPair::generate().map_err(broken)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, user.0.simple().to_string());
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.self_signed(&pair).map_err(broken)?;
    Ok((certificate.pem(), Some(pair.serialize_pem())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys made by `ssh-keygen`, fingerprints by `ssh-keygen -l -E md5`.
    #[test]
    fn fingerprints_are_those_of_openssh() {
        let table = include_str!("testdata/ssh-keys.txt");
        for line in table.lines().filter(|line| !line.starts_with('#')) {
            let (want, key) = line.split_once(' ').unwrap();
            assert_eq!(fingerprint(KeyKind::Ssh, key).as_deref(), Ok(want));
            assert_eq!(fingerprint(KeyKind::Ssh, &format!("  {key}\n")).as_deref(), Ok(want));
        }
        assert_eq!(table.lines().filter(|line| !line.starts_with('#')).count(), 3);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let long = format!("ssh-rsa {} openstack@ubuntu", "A".repeat(2048));
        for bad in ["", "not a key", "ssh-rsa JUNK nova@ubuntu", "ssh-rsa AAAA", &long, &"x".repeat(70_000)] {
            assert!(matches!(fingerprint(KeyKind::Ssh, bad), Err(OpsError::Field(_))), "{bad}");
            assert!(matches!(fingerprint(KeyKind::X509, bad), Err(OpsError::Field(_))), "{bad}");
        }
    }

    #[test]
    fn what_is_generated_can_be_imported() {
        let (public, private) = generate_ssh().unwrap();
        assert!(public.starts_with("ssh-ed25519 ") && public.ends_with(COMMENT), "{public}");
        assert_eq!(fingerprint(KeyKind::Ssh, &public).unwrap().len(), 47);
        let private = PrivateKey::from_openssh(private.unwrap()).unwrap();
        assert_eq!(private.public_key().to_openssh().unwrap(), public);
        let (certificate, key) = generate_x509(UserId::new()).unwrap();
        assert_eq!(fingerprint(KeyKind::X509, &certificate).unwrap().len(), 59);
        assert!(key.unwrap().contains("PRIVATE KEY"));
    }
}
