//! Hosts that fail, on real engines: what lived there answers at the same addresses from elsewhere; a host that wakes up
//! too late, or was only cut off from the controller, is heard by nobody any more and buries what it held; nothing answers
//! twice. `make chaos` is the long form.

use amphi_api::failover::{FailoverCause, FailoverFate};
use amphi_api::host::HostState;
use amphi_api::instance::{BodyKind, Instance};
use amphi_integration::chaos::{Breaking, Crowd, HOSTS, Watch, round};
use amphi_integration::failing::{PATIENCE, PEER, Stage, address, request, set, vm};
use amphi_integration::lab::Layout;
use amphi_integration::probe::uptime_ms;
use amphi_integration::wait::{Seen, until};
use anyhow::{Result, ensure};
use std::path::Path;
use std::time::Duration;

/// For so long beyond the failover's end a host stays broken.
const ASLEEP: Duration = Duration::from_secs(1);

fn stage(name: &str, hosts: u8) -> Result<Stage> {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    ensure!(images.exists(), "{} is missing: make images", images.display());
    let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join(name))?;
    Stage::up(layout, &images, Path::new(env!("CARGO_BIN_EXE_amphi-lab")), hosts, |_| {})
}

fn addresses(instances: &[&Instance]) -> Result<Vec<String>> {
    instances.iter().map(|i| address(i)).collect()
}

/// A power cut under sets and a VM; the return; then hosts that are taken for dead and are not.
#[test]
fn what_lived_on_a_dead_host_lives_elsewhere_and_nothing_answers_twice() -> Result<()> {
    let stage = stage("failover-lab", 3)?;
    stage.warm(&["h1", "h2", PEER])?;
    let watch = Watch::start(&stage.lab, &["h1", "h2", PEER])?;
    power_cut(&stage, &watch)?;
    for breaking in [Breaking::Freeze, Breaking::Cut] {
        println!("{breaking:?}, failed over, and back");
        let round = round(&stage, &watch, breaking, ASLEEP)?;
        ensure!(round.is_clean(), "{breaking:?}: {round:?}");
    }
    ensure!(watch.broken().is_empty() && watch.looks() > 100, "{:?}", watch.broken());
    drop(watch);
    stage.down()
}

fn power_cut(stage: &Stage, watch: &Watch) -> Result<()> {
    println!("power cut under sets and a VM");
    let one = stage.create(&request("one", vec![set()], Some("h1")))?;
    let two = stage.create(&request("two", vec![set()], Some("h1")))?;
    let mut with_volume = request("bound", vec![set()], Some("h1"));
    with_volume.volume =
        Some(amphi_api::instance::InstanceVolume { size_gib: Some(1), name: None, id: None });
    let bound = stage.create(&with_volume)?;
    let machine = stage.create(&request("machine", vec![vm()], Some("h1")))?;
    [&one, &two, &bound, &machine].into_iter().for_each(|i| watch.made(i));
    let watched = addresses(&[&one, &two, &machine])?;
    let (watcher, probe) = stage.watch(&watched)?;
    let outage = stage.fail("h1", &probe, &watched, || stage.lab.power_cut("h1"))?;
    println!("  answered after {:?} ms", outage.answered);
    for was in [&one, &two, &machine] {
        let now = stage.runs(was.id)?;
        ensure!(now.epoch > was.epoch && now.host != was.host, "{} should be elsewhere: {now:?}", was.name);
        ensure!(now.addresses == was.addresses, "{} keeps its addresses: {now:?}", was.name);
    }
    ensure!(outage.failover.cause == FailoverCause::LeaseEnded, "{:?}", outage.failover);
    let fate = outage.failover.instances.iter().find(|i| i.instance == bound.id).map(|i| i.fate.clone());
    ensure!(matches!(fate, Some(FailoverFate::Waiting { .. })), "its volume is there: {fate:?}");
    ensure!(stage.host("h1")?.state == HostState::Down && stage.host("h1")?.barred_since.is_some());

    println!("the host returns, buries what moved, is let in, and takes up what waited");
    let returned = uptime_ms()?;
    stage.lab.restore("h1", |_| {})?;
    stage.host_is_back("h1")?;
    for was in [&one, &two, &machine] {
        stage.buried("h1", was.id)?;
    }
    let back = stage.runs(bound.id)?;
    ensure!(back.host_name.as_deref() == Some("h1") && back.epoch == bound.epoch, "{back:?}");
    for address in &watched {
        ensure!(probe.count("twice", address, 0)? == 0, "{address} was answered twice");
        // A busy machine is silent at times; the word is the peer's at the end.
        println!(
            "  {address}: longest silence since the return {} ms",
            probe.longest_silence(address, returned)?
        );
    }
    probe.all_answer(&watched, PATIENCE)?;
    for instance in [&one, &two, &bound, &machine, &watcher] {
        watch.goes(instance.id);
        stage.delete(instance.id)?;
    }
    Ok(())
}

