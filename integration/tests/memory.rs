//! Memory of VMs that run, on two real hosts: more of it and less without a restart, as the guest itself counts it; what a guest
//! keeps stays claimed of its host; a live move takes it along; the next start has it from the beginning. A set that runs as a
//! VM has it too, members and all.

use amphi_api::InstanceId;
use amphi_api::instance::{BodySpec, ExchangePhase, InstanceState, MoveCreate, VmSpec};
use amphi_api::resize::UP_TO_GUEST;
use amphi_api::set::SetSpec;
use amphi_integration::failing::{PATIENCE, Stage, request};
use amphi_integration::lab::Layout;
use amphi_integration::program::{Amphi, text};
use amphi_integration::story::read_env;
use amphi_integration::wait::{Seen, seen, until};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

struct Story {
    stage: Stage,
    amphi: Amphi,
    guest: InstanceId,
}

/// What a guest says of itself.
#[derive(Clone, Debug, PartialEq)]
struct Inside {
    boot: String,
    total_mib: u64,
}

impl Story {
    fn inside(&self, script: &str) -> Result<String> {
        Ok(text(&self.amphi.well(&["exec", "guest", "--", "sh", "-c", script])?).trim().to_owned())
    }

    fn look(&self) -> Result<Inside> {
        let told =
            self.inside("cat /proc/sys/kernel/random/boot_id; awk '/MemTotal/ { print $2 }' /proc/meminfo")?;
        let (boot, kib) = told.split_once('\n').with_context(|| told.clone())?;
        Ok(Inside { boot: boot.to_owned(), total_mib: kib.trim().parse::<u64>()? >> 10 })
    }

    fn answers(&self) -> Result<()> {
        let told = |i: &amphi_api::instance::Instance| i.agent.as_ref().is_some_and(|agent| agent.answers);
        self.stage.until(self.guest, "one whose agent answers", told).map(drop)
    }

    fn has(&self, mib: u64) -> Result<Inside> {
        until(&format!("about {mib} MiB inside"), PATIENCE, || {
            let now = self.look()?;
            let there = now.total_mib.abs_diff(mib) <= 4;
            Ok(if there { Seen::Enough(now) } else { Seen::Not(format!("{now:?}")) })
        })
    }

    fn claimed(&self, host: &str) -> Result<u64> {
        Ok(self.stage.host(host)?.claims.memory_mib)
    }

    fn claims(&self, host: &str, mib: u64) -> Result<()> {
        until(&format!("{mib} MiB are claimed of {host}"), PATIENCE, || {
            let now = self.claimed(host)?;
            Ok(seen(now == mib, || now.to_string()))
        })
    }

    fn resize(&self, mib: u64) -> Result<String> {
        let began = Instant::now();
        let said = self.amphi.well(&["vm", "resize", "guest", "--memory", &mib.to_string()])?;
        println!("  to {mib} MiB: {} ms", began.elapsed().as_millis());
        Ok(text(&said))
    }
}

#[test]
fn a_vm_has_more_memory_and_less_while_it_runs() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let kit = Command::new(root.join("scripts/make-guest-kit.sh")).status()?;
    ensure!(kit.success(), "there is no guest kit");
    let images = root.join("target/lab/images");
    let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("memory-lab"))?;
    let program = PathBuf::from(env!("CARGO_BIN_EXE_amphi-lab"));
    let stage = Stage::up(layout.clone(), &images, &program, 2, |_| {})?;
    let blobs = [("kernel", images.join("vm-kernel")), ("initramfs", images.join("vm-agent-initramfs"))];
    stage.image(json!({"name": "vm-agent", "format": "kernel-initramfs"}), &blobs)?;
    let variables = read_env(&layout.env())?;
    let amphi = Amphi { program: program.with_file_name("amphi"), variables };
    let body = BodySpec::Vm(VmSpec::new("vm-agent", None));
    let guest = stage.create(&request("guest", vec![body], Some("h1")))?.id;
    let s = Story { stage, amphi, guest };
    s.answers()?;
    let first = s.look()?;
    println!("started: {first:?}");

    type Step = (&'static str, fn(&Story, &Inside) -> Result<()>);
    let steps: [Step; 5] = [
        ("more and less", more_and_less),
        ("what a guest keeps", kept),
        ("to another host", moved),
        ("the next start", cold),
        ("a set that runs as a VM", set_as_vm),
    ];
    for (what, step) in steps {
        let began = Instant::now();
        step(&s, &first).with_context(|| what.to_owned())?;
        println!("== {what}: {:.1} s", began.elapsed().as_secs_f64());
    }
    s.stage.down()
}

