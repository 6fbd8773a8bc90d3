//! The lease process (`amphi-hostsrv lease`): renews this host's lease, answers other hosts, and ends this host's guests
//! when neither the controller nor a majority of the others lets it keep them. A process of its own, so that an agent that
//! is restarted or upgraded is no failure. Everything it needs while it runs is in memory and on a tmpfs.
//!
//! `rule` decides, `guard` acts, `renew` and `peers` talk, `memo` is what others may read. Refuses to know instances, and
//! to ask an engine for anything.

pub mod clock;
pub mod fence;
mod guard;
pub mod memo;
mod peers;
mod renew;
pub mod rule;
mod shared;
pub mod tls;
mod uplink;

use crate::config::Config;
use crate::link::Papers;
use crate::network;
use crate::signals::end_signal;
use amphi_api::lease::LeaseState;
use anyhow::Context;
use fence::Fence;
use guard::Guard;
use memo::Files;
use renew::Renewer;
use rule::Rule;
use shared::Shared;
use std::sync::Arc;
use std::time::Duration;
use tls::PeerPapers;
use tokio::net::TcpListener;

/// How often it is looked whose new containers are.
const LEARN: Duration = Duration::from_secs(1);
/// Setting all devices down may take this long; killing waits for it.
const SWITCH_OFF: Duration = Duration::from_millis(250);

/// Runs until the process is ended. Prints `ready` once other hosts can ask. A `witness` votes and has no guests.
pub async fn serve(config: &Config, witness: bool) -> anyhow::Result<()> {
    let papers = Papers::read(&config.pki_dir())?;
    let peer_papers = PeerPapers::read(&config.pki_dir())?;
    std::fs::create_dir_all(&config.run_dir)
        .with_context(|| format!("cannot make {}", config.run_dir.display()))?;
    let files = Files::new(&config.run_dir, &config.state_dir);
    let memo = files.read();
    let (rule, voters, state) = match memo {
        Some(memo) => (memo.rule, memo.voters, memo.state),
        None => (Rule::new(papers.host), Vec::new(), LeaseState::Off),
    };
    tracing::info!(host = %papers.host, ?state, witness, "the lease process begins");
    let shared = Arc::new(Shared::new(papers.host, rule, voters, state));

    let address = config.lease_listen();
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} (lease_listen)"))?;
    tokio::spawn(peers::answer(listener, peer_papers.server()?, shared.clone()));
    tokio::spawn(peers::ask_all(peer_papers, shared.clone()));

    if !witness {
        let switch = network::Switch::open(&config.ovsdb, &config.integration_bridge)?;
        tokio::spawn(uplink::keep(switch, shared.clone()));
    }
    let fence = (!witness).then(|| Arc::new(Fence::new(&config.docker_root)));
    if let Some(fence) = fence.clone() {
        std::thread::spawn(move || {
            loop {
                fence.learn();
                std::thread::sleep(LEARN);
            }
        });
    }
    let (run_dir, state_dir) = (config.run_dir.clone(), config.state_dir.clone());
    let cut_off = Box::new(move || crate::storage::shared::cut_off(&run_dir, &state_dir));
    let guard =
        Guard { shared: shared.clone(), files: files.clone(), fence, switch_off: switch_off()?, cut_off };
    let (failed, failure) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("guard".into()).spawn(move || {
        guard.run();
        let _ = failed.send(());
    })?;
    println!("ready");
    let renewer = Renewer { shared, files, address, witness };
    tokio::select! {
        ended = renewer.run(&papers) => ended,
        // Without its guard this process must not look alive: whoever supervises it starts another.
        _ = failure => anyhow::bail!("the guard has ended"),
        signal = end_signal() => signal,
    }
}

/// Sets down the host's end of every guest's port: by netlink, within a bound, from a thread that belongs to no runtime.
fn switch_off() -> anyhow::Result<Box<dyn Fn() -> usize + Send>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let links = {
        let _inside = runtime.enter();
        network::Links::open()?
    };
    Ok(Box::new(move || {
        let all = async {
            let devices = links.observe().await?;
            for device in &devices {
                // One that has just gone is down.
                let _ = links.switch_off(device).await;
            }
            Ok::<_, network::NetworkError>(devices.len())
        };
        match runtime.block_on(async { tokio::time::timeout(SWITCH_OFF, all).await }) {
            Ok(Ok(count)) => count,
            Ok(Err(error)) => {
                tracing::error!(%error, "the guests' devices cannot be set down");
                0
            }
            Err(_) => {
                tracing::error!("the guests' devices are not down within {SWITCH_OFF:?}");
                0
            }
        }
    }))
}
