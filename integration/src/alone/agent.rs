//! A host's agent over engines in memory: the agent's own link, reconciler, ledger and image cache, composed as its
//! `main` does, without switch, lease and facts. Runs as a process (`amphi-lab agent`) that can be killed, or as tasks.

use crate::engines::{EnginePort, MemoryBodies, MemoryVolumes};
use amphi_api::group::InstanceFigures;
use amphi_api::host::{Acceleration, Engine, EngineName, HostSpec, VolumeActivation};
use amphi_api::instance::BodyKind;
use amphi_api::prepull::HostImages;
use amphi_hostsrv::blobs::ControllerBlobs;
use amphi_hostsrv::convert::Converter;
use amphi_hostsrv::crossing;
use amphi_hostsrv::facts::ledger_in_trouble;
use amphi_hostsrv::images::ImageCache;
use amphi_hostsrv::images::prepull::{self, CacheOnly};
use amphi_hostsrv::instance::gauge::Gauge;
use amphi_hostsrv::instance::{Bell, BodyDriver};
use amphi_hostsrv::lease::tls::PeerPapers;
use amphi_hostsrv::link::{self, Papers, Voice};
use amphi_hostsrv::reconcile::exports::Exporter;
use amphi_hostsrv::reconcile::ledger::Ledger;
use amphi_hostsrv::reconcile::{Drivers, Reconciler, Troubles};
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// Of a host's volume group, in bytes.
const VOLUME_GROUP: u64 = 1 << 50;

/// Where a host in memory lives.
#[derive(Clone)]
pub struct Home {
    pub name: String,
    /// Holds `pki/`, the ledger, images.
    pub state: PathBuf,
    /// Another one after each loss of power.
    pub run: PathBuf,
    /// The hosts' face as this host reaches it; none: as its papers say.
    pub url: Option<String>,
    pub size: Size,
}

/// What a host has.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub cpus: u32,
    pub memory_mib: u64,
}

impl Home {
    pub fn pki(&self) -> PathBuf {
        self.state.join("pki")
    }

