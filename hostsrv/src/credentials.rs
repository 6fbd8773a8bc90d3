//! Owns the reading of what this host proves itself with: `pki/{ca.pem,host.pem,host.key}`, made by `join`. Refuses to
//! know whom it is shown to.

use anyhow::Context;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;

pub struct Credentials {
    /// The controller's CA: it signs the controller's certificate and those of all hosts.
    pub roots: RootCertStore,
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Credentials {
    pub fn read(pki: &Path) -> anyhow::Result<Self> {
        let text = |name| read_text(pki, name);
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(text("ca.pem")?.as_bytes()) {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_slice_iter(text("host.pem")?.as_bytes()).collect::<Result<_, _>>()?;
        Ok(Self { roots, chain, key: PrivateKeyDer::from_pem_slice(text("host.key")?.as_bytes())? })
    }
}

/// One of the files that joining made, without the space around it.
pub fn read_text(pki: &Path, name: &str) -> anyhow::Result<String> {
    let path = pki.join(name);
    std::fs::read_to_string(&path).map(|t| t.trim().to_owned()).with_context(|| {
        format!("cannot read {}: has this host joined? (amphi-hostsrv join TOKEN)", path.display())
    })
}
