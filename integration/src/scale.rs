//! `amphi-lab scale`: one controller's process beside many hosts in memory, whose agents are the real link and reconciler
//! in this process. Measures what hosts and instances cost the controller; judges nothing. Controllers and ledgers write
//! to a tmpfs: a thousand hosts have a thousand disks, and this machine one.

use crate::alone::Controller;
use crate::alone::agent::{Agent, Home, Size};
use crate::bench::load;
use crate::engines::{EnginePort, HostEngines, Registry};
use amphi_api::client::Client;
use amphi_api::host::{HostState, JoinTokenCreate};
use amphi_api::image::{BlobRole, ImageCreate};
use amphi_api::instance::{InstanceCreate, InstanceState};
use amphi_api::network::NetworkCreate;
use amphi_api::wire::HEARTBEAT_SECONDS;
use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Hosts that join at once, and orders under way at once.
const FLIGHT: usize = 32;
/// How long the controller is watched at rest.
const REST: Duration = Duration::from_secs(10);
/// How often every host has news.
const STIRS: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(120);
/// Clock ticks a second, as `/proc/PID/stat` counts (`getconf CLK_TCK`).
const TICKS: f64 = 100.0;

/// What one size came to.
#[derive(Debug, Default)]
struct Row {
    hosts: usize,
    instances: usize,
    /// Per host, all of joining and connecting.
    join_ms: f64,
    /// Of one CPU, with nothing going on but heartbeats; without instances and with all of them.
    empty_percent: f64,
    rest_percent: f64,
    heartbeat_us: f64,
    orders_per_second: f64,
    running_per_second: f64,
    status_ms: f64,
    /// Of the controller, before the first instance and after the last.
    empty_mib: f64,
    full_mib: f64,
}

/// Measures each size and prints a table. `program` is `amphi-lab`.
pub fn run(program: &Path, sizes: &[usize], per_host: usize, most: Duration) -> Result<()> {
    // It fails only if one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let before = load();
    let mut rows = Vec::new();
    for hosts in sizes {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().build().context("a runtime")?;
        let row = runtime.block_on(measure(program, *hosts, per_host, most));
        runtime.shutdown_timeout(Duration::from_secs(5));
        let row = row.with_context(|| format!("{hosts} hosts"))?;
        eprintln!("{row:?}");
        rows.push(row);
    }
    println!("\n{}", table(&rows));
    println!("\nload average before: {before}; after: {}", load());
    Ok(())
}

fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| hosts | instances | join, ms a host | CPU empty, % | CPU at rest, % | a heartbeat, µs | orders/s | running/s | \
         a status, ms | MiB empty | MiB full | KiB an instance |\n|",
    );
    text += &" --: |".repeat(12);
    for row in rows {
        let each = (row.full_mib - row.empty_mib) * 1024.0 / row.instances.max(1) as f64;
        text += &format!(
            "\n| {} | {} | {:.1} | {:.2} | {:.2} | {:.0} | {:.0} | {:.0} | {:.2} | {:.0} | {:.0} | {each:.1} |",
            row.hosts,
            row.instances,
            row.join_ms,
            row.empty_percent,
            row.rest_percent,
            row.heartbeat_us,
            row.orders_per_second,
            row.running_per_second,
            row.status_ms,
            row.empty_mib,
            row.full_mib,
        );
    }
    text
}

struct MemoryHost {
    engines: Arc<HostEngines>,
    agent: Agent,
}

async fn measure(program: &Path, hosts: usize, per_host: usize, most: Duration) -> Result<Row> {
    let programs = program.parent().context("the program has no directory")?;
    let folder = PathBuf::from(format!("/dev/shm/amphi-scale-{}", std::process::id()));
    let settings = "[failover]\nautomatic = false\n";
    let controller = Controller::start_in(programs, folder, settings)?;
    let client = Client::new(controller.url(), &controller.read("admin-token")?)?;
    let client = Arc::new(client.with_call_timeout(PATIENCE));
    furnish(&controller, &client).await?;
    let registry = Arc::new(Registry::default());

    let began = Instant::now();
    let joins = (0..hosts).map(|n| join(&controller, &client, &registry, n));
    let joined: Vec<Result<MemoryHost>> =
        futures_util::stream::iter(joins).buffer_unordered(FLIGHT).collect().await;
    let joined = joined.into_iter().collect::<Result<Vec<_>>>()?;
    wait("all hosts are up", async || {
        let up = client.hosts().await?.iter().filter(|h| h.state == HostState::Up).count();
        Ok((up == hosts, format!("{up} of {hosts}")))
    })
    .await?;
    let join_ms = milliseconds(began) / hosts as f64;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let empty_percent = 100.0 * busy_for(&controller, REST).await?;
    let empty_mib = controller.resident_mib()?;

    let wanted = hosts * per_host;
    let began = Instant::now();
    let instances = fill(&client, wanted, began + most).await?;
    let orders_per_second = instances as f64 / began.elapsed().as_secs_f64();
    wait("all bodies run", async || {
        let there = registry.population();
        Ok((there == instances, format!("{there} of {instances}")))
    })
    .await?;
    wait("all instances are running", async || {
        let all = client.instances().await?;
        let running = all.iter().filter(|i| i.state == InstanceState::Running).count();
        Ok((running == instances, format!("{running} of {instances}")))
    })
    .await?;
    let running_per_second = instances as f64 / began.elapsed().as_secs_f64();
    let violations = registry.violations();
    ensure!(violations.is_empty(), "{}", violations.join("\n"));

    tokio::time::sleep(Duration::from_secs(5)).await;
    let rest = busy_for(&controller, REST).await?;
    let full_mib = controller.resident_mib()?;
    let status_ms = statuses(&controller, &joined, rest).await?;
    let heartbeats = hosts as f64 / HEARTBEAT_SECONDS as f64;
    Ok(Row {
        hosts,
        instances,
        join_ms,
        empty_percent,
        rest_percent: 100.0 * rest,
        heartbeat_us: rest / heartbeats * 1e6,
        orders_per_second,
        running_per_second,
        status_ms,
        empty_mib,
        full_mib,
    })
}

