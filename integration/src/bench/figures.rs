//! What collecting figures costs: 200 containers on one host, the agent's CPU with and without it, and how often dockerd is
//! asked meanwhile. The agent speaks to dockerd through a socket that counts requests. For the sake of a clear figure rounds
//! come every second here, and what one costs is told as its share of ten seconds.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use amphi_api::host::HostState;
use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use nix::sys::signal::Signal;

use super::rest::Process;
use super::{Bench, Figure, HOST, runs, set};
use crate::lab::AGENT_CONFIG;

/// Of an anchor and two members each: 201 containers.
const SETS: usize = 67;
const LIMIT: Duration = Duration::from_secs(600);
/// How long each is watched: with rounds and without.
const WATCHED: Duration = Duration::from_secs(60);
/// Promised is a round in ten seconds.
const PROMISED: Duration = Duration::from_secs(10);
const DOCKER: &str = "/run/docker.sock";
const COUNTED: &str = "/run/counted.sock";
const SETTINGS: &str = "/etc/amphi/monitoring.toml";
const METRICS: &str = "127.0.0.1:9177";
/// What ends the first line of a request, and of nothing else that a client of Docker sends here.
const REQUEST: &[u8] = b" HTTP/1.1\r\n";

pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let asked = count_requests(bench)?;
    let began = Instant::now();
    let ordered = bench.runtime.block_on(async {
        let mut ordered = Vec::new();
        for at in 0..SETS {
            ordered.push(bench.client.create_instance(&set(&format!("figures-{at}"), false, 32)?).await?.id);
        }
        for id in &ordered {
            let left = LIMIT.saturating_sub(began.elapsed());
            bench.client.wait_instance(*id, runs, left, |_| ()).await.context("a set should run")?;
        }
        anyhow::Ok(ordered)
    })?;
    println!("  {} containers run after {:.1} s", SETS * 3, began.elapsed().as_secs_f32());
    std::thread::sleep(Duration::from_secs(15));
    let agent = Process::of(bench.lab, HOST, "hostsrv")?;
    let watch = || -> Result<(f64, u64)> {
        let (cpu, requests, start) = (agent.cpu()?, asked.load(Ordering::SeqCst), Instant::now());
        while start.elapsed() < WATCHED {
            std::thread::sleep(Duration::from_secs(1));
        }
        let percent = (agent.cpu()? - cpu) / start.elapsed().as_secs_f64() * 100.0;
        Ok((percent, asked.load(Ordering::SeqCst) - requests))
    };
    let (rest, rest_requests) = watch()?;
    ensure!(rest_requests > 0, "the agent does not ask dockerd through the counted socket");
    let settings = bench.lab.file(HOST, Path::new(SETTINGS))?;
    let sink = format!("interval_seconds = 1\n[[sink]]\nkind = \"prometheus\"\nlisten = \"{METRICS}\"\n");
    std::fs::write(&settings, sink).context("write monitoring's settings")?;
    let told = wait_for_figures(bench)?;
    let (measuring, requests) = watch()?;
    std::fs::remove_file(&settings).context("remove monitoring's settings")?;
    println!(
        "  {told} members are measured; CPU {rest:.2} % at rest, {measuring:.2} % with a round a second; \
         dockerd was asked {rest_requests} and {requests} times in {} s",
        WATCHED.as_secs()
    );
    // All at once: they have no volumes, and nothing is measured any more.
    bench.runtime.block_on(try_join_all(ordered.iter().map(async |id| {
        bench.client.delete_instance(*id, false).await?;
        bench.client.wait_instance_gone(*id, |_| false, LIMIT, |_| ()).await
    })))?;
    let share = (measuring - rest).max(0.0) / PROMISED.as_secs_f64();
    let more = requests.saturating_sub(rest_requests) as f64;
    Ok(vec![
        Figure { name: "figures_200_containers_cpu_percent", value: share, goal: "below 1" },
        Figure { name: "figures_dockerd_requests_more", value: more, goal: "0" },
        Figure { name: "dockerd_requests_per_minute_rest", value: rest_requests as f64, goal: "" },
    ])
}

/// The agent starts anew and speaks to dockerd through a socket of ours; the number of its requests.
fn count_requests(bench: &Bench) -> Result<Arc<AtomicU64>> {
    let asked = Arc::new(AtomicU64::new(0));
    let docker = bench.lab.file(HOST, Path::new(DOCKER))?;
    let listener = UnixListener::bind(bench.lab.file(HOST, Path::new(COUNTED))?).context("bind a socket")?;
    let count = asked.clone();
    // Ends with the program, as the lab does.
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let (docker, count) = (docker.clone(), count.clone());
            std::thread::spawn(move || drop(relay(client, &docker, &count)));
        }
    });
    let path = bench.lab.file(HOST, Path::new(AGENT_CONFIG))?;
    let text = std::fs::read_to_string(&path).context("read the agent's settings")?;
    ensure!(text.contains(DOCKER), "the agent's settings do not name {DOCKER}");
    std::fs::write(&path, text.replace(DOCKER, COUNTED)).context("write the agent's settings")?;
    bench.lab.kill(HOST, "hostsrv", Signal::SIGKILL)?;
    bench.lab.start(HOST, "hostsrv")?;
    let end = Instant::now() + LIMIT;
    while bench.runtime.block_on(bench.client.find_host(HOST))?.state != HostState::Up {
        ensure!(Instant::now() < end, "the agent does not come back");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(asked)
}

fn relay(mut client: UnixStream, docker: &PathBuf, count: &AtomicU64) -> std::io::Result<()> {
    let mut server = UnixStream::connect(docker)?;
    let (mut back, mut to_client) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut back, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Write);
    });
    let (mut buffer, mut tail) = ([0; 16 << 10], Vec::new());
    loop {
        let length = client.read(&mut buffer)?;
        if length == 0 {
            return server.shutdown(Shutdown::Write);
        }
        count.fetch_add(requests(&mut tail, &buffer[..length]), Ordering::SeqCst);
        server.write_all(&buffer[..length])?;
    }
}

/// First lines that end in this piece. `tail`: what may be the beginning of an end, kept from piece to piece.
fn requests(tail: &mut Vec<u8>, piece: &[u8]) -> u64 {
    tail.extend_from_slice(piece);
    let found = tail.windows(REQUEST.len()).filter(|window| *window == REQUEST).count();
    tail.drain(..tail.len().saturating_sub(REQUEST.len() - 1));
    found as u64
}

/// Until every member has figures; how many there are.
fn wait_for_figures(bench: &Bench) -> Result<usize> {
    let script = format!(
        "exec 3<>/dev/tcp/{} && printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3 && grep -c '^amphi_cpu_seconds_total.*member=' <&3 || true",
        METRICS.replace(':', "/")
    );
    let end = Instant::now() + LIMIT;
    loop {
        let text = bench.lab.run(HOST, &["bash", "-c", &script]).unwrap_or_default();
        let seen: usize = text.trim().parse().unwrap_or(0);
        if seen >= SETS * 2 {
            return Ok(seen);
        }
        ensure!(Instant::now() < end, "{seen} members have figures: {text}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[cfg(test)]
mod tests {
    use super::requests;

    #[test]
    fn requests_are_counted_across_pieces() {
        let text = b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\nPOST /v1.41/containers/a/start HTTP/1.1\r\n\r\n";
        for size in 1..text.len() {
            let mut tail = Vec::new();
            let all: u64 = text.chunks(size).map(|piece| requests(&mut tail, piece)).sum();
            assert_eq!(all, 2, "{size}");
        }
    }
}