/// Where only the other kind of body has room, that is what the instance becomes; what has no room gets it later.
#[test]
fn the_other_kind_of_body_where_only_that_has_room() -> Result<()> {
    let stage = stage("kinds-lab", 3)?;
    stage.warm(&["h1", "h2", PEER])?;
    let either = stage.create(&request("either", vec![set(), vm()], Some("h1")))?;
    let only = stage.create(&request("only-set", vec![set()], Some("h1")))?;
    ensure!(either.body == BodyKind::Set, "the preferred body: {either:?}");
    let watched = addresses(&[&either])?;
    let (watcher, probe) = stage.watch(&watched)?;
    // The third host is full; the second has lost its Docker.
    let spec = stage.host(PEER)?.spec.ok_or_else(|| anyhow::anyhow!("{PEER} says nothing of itself"))?;
    let claims = stage.host(PEER)?.claims;
    let mut ballast = request("ballast", vec![set()], Some(PEER));
    ballast.memory_mib = spec.memory_mib - spec.reserved_memory_mib - claims.memory_mib;
    let ballast = stage.create(&ballast)?;
    stage.lab.kill("h2", "dockerd", nix::sys::signal::Signal::SIGKILL)?;
    stage.host_in("h2", |h| {
        let docker = h.spec.iter().flat_map(|s| &s.engines);
        docker.into_iter().any(|e| e.name == amphi_api::host::EngineName::Docker && e.trouble.is_some())
    })?;
    let before = stage.last_failover("h1")?;
    let cut = uptime_ms()?;
    stage.lab.power_cut("h1")?;
    let failover = stage.failover("h1", before)?;
    let now = stage.until(either.id, "a VM elsewhere", |i| {
        i.body == BodyKind::Vm && i.host_name.as_deref() == Some("h2")
    })?;
    ensure!(now.addresses == either.addresses, "{now:?}");
    until("the VM answers", Duration::from_secs(60), || {
        let at = probe.answered_after(&watched[0], cut)?;
        Ok(at.map_or_else(
            || Seen::Not("silent".to_owned()),
            |at| {
                println!("  as a VM after {} ms", at.saturating_sub(cut));
                Seen::Enough(())
            },
        ))
    })?;
    ensure!(stage.show(only.id)?.host == only.host, "no other host can run it");
    stage.lab.start("h2", "dockerd")?;
    let now = stage.runs(only.id)?;
    ensure!(now.host_name.as_deref() == Some("h2"), "it goes where there is room at last: {now:?}");
    let told = stage.failover_done(failover.id)?;
    ensure!(told.instances.len() == 2, "{told:?}");
    stage.lab.restore("h1", |_| {})?;
    stage.host_is_back("h1")?;
    for instance in [&either, &only, &ballast, &watcher] {
        stage.delete(instance.id)?;
    }
    stage.down()
}

/// Three of five hosts lose the controller: nothing happens. Two of five do: they stop their guests, the rest takes over.
#[test]
fn a_majority_that_is_cut_off_goes_on_and_a_minority_stops() -> Result<()> {
    let stage = stage("majority-lab", HOSTS.len() as u8)?;
    let watch = Watch::start(&stage.lab, &HOSTS)?;
    let crowd = Crowd::gather(&stage, &watch, &HOSTS)?;
    println!("three of five are cut off from the controller");
    crowd.most_are_cut(&["h1", "h3", "h5"], false)?;
    println!("two of five are cut off from everybody");
    let took = crowd.few_are_cut(&["h1", "h4"], true)?;
    println!("  all run elsewhere after {:.1} s", took.as_secs_f64());
    crowd.leave()?;
    ensure!(watch.broken().is_empty() && watch.looks() > 100, "{:?}", watch.broken());
    drop(watch);
    stage.down()
}
