//! The end on the host that a guest leaves: three local sockets, each of which leads to the other host's engine for as long
//! as the passage is kept.

use super::bytes::{self, Pass, PassError, Progress};
use super::changes::Blocks;
use super::medium::Medium;
use super::{Answer, CONNECT, Door, Knock, LINE_MAX, ONLY_CHANGES, RECEIVE, folder_of, make_folder, watch};
use crate::instance::moves::Departure;
use crate::lease::tls::PeerPapers;
use crate::peer_wire::{read, write};
use amphi_api::{HostId, InstanceId};
use anyhow::{Context, anyhow};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{BufReader, copy_bidirectional};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

/// Opens passages, with this host's papers.
pub struct Passages {
    papers: PeerPapers,
    run_dir: PathBuf,
}

/// Local sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sockets {
    pub engine: PathBuf,
    pub memory: PathBuf,
    pub disks: PathBuf,
}

/// One guest's way, open until it is dropped.
pub struct Passage {
    way: Arc<Way>,
    _doors: JoinSet<()>,
}

struct Way {
    departure: Departure,
    tls: Arc<rustls::ClientConfig>,
    folder: PathBuf,
}

impl Passages {
    /// `pki`: where the papers of the host's joining lie.
    pub fn new(pki: &Path, run_dir: impl Into<PathBuf>) -> anyhow::Result<Self> {
        Ok(Self { papers: PeerPapers::read(pki)?, run_dir: run_dir.into() })
    }

    pub fn open(&self, departure: &Departure) -> anyhow::Result<Passage> {
        let folder = folder_of(&self.run_dir, departure.instance);
        make_folder(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let tls = self.papers.client(departure.to)?;
        let way = Arc::new(Way { departure: departure.clone(), tls, folder });
        let mut doors = JoinSet::new();
        for door in [Door::Engine, Door::Memory, Door::Disks] {
            let path = way.folder.join(door.file());
            let listener =
                UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
            // The engine's user connects; which one that is, is libvirt's to know.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
            doors.spawn(keep(listener, way.clone(), door));
        }
        Ok(Passage { way, _doors: doors })
    }
}

/// Where an instance's bytes go.
#[derive(Clone, Copy, Debug)]
pub struct Road {
    pub instance: InstanceId,
    /// Its epoch there.
    pub epoch: u64,
    pub to: HostId,
    pub address: SocketAddr,
}

impl Passages {
    /// Where this agent keeps what a restart of the host ends.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// One pass over a part of an instance's bytes. `medium` is what it lies on here; `changed`: what is not as it was after the
    /// pass that this one builds on.
    pub async fn send(
        &self,
        road: &Road,
        pass: &Pass,
        medium: Arc<Medium>,
        changed: Option<Blocks>,
        progress: &Progress,
    ) -> Result<(), PassError> {
        let folder = folder_of(&self.run_dir, road.instance);
        let knock = Knock {
            instance: road.instance,
            epoch: road.epoch,
            folder,
            to: Door::Bytes,
            pass: Some(pass.clone()),
        };
        let tls = self.papers.client(road.to)?;
        let (mut stream, how) = knock.knock(tls, road.address, RECEIVE).await?;
        let changed = match changed {
            Some(changed) if how == ONLY_CHANGES => Some(changed),
            Some(changed) => {
                let known = changed.count() * bytes::BLOCK as u64;
                progress.all.fetch_add(pass.size.saturating_sub(known), Ordering::Relaxed);
                None
            }
            None => None,
        };
        bytes::send(&mut stream, medium, pass.size, changed, progress).await
    }
}

impl Passage {
    /// Has the other host make everything ready; the definition that it would make.
    pub async fn receive(&self) -> Result<String, String> {
        let asked = async {
            let (_, answer) = self.way.knock(Door::Receive, RECEIVE).await?;
            anyhow::Ok(answer)
        };
        asked.await.map_err(|error| format!("{error:#}"))
    }

    pub fn sockets(&self) -> Sockets {
        let path = |door: Door| self.way.folder.join(door.file());
        Sockets { engine: path(Door::Engine), memory: path(Door::Memory), disks: path(Door::Disks) }
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        // Whatever stays lies on a tmpfs and is replaced by the next passage.
        let _gone = std::fs::remove_dir_all(&self.folder);
    }
}

/// Takes connections until the passage ends; those that were taken end with it.
async fn keep(listener: UnixListener, way: Arc<Way>, door: Door) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            taken = listener.accept() => match taken {
                Ok((local, _)) => {
                    let way = way.clone();
                    open.spawn(async move {
                        if let Err(error) = way.join(local, door).await {
                            tracing::info!(instance = %way.departure.instance, ?door, "a way has ended: {error:#}");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot take an engine's connection");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            },
            Some(_ended) = open.join_next() => {}
        }
    }
}

impl Way {
    async fn knock(
        &self,
        to: Door,
        limit: Duration,
    ) -> anyhow::Result<(BufReader<TlsStream<TcpStream>>, String)> {
        let (instance, epoch) = (self.departure.instance, self.departure.epoch);
        let knock = Knock { instance, epoch, folder: self.folder.clone(), to, pass: None };
        knock.knock(self.tls.clone(), self.departure.address, limit).await
    }

    async fn join(&self, mut local: UnixStream, door: Door) -> anyhow::Result<()> {
        let (mut stream, _) = self.knock(door, CONNECT).await?;
        copy_bidirectional(&mut local, &mut stream).await?;
        Ok(())
    }
}

impl Knock {
    async fn knock(
        &self,
        tls: Arc<rustls::ClientConfig>,
        address: SocketAddr,
        limit: Duration,
    ) -> anyhow::Result<(BufReader<TlsStream<TcpStream>>, String)> {
        let connected = async {
            let tcp = TcpStream::connect(address).await?;
            watch(&tcp)?;
            let name = rustls::pki_types::ServerName::from(address.ip());
            anyhow::Ok(tokio_rustls::TlsConnector::from(tls).connect(name, tcp).await?)
        };
        let connected =
            timeout(CONNECT, connected).await.map_err(|_| anyhow!("no connection to {address} in time"))?;
        let mut stream = BufReader::new(connected.with_context(|| format!("no connection to {address}"))?);
        write(&mut stream, self).await?;
        let answer: Answer =
            timeout(limit, read(&mut stream, LINE_MAX)).await.context("no answer in time")??;
        let answer = answer.map_err(|refusal| anyhow!("the other host says: {refusal}"))?;
        Ok((stream, answer))
    }
}
