//! The controller's composition root: reads the settings, joins the parts, serves until told to stop.

use amphi_api::lean;
use amphi_controller::activation;
use amphi_controller::config::Config;
use amphi_controller::faces;
use amphi_controller::faces::hosts::{self, Links};
use amphi_controller::faces::native::Native;
use amphi_controller::faces::side::Side;
use amphi_controller::images::BlobStore;
use amphi_controller::images::shelf::s3::S3;
use amphi_controller::mirror::Mirror;
use amphi_controller::network::Southbound;
use amphi_controller::ops::{Ops, Settings, World};
use amphi_controller::pki::{self, Ca};
use amphi_controller::regions::Regions;
use amphi_controller::store::{SledStore, Store};
use amphi_controller::tasks::{self, Task};
use anyhow::Context;
use clap::Parser;
use jiff::SignedDuration;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code when the store has failed for good: `EX_IOERR` of sysexits.h. A supervisor that starts the controller
/// again lets it read what the disk really has.
const STORE_FAILED: i32 = 74;
/// How long requests under way may take to end after the order to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// The cloud's faces, records, placement, addresses and images.
#[derive(Parser)]
#[command(name = "amphi-controller", version)]
struct Arguments {
    /// The settings (TOML).
    #[arg(long)]
    config: PathBuf,
}

fn main() -> anyhow::Result<()> {
    lean::keep_small();
    // Before anything else opens a file: descriptor 3 is the socket's.
    let handed = activation::listener()?;
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter.unwrap_or_else(|_| "info".into()))
        .init();
    // More than one provider is in the tree; the choice must be made before the first TLS configuration.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        anyhow::bail!("a TLS provider is installed already");
    }
    let config = Config::read(&arguments.config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(run(config, handed));
    // Links of hosts stay open for ever; nobody waits for them.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn blob_store(config: &Config) -> anyhow::Result<BlobStore> {
    let folder = config.state_dir.join("images");
    let Some(s3) = &config.images.s3 else { return Ok(BlobStore::open(&folder).await?) };
    let shelf = Arc::new(S3::open(s3).context("in [images.s3]")?);
    let looked = shelf.clone();
    // Beside the start: a store that is away holds up nothing but what lies there.
    tokio::spawn(async move {
        if let Err(error) = looked.look().await {
            tracing::error!("{error}");
        }
    });
    Ok(BlobStore::on(shelf, &folder).await?)
}

