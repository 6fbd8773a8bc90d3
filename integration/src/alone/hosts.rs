//! Hosts in memory: they join with a token, speak the link's protocol over mutual TLS as an agent does, and report every
//! order as done the moment it comes. Refuses to run anything: no engine, no ledger, no disk.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use amphi_api::ErrorBody;
use amphi_api::host::{Acceleration, Engine, EngineName, HostSpec, VolumeActivation};
use amphi_api::instance::{MemberStatus, Power};
use amphi_api::resize::SizeStatus;
use amphi_api::wire::{
    Answer, Ask, BodyDesired, BodyState, ExpectedStatus, FromHost, HEARTBEAT_SECONDS, HostDesired,
    HostStatus, InstanceDesired, InstanceStatus, JoinAnswer, JoinRequest, JoinTicket, PROTOCOL,
    SnapshotStatus, ToHost, VolumeStatus,
};
use anyhow::{Context, Result, bail, ensure};
use futures_util::{Sink, SinkExt, StreamExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// Joining, connecting, and waiting for the welcome.
const DEADLINE: Duration = Duration::from_secs(20);
/// As the agent's own.
const MESSAGE_MAX: usize = 16 << 20;
const VOLUME_GROUP: u64 = 1 << 50;

/// A host that is connected for as long as this lives.
pub struct MemoryHost {
    link: JoinHandle<Result<()>>,
}

impl MemoryHost {
    /// Joins and connects; returns when the controller has welcomed it. `ca` is the controller's, PEM, and must be the
    /// one that the token names.
    pub async fn join(name: &str, token: &str, ca: &str) -> Result<Self> {
        let (address, tls) = tokio::time::timeout(DEADLINE, papers(name, token, ca))
            .await
            .with_context(|| format!("{name}: joining took too long"))??;
        let (welcome, welcomed) = tokio::sync::oneshot::channel();
        let spec = spec(name);
        let link = tokio::spawn(async move { talk(address, tls, spec, welcome).await });
        match tokio::time::timeout(DEADLINE, welcomed).await {
            Ok(Ok(())) => Ok(Self { link }),
            Ok(Err(_)) => match link.await {
                Ok(Err(error)) => Err(error.context(format!("{name}: the link ended before the welcome"))),
                _ => bail!("{name}: the link ended before the welcome"),
            },
            Err(_) => bail!("{name}: no welcome within {} s", DEADLINE.as_secs()),
        }
    }

    /// Whether its link still stands.
    pub fn connected(&self) -> bool {
        !self.link.is_finished()
    }
}

impl Drop for MemoryHost {
    fn drop(&mut self) {
        self.link.abort();
    }
}

/// Exchanges the token for a certificate, as `amphi-hostsrv join` does.
async fn papers(name: &str, token: &str, ca: &str) -> Result<(SocketAddr, Arc<rustls::ClientConfig>)> {
    let digits = token.trim().strip_prefix("amphi-").context("not a join token")?;
    let ticket: JoinTicket = serde_json::from_slice(&hex::decode(digits)?).context("not a join token")?;
    let root = CertificateDer::from_pem_slice(ca.as_bytes()).context("the controller's CA")?;
    ensure!(hex::encode(Sha256::digest(&root)) == ticket.ca_sha256, "the token names another CA");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root)?;
    let roots = Arc::new(roots);
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let csr = params.serialize_request(&key)?.pem()?;
    let tls = rustls::ClientConfig::builder().with_root_certificates(roots.clone()).with_no_client_auth();
    let http = reqwest::Client::builder().tls_backend_preconfigured(tls).build()?;
    let request = JoinRequest { secret: ticket.secret, name: name.to_owned(), csr };
    let answer = http.post(format!("{}/hosts/v1/join", ticket.url)).json(&request).send().await?;
    let (status, body) = (answer.status(), answer.bytes().await?);
    if !status.is_success() {
        let said = serde_json::from_slice::<ErrorBody>(&body).map(|b| b.error.message);
        bail!("the controller refused: {}", said.unwrap_or_else(|_| status.to_string()));
    }
    let answer: JoinAnswer = serde_json::from_slice(&body).context("the answer to a join")?;
    let chain =
        CertificateDer::pem_slice_iter(answer.certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())?;
    let tls =
        rustls::ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key)?;
    let authority = ticket.url.strip_prefix("https://").context("the ticket's URL")?;
    Ok((authority.parse().context("the ticket's URL must hold an IP address and a port")?, Arc::new(tls)))
}

async fn talk(
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    spec: HostSpec,
    welcome: tokio::sync::oneshot::Sender<()>,
) -> Result<()> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let name = ServerName::from(address.ip());
    let tls = tokio_rustls::TlsConnector::from(tls).connect(name, tcp).await?;
    let limits =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_MAX)).max_frame_size(Some(MESSAGE_MAX));
    let url = format!("wss://{address}/hosts/v1/link");
    let (socket, _) = tokio_tungstenite::client_async_with_config(url, tls, Some(limits)).await?;
    let (mut up, mut down) = socket.split();
    let engines = spec.engines.clone();
    send(&mut up, &FromHost::Hello { protocol: PROTOCOL, spec }).await?;
    let mut welcome = Some(welcome);
    let mut heartbeat = tokio::time::interval(Duration::from_secs(HEARTBEAT_SECONDS));
    loop {
        tokio::select! {
            message = down.next() => match message.context("the controller closed the link")?? {
                Message::Text(text) => match serde_json::from_str(&text)? {
                    ToHost::Welcome { .. } => {
                        welcome.take().map(|w| w.send(()));
                    }
                    ToHost::Desired(desired) => send(&mut up, &FromHost::Status(done(&desired))).await?,
                    ToHost::Ask { id, ask } => {
                        let answer = Ok(match ask {
                            Ask::ConsoleLog { .. } => Answer::ConsoleLog { text: "a body in memory\n".to_owned() },
                            Ask::Figures => Answer::Figures { rows: Vec::new() },
                            Ask::Usage { .. } => Answer::Usage { members: Vec::new() },
                        });
                        send(&mut up, &FromHost::Answer { id, answer }).await?;
                    }
                    // Nothing runs here that could be looked into: the controller waits in vain.
                    ToHost::Open(_) => {}
                },
                Message::Close(_) => bail!("the controller closed the link"),
                _ => {}
            },
            _ = heartbeat.tick(), if welcome.is_none() => {
                let heartbeat = FromHost::Heartbeat {
                    engines: engines.clone(),
                    volume_group_free_bytes: VOLUME_GROUP,
                    figures: Vec::new(),
                    images: None,
                };
                send(&mut up, &heartbeat).await?;
            }
        }
    }
}

