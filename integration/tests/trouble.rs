//! A host in trouble: engines that fail halfway or hang for a minute, a disk without room, a date that jumps. Whoever is
//! concerned says what is wrong, by a stable word; guests that run already are not touched; all converges when the trouble
//! is over; and nothing is left of it afterwards.

use amphi_api::InstanceId;
use amphi_api::host::{EngineName, Host};
use amphi_api::image::{BlobRole, ImageCreate, ImageFormat};
use amphi_api::instance::{BodySpec, Instance, InstanceState, InstanceVolume};
use amphi_integration::failing::{PATIENCE, Stage, request, set, vm};
use amphi_integration::lab::Layout;
use amphi_integration::story;
use amphi_integration::wait::{Seen, seen, until};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

const H1: &str = "h1";
/// How long an engine hangs.
const HANG: Duration = Duration::from_secs(60);
/// Where the agent's clock is set, on the host.
const CLOCK: &str = "/run/tmp/clock";
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

struct Trouble {
    stage: Stage,
    /// Guests that run from the beginning to the end, as they were at first.
    calm: String,
}

impl Trouble {
    fn order(&self, name: &str, body: BodySpec, volume_gib: Option<u64>) -> Result<Instance> {
        let mut order = request(name, vec![body], Some(H1));
        order.volume = volume_gib.map(|gib| InstanceVolume { size_gib: Some(gib), name: None, id: None });
        self.stage.order(&order)
    }

    fn fault(&self, id: InstanceId, codes: &[&str]) -> Result<()> {
        let what = format!("in error, by one of {codes:?}");
        let wanted = |i: &Instance| i.fault.as_ref().is_some_and(|f| codes.contains(&f.code.as_str()));
        let seen = self.stage.until(id, &what, wanted)?;
        ensure!(seen.state == InstanceState::Error, "{seen:?}");
        println!("  {:?}", seen.fault.map(|fault| format!("{}: {}", fault.code, fault.message)));
        Ok(())
    }

    fn runs_and_goes(&self, id: InstanceId) -> Result<()> {
        self.stage.runs(id)?;
        self.stage.delete(id)?;
        self.untouched()
    }

    fn untouched(&self) -> Result<()> {
        let now = self.stage.guests(H1)?;
        ensure!(
            self.calm.lines().all(|guest| now.lines().any(|line| line == guest)),
            "guests were touched:\n{now}\nwere\n{}",
            self.calm
        );
        Ok(())
    }

    /// What the host says of an engine: none, that it is well.
    fn engine_is(&self, name: EngineName, well: bool) -> Result<()> {
        let trouble = |h: &Host| {
            let engines = h.spec.iter().flat_map(|spec| &spec.engines);
            engines.filter(|e| e.name == name).find_map(|e| e.trouble.clone())
        };
        let host = self.stage.host_in(H1, |h| trouble(h).is_none() == well)?;
        println!("  the host says of {name:?}: {:?}", trouble(&host));
        Ok(())
    }

    /// The engine hangs while something is asked of it, and well beyond its bounds.
    fn hangs(&self, unit: &str, name: EngineName, body: BodySpec, volume_gib: Option<u64>) -> Result<()> {
        println!("a {unit} that hangs for {} s", HANG.as_secs());
        let began = Instant::now();
        self.stage.lab.pause(&format!("{H1}/{unit}"))?;
        let asked = self.order(unit, body, volume_gib)?;
        self.fault(asked.id, &["engine_timeout", "engine_down"])?;
        self.engine_is(name, false)?;
        until("the hang is over", HANG * 2, || {
            self.untouched()?;
            Ok(seen(began.elapsed() >= HANG, || "it lasts".to_owned()))
        })?;
        self.stage.lab.resume(&format!("{H1}/{unit}"))?;
        self.supervised(asked.id)?;
        self.runs_and_goes(asked.id)?;
        self.engine_is(name, true)
    }

    /// Starts the agent again if it has ended, as its supervisor does on a real host: calls that time out while libvirtd hangs
    /// can crash libvirt's own client code when it returns (CVE-2024-4418, mended in libvirt 10.3).
    fn supervised(&self, id: InstanceId) -> Result<()> {
        until("the agent is there and the instance is on its way", PATIENCE, || {
            let units = self.stage.lab.status(H1)?.units;
            let ended = units.iter().find(|u| u.name == "hostsrv" && u.state == "exited");
            if let Some(unit) = ended {
                println!("  the agent has ended: {}", unit.detail);
                self.stage.lab.start(H1, "hostsrv")?;
            }
            let now = self.stage.show(id)?;
            let well = now.state == InstanceState::Running && now.fault.is_none();
            Ok(seen(well, || format!("{:?}", now.fault)))
        })
    }
}

