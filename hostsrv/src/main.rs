//! The host agent's composition root: reads the configuration, makes the drivers, starts the loop and the link. Decides
//! nothing.

use amphi_api::instance::BodyKind;
use amphi_api::{lean, urgency};
use amphi_hostsrv::blobs::ControllerBlobs;
use amphi_hostsrv::config::Config;
use amphi_hostsrv::convert::Converter;
use amphi_hostsrv::facts::{Facts, Sources};
use amphi_hostsrv::images::registry::Registry;
use amphi_hostsrv::images::{ImageCache, prepull};
use amphi_hostsrv::instance::figures::Meter;
use amphi_hostsrv::instance::gauge::Gauge;
use amphi_hostsrv::instance::set::{SetDriver, SetMeter, SetOptions};
use amphi_hostsrv::instance::vm::{Kit, VmDriver, probe};
use amphi_hostsrv::instance::{Bell, BodyDriver, PortGate};
use amphi_hostsrv::lease::tls::PeerPapers;
use amphi_hostsrv::monitoring::{Monitoring, load};
use amphi_hostsrv::network::{Flows, ovs};
use amphi_hostsrv::reconcile::exports::Exporter;
use amphi_hostsrv::reconcile::ledger::Ledger;
use amphi_hostsrv::reconcile::{Drivers, Reconciler};
use amphi_hostsrv::signals::end_signal;
use amphi_hostsrv::storage::{Groups, LvmConfig, LvmDriver, VolumeDriver};
use amphi_hostsrv::{crossing, join, lease, link, metadata, upkeep};
use anyhow::Context;
use clap::{Parser, Subcommand};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;

/// Amphi's host agent: makes VMs and container sets out of the controller's desired state.
#[derive(Parser)]
#[command(name = "amphi-hostsrv", version)]
struct Arguments {
    /// The configuration file, TOML.
    #[arg(long, default_value = "/etc/amphi/hostsrv.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Exchange a join token for this host's certificate.
    Join { token: String },
    /// Run the agent. Stopping it disturbs no guest.
    Run,
    /// Serve Docker's network, IPAM and volume drivers; started before dockerd, it outlives the agent.
    DockerPlugin,
    /// Keep this host's lease, and end its guests when it is lost. Runs beside the agent, whatever becomes of that.
    Lease {
        /// This host runs no bodies: it only votes.
        #[arg(long)]
        witness: bool,
    },
}

fn main() -> anyhow::Result<()> {
    lean::keep_small();
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .init();
    // Two providers end up in the tree; this one is meant. It fails only if one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Arc::new(Config::read(&arguments.config)?);
    if matches!(arguments.command, Command::Lease { .. }) {
        // The runtime's threads inherit it.
        if let Err(why) = urgency::real_time() {
            tracing::warn!("the lease process may be late on a busy host: {why}");
        }
        if let Err(why) = urgency::stay_in_memory() {
            tracing::warn!("the lease process may be swapped out: {why}");
        }
    }
    // Two workers: the agent waits nearly always, and its memory counts fifty times on a rack.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match arguments.command {
            Command::Join { token } => {
                let answer = join::join(&config.name, &config.pki_dir(), &token).await?;
                println!("joined as {} ({})", config.name, answer.host);
                Ok(())
            }
            Command::Run => run(config).await,
            Command::DockerPlugin => docker_plugin(&config).await,
            Command::Lease { witness } => lease::serve(&config, witness).await,
        }
    })
}

/// The plug-in must not keep loop windows open: the agent could then not detach them.
async fn volumes(config: &Config, keeps_devices: bool) -> anyhow::Result<Arc<dyn VolumeDriver>> {
    let open = async |group: &str, shared: bool| {
        let mut lvm = LvmConfig::new(group, &config.state_dir, &config.run_dir);
        lvm.keeps_devices = keeps_devices;
        lvm.shared = shared;
        LvmDriver::open(lvm).await.context("LVM")
    };
    let own = open(&config.volume_group, false).await?;
    let mut shared = Vec::new();
    for group in &config.shared_volume_groups {
        shared.push(open(group, true).await?);
    }
    Ok(if shared.is_empty() { Arc::new(own) } else { Arc::new(Groups::new(own, shared)) })
}

