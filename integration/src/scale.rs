//! `amphi-lab scale`: one controller's process beside many hosts in memory, whose agents are the real link and reconciler
//! in this process; beyond so many they are links alone, which speak the real wire and say at once that all is as ordered.
//! Measures what hosts and instances cost the controller; judges nothing. Controllers and ledgers write to a tmpfs: a
//! thousand hosts have a thousand disks, and this machine one.

use crate::alone::agent::{Agent, Home, Size};
use crate::alone::furnish::{ARCHIVE, furnish};
use crate::alone::{Controller, MemoryHost as Thin};
use crate::bench::load;
use crate::engines::{EnginePort, HostEngines, Registry};
use amphi_api::client::Client;
use amphi_api::host::{HostState, JoinTokenCreate};
use amphi_api::instance::{InstanceCreate, InstanceState};
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
const PATIENCE: Duration = Duration::from_secs(300);
/// Clock ticks a second, as `/proc/PID/stat` counts (`getconf CLK_TCK`).
const TICKS: f64 = 100.0;

/// What one size came to.
#[derive(Debug, Default)]
struct Row {
    hosts: usize,
    instances: usize,
    /// Links alone, no agents behind them.
    thin: bool,
    /// Per host, all of joining and connecting; and the controller's CPU for it.
    join_ms: f64,
    join_cpu_ms: f64,
    /// Of one CPU, with nothing going on but heartbeats; without instances and with all of them.
    empty_percent: f64,
    rest_percent: f64,
    heartbeat_us: f64,
    orders_per_second: f64,
    running_per_second: f64,
    /// The controller's CPU for an instance, from the order to its running; and that of all hosts.
    order_cpu_ms: f64,
    hosts_cpu_ms: f64,
    status_ms: f64,
    /// Of the controller, before the first instance and after the last.
    empty_mib: f64,
    full_mib: f64,
}

/// What each size is put under.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub instances_per_host: usize,
    /// No further instances are ordered after this.
    pub most: Duration,
    /// From so many hosts on they are links alone.
    pub thin_from: usize,
}

/// Measures each size and prints a table. `program` is `amphi-lab`.
pub fn run(program: &Path, sizes: &[usize], load_of: &Load) -> Result<()> {
    // It fails only if one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let before = load();
    let mut rows = Vec::new();
    for hosts in sizes {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().build().context("a runtime")?;
        let row = runtime.block_on(measure(program, *hosts, load_of));
        runtime.shutdown_timeout(Duration::from_secs(5));
        let row = row.with_context(|| format!("{hosts} hosts"))?;
        eprintln!("{row:?}, load average {}", load());
        rows.push(row);
    }
    println!("\n{}", table(&rows));
    println!("\nload average before: {before}; after: {}", load());
    Ok(())
}

fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| hosts | instances | join, ms a host | its CPU, ms | CPU empty, % | CPU at rest, % | a heartbeat, µs | orders/s | \
         running/s | CPU an instance, ms | of its host, ms | a status, ms | MiB empty | MiB full | KiB an instance |\n|",
    );
    text += &" --: |".repeat(15);
    for row in rows {
        let each = (row.full_mib - row.empty_mib) * 1024.0 / row.instances.max(1) as f64;
        text += &format!(
            "\n| {}{} | {} | {:.1} | {:.1} | {:.2} | {:.2} | {:.0} | {:.0} | {:.0} | {:.2} | {:.2} | {:.2} | {:.0} | {:.0} | {each:.1} |",
            row.hosts,
            if row.thin { ", links alone" } else { "" },
            row.instances,
            row.join_ms,
            row.join_cpu_ms,
            row.empty_percent,
            row.rest_percent,
            row.heartbeat_us,
            row.orders_per_second,
            row.running_per_second,
            row.order_cpu_ms,
            row.hosts_cpu_ms,
            row.status_ms,
            row.empty_mib,
            row.full_mib,
        );
    }
    text
}

enum Joined {
    Whole {
        engines: Arc<HostEngines>,
        agent: Agent,
    },
    /// Connected for as long as it is kept.
    Thin {
        _link: Thin,
    },
}

