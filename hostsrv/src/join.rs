//! `amphi-hostsrv join TOKEN`: exchanges a join token for a certificate. The private key never leaves the host, and the
//! controller is known by its CA's digest in the token before anything secret is said to it.

use amphi_api::wire::{JoinAnswer, JoinRequest, JoinTicket};
use anyhow::{Context, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use sha2::{Digest, Sha256};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);

/// Joins and writes `pki/`. Joining again replaces the papers.
pub async fn join(name: &str, pki: &Path, token: &str) -> anyhow::Result<JoinAnswer> {
    let ticket = read_ticket(token)?;
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let csr = params.serialize_request(&key)?.pem()?;

    let provider = CryptoProvider::get_default().context("no TLS provider is installed")?.clone();
    let tls = rustls::ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedCa { sha256: ticket.ca_sha256.clone(), provider }))
        .with_no_client_auth();
    let http = reqwest::Client::builder().tls_backend_preconfigured(tls).timeout(DEADLINE).build()?;
    let url = format!("{}/hosts/v1/join", ticket.url);
    let request = JoinRequest { secret: ticket.secret, name: name.to_owned(), csr };
    let answer =
        http.post(&url).json(&request).send().await.with_context(|| format!("cannot reach {url}"))?;
    let status = answer.status();
    let body = answer.bytes().await?;
    if !status.is_success() {
        let said = serde_json::from_slice::<amphi_api::ErrorBody>(&body).map(|b| b.error.message);
        bail!("the controller refused: {}", said.unwrap_or_else(|_| status.to_string()));
    }
    let answer: JoinAnswer = serde_json::from_slice(&body).context("the controller's answer")?;
    let ca = CertificateDer::from_pem_slice(answer.ca.as_bytes()).context("the controller's CA")?;
    if hex::encode(Sha256::digest(&ca)) != ticket.ca_sha256 {
        bail!("the controller sent another CA than the token names");
    }
    std::fs::create_dir_all(pki).with_context(|| format!("cannot make {}", pki.display()))?;
    write(pki, "host.key", 0o600, &key.serialize_pem())?;
    write(pki, "host.pem", 0o644, &answer.certificate)?;
    write(pki, "ca.pem", 0o644, &answer.ca)?;
    write(pki, "url", 0o644, &ticket.url)?;
    write(pki, "host-id", 0o644, &answer.host.to_string())?;
    Ok(answer)
}

fn read_ticket(token: &str) -> anyhow::Result<JoinTicket> {
    let bytes = token.trim().strip_prefix("amphi-").and_then(|digits| hex::decode(digits).ok());
    bytes
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .context("this is not a join token: `amphi host join-token` prints one, beginning with amphi-")
}

fn write(dir: &Path, name: &str, mode: u32, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let next = dir.join(format!(".{name}.next"));
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&next)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&next, dir.join(name))?;
    Ok(())
}

/// Accepts exactly the servers whose chain ends in the CA with the pinned digest.
#[derive(Debug)]
struct PinnedCa {
    sha256: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|c| hex::encode(Sha256::digest(c)) == self.sha256);
        let Some(ca) = pinned else {
            return Err(rustls::Error::General("this is not the controller that the token is for".into()));
        };
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            self.provider.clone(),
        )
        .build()
        .map_err(|e| rustls::Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_or_refused_in_words() {
        let ticket =
            JoinTicket { url: "https://10.0.0.1:7443".into(), ca_sha256: "ab".into(), secret: "s".into() };
        let token = format!("amphi-{}", hex::encode(serde_json::to_vec(&ticket).unwrap()));
        assert_eq!(read_ticket(&format!(" {token}\n")).unwrap(), ticket);
        for bad in ["", "amphi-", "amphi-zz", "amphi-7b7d", &token[6..]] {
            assert!(read_ticket(bad).unwrap_err().to_string().contains("join token"), "{bad}");
        }
    }
}