#[test]
fn a_host_in_trouble_says_so_and_touches_no_guest() -> Result<()> {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("trouble-lab"))?;
    let program = Path::new(env!("CARGO_BIN_EXE_amphi-lab"));
    let stage = Stage::up(layout.clone(), &images, program, 1, |_| {})?;
    let before = story::residue::on(&stage.lab, H1)?;
    let garbage = layout.images().with_file_name("garbage");
    std::fs::write(&garbage, b"this is no archive")?;
    let create =
        ImageCreate { name: "garbage".into(), format: ImageFormat::DockerArchive, cmdline: String::new() };
    let image = stage.ask(stage.client.create_image(&create))?;
    let refused =
        stage.ask(stage.client.upload_file(image.id, BlobRole::Archive, &garbage, Box::new(|_, _| {})));
    let told = format!("{:#}", refused.err().context("garbage was taken for an image")?);
    ensure!(told.contains("archive"), "an image that is none is refused with the reason: {told}");

    let mut t = Trouble { stage, calm: String::new() };
    let calm = [t.order("calm-set", set(), Some(1))?.id, t.order("calm-vm", vm(), None)?.id];
    calm.iter().try_for_each(|id| t.stage.runs(*id).map(drop))?;
    t.calm = t.stage.guests(H1)?;
    ensure!(t.calm.lines().count() >= 2, "no guests: {}", t.calm);

    println!("a volume group that somebody filled");
    let filler =
        ["lvcreate", "--driverloaded", "n", "-an", "-Zn", "-Wn", "-l", "100%FREE", "-n", "filler", "amphi"];
    t.stage.lab.run(H1, &filler)?;
    let full = t.order("full", set(), Some(1))?;
    t.fault(full.id, &["volume_group_full"])?;
    t.stage.lab.run(H1, &["lvremove", "--driverloaded", "n", "-y", "amphi/filler"])?;
    t.runs_and_goes(full.id)?;

    t.hangs("dockerd", EngineName::Docker, set(), None)?;
    t.hangs("libvirtd", EngineName::Libvirt, vm(), Some(1))?;

    println!("a disk without room");
    t.stage.lab.disk_full(H1)?;
    let late = t.order("late", set(), None)?;
    t.engine_is(EngineName::Ledger, false)?;
    t.untouched()?;
    t.stage.lab.disk_free(H1)?;
    t.runs_and_goes(late.id)?;
    t.engine_is(EngineName::Ledger, true)?;

    println!("a date that jumps");
    t.stage.lab.kill(H1, "hostsrv", Signal::SIGKILL)?;
    let set_clock = |seconds: i64| {
        let script = format!("printf %s {seconds:+} >{CLOCK}.next && mv {CLOCK}.next {CLOCK}");
        t.stage.lab.run(H1, &["sh", "-c", &script]).map(drop)
    };
    set_clock(0)?;
    let agent = program.with_file_name("amphi-hostsrv");
    let clock = format!("FAKETIME_TIMESTAMP_FILE={CLOCK}");
    let preload = format!("LD_PRELOAD={FAKETIME}");
    let command = [
        "env",
        &preload,
        &clock,
        "FAKETIME_CACHE_DURATION=1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
        "NO_FAKE_STAT=1",
        agent.to_str().context("the agent's path")?,
        "--config",
        "/etc/amphi/hostsrv.toml",
        "run",
    ];
    let by_the_clock = t.stage.lab.background(H1, &command)?;
    t.stage.host_is_back(H1)?;
    for (round, off) in [(1, -86_400), (2, 30 * 86_400)] {
        set_clock(off)?;
        let other = t.order(&format!("dated-{round}"), set(), None)?;
        t.stage.runs(other.id)?;
        let own = t.stage.guests(H1)?;
        let process =
            own.lines().find(|line| line.starts_with("set") && !t.calm.lines().any(|calm| calm == *line));
        let process = process.and_then(|line| line.split(' ').nth(1)).context("its process")?.to_owned();
        t.stage.lab.run(H1, &["kill", "-KILL", &process])?;
        t.stage.until(other.id, "up again after its member's end", |i| {
            i.members.iter().any(|m| m.restarts >= 1)
                && i.state == InstanceState::Running
                && i.fault.is_none()
        })?;
        t.stage.delete(other.id)?;
        t.untouched()?;
    }
    drop(by_the_clock);
    t.stage.lab.start(H1, "hostsrv")?;
    t.stage.host_is_back(H1)?;
    t.untouched()?;

    println!("a switch whose database is down");
    t.stage.lab.kill(H1, "ovsdb-server", Signal::SIGKILL)?;
    let cut = t.order("cut", set(), None)?;
    // The host's own uplink is a port of that switch, so the controller may lose the host before it hears of the fault.
    let dark = |i: &Instance| matches!(i.state, InstanceState::Error | InstanceState::Unknown);
    t.stage.until(cut.id, "in error, or unknown", dark)?;
    t.stage.lab.start(H1, "ovsdb-server")?;
    t.runs_and_goes(cut.id)?;

    calm.iter().try_for_each(|id| t.stage.delete(*id))?;
    // Leftovers on the switch go after two sweeps.
    until("nothing is left", PATIENCE, || {
        let bin = t.stage.ask(t.stage.client.recycle_bin())?;
        for volume in &bin {
            // One that is being purged already refuses a second order.
            let _ = t.stage.ask(t.stage.client.purge_volume(volume.id));
        }
        let now = story::residue::on(&t.stage.lab, H1)?;
        let left: BTreeSet<_> = now.difference(&before).cloned().collect();
        Ok(if bin.is_empty() && left.is_empty() { Seen::Enough(()) } else { Seen::Not(format!("{left:?}")) })
    })?;
    t.stage.down()
}
