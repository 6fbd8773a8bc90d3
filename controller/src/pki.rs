//! The CA, the certificates of hosts, and join secrets. Owns `state_dir/ca`. A private key of a host is never seen
//! here: hosts send a signing request, of which only the public key is taken.

use amphi_api::HostId;
use amphi_api::host::HOST_URI;
use amphi_api::wire::JoinTicket;
use anyhow::{Context, bail};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// The certificate authority of one cloud.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl Ca {
    /// Opens `dir/{ca.pem,ca.key}`; makes them at the first start. A half-made pair is refused rather than replaced:
    /// every host's certificate hangs on it.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        let (pem_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        match (pem_path.exists(), key_path.exists()) {
            (true, true) => {}
            (false, false) => Self::make(dir).with_context(|| format!("cannot make {}", dir.display()))?,
            _ => bail!("{} holds half of a CA: restore ca.pem and ca.key from the backup", dir.display()),
        }
        let pem = std::fs::read_to_string(&pem_path)?;
        let key = KeyPair::from_pem(&std::fs::read_to_string(&key_path)?).context("ca.key")?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).context("ca.pem")?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).context("ca.pem")?;
        Ok(Self { issuer, certificate, pem })
    }

    /// Makes both files beside `dir` and puts them into place at once: a crash leaves no half.
    fn make(dir: &Path) -> anyhow::Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Amphi hosts");
        params.not_after = rcgen::date_time_ymd(2100, 1, 1);
        let certificate = params.self_signed(&key)?;
        let next = dir.with_added_extension("next");
        if next.exists() {
            std::fs::remove_dir_all(&next)?;
        }
        if let Some(parent) = dir.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::DirBuilder::new().mode(0o700).create(&next)?;
        write_secret(&next.join("ca.key"), &key.serialize_pem())?;
        write_secret(&next.join("ca.pem"), &certificate.pem())?;
        // Over an empty directory at most: one with anything in it refuses.
        std::fs::rename(&next, dir)?;
        dir.parent().filter(|p| !p.as_os_str().is_empty()).map_or(Ok(()), |p| Ok(File::open(p)?.sync_all()?))
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Lower-case hexadecimal SHA-256 of the CA's certificate (DER): what a join ticket pins.
    pub fn sha256(&self) -> String {
        hex::encode(Sha256::digest(&self.certificate))
    }

    /// The TLS side of the hosts' face, for `names` (addresses or DNS names). The key lives as long as the process.
    pub fn server_config(&self, names: &[String]) -> anyhow::Result<Arc<rustls::ServerConfig>> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.to_vec())?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_after = rcgen::date_time_ymd(2100, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()?;
        // The CA goes along: a host that joins finds the pinned certificate in the chain.
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)?;
        Ok(Arc::new(config))
    }

    /// Signs a host's key. Only the public key of the request is taken; who it is, we say.
    pub fn sign_host(&self, csr_pem: &str, host: HostId) -> anyhow::Result<String> {
        let mut request =
            CertificateSigningRequestParams::from_pem(csr_pem).context("the signing request")?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, format!("amphi host {host}"));
        params.subject_alt_names = vec![SanType::URI(format!("{HOST_URI}{host}").try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_after = rcgen::date_time_ymd(2100, 1, 1);
        request.params = params;
        Ok(request.signed_by(&self.issuer)?.pem())
    }
}

/// The host that a certificate speaks for. The TLS layer has checked that it is ours.
pub fn host_of(certificate: &CertificateDer<'_>) -> Option<HostId> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(HOST_URI)?.parse().ok(),
        _ => None,
    })
}

/// A new join secret: what goes into the ticket, and what is kept of it.
pub struct JoinSecret {
    pub secret: String,
    /// Lower-case hexadecimal SHA-256 of the secret.
    pub digest: String,
}

/// 256 random bits from the operating system.
pub fn new_join_secret() -> JoinSecret {
    let mut bits = [0; 32];
    let random = rustls::crypto::ring::default_provider().secure_random;
    // The kernel's generator has no way to fail once the machine runs; without it nothing here may go on.
    random.fill(&mut bits).expect("the operating system has random bits");
    let secret = hex::encode(bits);
    let digest = join_digest(&secret);
    JoinSecret { secret, digest }
}

/// What is kept of a join secret.
pub fn join_digest(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// Whether a secret is the one of which `digest` was kept. Takes the same time whatever differs.
pub fn join_secret_fits(secret: &str, digest: &str) -> bool {
    join_digest(secret).as_bytes().ct_eq(digest.as_bytes()).into()
}

/// The token that `amphi-hostsrv join` takes.
pub fn join_token(ticket: &JoinTicket) -> String {
    // A struct of strings always serializes.
    format!("amphi-{}", hex::encode(serde_json::to_vec(ticket).unwrap_or_default()))
}

/// Writes a file that only its owner reads: whole and durable when this returns, or not at all.
pub fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    let next = path.with_added_extension("next");
    let write = || {
        // One that a crash left may be readable for others.
        let _ = std::fs::remove_file(&next);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&next, path)?;
        path.parent()
            .filter(|dir| !dir.as_os_str().is_empty())
            .map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_who_we_say_not_who_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path()).unwrap();
        assert_eq!(Ca::open(dir.path()).unwrap().sha256(), ca.sha256(), "the same CA after a restart");
        let host = HostId::new();
        let key = KeyPair::generate().unwrap();
        let mut wish = CertificateParams::new(vec![]).unwrap();
        wish.subject_alt_names =
            vec![SanType::URI(format!("{HOST_URI}{}", HostId::new()).try_into().unwrap())];
        wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let csr = wish.serialize_request(&key).unwrap().pem().unwrap();
        let pem = ca.sign_host(&csr, host).unwrap();
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(host_of(&certificate), Some(host));
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).unwrap();
        assert!(!parsed.is_ca());
        assert!(ca.sign_host("nonsense", host).is_err());

        std::fs::remove_file(dir.path().join("ca.key")).unwrap();
        let half = Ca::open(dir.path()).err().unwrap().to_string();
        assert!(half.contains("half of a CA"), "{half}");
    }

    #[test]
    fn what_is_secret_is_for_the_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("state/ca");
        // A draft of a start that was cut short.
        std::fs::create_dir_all(dir.path().join("state/ca.next")).unwrap();
        Ca::open(&ca).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&ca), mode(&ca.join("ca.key"))), (0o700, 0o600));
        let token = dir.path().join("token");
        std::fs::write(&token, "for all to read").unwrap();
        write_secret(&token, "secret").unwrap();
        assert_eq!((mode(&token), std::fs::read_to_string(&token).unwrap().as_str()), (0o600, "secret"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no draft is left");
    }

    #[test]
    fn secrets() {
        let one = new_join_secret();
        assert_eq!(hex::decode(&one.secret).unwrap().len(), 32);
        assert!(join_secret_fits(&one.secret, &one.digest));
        assert!(!join_secret_fits(&new_join_secret().secret, &one.digest));
        assert!(!join_secret_fits(&one.digest, &one.digest), "what is kept is no secret itself");
    }
}
