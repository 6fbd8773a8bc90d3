//! A seeded fault storm: clients order whatever there is to order, while the controller and agents are killed, wires go
//! dead in one direction, engines hang, disks are full and hosts lose power. The controller, the link and the reconciler
//! are the real ones; only engines are in memory. A checker looks all the time, and at the end everything has to be as it
//! was acknowledged, and then gone without a trace.
//!
//! The sequence of orders and of faults is the seed's; what comes of them also hangs on the machine's timing. A seed that
//! fails is printed, and given again it orders and strikes the same.

mod beliefs;
mod checker;
mod client;
mod cloud;
mod dice;
mod faults;
mod orders;

pub use cloud::Cloud;
pub use dice::Dice;

use anyhow::{Context, Result, ensure};
use client::StormClient;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a storm is.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    pub seed: u64,
    /// How long orders are given and faults strike; then the cloud has to come to rest.
    pub lasts: Duration,
    pub hosts: usize,
    pub clients: u64,
}

/// Raises a cloud, lets the storm pass over it, checks all. An error says what was found and how to see it again.
/// `program` is `amphi-lab`, beside the other programs. What is printed is the storm's statistics.
pub fn run(program: &Path, weather: &Weather) -> Result<String> {
    let seed = weather.seed;
    let folder = program.with_file_name(format!("storm-{seed}-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .context("start a runtime")?;
    let outcome = runtime.block_on(pass(program, &folder, weather));
    runtime.shutdown_timeout(Duration::from_secs(5));
    let again = format!("seed {seed}: `amphi-lab storm --seed {seed} --seconds {}`", weather.lasts.as_secs());
    outcome.context(again)
}

async fn pass(program: &Path, folder: &Path, weather: &Weather) -> Result<String> {
    let began = Instant::now();
    let cloud = Cloud::raise(program, folder.to_owned(), weather.hosts).await?;
    checker::hosts_are_up(&cloud).await?;
    let raised = began.elapsed();
    let end = tokio::time::Instant::now() + weather.lasts;
    let clients: Vec<_> =
        (0..weather.clients).map(|n| Arc::new(StormClient::new(cloud.clone(), n))).collect();
    let checker = tokio::spawn(checker::watch(cloud.clone(), clients.clone()));
    let working: Vec<_> = clients
        .iter()
        .map(|client| {
            let (client, seed) = (client.clone(), weather.seed);
            tokio::spawn(async move { client.work(seed, end, u64::MAX).await })
        })
        .collect();
    let struck = faults::strike(&cloud, weather.seed, end).await;
    let mut given = 0;
    for client in working {
        given += client.await?;
    }
    struck?;
    let quiet = Instant::now();
    let rested = checker::all_as_acknowledged(&cloud, &clients).await;
    checker.abort();
    let words = tell(&cloud, given, raised, quiet.elapsed());
    rested.with_context(|| words.clone())?;
    checker::gone_without_a_trace(&cloud).await.with_context(|| words.clone())?;
    let wrong = cloud.wrongs();
    ensure!(wrong.is_empty(), "{words}\n{}", wrong.join("\n"));
    Ok(words)
}

fn tell(cloud: &Cloud, given: u64, raised: Duration, rest: Duration) -> String {
    let tally = cloud.tally();
    let lines: Vec<_> = tally.iter().map(|(what, count)| format!("  {count:>7}  {what}")).collect();
    format!(
        "{given} orders, {} bodies started, up in {:.1} s, at rest {:.1} s after the storm\n{}",
        cloud.registry.starts(),
        raised.as_secs_f64(),
        rest.as_secs_f64(),
        lines.join("\n")
    )
}
