//! Who hosts are to each other: both sides show the certificate of their joining, which carries the host's id. Names and
//! addresses prove nothing here.

use crate::credentials::Credentials;
use amphi_api::HostId;
use amphi_api::host::HOST_URI;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{DigitallySignedStruct, SignatureScheme};
use std::path::Path;
use std::sync::Arc;

/// The papers of this host, for both ends of a connection between hosts.
pub struct PeerPapers {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    /// Hosts' certificates are client certificates; at either end they are checked as such.
    verifier: Arc<dyn ClientCertVerifier>,
}

impl PeerPapers {
    /// Reads `pki/{ca.pem,host.pem,host.key}`.
    pub fn read(pki: &Path) -> anyhow::Result<Self> {
        let ours = Credentials::read(pki)?;
        let verifier = WebPkiClientVerifier::builder(Arc::new(ours.roots)).build()?;
        Ok(Self { chain: ours.chain, key: ours.key, verifier })
    }

    pub fn server(&self) -> anyhow::Result<Arc<rustls::ServerConfig>> {
        let config = rustls::ServerConfig::builder()
            .with_client_cert_verifier(self.verifier.clone())
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        Ok(Arc::new(config))
    }

    /// For a connection to this one host.
    pub fn client(&self, expected: HostId) -> anyhow::Result<Arc<rustls::ClientConfig>> {
        let verifier = Arc::new(OneHost { expected, verifier: self.verifier.clone() });
        let config = rustls::ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        Ok(Arc::new(config))
    }
}

/// The host that a certificate speaks for. Whose CA signed it is for TLS to check.
pub fn host_of(certificate: &CertificateDer<'_>) -> Option<HostId> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(HOST_URI)?.parse().ok(),
        _ => None,
    })
}

/// Accepts one host, whatever its address.
#[derive(Debug)]
struct OneHost {
    expected: HostId,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl ServerCertVerifier for OneHost {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verifier.verify_client_cert(end_entity, intermediates, now)?;
        if host_of(end_entity) != Some(self.expected) {
            return Err(rustls::Error::General(format!("this is not host {}", self.expected)));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
