//! What the agent keeps in order beside bodies: the chassis' settings in the local switch, leftovers on it, and the size
//! of the image cache and of Docker's images. Each is a loop of its own that looks at the world anew and only reports what it could not do.

use crate::config::Config;
use crate::images::ImageCache;
use crate::instance::set::SetDriver;
use crate::network::sweep::Sweep;
use crate::network::{Links, Wiring, ovs};
use crate::reconcile::Reconciler;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Settings that somebody changed by hand are put back within this.
const CHASSIS_PERIOD: Duration = Duration::from_secs(30);
/// While the switch does not take its settings, it is asked again after this.
const CHASSIS_RETRY: Duration = Duration::from_secs(1);
/// A leftover must be seen by two sweeps, this far apart, before it goes.
const SWEEP_PERIOD: Duration = Duration::from_secs(10);
/// How often images are measured where none come.
const IMAGES_PERIOD: Duration = Duration::from_secs(600);
/// Between two measures where many come.
const IMAGES_PAUSE: Duration = Duration::from_secs(10);

/// Keeps the integration bridge, and the chassis as the controller names OVN's southbound database.
pub async fn keep_chassis(
    config: Arc<Config>,
    switch: Arc<ovs::Switch>,
    mut remotes: watch::Receiver<String>,
) {
    let datapath = ovs::Datapath::probe();
    loop {
        let remote = remotes.borrow_and_update().clone();
        let mut pause = CHASSIS_PERIOD;
        if !remote.is_empty() {
            let chassis =
                ovs::Chassis { name: config.name.clone(), remote, encap_ip: config.address, datapath };
            let kept = match switch.ensure_bridge(datapath).await {
                Ok(()) => switch.ensure_chassis(&chassis).await,
                Err(error) => Err(error),
            };
            if let Err(error) = kept {
                tracing::warn!("the switch is not as it should be: {error}");
                pause = CHASSIS_RETRY;
            }
        }
        if let Ok(Err(_)) = tokio::time::timeout(pause, remotes.changed()).await {
            // The link has ended with the process; nobody will name another database.
            tokio::time::sleep(pause).await;
        }
    }
}

/// Clears ports and veth ends that a crash or a power cut left.
pub async fn sweep_network(switch: Arc<ovs::Switch>) {
    let links = match Links::open() {
        Ok(links) => links,
        Err(error) => {
            tracing::error!("leftovers on the switch are not cleared: {error}");
            return;
        }
    };
    let wiring = Wiring { links, switch: (*switch).clone() };
    let mut sweep = Sweep::default();
    loop {
        tokio::time::sleep(SWEEP_PERIOD).await;
        match sweep.run(&wiring).await {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => tracing::info!(?removed, "cleared what was left on the switch"),
            Err(error) => tracing::debug!("cannot look for leftovers: {error}"),
        }
    }
}

/// Keeps the image cache and Docker's store of images below their bounds; what a desired body uses never goes. Reads blobs
/// again whose turn it is.
pub async fn sweep_images(
    config: Arc<Config>,
    images: Arc<ImageCache>,
    docker: Arc<SetDriver>,
    reconciler: Arc<Reconciler>,
) {
    let mut read_through = Instant::now();
    loop {
        // Every now and then, and soon after something has come.
        let _grown = tokio::time::timeout(IMAGES_PERIOD, images.grown()).await;
        tokio::time::sleep(IMAGES_PAUSE).await;
        let in_use = reconciler.blobs_in_use();
        match images.sweep(&in_use, config.image_cache_gib << 30).await {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => tracing::info!(?gone, "evicted from the image cache"),
            Err(error) => tracing::warn!("the image cache cannot be swept: {error}"),
        }
        let used = |sha256: &str| images.used(sha256);
        match docker.sweep_images(&in_use, used, config.docker_images_gib << 30).await {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => tracing::info!(?gone, "removed from Docker's images"),
            Err(error) => tracing::debug!("Docker's images cannot be swept: {error}"),
        }
        if read_through.elapsed() < IMAGES_PERIOD {
            continue;
        }
        if let Err(error) = images.look_through().await {
            tracing::warn!("the image cache cannot be read through: {error}");
        }
        read_through = Instant::now();
    }
}