fn more_and_less(s: &Story, first: &Inside) -> Result<()> {
    s.claims("h1", 128)?;
    for mib in [192, 256, 160] {
        s.resize(mib)?;
        let now = s.has(first.total_mib + mib - 128)?;
        println!("  inside: {now:?}");
        ensure!(now.boot == first.boot, "it has started anew: {now:?}, before {first:?}");
        s.claims("h1", mib)?;
        let told = s.stage.show(s.guest)?;
        ensure!(told.memory_mib == mib && !told.resizing && told.conditions.is_empty(), "{told:?}");
    }
    // Less than it was started with, and more than its room.
    let refused = s.amphi.run(&["vm", "resize", "guest", "--memory", "120"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    println!("  {}", said.trim());
    ensure!(refused.status.code() == Some(4) && said.contains("was started with 128 MiB"), "{said}");
    s.resize(300)?;
    let told = s.stage.show(s.guest)?.conditions;
    println!("  {told:?}");
    ensure!(told.iter().any(|c| c.code == "next_start" && c.message.contains("started for 128 to 256 MiB")));
    s.claims("h1", 300)?;
    s.resize(256)?;
    s.has(first.total_mib + 128).map(drop)
}

/// A guest gives back no more than it can do without; the rest stays its own, and claimed.
fn kept(s: &Story, first: &Inside) -> Result<()> {
    s.inside("mkdir -p /hold && mount -t tmpfs -o size=150m hold /hold && dd if=/dev/zero of=/hold/x bs=1M count=120")?;
    s.resize(128)?;
    let told = s
        .stage
        .until(s.guest, "told of what it keeps", |i| i.conditions.iter().any(|c| c.code == UP_TO_GUEST))?;
    println!("  {:?}, {:?}", told.conditions, s.look()?);
    let claimed = s.claimed("h1")?;
    ensure!(claimed > 128, "{claimed} MiB are claimed while {:?}", told.conditions);
    s.inside("rm /hold/x && umount /hold")?;
    // A new order asks the guest at once; it asks itself again after a minute.
    s.resize(130)?;
    let now = s.has(first.total_mib + 2)?;
    s.claims("h1", 130)?;
    ensure!(now.boot == first.boot, "{now:?}");
    Ok(())
}

fn moved(s: &Story, first: &Inside) -> Result<()> {
    s.resize(192)?;
    let to = MoveCreate {
        to: Some("h2".into()),
        live: Some(true),
        reason: "a test".into(),
        ..MoveCreate::default()
    };
    let order = s.stage.ask(s.stage.client.create_move(s.guest, &to))?;
    let ended = s.stage.ask(s.stage.client.wait_exchange(order.id, PATIENCE, |_| ()))?;
    ensure!(ended.phase == ExchangePhase::Done, "{ended:?}");
    s.stage.until(s.guest, "on h2", |i| {
        i.state == InstanceState::Running && i.host_name.as_deref() == Some("h2")
    })?;
    s.answers()?;
    for mib in [192, 256, 160] {
        if mib != 192 {
            s.resize(mib)?;
        }
        let now = s.has(first.total_mib + mib - 128)?;
        println!("  inside: {now:?}");
        ensure!(now.boot == first.boot, "it has started anew: {now:?}");
        s.claims("h2", mib)?;
    }
    s.claims("h1", 0)
}

fn cold(s: &Story, first: &Inside) -> Result<()> {
    s.stage.ask(s.stage.client.stop_instance(s.guest))?;
    s.stage.until(s.guest, "stopped", |i| i.state == InstanceState::Stopped)?;
    s.stage.ask(s.stage.client.start_instance(s.guest))?;
    let seen = s.stage.runs(s.guest)?;
    ensure!(seen.conditions.is_empty() && !seen.resizing && seen.memory_mib == 160, "{seen:?}");
    s.answers()?;
    let now = s.has(first.total_mib + 32)?;
    ensure!(now.boot != first.boot);
    s.resize(288)?;
    println!("  inside: {:?}", s.has(first.total_mib + 160)?);
    s.stage.delete(s.guest)
}

fn set_as_vm(s: &Story, _first: &Inside) -> Result<()> {
    let set: SetSpec =
        serde_json::from_value(json!({"members": [{"name": "only", "index": 0, "image": "busybox",
        "command": ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done"]}]}))?;
    let vm = BodySpec::Vm(VmSpec { set: Some(set), ..VmSpec::default() });
    let mut order = request("shop", vec![vm], Some("h1"));
    order.memory_mib = 128;
    let id = s.stage.create(&order)?.id;
    s.stage.until(id, "its member runs", |i| i.members.iter().any(|m| m.running))?;
    let takes = |mib: u32| {
        s.stage.inside(
            id,
            "only",
            &format!("dd if=/dev/zero of=/dev/null bs={mib}M count=1 2>/dev/null; echo $?"),
        )
    };
    let total = || -> Result<u64> {
        Ok(s.stage.inside(id, "only", "awk '/MemTotal/ { print $2 }' /proc/meminfo")?.parse::<u64>()? >> 10)
    };
    let (before, pid) = (total()?, s.stage.inside(id, "only", "cat /proc/sys/kernel/random/boot_id")?);
    ensure!(takes(150)? != "0", "150 MiB of 128");
    s.stage.ask(s.stage.client.resize_instance(id, &serde_json::from_value(json!({"memory_mib": 256}))?))?;
    until("there is more inside, for the member too", PATIENCE, || {
        let (now, took) = (total()?, takes(150)?);
        Ok(seen(now == before + 128 && took == "0", || format!("{now} MiB, before {before}: {took}")))
    })?;
    ensure!(s.stage.inside(id, "only", "cat /proc/sys/kernel/random/boot_id")? == pid);
    println!("  {before} MiB, then {} MiB inside", total()?);
    s.stage.delete(id)
}