async fn send<S>(up: &mut S, message: &FromHost) -> Result<()>
where
    S: Sink<Message, Error = tokio_tungstenite::tungstenite::Error> + Unpin,
{
    up.send(Message::text(serde_json::to_string(message)?)).await.context("send")
}

/// The status of a host on which all that is desired has come true.
fn done(desired: &HostDesired) -> HostStatus {
    HostStatus {
        generation: desired.generation,
        instances: desired.instances.iter().map(body).collect(),
        expected: desired
            .expected
            .iter()
            .map(|i| ExpectedStatus { id: i.id, epoch: i.epoch, ready: true, fault: None, landed: false })
            .collect(),
        volumes: desired
            .volumes
            .iter()
            .map(|v| VolumeStatus {
                id: v.id,
                size_bytes: v.size_bytes,
                present: true,
                trashed: v.trashed_at.is_some(),
                fault: None,
            })
            .collect(),
        snapshots: desired
            .snapshots
            .iter()
            .map(|s| SnapshotStatus { id: s.id, present: true, fault: None })
            .collect(),
        exports: Vec::new(),
        buried: desired.tombstones.clone(),
        active: Default::default(),
        strangers: Vec::new(),
    }
}

fn body(wanted: &InstanceDesired) -> InstanceStatus {
    let state = match wanted.power {
        Power::On => BodyState::Running,
        Power::Off => BodyState::Stopped,
        Power::Paused => BodyState::Paused,
        Power::Suspended => BodyState::Suspended,
    };
    let running = state == BodyState::Running;
    let member = |name: &str, index| MemberStatus {
        name: name.to_owned(),
        index,
        running,
        generation: wanted.generation_of(name),
        ..MemberStatus::default()
    };
    let members = match &wanted.body {
        BodyDesired::Set { set, .. } | BodyDesired::SetVm { set, .. } => {
            set.members.iter().map(|m| member(&m.name, m.index)).collect()
        }
        BodyDesired::Vm { .. } => Vec::new(),
    };
    InstanceStatus {
        id: wanted.id,
        epoch: wanted.epoch,
        kind: wanted.body.kind(),
        state,
        members,
        agent: None,
        ready: None,
        reason: None,
        restarts: wanted.restarts,
        plugged_ports: wanted.ports.iter().map(|p| p.id).collect(),
        plugged_volumes: wanted.attachments.iter().map(|a| a.volume).collect(),
        rescued: wanted.rescue.is_some(),
        next_ready: wanted.next_body.is_some(),
        next_fault: None,
        fault: None,
        switch_ms: None,
        size: SizeStatus { resizes: wanted.resizes, ..SizeStatus::default() },
        leaving: None,
        copying: None,
    }
}

/// Room for more than a thousand of the bench's instances.
fn spec(name: &str) -> HostSpec {
    let engine = |name| Engine { name, version: "memory".to_owned(), trouble: None };
    let engines = [
        EngineName::Docker,
        EngineName::Libvirt,
        EngineName::Qemu,
        EngineName::Ovs,
        EngineName::Ovn,
        EngineName::Lvm,
    ];
    HostSpec {
        name: name.to_owned(),
        chassis: name.to_owned(),
        address: "127.0.0.1".to_owned(),
        cpus: 256,
        memory_mib: 1 << 20,
        reserved_cpus: 0,
        reserved_memory_mib: 0,
        volume_group_bytes: VOLUME_GROUP,
        volume_group_free_bytes: VOLUME_GROUP,
        acceleration: Acceleration::Kvm,
        activation: VolumeActivation::Dm,
        engines: engines.map(engine).into(),
        shared_groups: Vec::new(),
        physical_networks: Vec::new(),
        moves_at: None,
        takes_passes: false,
        guest_kit: true,
        isolation: None,
        wire: amphi_api::wire::WIRE,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn all_that_is_desired_is_reported_done() {
        let instance = "0197f5a0-0000-7000-8000-000000000001";
        let desired: HostDesired = serde_json::from_value(json!({
            "host": "0197f5a0-0000-7000-8000-000000000002", "generation": 7, "instances": [],
            "volumes": [{ "id": "0197f5a0-0000-7000-8000-000000000003", "size_bytes": 1 << 30, "made": false,
                "source": null, "trashed_at": null }],
            "snapshots": [], "tombstones": [{ "instance": { "id": instance, "epoch": 2 } }],
        }))
        .unwrap();
        let status = done(&desired);
        assert_eq!((status.generation, status.buried), (7, desired.tombstones));
        assert!(status.volumes.len() == 1 && status.volumes[0].present && !status.volumes[0].trashed);
    }
}