async fn run(config: Config, handed: Option<std::net::TcpListener>) -> anyhow::Result<()> {
    std::fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("cannot make {}", config.state_dir.display()))?;
    let token = admin_token(&config)?;
    private(&config.state_dir.join("store"))?;
    let store: Arc<dyn Store> = Arc::new(SledStore::open(&config.state_dir.join("store"))?);
    let world = World::open(store.clone()).await?;
    let blobs = Arc::new(blob_store(&config).await?);
    let ca = Arc::new(Ca::open(&config.state_dir.join("ca"))?);
    let links = Arc::new(Links::default());
    let settings = Settings {
        hosts_url: config.hosts_url.clone(),
        ca_sha256: ca.sha256(),
        policy: config.policy(),
        automatic_failover: config.failover.automatic,
        blobs: config.images.terms(),
        region: config.region(),
    };
    let ops = Ops::new(store.clone(), world.clone(), links.clone(), blobs, settings);
    if !ops.identity_ready() {
        ops.bootstrap_identity(&admin_password(&config)?).await?;
    }

    ops.make_default_flavors().await?;
    let mirror = Mirror::open(ops.clone(), &config.mirror)?;
    let regions = Regions::new(ops.clone());

    let stop = CancellationToken::new();
    let keep = SignedDuration::from_hours(i64::from(config.recycle_hours));
    let southbound = Arc::new(Southbound::open(&config.ovn_sb)?);
    let failover = tasks::Failover::new(ops.clone(), ops.leases().clone(), southbound, config.fences()?);
    let tasks: [Arc<dyn Task>; 16] = [
        Arc::new(failover),
        Arc::new(tasks::Blobs { ops: ops.clone(), every: config.images.sweep() }),
        Arc::new(tasks::Checksums { ops: ops.clone() }),
        Arc::new(tasks::Exchanges { ops: ops.clone() }),
        Arc::new(tasks::MaintenanceMoves { ops: ops.clone() }),
        Arc::new(tasks::Journal { ops: ops.clone() }),
        Arc::new(tasks::Leases::new(ops.clone())),
        Arc::new(tasks::RecycleBin::new(ops.clone(), keep)),
        Arc::new(tasks::Replication { regions: regions.clone() }),
        Arc::new(tasks::Retention { ops: ops.clone() }),
        Arc::new(tasks::ScalingGroups { ops: ops.clone() }),
        Arc::new(tasks::Rollouts { ops: ops.clone() }),
        Arc::new(tasks::Statuses { ops: ops.clone() }),
        Arc::new(tasks::Silence::new(ops.clone())),
        Arc::new(tasks::Twins::new(ops.clone())),
        Arc::new(tasks::Ovn::new(ops.clone(), &config.ovn_nb)?),
    ];
    for task in tasks {
        tokio::spawn(tasks::drive(task, world.changes(), stop.clone()));
    }

    let hosts_listener = TcpListener::bind(config.hosts_listen)
        .await
        .with_context(|| format!("cannot listen on hosts_listen {}", config.hosts_listen))?;
    let tls = ca.server_config(&config.hosts_names())?;
    let side = Arc::new(Side { ops: ops.clone(), ca, ovn_remote: config.ovn_sb.clone() });
    let state = hosts::State { side, links, leases: ops.leases().clone() };
    let mut hosts_face =
        tokio::spawn(hosts::serve(hosts_listener, tls, state, stop.clone().cancelled_owned()));

    let listener = match handed {
        Some(listener) => TcpListener::from_std(listener)?,
        None => TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {}", config.listen))?,
    };
    let address = listener.local_addr()?;
    let service =
        faces::of_one_listener(Native { ops, regions }, mirror, &token, config.public_url.as_deref());
    let service = service.into_make_service_with_connect_info::<SocketAddr>();
    let native_face = axum::serve(listener, service).with_graceful_shutdown(stop.clone().cancelled_owned());
    let mut native_face = tokio::spawn(native_face.into_future());
    tracing::info!(%address, hosts = %config.hosts_listen, "serving");
    println!("ready");

    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = &mut native_face => anyhow::bail!("the native face ended: {ended:?}"),
        ended = &mut hosts_face => anyhow::bail!("the hosts' face ended: {ended:?}"),
        error = store.failed() => {
            tracing::error!(%error, code = STORE_FAILED, "the store has failed for good; the controller ends itself, start it again");
            // At once: closing a disk that fails may take for ever, and nothing here is worth that.
            std::process::exit(STORE_FAILED);
        }
    }
    tracing::info!("stopping");
    stop.cancel();
    if tokio::time::timeout(DRAIN, native_face).await.is_err() {
        tracing::warn!("requests under way were cut off");
    }
    Ok(())
}

/// A directory for our eyes only: the store holds passwords' digests and the keys that seal tokens.
fn private(dir: &Path) -> anyhow::Result<()> {
    let make = || {
        std::fs::create_dir_all(dir)?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
    };
    make().with_context(|| format!("cannot make {} private", dir.display()))
}

/// The API's token: made at the first start.
fn admin_token(config: &Config) -> anyhow::Result<String> {
    let read = |path: &Path| {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the token from {}", path.display()))?;
        let token = text.trim().to_owned();
        anyhow::ensure!(token.len() >= 16, "the token in {} is shorter than 16 characters", path.display());
        Ok(token)
    };
    if let Some(path) = &config.admin_token {
        return read(path);
    }
    let path = config.state_dir.join("admin-token");
    if !path.exists() {
        pki::write_secret(&path, &pki::new_join_secret().secret)?;
    }
    read(&path)
}

/// The password of the user `admin`: made at the first start, and read then only.
fn admin_password(config: &Config) -> anyhow::Result<String> {
    let path = config.admin_password_file.clone().unwrap_or_else(|| config.state_dir.join("admin-password"));
    if config.admin_password_file.is_none() && !path.exists() {
        pki::write_secret(&path, &pki::new_join_secret().secret)?;
    }
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read the password from {}", path.display()))?;
    let password = text.trim().to_owned();
    anyhow::ensure!(!password.is_empty(), "{} is empty", path.display());
    Ok(password)
}
