//! The agent's one connection to the controller: desired states come down it, statuses go up; blobs travel beside it.
//! Owns reconnecting. Refuses to interpret: a desired state goes to the reconciler as it came.

use crate::credentials::{Credentials, read_text};
use crate::instance::gauge::Gauge;
use crate::reconcile::Reconciler;
use crate::reconcile::ledger::LedgerError;
use crate::streams;
use amphi_api::HostId;
use amphi_api::group::InstanceFigures;
use amphi_api::host::{Engine, HostSpec};
use amphi_api::instance::{BodyKind, Fault};
use amphi_api::prepull::HostImages;
use amphi_api::unread::{self, Unread};
use amphi_api::wire::{Answer, Ask, FromHost, HEARTBEAT_SECONDS, PROTOCOL, SILENCE_SECONDS, ToHost};
use anyhow::{Context, bail};
use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::ServerName;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::header::AUTHORIZATION;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use uuid::Uuid;

/// Connecting, with TLS and handshake.
pub(crate) const CONNECT: Duration = Duration::from_secs(5);
/// Largest message that is taken: a desired state of some thousand instances.
const MESSAGE_MAX: usize = 16 << 20;
/// How often it is looked whether the host has fenced itself, or may start bodies again.
const FENCES: Duration = Duration::from_millis(200);
/// Longest pause between two tries to connect.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// The host's papers, made by `join`.
pub struct Papers {
    /// The hosts' face: `https://10.0.0.1:7443`.
    pub url: String,
    pub host: HostId,
    pub(crate) tls: Arc<rustls::ClientConfig>,
}

impl Papers {
    /// Reads `pki/{url,host-id,ca.pem,host.pem,host.key}`.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        let ours = Credentials::read(dir)?;
        let tls = rustls::ClientConfig::builder()
            .with_root_certificates(ours.roots)
            .with_client_auth_cert(ours.chain, ours.key)?;
        Ok(Self {
            url: read_text(dir, "url")?,
            host: read_text(dir, "host-id")?.parse()?,
            tls: Arc::new(tls),
        })
    }

    /// Host name and port of the URL.
    pub fn authority(&self) -> anyhow::Result<(String, u16)> {
        let url =
            reqwest::Url::parse(&self.url).with_context(|| format!("the controller's URL {}", self.url))?;
        let host =
            url.host_str().context("the controller's URL has no host")?.trim_matches(['[', ']']).to_owned();
        Ok((host, url.port_or_known_default().unwrap_or(443)))
    }
}

/// What the agent has to say of its host; `facts` rebuilds the second part now and then.
pub struct Voice {
    pub spec: watch::Receiver<Arc<HostSpec>>,
    /// Engines with their present trouble, and the bytes free in the volume group.
    pub health: watch::Receiver<Arc<(Vec<Engine>, u64)>>,
    /// What its bodies use.
    pub gauge: Gauge,
    /// What instances use, of those that the controller asks about.
    pub figures: watch::Receiver<Arc<Vec<InstanceFigures>>>,
    /// What images are here.
    pub images: watch::Receiver<Arc<HostImages>>,
}

