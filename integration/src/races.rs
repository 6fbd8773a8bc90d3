//! `amphi-lab races`: many clients want the last addresses of a /26 and the last room of a host at once, round after round,
//! by the native face of a controller's process with hosts in memory. Nobody gets what another has, all that there is is
//! given, and whoever gets nothing is told so as a client's conflict, never as an error of the cloud.

use crate::alone::furnish::{ARCHIVE, furnish};
use crate::alone::{Controller, join};
use amphi_api::client::{Client, ClientError};
use amphi_api::instance::{Instance, InstanceCreate};
use amphi_api::network::NetworkCreate;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// What a /26 has, but for its network, its broadcast and its gateway.
const ADDRESSES: usize = 61;
/// Instances of [`ROOM_MIB`] that the host has room for once [`FILLER_MIB`] of its memory are taken.
const ROOM: usize = 16;
const ROOM_MIB: u64 = 1024;
/// A host in memory has a TiB.
const FILLER_MIB: u64 = (1 << 20) - ROOM as u64 * ROOM_MIB;
/// The host that is fought for.
const HOST: &str = "memory-1";
const LIMIT: Duration = Duration::from_secs(60);

/// Counts, over all rounds.
#[derive(Default)]
struct Tally {
    given: usize,
    refused: usize,
    slowest: Duration,
}

/// So many rounds of both races. `program` is `amphi-lab`, beside the other programs.
pub fn run(program: &Path, clients: usize, rounds: usize) -> Result<String> {
    ensure!(clients > ADDRESSES, "fewer clients than addresses: nobody would lose");
    // It fails only if one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build()?;
    let outcome = runtime.block_on(race(program, clients, rounds));
    runtime.shutdown_timeout(Duration::from_secs(5));
    outcome
}

async fn race(program: &Path, clients: usize, rounds: usize) -> Result<String> {
    let programs = program.parent().context("the program has no directory")?;
    let folder = program.with_file_name(format!("races-{}", std::process::id()));
    let controller = Controller::start_in(programs, folder, "[failover]\nautomatic = false\n")?;
    let _hosts = join(&controller, 2).await?;
    let client = Arc::new(Client::new(controller.url(), &controller.read("admin-token")?)?);
    furnish(&client, controller.folder(), "wide", "10.0.0.0/16").await?;
    let small = json!({ "name": "small", "subnet": { "cidr": "10.7.0.0/26" } });
    client.create_network(&serde_json::from_value::<NetworkCreate>(small)?).await?;
    let filler = order("filler", json!({ "memory_mib": FILLER_MIB, "qos": "guaranteed", "host": HOST }))?;
    client.create_instance(&filler).await.context("fill the host")?;
    let claimed = || async { anyhow::Ok(client.find_host(HOST).await?.claims) };
    let before = claimed().await?;

    let began = Instant::now();
    let (mut room, mut addresses) = (Tally::default(), Tally::default());
    for round in 0..rounds {
        let wish = json!({ "memory_mib": ROOM_MIB, "qos": "guaranteed", "host": HOST });
        let made = all_at_once(&client, clients, round, &wish, ROOM, &mut room)
            .await
            .with_context(|| format!("room, round {round}"))?;
        let now = claimed().await?;
        ensure!(
            now.instances - before.instances == ROOM as u32
                && now.memory_mib - before.memory_mib == ROOM as u64 * ROOM_MIB,
            "round {round}: {now:?} are claimed, {before:?} were before"
        );
        all_gone(&client, &made).await?;

        let wish = json!({ "memory_mib": 16, "networks": [{ "network": "small" }] });
        let made = all_at_once(&client, clients, round, &wish, ADDRESSES, &mut addresses)
            .await
            .with_context(|| format!("addresses, round {round}"))?;
        let of = |what: fn(&Instance) -> String| made.iter().map(what).collect::<BTreeSet<_>>().len();
        let (ips, macs) = (
            of(|i| i.addresses.first().map_or_else(String::new, |a| a.address.to_string())),
            of(|i| i.addresses.first().map_or_else(String::new, |a| a.mac.clone())),
        );
        ensure!((ips, macs) == (ADDRESSES, ADDRESSES), "round {round}: {ips} addresses, {macs} MACs");
        all_gone(&client, &made).await?;
        let now = claimed().await?;
        ensure!(now == before, "round {round}: {now:?} are claimed after all went, {before:?} were before");
    }
    let mut text = String::new();
    for (what, tally) in [("room for 16", &room), ("a /26", &addresses)] {
        writeln!(
            text,
            "{clients} clients for {what}: {rounds} rounds, {} given, {} refused, no duplicate; the slowest answer {} ms",
            tally.given,
            tally.refused,
            tally.slowest.as_millis()
        )?;
    }
    write!(text, "in {:.0} s", began.elapsed().as_secs_f64())?;
    Ok(text)
}

fn order(name: &str, wish: Value) -> Result<InstanceCreate> {
    let mut request = json!({
        "name": name, "vcpus": 1, "bodies": [{ "set": { "members": [{ "index": 1, "image": ARCHIVE }] } }],
        "networks": [{ "network": "wide" }],
    });
    let (Some(whole), Value::Object(wish)) = (request.as_object_mut(), wish) else { bail!("not an object") };
    whole.extend(wish);
    Ok(serde_json::from_value(request)?)
}

/// Each client orders one; exactly so many are made, and the others are refused as they should be.
async fn all_at_once(
    client: &Arc<Client>,
    clients: usize,
    round: usize,
    wish: &Value,
    given: usize,
    tally: &mut Tally,
) -> Result<Vec<Instance>> {
    let mut under_way = JoinSet::new();
    for n in 0..clients {
        let (client, request) = (client.clone(), order(&format!("r{round}-{n}"), wish.clone())?);
        under_way.spawn(async move {
            let began = Instant::now();
            (client.create_instance(&request).await, began.elapsed())
        });
    }
    let mut made = Vec::new();
    while let Some(done) = under_way.join_next().await {
        let (outcome, took) = done?;
        tally.slowest = tally.slowest.max(took);
        match outcome {
            Ok(instance) => made.push(instance),
            Err(ClientError::Api { status: 409, .. }) => tally.refused += 1,
            Err(error) => bail!("a refusal that is none: {error}"),
        }
    }
    ensure!(made.len() == given, "{} got what there is for {given}", made.len());
    tally.given += given;
    Ok(made)
}

async fn all_gone(client: &Client, made: &[Instance]) -> Result<()> {
    for instance in made {
        client.delete_instance(instance.id, true).await?;
    }
    let end = Instant::now() + LIMIT;
    loop {
        let left = client.instances().await?.len() - 1;
        if left == 0 {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{left} instances are not gone");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