async fn measure(program: &Path, hosts: usize, load_of: &Load) -> Result<Row> {
    let thin = hosts >= load_of.thin_from;
    let programs = program.parent().context("the program has no directory")?;
    let folder = PathBuf::from(format!("/dev/shm/amphi-scale-{}", std::process::id()));
    let settings = "[failover]\nautomatic = false\n";
    let controller = Controller::start_in(programs, folder, settings)?;
    let client = Client::new(controller.url(), &controller.read("admin-token")?)?;
    let client = Arc::new(client.with_call_timeout(PATIENCE));
    furnish(&client, controller.folder(), "wide", "10.0.0.0/12").await?;
    let registry = Arc::new(Registry::default());

    let ca = controller.read("ca/ca.pem")?;
    let (began, cpu) = (Instant::now(), cpu_of(controller.pid())?);
    let joins = (0..hosts).map(|n| join(&controller, &client, &registry, thin.then_some(ca.as_str()), n));
    let joined: Vec<Result<Joined>> =
        futures_util::stream::iter(joins).buffer_unordered(FLIGHT).collect().await;
    let joined = joined.into_iter().collect::<Result<Vec<_>>>()?;
    wait("all hosts are up", async || {
        let up = client.hosts().await?.iter().filter(|h| h.state == HostState::Up).count();
        Ok((up == hosts, format!("{up} of {hosts}")))
    })
    .await?;
    let join_ms = milliseconds(began) / hosts as f64;
    let join_cpu_ms = (cpu_of(controller.pid())? - cpu) * 1000.0 / hosts as f64;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let empty_percent = 100.0 * busy_for(&controller, REST).await?;
    let empty_mib = controller.resident_mib()?;

    let wanted = hosts * load_of.instances_per_host;
    let began = Instant::now();
    let (cpu, own_cpu) = (cpu_of(controller.pid())?, cpu_of(std::process::id())?);
    let instances = fill(&client, wanted, began + load_of.most).await?;
    let orders_per_second = instances as f64 / began.elapsed().as_secs_f64();
    wait("all bodies run", async || {
        let there = registry.population();
        Ok((thin || there == instances, format!("{there} of {instances}")))
    })
    .await?;
    wait("all instances are running", async || {
        let all = client.instances().await?;
        let running = all.iter().filter(|i| i.state == InstanceState::Running).count();
        Ok((running == instances, format!("{running} of {instances}")))
    })
    .await?;
    let running_per_second = instances as f64 / began.elapsed().as_secs_f64();
    let each = 1000.0 / instances as f64;
    let order_cpu_ms = (cpu_of(controller.pid())? - cpu) * each;
    let hosts_cpu_ms = (cpu_of(std::process::id())? - own_cpu) * each;
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
        thin,
        join_ms,
        join_cpu_ms,
        empty_percent,
        rest_percent: 100.0 * rest,
        heartbeat_us: rest / heartbeats * 1e6,
        orders_per_second,
        running_per_second,
        order_cpu_ms,
        hosts_cpu_ms,
        status_ms,
        empty_mib,
        full_mib,
    })
}

async fn join(
    controller: &Controller,
    client: &Client,
    registry: &Arc<Registry>,
    thin: Option<&str>,
    n: usize,
) -> Result<Joined> {
    let name = format!("memory-{n}");
    let state = controller.folder().join(&name);
    let size = Size { cpus: 64, memory_mib: 256 << 10 };
    let token = client.create_join_token(&JoinTokenCreate::default()).await?.token;
    if let Some(ca) = thin {
        return Ok(Joined::Thin { _link: Thin::join(&name, &token, ca).await? });
    }
    let home = Home { run: state.join("run"), state, url: None, size, name };
    let end = Instant::now() + PATIENCE;
    // The controller takes a few joins at a time and says so to the others.
    while let Err(error) = amphi_hostsrv::join::join(&home.name, &home.pki(), &token).await {
        ensure!(Instant::now() < end && error.to_string().contains("too many joins"), "{error:#}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let engines = HostEngines::new(&home.name, registry.clone(), Duration::ZERO);
    let agent = Agent::start(&home, &EnginePort::Here(engines.clone()))?;
    Ok(Joined::Whole { engines, agent })
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
                    "bodies": [{ "set": { "members": [{ "index": 1, "image": ARCHIVE }] } }],
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
async fn statuses(controller: &Controller, hosts: &[Joined], rest: f64) -> Result<f64> {
    if hosts.iter().any(|host| matches!(host, Joined::Thin { .. })) {
        return Ok(f64::NAN);
    }
    let mut total = 0.0;
    for _ in 0..STIRS {
        let (before, began) = (cpu_of(controller.pid())?, Instant::now());
        for host in hosts {
            if let Joined::Whole { engines, agent } = host {
                engines.stir();
                agent.look();
            }
        }
        // Until the controller is as idle as it was, for a second on end.
        loop {
            let busy = busy_for(controller, Duration::from_secs(1)).await?;
            if busy <= rest * 1.5 + 0.02 || began.elapsed() > PATIENCE {
                break;
            }
        }
        total += cpu_of(controller.pid())? - before - rest * began.elapsed().as_secs_f64();
    }
    Ok(total * 1000.0 / (hosts.len() as f64 * f64::from(STIRS)))
}

/// The share of one CPU that the controller takes meanwhile.
async fn busy_for(controller: &Controller, time: Duration) -> Result<f64> {
    let (before, began) = (cpu_of(controller.pid())?, Instant::now());
    tokio::time::sleep(time).await;
    Ok((cpu_of(controller.pid())? - before) / began.elapsed().as_secs_f64())
}

/// User and system time so far, in seconds (proc_pid_stat(5), fields 14 and 15).
fn cpu_of(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit_once(')').context("/proc/PID/stat")?.1;
    let ticks: Vec<f64> = rest.split_whitespace().skip(11).take(2).filter_map(|t| t.parse().ok()).collect();
    ensure!(ticks.len() == 2, "/proc/PID/stat has no times");
    Ok(ticks.iter().sum::<f64>() / TICKS)
}

async fn wait(what: &str, mut look: impl AsyncFnMut() -> Result<(bool, String)>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let began = Instant::now();
        let (done, saw) = look().await?;
        let took = began.elapsed();
        if done {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{what}: not within {} s; saw {saw}", PATIENCE.as_secs());
        // A look at all there is takes its time too, on both sides.
        tokio::time::sleep(Duration::from_millis(500).max(took * 5)).await;
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