async fn furnish(controller: &Controller, client: &Client) -> Result<()> {
    let network: NetworkCreate =
        serde_json::from_value(json!({ "name": "wide", "subnet": { "cidr": "10.0.0.0/12" } }))?;
    client.create_network(&network).await?;
    let file = controller.folder().join("bytes");
    std::fs::write(&file, vec![0; 4096]).context("an image's bytes")?;
    let image: ImageCreate = serde_json::from_value(json!({ "name": "image", "format": "docker-archive" }))?;
    let image = client.create_image(&image).await?;
    client.upload_file(image.id, BlobRole::Archive, &file, Box::new(|_, _| {})).await?;
    Ok(())
}

async fn join(
    controller: &Controller,
    client: &Client,
    registry: &Arc<Registry>,
    n: usize,
) -> Result<MemoryHost> {
    let name = format!("memory-{n}");
    let state = controller.folder().join(&name);
    let size = Size { cpus: 64, memory_mib: 256 << 10 };
    let home = Home { run: state.join("run"), state, url: None, size, name };
    let token = client.create_join_token(&JoinTokenCreate::default()).await?.token;
    let end = Instant::now() + PATIENCE;
    // The controller takes a few joins at a time and says so to the others.
    while let Err(error) = amphi_hostsrv::join::join(&home.name, &home.pki(), &token).await {
        ensure!(Instant::now() < end && error.to_string().contains("too many joins"), "{error:#}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let engines = HostEngines::new(&home.name, registry.clone(), Duration::ZERO);
    let agent = Agent::start(&home, &EnginePort::Here(engines.clone()))?;
    Ok(MemoryHost { engines, agent })
}

/// Orders so many instances, or as many as there is time for; answers how many.
async fn fill(client: &Arc<Client>, wanted: usize, end: Instant) -> Result<usize> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..FLIGHT {
        let (client, next) = (client.clone(), next.clone());
        workers.spawn(async move {
            let mut made = 0;
            while Instant::now() < end {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= wanted {
                    break;
                }
                let request: InstanceCreate = serde_json::from_value(json!({
                    "name": format!("i-{n}"), "vcpus": 1, "memory_mib": 256,
                    "bodies": [{ "set": { "members": [{ "index": 1, "image": "image" }] } }],
                    "networks": [{ "network": "wide" }],
                }))?;
                client.create_instance(&request).await?;
                made += 1;
            }
            anyhow::Ok(made)
        });
    }
    let mut made = 0;
    while let Some(worker) = workers.join_next().await {
        made += worker??;
    }
    Ok(made)
}

/// Milliseconds of the controller's CPU for a status of a whole host of which something is new in every instance.
async fn statuses(controller: &Controller, hosts: &[MemoryHost], rest: f64) -> Result<f64> {
    let mut total = 0.0;
    for _ in 0..STIRS {
        let (before, began) = (cpu_seconds(controller)?, Instant::now());
        for host in hosts {
            host.engines.stir();
            host.agent.look();
        }
        // Until the controller is as idle as it was, for a second on end.
        loop {
            let busy = busy_for(controller, Duration::from_secs(1)).await?;
            if busy <= rest * 1.5 + 0.02 || began.elapsed() > PATIENCE {
                break;
            }
        }
        total += cpu_seconds(controller)? - before - rest * began.elapsed().as_secs_f64();
    }
    Ok(total * 1000.0 / (hosts.len() as f64 * f64::from(STIRS)))
}

/// The share of one CPU that the controller takes meanwhile.
async fn busy_for(controller: &Controller, time: Duration) -> Result<f64> {
    let (before, began) = (cpu_seconds(controller)?, Instant::now());
    tokio::time::sleep(time).await;
    Ok((cpu_seconds(controller)? - before) / began.elapsed().as_secs_f64())
}

/// User and system time so far (proc_pid_stat(5), fields 14 and 15).
fn cpu_seconds(controller: &Controller) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", controller.pid()))?;
    let rest = stat.rsplit_once(')').context("/proc/PID/stat")?.1;
    let ticks: Vec<f64> = rest.split_whitespace().skip(11).take(2).filter_map(|t| t.parse().ok()).collect();
    ensure!(ticks.len() == 2, "/proc/PID/stat has no times");
    Ok(ticks.iter().sum::<f64>() / TICKS)
}

async fn wait(what: &str, mut look: impl AsyncFnMut() -> Result<(bool, String)>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let (done, saw) = look().await?;
        if done {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{what}: not within {} s; saw {saw}", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
