//! The process that serves Docker's network, IPAM and volume drivers on one socket. It is stateless and changes rarely,
//! so that the agent can be restarted and upgraded while Docker keeps its drivers. A dockerd that starts without the
//! socket waits 15 s per network: this starts first and takes the socket over from an init system that holds it.

use crate::config::Config;
use crate::network::ovs::Switch;
use crate::network::{self, plugin};
use crate::storage::{self, VolumeDriver};
use anyhow::Context;
use std::os::fd::FromRawFd;
use std::sync::Arc;
use tokio::net::UnixListener;

/// Serves until the process ends; prints `ready` once dockerd can ask.
pub async fn serve(config: &Config, switch: Switch, volumes: Arc<dyn VolumeDriver>) -> anyhow::Result<()> {
    let listener = listen(config).await?;
    let links = network::Links::open().context("cannot reach the kernel's routing socket")?;
    let records = plugin::Records::open(&config.state_dir, &config.run_dir)?;
    let wiring = network::Wiring { links, switch };
    let driver = plugin::NetworkDriver { wiring, records };
    let router = plugin::activation_router(&["NetworkDriver", "IpamDriver", "VolumeDriver"])
        .merge(plugin::network_router(Arc::new(driver)))
        .merge(plugin::ipam_router())
        .merge(storage::plugin::router(volumes));
    println!("ready");
    plugin::serve(listener, router).await.context("the drivers' socket")
}

/// The socket handed over by the init system (`LISTEN_FDS`), else one of our own in the place of a stale one.
async fn listen(config: &Config) -> anyhow::Result<UnixListener> {
    if std::env::var("LISTEN_FDS").is_ok_and(|n| n == "1") {
        #[allow(unsafe_code)]
        // Sound: the protocol of socket activation says that descriptor 3 is ours, and nothing else here opened it.
        let inherited = unsafe { std::os::unix::net::UnixListener::from_raw_fd(3) };
        inherited.set_nonblocking(true)?;
        return Ok(UnixListener::from_std(inherited)?);
    }
    let path = &config.plugin_socket;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    plugin::bind(path).await.with_context(|| format!("cannot listen on {}", path.display()))
}
