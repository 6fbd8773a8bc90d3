//! Twins on real engines: bodies that wait on a second host, made and not started. When the first host loses its power they
//! start, at the same addresses, and nothing else had to be made; when it returns, it gets the next twins. While they wait,
//! nothing of them runs.

use amphi_api::failover::{FailoverChange, FailoverFate};
use amphi_api::instance::{BodyKind, BodySpec, FailoverPolicy, Instance};
use amphi_integration::chaos::Watch;
use amphi_integration::failing::{PATIENCE, PEER, Stage, address, request, set, vm};
use amphi_integration::lab::Layout;
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// More than is left on the third host, so that twins wait on the second one.
const MEMORY_MIB: u64 = 192;
const WATCHER_MIB: u64 = 128;

fn stage(name: &str) -> Result<Stage> {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    ensure!(images.exists(), "{} is missing: make images", images.display());
    let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join(name))?;
    Stage::up(layout, &images, Path::new(env!("CARGO_BIN_EXE_amphi-lab")), 3, |_| {})
}

fn twinned(stage: &Stage, name: &str, bodies: Vec<BodySpec>, twin: BodyKind) -> Result<Instance> {
    let mut order = request(name, bodies, Some("h1"));
    order.memory_mib = MEMORY_MIB;
    order.failover = FailoverPolicy::Twin;
    order.failover_terms.twin_body = Some(twin);
    stage.create(&order)
}

/// Its twin is ready there.
fn waits_on(stage: &Stage, instance: &Instance, host: &str) -> Result<Instance> {
    stage.until(instance.id, &format!("waited for on {host}"), |i| {
        i.twin.as_ref().is_some_and(|twin| twin.ready && twin.host_name.as_deref() == Some(host))
    })
}

/// The third host has room for the watcher and no more.
fn fill(stage: &Stage) -> Result<Instance> {
    let host = stage.host(PEER)?;
    let spec = host.spec.context("it says nothing of itself")?;
    let mut ballast = request("ballast", vec![set()], Some(PEER));
    ballast.memory_mib = spec.memory_mib - spec.reserved_memory_mib - host.claims.memory_mib - WATCHER_MIB;
    stage.create(&ballast)
}

#[test]
fn a_twin_takes_over_and_the_host_that_returns_gets_the_next() -> Result<()> {
    let stage = stage("twin-lab")?;
    stage.warm(&["h1", "h2", PEER])?;
    let watch = Watch::start(&stage.lab, &["h1", "h2", PEER])?;
    let ballast = fill(&stage)?;
    let plain = twinned(&stage, "plain", vec![set()], BodyKind::Set)?;
    let to_vm = twinned(&stage, "to-vm", vec![set(), vm()], BodyKind::Vm)?;
    let to_set = twinned(&stage, "to-set", vec![vm(), set()], BodyKind::Set)?;
    let all = [(&plain, BodyKind::Set), (&to_vm, BodyKind::Vm), (&to_set, BodyKind::Set)];
    for (instance, kind) in all {
        watch.made(instance);
        let seen = waits_on(&stage, instance, "h2")?;
        let twin = seen.twin.context("no twin")?;
        ensure!(twin.body == Some(kind) && twin.fault.is_none(), "{twin:?}");
    }
    let held = stage.lab.run("h2", &["/usr/bin/docker", "-H", "unix:///run/docker.sock", "ps", "-q"])?;
    ensure!(held.trim().is_empty(), "a twin runs: {held}");
    let watched = all.iter().map(|(i, _)| address(i)).collect::<Result<Vec<_>>>()?;
    let (watcher, probe) = stage.watch(&watched)?;

    println!("power cut");
    let outage = stage.fail("h1", &probe, &watched, || stage.lab.power_cut("h1"))?;
    let detection = outage.failover.decided_at.duration_since(outage.cut_at).as_millis();
    println!("  taken for dead after {detection} ms");
    for ((was, kind), answered) in all.iter().zip(&outage.answered) {
        let told = outage.failover.instances.iter().find(|i| i.instance == was.id);
        let Some(FailoverFate::Moved { at, running_at, twin, to_name, epoch, .. }) = told.map(|i| &i.fate)
        else {
            anyhow::bail!("{} did not move: {told:?}", was.name);
        };
        ensure!(*twin && to_name == "h2", "{}'s twin takes over: {told:?}", was.name);
        let started = running_at.map(|ran| ran.duration_since(*at).as_millis());
        println!(
            "  {} as {kind}: answered {} ms beyond detection; from the commit to running {started:?} ms",
            was.name,
            i128::from(*answered) - detection
        );
        let now = stage.runs(was.id)?;
        ensure!(now.body == *kind && now.epoch == *epoch && now.addresses == was.addresses, "{now:?}");
        let none = now.twin.context("the policy asks for one")?;
        ensure!(none.host.is_none() && none.why.is_some(), "no other host has room: {none:?}");
    }

    println!("the host returns");
    stage.lab.restore("h1", |_| {})?;
    stage.host_is_back("h1")?;
    for (was, _) in all {
        let now = waits_on(&stage, was, "h1")?;
        ensure!(now.host_name.as_deref() == Some("h2"), "{now:?}");
    }
    println!("the policy is taken away and given back");
    let terms = plain.failover_terms;
    let change = |failover| {
        stage.ask(stage.client.change_failover(plain.id, &FailoverChange { failover, failover_terms: terms }))
    };
    ensure!(change(FailoverPolicy::AnyKind)?.twin.is_none(), "no twin is asked for");
    stage.buried("h1", plain.id)?;
    change(FailoverPolicy::Twin)?;
    waits_on(&stage, &plain, "h1")?;
    ensure!(stage.show(plain.id)?.host_name.as_deref() == Some("h2"), "it runs on where it was");
    for address in &watched {
        ensure!(probe.count("twice", address, 0)? == 0, "{address} was answered twice");
    }
    probe.all_answer(&watched, PATIENCE)?;
    for instance in [&plain, &to_vm, &to_set, &ballast, &watcher] {
        watch.goes(instance.id);
        stage.delete(instance.id)?;
    }
    for host in ["h1", "h2"] {
        for (was, _) in all {
            stage.buried(host, was.id)?;
        }
    }
    ensure!(watch.broken().is_empty() && watch.looks() > 50, "{:?}", watch.broken());
    drop(watch);
    stage.down()
}