    fn spec(&self, troubles: &Troubles) -> HostSpec {
        HostSpec {
            name: self.name.clone(),
            chassis: self.name.clone(),
            address: "127.0.0.1".to_owned(),
            cpus: self.size.cpus,
            memory_mib: self.size.memory_mib,
            reserved_cpus: 0,
            reserved_memory_mib: 0,
            volume_group_bytes: VOLUME_GROUP,
            volume_group_free_bytes: VOLUME_GROUP,
            acceleration: Acceleration::Kvm,
            activation: VolumeActivation::Dm,
            engines: engines(troubles),
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
}

fn engines(troubles: &Troubles) -> Vec<Engine> {
    let body = |kind| troubles.bodies.get(&kind).cloned();
    [
        (EngineName::Docker, body(BodyKind::Set)),
        (EngineName::Libvirt, body(BodyKind::Vm)),
        (EngineName::Qemu, None),
        (EngineName::Ovs, None),
        (EngineName::Ovn, None),
        (EngineName::Lvm, troubles.volumes.clone()),
    ]
    .map(|(name, trouble)| Engine { name, version: "memory".to_owned(), trouble })
    .into_iter()
    .chain(ledger_in_trouble(troubles))
    .collect()
}

/// An agent as tasks of this process; they end with it.
pub struct Agent {
    home: Home,
    reconciler: Arc<Reconciler>,
    spec: watch::Receiver<Arc<HostSpec>>,
    health: watch::Receiver<Arc<(Vec<Engine>, u64)>>,
    /// Nothing is measured here.
    figures: watch::Sender<Arc<Vec<InstanceFigures>>>,
    images: watch::Receiver<Arc<HostImages>>,
    link: AbortHandle,
    tasks: JoinSet<()>,
}

impl Agent {
    /// The host has joined before.
    pub fn start(home: &Home, port: &EnginePort) -> Result<Self> {
        Self::start_at(home, port, None)
    }

    /// The same; with a listener it takes blobs from other hosts, and hands on what it gets.
    pub fn start_at(home: &Home, port: &EnginePort, gate: Option<std::net::TcpListener>) -> Result<Self> {
        let papers = papers(home)?;
        let ledger = Ledger::open(&home.state, &home.run)?;
        let driver = |kind| -> (BodyKind, Arc<dyn BodyDriver>) {
            (kind, Arc::new(MemoryBodies { kind, port: port.clone() }))
        };
        let mut blobs = ControllerBlobs::new(&papers)?;
        let mut moves_at = None;
        if let Some(gate) = &gate {
            blobs = blobs.with_peers(PeerPapers::read(&home.pki())?);
            moves_at = Some(gate.local_addr()?);
        }
        let blobs = Arc::new(blobs);
        let drivers = Drivers {
            bodies: BTreeMap::from([driver(BodyKind::Set), driver(BodyKind::Vm)]),
            volumes: Arc::new(MemoryVolumes { port: port.clone() }),
            images: Arc::new(ImageCache::new(home.state.join("images"), blobs.clone())),
            exports: Arc::new(Exporter::new(home.state.join("exports"), blobs)),
            converter: Arc::new(Converter::new(None)),
        };
        let reconciler = Reconciler::new(drivers, ledger, Bell::default());
        let well = Troubles::default();
        let (specs, spec) = watch::channel(Arc::new(HostSpec { moves_at, ..home.spec(&well) }));
        let (healths, health) = watch::channel(Arc::new((engines(&well), VOLUME_GROUP)));
        let mut tasks = JoinSet::new();
        let mut troubles = reconciler.troubles();
        let described = home.clone();
        tasks.spawn(async move {
            while troubles.changed().await.is_ok() {
                let now = troubles.borrow_and_update().clone();
                healths.send_replace(Arc::new((engines(&now), VOLUME_GROUP)));
                specs.send_replace(Arc::new(HostSpec { moves_at, ..described.spec(&now) }));
            }
        });
        if let Some(gate) = gate {
            gate.set_nonblocking(true)?;
            let (gate, papers) = (tokio::net::TcpListener::from_std(gate)?, PeerPapers::read(&home.pki())?);
            // No engine of this host takes guests that come while they run.
            let here = crossing::Host { run_dir: home.run.clone(), engine: home.run.join("no-engine") };
            tasks.spawn(crossing::serve(gate, papers, here, reconciler.clone()));
        }
        let looping = reconciler.clone();
        tasks.spawn(async move { looping.run(|| ()).await });
        let (told, images) = watch::channel(Arc::default());
        let cache = reconciler.images().clone();
        let containers = Arc::new(CacheOnly::new(cache.clone()));
        tasks.spawn(prepull::keep(cache, containers, reconciler.orders(), told));
        let link = tasks.spawn(std::future::ready(()));
        let mut agent = Self {
            home: home.clone(),
            reconciler,
            spec,
            health,
            figures: watch::Sender::default(),
            images,
            link,
            tasks,
        };
        agent.link()?;
        Ok(agent)
    }

    /// As an engine's own event does.
    pub fn look(&self) {
        self.reconciler.look_again();
    }

    pub fn images(&self) -> Arc<ImageCache> {
        self.reconciler.images().clone()
    }

    /// Connects at once, however long the pause after the last failure has grown.
    pub fn link(&mut self) -> Result<()> {
        self.link.abort();
        let (gauge, figures) = (Gauge::default(), self.figures.subscribe());
        let (spec, health, images) = (self.spec.clone(), self.health.clone(), self.images.clone());
        let voice = Voice { spec, health, gauge, figures, images };
        self.link = self.tasks.spawn(link::run(papers(&self.home)?, self.reconciler.clone(), voice, |_| ()));
        Ok(())
    }
}

fn papers(home: &Home) -> Result<Papers> {
    let mut papers = Papers::read(&home.pki())?;
    if let Some(url) = &home.url {
        papers.url = url.clone();
    }
    Ok(papers)
}

/// The process: runs until it is killed.
pub fn run(home: &Home, socket: &Path) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::new("info");
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_env_filter(filter).init();
    // It fails only if one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let _agent = Agent::start(home, &EnginePort::There(socket.to_owned()))?;
        std::future::pending().await
    })
}
