//! A hundred sets on one host, created, updated, resized and deleted by eight clients at once: each does what it was told,
//! and nothing is left of any. `AMPHI_HUNDRED` says how many; without it there are 24, since each costs about a second of a
//! core over its life. `make bench` has the hundred.

use amphi_api::InstanceId;
use amphi_api::client::Client;
use amphi_api::host::HostState;
use amphi_api::instance::{BodySpec, Instance, InstanceCreate, InstanceState, InstanceVolume};
use amphi_api::rollout::RolloutPhase;
use amphi_integration::bench::widen;
use amphi_integration::failing::{PATIENCE, Stage, request, set};
use amphi_integration::lab::Layout;
use amphi_integration::run;
use amphi_integration::story::residue;
use amphi_integration::wait::{seen, until};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Barrier;

const H1: &str = "h1";
const CONTROLLER: &str = "controller";
const CLIENTS: usize = 8;
const FEW: usize = 24;
/// Every tenth set has a volume too.
const VOLUME_EACH: usize = 10;
const MEMORY_MIB: u64 = 32;
const RESIZED_MIB: u64 = 48;
/// Longer than all of them need one after the other.
const LIMIT: Duration = Duration::from_secs(900);

fn order(n: usize) -> Result<InstanceCreate> {
    let member = json!({"name": "only", "index": 0, "image": "busybox", "update": {"min_ready_s": 0},
        "command": ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done"]});
    let body: BodySpec = serde_json::from_value(json!({"set": {"members": [member]}}))?;
    let volume = InstanceVolume { size_gib: Some(1), name: None, id: None };
    Ok(InstanceCreate {
        memory_mib: MEMORY_MIB,
        volume: n.is_multiple_of(VOLUME_EACH).then_some(volume),
        ..request(&format!("set-{n}"), vec![body], Some(H1))
    })
}

fn well(instance: &Instance) -> bool {
    let members = instance.members.iter().all(|m| m.running);
    instance.state == InstanceState::Running && instance.fault.is_none() && members
}

/// What one client does with its share, in step with the others: all are there at once.
async fn work(client: Arc<Client>, share: Vec<usize>, phase: Arc<Barrier>) -> Result<()> {
    let mut ids: Vec<InstanceId> = Vec::new();
    for n in share {
        ids.push(client.create_instance(&order(n)?).await.with_context(|| format!("create set-{n}"))?.id);
    }
    for id in &ids {
        let made = client.wait_instance(*id, well, LIMIT, |_| ()).await?;
        ensure!(well(&made), "it does not run: {made:?}");
    }
    phase.wait().await;
    let update = serde_json::from_value(json!({"members": {"only": {"env": {"ROUND": "2"}}}}))?;
    for id in &ids {
        client.update_set(*id, &update).await.with_context(|| format!("update {id}"))?;
    }
    for id in &ids {
        let done = client.wait_rollout(*id, |_| false, LIMIT, |_| ()).await?;
        ensure!(done.phase == RolloutPhase::Done, "{done:?}");
    }
    let resize = serde_json::from_value(json!({"memory_mib": RESIZED_MIB}))?;
    for id in &ids {
        client.resize_instance(*id, &resize).await.with_context(|| format!("resize {id}"))?;
    }
    for id in &ids {
        let held = |i: &Instance| well(i) && !i.resizing && i.memory_mib == RESIZED_MIB;
        let resized = client.wait_instance(*id, held, LIMIT, |_| ()).await?;
        let generations: Vec<u64> = resized.members.iter().map(|m| m.generation).collect();
        ensure!(held(&resized) && resized.conditions.is_empty() && generations == [2], "{resized:?}");
    }
    phase.wait().await;
    // Whoever watches looks at them here.
    phase.wait().await;
    for id in &ids {
        client.delete_instance(*id, true).await.with_context(|| format!("delete {id}"))?;
    }
    for id in &ids {
        let left = client.wait_instance_gone(*id, |_| false, LIMIT, |_| ()).await?;
        ensure!(left.is_none(), "it does not go: {left:?}");
    }
    Ok(())
}

/// What Docker holds each member to, in bytes.
fn held(stage: &Stage) -> Result<Vec<u64>> {
    let script = "docker='/usr/bin/docker -H unix:///run/docker.sock'; \
        $docker inspect --format '{{.Name}} {{.HostConfig.Memory}}' $($docker ps -q)";
    let all = stage.lab.run(H1, &["sh", "-c", script])?;
    let member = |line: &str| line.split_once("-only ").and_then(|(_, bytes)| bytes.trim().parse().ok());
    Ok(all.lines().filter_map(member).collect())
}

#[test]
fn a_hundred_sets_by_eight_clients() -> Result<()> {
    let count: usize = match std::env::var("AMPHI_HUNDRED") {
        Ok(text) => text.parse().context("AMPHI_HUNDRED")?,
        Err(_) => FEW,
    };
    ensure!((CLIENTS..=200).contains(&count), "AMPHI_HUNDRED: {CLIENTS} to 200");
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("hundred-lab"))?;
    let program = Path::new(env!("CARGO_BIN_EXE_amphi-lab"));
    let stage = Stage::up(layout.clone(), &images, program, 1, |_| {})?;
    widen(&stage.lab)?;
    stage.host_in(H1, |host| host.state == HostState::Up)?;
    // The image's way to the host is no residue.
    let warm = stage.create(&request("warm", vec![set()], Some(H1)))?;
    stage.delete(warm.id)?;
    let look = || -> Result<BTreeSet<String>> {
        Ok(residue::on(&stage.lab, H1)?.into_iter().chain(residue::on(&stage.lab, CONTROLLER)?).collect())
    };
    let before = look()?;

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let client = Arc::new(run::client(&layout)?);
    let began = Instant::now();
    runtime.block_on(async {
        let phase = Arc::new(Barrier::new(CLIENTS + 1));
        let share = |which: usize| (0..count).filter(|n| n % CLIENTS == which).collect::<Vec<_>>();
        let mut clients = tokio::task::JoinSet::new();
        for which in 0..CLIENTS {
            clients.spawn(work(client.clone(), share(which), phase.clone()));
        }
        // A client that fails would leave the others waiting.
        let mut passed = async |what: &str| {
            tokio::select! {
                _ = phase.wait() => {
                    println!("  {what} after {:.1} s", began.elapsed().as_secs_f64());
                    Ok(())
                }
                Some(ended) = clients.join_next() => {
                    ended??;
                    anyhow::bail!("a client has ended early")
                }
            }
        };
        passed("all run").await?;
        passed("all are updated and resized").await?;
        let host = client.find_host(H1).await?;
        ensure!(host.claims.instances as usize == count, "{:?}", host.claims);
        let held = tokio::task::block_in_place(|| held(&stage))?;
        let right = held.iter().filter(|bytes| **bytes == RESIZED_MIB << 20).count();
        ensure!((held.len(), right) == (count, count), "Docker holds them to {held:?}");
        phase.wait().await;
        while let Some(ended) = clients.join_next().await {
            ended??;
        }
        println!("  all are gone after {:.1} s", began.elapsed().as_secs_f64());
        anyhow::Ok(())
    })?;

    let left = runtime.block_on(client.instances())?;
    ensure!(left.is_empty(), "{left:?}");
    let ports = runtime.block_on(client.ports())?;
    ensure!(ports.is_empty(), "{ports:?}");
    for trashed in runtime.block_on(client.recycle_bin())? {
        runtime.block_on(client.purge_volume(trashed.id))?;
    }
    let extra = || -> Result<Vec<String>> { Ok(look()?.difference(&before).cloned().collect()) };
    // Of many that go at once, libnetwork 20.10 now and then counts one end of a network too many. It counts anew when it
    // starts; the network is nobody's until then, and whoever needs it takes it up.
    let kept = |name: &str| {
        name.strip_prefix("docker-network ").is_some_and(|network| ends(&stage, network).trim() == "{}")
    };
    until("nothing is left of them but a network that Docker takes for used", PATIENCE, || {
        let extra = extra()?;
        Ok(seen(extra.iter().all(|name| kept(name)), || format!("{extra:?}")))
    })?;
    let extra_now = extra()?;
    if !extra_now.is_empty() {
        println!("Docker keeps {extra_now:?}, and is started again");
        stage.lab.kill(H1, "dockerd", Signal::SIGKILL)?;
        stage.lab.start(H1, "dockerd")?;
    }
    until("nothing is left of them", PATIENCE, || {
        let extra = extra()?;
        Ok(seen(extra.is_empty(), || format!("{extra:?}")))
    })?;
    let claims = runtime.block_on(client.find_host(H1))?.claims;
    ensure!((claims.instances, claims.memory_mib) == (0, 0), "{claims:?}");
    println!("{count} sets in {:.1} s", began.elapsed().as_secs_f64());
    drop(client);
    stage.down()
}

/// What Docker takes to be in a network, for whoever has to find out why it stays.
fn ends(stage: &Stage, network: &str) -> String {
    let docker = ["/usr/bin/docker", "-H", "unix:///run/docker.sock"];
    let look = ["network", "inspect", "--format", "{{json .Containers}}", network];
    stage.lab.run(H1, &[&docker[..], &look].concat()).unwrap_or_else(|error| format!("{error:#}"))
}