/// Stays connected for as long as the process lives. `on_welcome` hears where OVN's southbound database is.
pub async fn run(papers: Papers, reconciler: Arc<Reconciler>, voice: Voice, on_welcome: impl Fn(String)) {
    let papers = Arc::new(papers);
    let mut pause = Duration::from_millis(100);
    loop {
        let began = Instant::now();
        if let Err(error) = session(&papers, &reconciler, &voice, &on_welcome).await {
            tracing::warn!(controller = %papers.url, "the link is gone: {error:#}");
        }
        if began.elapsed() > RETRY_MAX {
            pause = Duration::from_millis(100);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

/// Opens a WebSocket to the hosts' face, with this host's certificate and perhaps a bearer token.
pub(crate) async fn connect(
    papers: &Papers,
    path: &str,
    bearer: Option<&str>,
    message_max: usize,
) -> anyhow::Result<WebSocketStream<TlsStream<TcpStream>>> {
    let (host, port) = papers.authority()?;
    let connected = async {
        let tcp = TcpStream::connect((host.as_str(), port)).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
        let tls = tokio_rustls::TlsConnector::from(papers.tls.clone()).connect(name, tcp).await?;
        let limits =
            WebSocketConfig::default().max_message_size(Some(message_max)).max_frame_size(Some(message_max));
        let mut request = format!("wss://{host}:{port}{path}").into_client_request()?;
        if let Some(bearer) = bearer {
            request.headers_mut().insert(AUTHORIZATION, format!("Bearer {bearer}").parse()?);
        }
        let (socket, _) = tokio_tungstenite::client_async_with_config(request, tls, Some(limits)).await?;
        anyhow::Ok(socket)
    };
    tokio::time::timeout(CONNECT, connected).await.context("connecting took too long")?
}

async fn session(
    papers: &Arc<Papers>,
    reconciler: &Arc<Reconciler>,
    voice: &Voice,
    on_welcome: &impl Fn(String),
) -> anyhow::Result<()> {
    // What comes over this link is good for this boot only.
    let boot = reconciler.boot();
    let socket = connect(papers, "/hosts/v1/link", None, MESSAGE_MAX).await?;
    let (mut up, mut down) = socket.split();
    let (answers, mut answered) = mpsc::channel::<FromHost>(64);
    let (mut spec, mut status) = (voice.spec.clone(), reconciler.status());
    let (mut figures, mut images) = (voice.figures.clone(), voice.images.clone());
    let mut heartbeat = tokio::time::interval(Duration::from_secs(HEARTBEAT_SECONDS));
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut fences = tokio::time::interval(FENCES);
    fences.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut leased = reconciler.may_start().is_ok();
    let mut heard = Instant::now();
    let mut welcomed = false;
    spec.mark_changed();
    status.mark_changed();
    images.mark_changed();
    loop {
        let message = tokio::select! {
            message = down.next() => {
                heard = Instant::now();
                match message.context("the controller closed the link")?? {
                    Message::Text(text) => {
                        let message = unread::to_host(&text).context("a message that this agent cannot read")?;
                        welcomed |= receive(message, boot, papers, reconciler, &voice.gauge, &answers, on_welcome)?;
                        continue;
                    }
                    Message::Close(_) => bail!("the controller closed the link"),
                    _ => continue,
                }
            }
            changed = spec.changed() => {
                changed?;
                FromHost::Hello { protocol: PROTOCOL, spec: (**spec.borrow_and_update()).clone() }
            }
            // What is seen is told only once the controller has taken the hello.
            changed = status.changed(), if welcomed => {
                changed?;
                FromHost::Status((**status.borrow_and_update()).clone())
            }
            Some(answer) = answered.recv() => answer,
            _ = fences.tick() => {
                if reconciler.boot() != boot {
                    bail!("this host has fenced itself; the controller is asked anew");
                }
                if std::mem::replace(&mut leased, reconciler.may_start().is_ok()) != leased {
                    reconciler.look_again();
                }
                continue;
            }
            _ = heartbeat.tick() => {
                if heard.elapsed() > Duration::from_secs(SILENCE_SECONDS) {
                    bail!("the controller has been silent for {} s", heard.elapsed().as_secs());
                }
                up.send(Message::Ping(Default::default())).await?;
                if !welcomed {
                    continue;
                }
                let health = voice.health.borrow().clone();
                // Each measurement is told once.
                let news = figures.has_changed().unwrap_or(false);
                let figures = if news { figures.borrow_and_update().to_vec() } else { Vec::new() };
                let news = images.has_changed().unwrap_or(false);
                let images = news.then(|| (**images.borrow_and_update()).clone());
                FromHost::Heartbeat {
                    engines: health.0.clone(),
                    volume_group_free_bytes: health.1,
                    figures,
                    images,
                }
            }
        };
        let text = serde_json::to_string(&message)?;
        tokio::time::timeout(CONNECT, up.send(Message::text(text)))
            .await
            .context("sending took too long")??;
    }
}

/// Takes one message; true when it was the welcome.
fn receive(
    (message, unread): (ToHost, Vec<Unread>),
    boot: Uuid,
    papers: &Arc<Papers>,
    reconciler: &Arc<Reconciler>,
    gauge: &Gauge,
    answers: &mpsc::Sender<FromHost>,
    on_welcome: &impl Fn(String),
) -> anyhow::Result<bool> {
    match message {
        ToHost::Welcome { ovn_remote, .. } => {
            on_welcome(ovn_remote);
            return Ok(true);
        }
        ToHost::Desired(desired) => {
            let generation = desired.generation;
            match reconciler.accept_read(boot, desired, unread) {
                Err(LedgerError::OtherBoot) => {
                    bail!("this host has fenced itself; the controller is asked anew")
                }
                Ok(()) => tracing::debug!(generation, "new desired state"),
                // Refused, not followed: an older state never undoes a newer one. The link stays, so that it is seen.
                Err(error) => tracing::error!("{error}"),
            }
        }
        ToHost::Ask { id, ask } => {
            let (reconciler, gauge, answers) = (reconciler.clone(), gauge.clone(), answers.clone());
            tokio::spawn(async move {
                let answer = answer(&reconciler, &gauge, ask).await;
                // A full or closed channel means that the link is going: the controller's own deadline answers.
                let _ = answers.send(FromHost::Answer { id, answer }).await;
            });
        }
        // It has a connection of its own, and outlives a link that breaks.
        ToHost::Open(order) => {
            tokio::spawn(streams::serve(papers.clone(), reconciler.clone(), order));
        }
    }
    Ok(false)
}

async fn answer(reconciler: &Reconciler, gauge: &Gauge, ask: Ask) -> Result<Answer, Fault> {
    let fault =
        |code: &str, message: String| Fault { code: code.into(), message, since: jiff::Timestamp::now() };
    match ask {
        Ask::Figures => Ok(Answer::Figures { rows: gauge.read().await }),
        Ask::ConsoleLog { instance, member, lines } => {
            let status = reconciler.status().borrow().clone();
            let kind = status.instances.iter().find(|i| i.id == instance).map(|i| i.kind);
            let Some(driver) = kind.and_then(|k: BodyKind| reconciler.driver(k)) else {
                return Err(fault("not_here", format!("instance {instance} has no body on this host")));
            };
            match driver.console_log(instance, member.as_deref(), lines).await {
                Ok(text) => Ok(Answer::ConsoleLog { text }),
                Err(error) => Err(fault(error.code(), error.to_string())),
            }
        }
        Ask::Usage { instance } => {
            let members = reconciler.usage(instance).await;
            members
                .map(|members| Answer::Usage { members })
                .map_err(|error| fault(error.code(), error.to_string()))
        }
    }
}
