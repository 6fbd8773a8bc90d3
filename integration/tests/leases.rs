//! Leases on real hosts: without the controller every guest runs on; a host that is cut off ends its own in time, and has
//! them back when it is back.

use amphi_api::InstanceId;
use amphi_api::instance::{BodySpec, FailoverPolicy};
use amphi_api::lease::LeaseTiming;
use amphi_integration::failing::{PATIENCE, Stage, request, set, vm};
use amphi_integration::lab::Layout;
use amphi_integration::run;
use amphi_integration::wait::{seen, until};
use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];
const CONTROLLER: &str = "controller";
/// How long the controller is away: several leases.
const OUTAGE: Duration = Duration::from_secs(15);
/// Beyond the lease, for a machine that runs other things as well.
const SLACK: Duration = Duration::from_millis(1_500);

/// On this host, and on no other ever.
fn create(stage: &Stage, name: &str, host: &str, body: BodySpec) -> Result<InstanceId> {
    let mut order = request(name, vec![body], Some(host));
    order.failover = FailoverPolicy::Never;
    Ok(stage.order(&order)?.id)
}

/// The guests of every host, and whether it has fenced itself since.
fn sight(stage: &Stage) -> Result<Vec<(String, String)>> {
    HOSTS.iter().map(|host| Ok((stage.guests(host)?, stage.boot(host)?))).collect()
}

fn all_in(stage: &Stage, state: &str) -> Result<()> {
    HOSTS.iter().try_for_each(|host| stage.lease_is(host, state, PATIENCE))
}

#[test]
fn an_outage_of_the_controller_stops_nobody_and_a_lonely_host_stops_itself() -> Result<()> {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("leases-lab"))?;
    let program = Path::new(env!("CARGO_BIN_EXE_amphi-lab"));
    let mut stage = Stage::up(layout.clone(), &images, program, HOSTS.len() as u8, |_| {})?;
    let instances = [
        create(&stage, "one", "h1", set())?,
        create(&stage, "two", "h1", vm())?,
        create(&stage, "three", "h2", set())?,
        create(&stage, "four", "h3", set())?,
    ];
    instances.iter().try_for_each(|id| stage.runs(*id).map(drop))?;
    all_in(&stage, "held")?;
    let before = sight(&stage)?;
    ensure!(before[0].0.lines().count() == 2, "{before:?}");

    println!("the controller is away for {OUTAGE:?}");
    stage.lab.kill(CONTROLLER, "controller", Signal::SIGKILL)?;
    let began = Instant::now();
    all_in(&stage, "hold")?;
    while began.elapsed() < OUTAGE {
        ensure!(sight(&stage)? == before, "while the controller is away: {:?}", sight(&stage)?);
        all_in(&stage, "hold")?;
        std::thread::sleep(Duration::from_millis(250));
    }
    stage.lab.start(CONTROLLER, "controller")?;
    // The connections of the old client ended with the old controller.
    stage.client = run::client(&layout)?;
    all_in(&stage, "held")?;
    ensure!(sight(&stage)? == before, "when the controller is back: {:?}", sight(&stage)?);

    println!("agent and lease process of h1 are killed and started again");
    for daemon in ["hostsrv", "lease"] {
        stage.lab.kill("h1", daemon, Signal::SIGKILL)?;
    }
    for daemon in ["lease", "hostsrv"] {
        stage.lab.start("h1", daemon)?;
    }
    stage.lease_is("h1", "held", PATIENCE)?;
    ensure!(sight(&stage)? == before, "after restarts of both processes: {:?}", sight(&stage)?);

    println!("h1 is cut off from everybody");
    let others = [CONTROLLER, "h2", "h3"];
    let began = Instant::now();
    others.iter().try_for_each(|other| stage.lab.cut("h1", other, false))?;
    let lease = Duration::from_millis(LeaseTiming::default().term) + SLACK;
    while !stage.guests("h1")?.is_empty() {
        ensure!(began.elapsed() < lease, "after {:?}: {}", began.elapsed(), stage.guests("h1")?);
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("  its guests are gone after {:.2} s", began.elapsed().as_secs_f32());
    stage.lease_is("h1", "fenced", Duration::ZERO)?;
    ensure!(stage.boot("h1")? != before[0].1, "what was ordered before counts no more");
    std::thread::sleep(Duration::from_secs(2));
    ensure!(stage.guests("h1")?.is_empty(), "nothing starts while it is fenced");
    ensure!(sight(&stage)?[1..] == before[1..], "the others are not concerned: {:?}", sight(&stage)?);

    println!("the cut heals");
    others.iter().try_for_each(|other| stage.lab.heal("h1", other))?;
    let began = Instant::now();
    stage.lease_is("h1", "held", PATIENCE)?;
    instances.iter().try_for_each(|id| stage.runs(*id).map(drop))?;
    until("its guests are back", PATIENCE, || {
        let now = stage.guests("h1")?;
        Ok(seen(now.lines().count() == 2, || now.clone()))
    })?;
    println!("  its guests are back {:.2} s after the cut has healed", began.elapsed().as_secs_f32());
    ensure!(stage.guests("h1")? != before[0].0, "they are new bodies");

    instances.iter().try_for_each(|id| stage.delete(*id))?;
    stage.down()
}