async fn run(config: Arc<Config>) -> anyhow::Result<()> {
    let papers = link::Papers::read(&config.pki_dir())?;
    let ledger = Ledger::open(&config.state_dir, &config.run_dir)?;
    let bell: Bell = Arc::default();
    // Before libvirt is touched: its own look at a broken /dev/kvm can hang for most of a minute.
    let acceleration = probe::acceleration().await;
    let switch = Arc::new(ovs::Switch::open(&config.ovsdb, &config.integration_bridge)?);
    let gate: Arc<dyn PortGate> = Arc::new(Flows::new(switch.clone()));
    let peers = PeerPapers::read(&config.pki_dir())?;
    let blobs = Arc::new(ControllerBlobs::new(&papers)?.with_peers(peers));
    let images = Arc::new(ImageCache::new(config.state_dir.join("images"), blobs.clone()));
    let registry = Registry::serve(images.clone(), config.registry_listen).await;
    let registry =
        registry.with_context(|| format!("cannot listen on {} (registry_listen)", config.registry_listen))?;
    let options = SetOptions {
        gate: Some(gate.clone()),
        docker_root: config.docker_root.clone(),
        registry: Some(registry),
        ..SetOptions::default()
    };
    let docker = Arc::new(SetDriver::new(&config.docker, &config.state_dir, bell.clone(), options)?);
    let sets: Arc<dyn BodyDriver> = docker.clone();
    let vms = VmDriver::new(
        &config.libvirt,
        &config.state_dir,
        &config.integration_bridge,
        acceleration,
        bell.clone(),
    );
    let passages = crossing::Passages::new(&config.pki_dir(), &config.run_dir)?;
    let kit = Kit::find(&config.guest_kit)
        .inspect_err(|why| tracing::warn!("no set can run as a VM here: {why}"))
        .ok();
    let guest_kit = kit.is_some();
    let converts = kit.as_ref().and_then(|kit| kit.converts(acceleration));
    let converter = Arc::new(Converter::new(converts.map(|guest| (guest, vms.roots()))));
    let vms = Arc::new(vms.with_passages(passages).with_gate(gate).with_kit(kit));
    let meters: Vec<Arc<dyn Meter>> = vec![Arc::new(SetMeter::new(&config.docker_root)), vms.clone()];
    let gauge = Gauge::new(meters.clone());
    let vms: Arc<dyn BodyDriver> = vms;
    let exports = Arc::new(Exporter::new(config.state_dir.join("exports"), blobs));
    let drivers = Drivers {
        bodies: BTreeMap::from([(BodyKind::Set, sets), (BodyKind::Vm, vms)]),
        volumes: volumes(&config, true).await?,
        images,
        exports,
        converter,
    };
    let sources = Sources {
        config: config.clone(),
        drivers: drivers.clone(),
        switch: switch.clone(),
        acceleration,
        guest_kit,
    };
    let mut facts = Facts::new(sources).await;
    let spec = facts.gather().await?;
    let health = watch::Sender::new(Arc::new((spec.engines.clone(), spec.volume_group_free_bytes)));
    let spec = watch::Sender::new(Arc::new(spec));
    let reconciler = Reconciler::new(drivers.clone(), ledger, bell);
    reconciler.send_through(crossing::Passages::new(&config.pki_dir(), &config.run_dir)?, &config.state_dir);
    let (told, figures) = watch::channel(Arc::default());
    tokio::spawn(load::keep(meters.clone(), reconciler.orders(), told));
    let (told, images) = watch::channel(Arc::default());
    tokio::spawn(prepull::keep(drivers.images.clone(), docker.clone(), reconciler.orders(), told));
    let voice = link::Voice { spec: spec.subscribe(), health: health.subscribe(), gauge, figures, images };
    tokio::spawn(facts.run(spec, health, reconciler.troubles()));
    let address = config.moves_listen();
    let gate = tokio::net::TcpListener::bind(address).await;
    let gate = gate.with_context(|| format!("cannot listen on {address} (moves_listen)"))?;
    let engine = crossing::engine_socket(&config.libvirt);
    let here = crossing::Host { run_dir: config.run_dir.clone(), engine };
    let peers = PeerPapers::read(&config.pki_dir())?;
    tokio::spawn(crossing::serve(gate, peers, here, reconciler.clone()));
    let (remote, remotes) = watch::channel(String::new());
    tokio::spawn(upkeep::keep_chassis(config.clone(), switch.clone(), remotes));
    let places = metadata::Places::default();
    reconciler.ask_from(places.clone(), &config.run_dir);
    tokio::spawn(metadata::keep(switch.clone(), reconciler.orders(), places));
    let (file, host) = (config.monitoring.clone(), config.name.as_str().into());
    tokio::spawn(Monitoring { file, host, meters, orders: reconciler.orders() }.run());
    tokio::spawn(upkeep::sweep_network(switch));
    tokio::spawn(upkeep::sweep_images(config.clone(), drivers.images, docker, reconciler.clone()));
    tokio::spawn(link::run(papers, reconciler.clone(), voice, move |ovn_remote| {
        remote.send_replace(ovn_remote);
    }));
    let looped = tokio::spawn(reconciler.run(|| println!("ready")));
    tokio::select! {
        ended = looped => ended.context("the reconcile loop ended"),
        signal = end_signal() => signal,
    }
}

async fn docker_plugin(config: &Config) -> anyhow::Result<()> {
    let switch = ovs::Switch::open(&config.ovsdb, &config.integration_bridge)?;
    amphi_hostsrv::docker_plugin::serve(config, switch, volumes(config, false).await?).await
}
