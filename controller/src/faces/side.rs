//! Between the hosts' face and `ops`: translates their words into each other's, both ways. Decides nothing.

use super::hosts::{AskError as LinkError, HostSide, Links, Refusal};
use crate::images::BlobRead;
use crate::ops::{AskError, BlobStream, HostLinks, Ops, OpsError};
use crate::pki::Ca;
use crate::streams::HostStream;
use amphi_api::group::InstanceFigures;
use amphi_api::host::{Engine, HostSpec};
use amphi_api::prepull::HostImages;
use amphi_api::streams::StreamTarget;
use amphi_api::wire::{Answer, Ask, HostDesired, HostStatus, JoinAnswer, JoinRequest};
use amphi_api::{ErrorCode, HostId, ImageId, InstanceId};
use async_trait::async_trait;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// What hosts say, handed to `ops`.
pub struct Side {
    pub ops: Arc<Ops>,
    pub ca: Arc<Ca>,
    /// OVN's southbound database, as hosts reach it.
    pub ovn_remote: String,
}

impl From<OpsError> for Refusal {
    fn from(error: OpsError) -> Self {
        Refusal::new(error.code(), error.to_string())
    }
}

#[async_trait]
impl HostSide for Side {
    async fn join(&self, request: JoinRequest) -> Result<JoinAnswer, Refusal> {
        // A request that cannot be signed must not spend its token: sign for nobody first.
        let refused = |e: anyhow::Error| Refusal::new(ErrorCode::InvalidField, format!("csr: {e:#}"));
        self.ca.sign_host(&request.csr, HostId(uuid::Uuid::nil())).map_err(refused)?;
        let host = self.ops.join(&request.secret, &request.name).await?;
        let certificate = self.ca.sign_host(&request.csr, host).map_err(refused)?;
        Ok(JoinAnswer { host, certificate, ca: self.ca.pem().to_owned() })
    }

    async fn hello(&self, host: HostId, spec: HostSpec) -> Result<String, Refusal> {
        self.ops.hello(host, &spec).await?;
        Ok(self.ovn_remote.clone())
    }

    async fn heartbeat(&self, host: HostId, engines: Vec<Engine>, volume_group_free_bytes: u64) {
        told(host, "heartbeat", self.ops.heartbeat(host, &engines, volume_group_free_bytes).await);
    }

    fn figures(&self, host: HostId, figures: &[InstanceFigures]) {
        self.ops.take_figures(host, figures);
    }

    async fn images(&self, host: HostId, images: HostImages) {
        told(host, "images", self.ops.take_images(host, &images).await);
    }

    async fn status(&self, host: HostId, status: HostStatus) {
        told(host, "status", self.ops.status(host, status).await);
    }

    async fn gone(&self, host: HostId) {
        told(host, "goodbye", self.ops.gone(host).await);
    }

    async fn desired(&self, host: HostId) -> Arc<HostDesired> {
        self.ops.desired(host)
    }

    fn desired_generation(&self, host: HostId) -> watch::Receiver<u64> {
        self.ops.desired_generation(host)
    }

    async fn blob_allowed(&self, host: HostId, sha256: &str) -> bool {
        self.ops.blob_allowed(host, sha256)
    }

    fn listens_at(&self, host: HostId) -> Option<SocketAddr> {
        self.ops.listens_at(host)
    }

    async fn read_blob(&self, sha256: &str, from: u64) -> Result<(BlobRead, u64), Refusal> {
        Ok(self.ops.read_blob(sha256, from).await?)
    }

    async fn take_export(&self, image: ImageId, sha256: &str, bytes: BlobStream) -> Result<(), Refusal> {
        Ok(self.ops.take_export(image, sha256, bytes).await?)
    }
}

/// What could not be recorded now is tried again: a heartbeat by the next, a status by its task, a goodbye by the
/// look for silent hosts.
fn told(host: HostId, what: &str, outcome: Result<(), OpsError>) {
    if let Err(error) = outcome {
        tracing::warn!(%host, what, %error, "not recorded");
    }
}

impl From<LinkError> for AskError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::NotConnected => Self::NoLink,
            LinkError::Timeout => Self::Timeout,
            LinkError::Refused(fault) => Self::Fault(fault),
        }
    }
}

#[async_trait]
impl HostLinks for Links {
    async fn ask(&self, host: HostId, ask: Ask) -> Result<Answer, AskError> {
        Links::ask(self, host, ask).await.map_err(AskError::from)
    }

    async fn stream(
        &self,
        host: HostId,
        instance: InstanceId,
        what: StreamTarget,
    ) -> Result<HostStream, AskError> {
        Links::stream(self, host, instance, what).await.map_err(AskError::from)
    }

    fn is_linked(&self, host: HostId) -> bool {
        self.is_up(host)
    }

    fn end(&self, host: HostId) {
        Links::end(self, host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::Cloud;
    use amphi_api::host::JoinTokenCreate;
    use amphi_api::wire::JoinTicket;

    #[tokio::test]
    async fn a_request_that_cannot_be_signed_spends_no_token() {
        let cloud = Cloud::new().await;
        let dir = tempfile::tempdir().unwrap();
        let ca = Arc::new(Ca::open(dir.path()).unwrap());
        let side = Side { ops: cloud.ops.clone(), ca, ovn_remote: "tcp:10.0.0.1:6642".into() };
        let token = cloud.ops.create_join_token(&JoinTokenCreate::default()).await.unwrap().token;
        let ticket = hex::decode(token.strip_prefix("amphi-").unwrap()).unwrap();
        let ticket: JoinTicket = serde_json::from_slice(&ticket).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let csr = rcgen::CertificateParams::new(vec![]).unwrap().serialize_request(&key).unwrap();
        let request = |csr: String| JoinRequest { secret: ticket.secret.clone(), name: "h1".into(), csr };
        let refusal = side.join(request("nonsense".into())).await.unwrap_err();
        assert_eq!(refusal.code, ErrorCode::InvalidField);
        let answer = side.join(request(csr.pem().unwrap())).await.unwrap();
        assert!(answer.certificate.contains("BEGIN CERTIFICATE"));
        let refusal = side.join(request(csr.pem().unwrap())).await.unwrap_err();
        assert_eq!(refusal.code, ErrorCode::Forbidden, "a token is good once");
        let spec = crate::ops::tests::spec("h1");
        assert_eq!(side.hello(answer.host, spec).await.unwrap(), "tcp:10.0.0.1:6642");
    }
}
