//! What instances are held to, on a real host: a stress inside a member against each limit, with the neighbour beside it;
//! another size up and down while everything runs on; and the limits after the deaths of whoever keeps them.

use amphi_api::instance::{BodyKind, Instance, InstanceVolume, MemberStatus};
use amphi_api::resize::InstanceResize;
use amphi_api::set::SetSpec;
use amphi_api::{InstanceId, instance::BodySpec};
use amphi_integration::failing::{PATIENCE, Stage, address, request, vm};
use amphi_integration::lab::Layout;
use amphi_integration::story::read_env;
use amphi_integration::wait::{seen, until};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const H1: &str = "h1";
const DOCKER: &str = "/usr/bin/docker -H unix:///run/docker.sock";
/// Written at most, in bytes per second, and what is written to see it.
const RATE: u64 = 2 << 20;
const WRITTEN_MIB: u64 = 6;

struct Limits {
    stage: Stage,
    set: InstanceId,
    amphi: PathBuf,
    variables: Vec<(String, String)>,
}

/// A process, and how far it has counted.
#[derive(Debug, PartialEq)]
struct Counter {
    run: String,
    count: u64,
}

impl Limits {
    fn sh(&self, script: &str) -> Result<String> {
        Ok(self.stage.lab.run(H1, &["sh", "-c", script])?.trim().to_owned())
    }

    fn inside(&self, member: &str, script: &str) -> Result<String> {
        self.sh(&format!("{DOCKER} exec amphi-{}-{member} sh -c '{script}' 2>&1; true", self.set))
    }

    /// A file of a member's control group.
    fn group(&self, member: &str, controller: &str, file: &str) -> Result<String> {
        let id = format!("$({DOCKER} inspect -f '{{{{.Id}}}}' amphi-{}-{member})", self.set);
        self.sh(&format!("cat /sys/fs/cgroup/{controller}/docker/{id}/{file}"))
    }

    fn number(&self, member: &str, controller: &str, file: &str) -> Result<i64> {
        self.group(member, controller, file)?.parse().with_context(|| format!("{controller}/{file}"))
    }

    fn counter(&self) -> Result<Counter> {
        let run = "{{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}}";
        let run = self.sh(&format!("{DOCKER} inspect -f '{run}' amphi-{}-count", self.set))?;
        Ok(Counter { run, count: self.inside("count", "cat /tmp/n")?.parse().context("a count")? })
    }

    /// How fast the neighbour counts while something is done.
    fn beside<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
        let (before, began) = (self.counter()?, Instant::now());
        let done = work()?;
        let took = began.elapsed();
        let after = self.counter()?;
        ensure!(after.run == before.run, "the neighbour was touched: {before:?}, {after:?}");
        let rate = (after.count - before.count) as f64 / began.elapsed().as_secs_f64();
        println!("{what}: {:.1} s; the neighbour counts {rate:.1} times a second", took.as_secs_f64());
        Ok((done, took))
    }

    fn member(&self, name: &str, what: &str, ok: impl Fn(&MemberStatus) -> bool) -> Result<MemberStatus> {
        let seen = self.stage.until(self.set, what, |i| i.members.iter().any(|m| m.name == name && ok(m)))?;
        seen.members.into_iter().find(|m| m.name == name).context("no such member")
    }

    fn resize(&self, id: InstanceId, wish: Value) -> Result<Instance> {
        let wish: InstanceResize = serde_json::from_value(wish)?;
        self.stage.ask(self.stage.client.resize_instance(id, &wish))?;
        self.stage.until(id, "held to its size", |i| !i.resizing)
    }

    fn amphi(&self, words: &[&str]) -> Result<(Option<i32>, String)> {
        let output = Command::new(&self.amphi).args(words).envs(self.variables.iter().cloned()).output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
    }

    /// What the two members are held to, as their control groups say.
    fn held(&self) -> Result<String> {
        let mut all = String::new();
        for member in ["count", "stress"] {
            let memory = self.number(member, "memory", "memory.limit_in_bytes")? >> 20;
            let swap = self.number(member, "memory", "memory.memsw.limit_in_bytes")? >> 20;
            let swappiness = self.number(member, "memory", "memory.swappiness")?;
            let quota = self.number(member, "cpu", "cpu.cfs_quota_us")?;
            let shares = self.number(member, "cpu", "cpu.shares")?;
            let pids = self.group(member, "pids", "pids.max")?;
            let rates = self.group(member, "blkio", "blkio.throttle.write_bps_device")?;
            let rates: Vec<&str> = rates.lines().filter_map(|line| line.split(' ').nth(1)).collect();
            all += &format!(
                "{member}: {memory} MiB (with swap {swap}, swappiness {swappiness}), quota {quota}, shares {shares}, \
                 pids {pids}, writes {}\n",
                rates.join(" ")
            );
        }
        Ok(all)
    }

    fn is_held(&self, to: &str) -> Result<()> {
        until("the limits are as ordered", PATIENCE, || {
            let held = self.held()?;
            Ok(seen(held == to, || held.clone()))
        })
    }
}

fn stress_options(root_mib: u64) -> Value {
    json!({"cpu": 30, "mem": 30, "pids": 32, "root_mib": root_mib,
        "io": {"root": {"write_bps": RATE}, "volume": {"write_bps": RATE}}})
}

fn set() -> Result<SetSpec> {
    let count = "trap exit TERM; n=0; while :; do n=$((n+1)); echo $n >/tmp/n; sleep 0.05; done";
    let idle = "trap exit TERM; while :; do [ -e /hog ] && rm /hog && exec dd if=/dev/zero of=/dev/null bs=200M; \
                sleep 1 & wait $!; done";
    Ok(serde_json::from_value(json!({"members": [
        {"name": "count", "index": 0, "image": "busybox", "command": ["/bin/sh", "-c", count],
         "options": {"cpu": 50, "mem": 50}, "tmpfs": [{"path": "/tmp"}]},
        {"name": "stress", "index": 1, "image": "busybox", "command": ["/bin/sh", "-c", idle],
         "options": stress_options(16)}],
    }))?)
}

fn stage() -> Result<Limits> {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("limits-lab"))?;
    let program = PathBuf::from(env!("CARGO_BIN_EXE_amphi-lab"));
    let stage = Stage::up(layout.clone(), &images, &program, 1, |_| {})?;
    let group = json!({"name": "open", "rules": [{"protocol": "tcp"}, {"protocol": "icmp"}]});
    stage.ask(stage.client.create_security_group(&serde_json::from_value(group)?))?;
    let mut order = request("shop", vec![BodySpec::Set(set()?)], Some(H1));
    (order.vcpus, order.memory_mib) = (1, 256);
    order.volume = Some(InstanceVolume { size_gib: Some(1), name: None, id: None });
    order.security_groups = vec!["open".into()];
    let made = stage.create(&order)?;
    let variables = read_env(&layout.env())?;
    Ok(Limits { stage, set: made.id, amphi: program.with_file_name("amphi"), variables })
}

#[test]
fn everything_is_held_to_its_limits_and_takes_on_others_while_it_runs() -> Result<()> {
    let l = stage()?;
    let host = l.stage.host(H1)?;
    println!("{H1}: {:?}", host.spec.and_then(|spec| spec.isolation).context("the host says nothing")?);
    const SMALL: &str = "count: 128 MiB (with swap 128, swappiness 0), quota 50000, shares 512, pids max, writes \n\
        stress: 76 MiB (with swap 76, swappiness 0), quota 30000, shares 307, pids 32, writes 2097152 2097152\n";
    l.is_held(SMALL)?;
    type Step = (&'static str, fn(&Limits) -> Result<()>);
    let steps: [Step; 7] = [
        ("processors", processors),
        ("memory", memory),
        ("processes", processes),
        ("devices", devices),
        ("root file system", root),
        ("network", network),
        ("size", |l| size(l, SMALL)),
    ];
    for (what, step) in steps {
        let began = Instant::now();
        step(&l).with_context(|| what.to_owned())?;
        println!("== {what}: {:.1} s", began.elapsed().as_secs_f64());
    }
    survives(&l, SMALL).context("deaths")?;
    machine(&l).context("a VM")?;
    l.stage.delete(l.set)?;
    l.stage.down()
}

/// Two loops have 0.3 of a processor together.
fn processors(l: &Limits) -> Result<()> {
    let used = || l.number("stress", "cpuacct", "cpuacct.usage");
    let before = used()?;
    let spin = "for n in 1 2; do timeout 4 sh -c \"while :; do :; done\" & done; wait";
    let (_, took) = l.beside("two loops", || l.inside("stress", spin))?;
    let share = (used()? - before) as f64 / 1e9 / took.as_secs_f64();
    println!("  they had {share:.2} of a processor, limit 0.30");
    ensure!((0.15..0.36).contains(&share), "{share}");
    Ok(())
}

/// What asks for too much is killed inside, and the member is still there.
fn memory(l: &Limits) -> Result<()> {
    let pid = |l: &Limits| l.sh(&format!("{DOCKER} inspect -f '{{{{.State.Pid}}}}' amphi-{}-stress", l.set));
    let before = pid(l)?;
    let (said, _) = l.beside("a hog of 200 MB", || {
        l.inside("stress", "dd if=/dev/zero of=/dev/null bs=200M count=2; echo $?")
    })?;
    ensure!(said.lines().any(|line| line == "137"), "{said}");
    let seen = l.member("stress", "told of the hog", |m| m.reason.is_some())?;
    println!("  {:?}", seen.reason);
    ensure!(seen.running && seen.restarts == 0 && pid(l)? == before, "{seen:?}");
    ensure!(seen.reason.is_some_and(|why| why.contains("OOM killed, limit 76 MiB")));
    // Its first process: the member ends, is known, and starts again by its policy.
    l.inside("stress", "touch /hog")?;
    let again = || l.member("stress", "started again", |m| m.running && m.restarts > 0);
    let (seen, _) = l.beside("a hog in its first process' place", again)?;
    println!("  {:?}, exit code {:?}", seen.reason, seen.exit_code);
    ensure!(seen.out_of_memory && seen.exit_code == Some(137), "{seen:?}");
    ensure!(seen.reason.as_deref() == Some("OOM killed, limit 76 MiB"), "{seen:?}");
    Ok(())
}

fn processes(l: &Limits) -> Result<()> {
    let bomb = "i=0; while [ $i -lt 200 ]; do sleep 3 & i=$((i+1)); done; wait";
    let (said, _) = l.beside("a fork bomb", || l.inside("stress", bomb))?;
    let failures = l.group("stress", "pids", "pids.events")?;
    println!("  {}; pids.events: {failures}", said.lines().last().unwrap_or_default());
    ensure!(said.contains("fork") && failures != "max 0", "{said}");
    until("the bomb is over", PATIENCE, || {
        let left = l.number("stress", "pids", "pids.current")?;
        Ok(seen(left < 4, || left.to_string()))
    })
}

/// What is flushed is held to its rate, on either device.
fn devices(l: &Limits) -> Result<()> {
    for place in ["/x", "/data/x"] {
        let write = format!("dd if=/dev/zero of={place} bs=64k count={} conv=fsync", WRITTEN_MIB * 16);
        let (_, took) = l.beside(&format!("{WRITTEN_MIB} MiB to {place}"), || l.inside("stress", &write))?;
        let least = (WRITTEN_MIB << 20) as f64 / RATE as f64 * 0.8;
        ensure!(took.as_secs_f64() > least, "{took:?}, at least {least} s");
        l.inside("stress", &format!("rm {place}"))?;
    }
    let free = l.beside("the same by the neighbour", || {
        let write = format!("dd if=/dev/zero of=/x bs=64k count={} conv=fsync; rm /x", WRITTEN_MIB * 16);
        l.inside("count", &write)
    })?;
    ensure!(free.1 < Duration::from_secs(2), "{:?}", free.1);
    let told = l.stage.show(l.set)?.conditions;
    println!("  {told:?}");
    ensure!(
        told.iter().any(|c| c.code == "not_on_this_host" && c.message.contains("page cache")),
        "{told:?}"
    );
    Ok(())
}

/// Who fills its root is ended, and starts again when it may have more.
fn root(l: &Limits) -> Result<()> {
    l.inside("stress", "dd if=/dev/zero of=/fill bs=1M count=24")?;
    let ended =
        |m: &MemberStatus| !m.running && m.reason.as_ref().is_some_and(|r| r.contains("limit 16 MiB"));
    let (seen, _) =
        l.beside("24 MiB into a root of 16", || l.member("stress", "ended for its root", ended))?;
    println!("  {:?}", seen.reason);
    let fault = l.stage.show(l.set)?.fault.context("a member that stays ended is a fault")?;
    ensure!(fault.message.contains("its root file system holds"), "{fault:?}");
    l.resize(l.set, json!({"members": {"stress": stress_options(64)}}))?;
    l.member("stress", "running again", |m| m.running)?;
    l.stage.runs(l.set)?;
    l.inside("stress", "rm /fill").map(drop)
}

/// A set that takes what comes, and hangs up when that has ended (with its own input at an end it would hang up at once); what goes to it is held to the rate that is ordered, at once.
fn network(l: &Limits) -> Result<()> {
    let sink: SetSpec = serde_json::from_value(
        json!({"members": [{"name": "only", "index": 0, "image": "busybox",
        "command": ["/bin/sh", "-c", "mkfifo /tmp/w; while :; do nc -l -p 9000 <>/tmp/w >/dev/null; done"]}]}),
    )?;
    let mut order = request("sink", vec![BodySpec::Set(sink)], Some(H1));
    order.security_groups = vec!["open".into()];
    let sink = l.stage.create(&order)?;
    let send = format!("dd if=/dev/zero bs=64k count=32 2>/dev/null | nc {} 9000", address(&sink)?);
    let sent = || l.beside("2 MiB to another set", || l.inside("stress", &send)).map(|(_, took)| took);
    let free = sent()?;
    let limit = |egress: Option<u32>| {
        let network = json!({"network": "blue", "bandwidth": {"egress_kbps": egress}});
        l.resize(l.set, json!({"networks": [network]}))
    };
    limit(Some(4000))?;
    // 16 Mbit at 4 Mbit/s, half a second's worth at once.
    until("the rate holds", PATIENCE / 4, || {
        let took = sent()?;
        Ok(seen(took > Duration::from_millis(2500), || format!("{took:?}, freely {free:?}")))
    })?;
    limit(None)?;
    until("the rate is gone", PATIENCE / 4, || {
        let took = sent()?;
        Ok(seen(took < Duration::from_millis(2000), || format!("{took:?}")))
    })?;
    l.stage.delete(sink.id)
}

/// Up by the program, down as far as what is used allows; nothing starts again.
fn size(l: &Limits, small: &str) -> Result<()> {
    let before = l.counter()?;
    let disk = |l: &Limits| l.inside("count", "df -m /data | tail -n 1");
    println!("  {}", disk(l)?);
    let began = Instant::now();
    let (code, said) =
        l.amphi(&["set", "resize", "shop", "--cpu", "2", "--memory", "512", "--volume", "2"])?;
    ensure!(code == Some(0), "{code:?}: {said}");
    println!("  resized in {} ms", began.elapsed().as_millis());
    l.is_held(
        "count: 256 MiB (with swap 256, swappiness 0), quota 100000, shares 1024, pids max, writes \n\
         stress: 153 MiB (with swap 153, swappiness 0), quota 60000, shares 614, pids 32, writes 2097152 2097152\n",
    )?;
    let large =
        |text: &str| text.split_whitespace().nth(1).and_then(|mib| mib.parse::<u64>().ok()) > Some(1900);
    until("the volume is larger inside", PATIENCE, || {
        let text = disk(l)?;
        Ok(seen(large(&text), || text.clone()))
    })?;
    println!("  {}", disk(l)?);

    l.inside("stress", "dd if=/dev/zero of=/dev/shm/x bs=1M count=60")?;
    let (code, said) = l.amphi(&["set", "resize", "shop", "--memory", "128"])?;
    ensure!(code == Some(4) && said.contains("of memory, more than 38 MiB"), "{code:?}: {said}");
    println!("  {}", said.trim());
    let (code, said) = l.amphi(&["set", "resize", "shop", "--volume", "1"])?;
    ensure!(code == Some(4) && said.contains("has 2 GiB, and XFS"), "{code:?}: {said}");
    println!("  {}", said.trim());
    let (code, said) = l.amphi(&["set", "resize", "shop", "--memory", "900GiB"])?;
    ensure!(code == Some(1) && said.contains("MiB are taken"), "{code:?}: {said}");
    l.inside("stress", "rm /dev/shm/x")?;
    l.resize(l.set, json!({"vcpus": 1, "memory_mib": 256}))?;
    l.is_held(small)?;
    let after = l.counter()?;
    ensure!(after.run == before.run && after.count > before.count, "{before:?}, {after:?}");
    println!("  counted on from {} to {} as {}", before.count, after.count, after.run);
    Ok(())
}

fn survives(l: &Limits, held: &str) -> Result<()> {
    let before = l.counter()?;
    let restarts = l.member("stress", "running", |m| m.running)?.restarts;
    l.sh(&format!("{DOCKER} kill amphi-{}-stress", l.set))?;
    l.member("stress", "started again", |m| m.running && m.restarts > restarts)?;
    l.is_held(held).context("the member's restart")?;
    l.stage.lab.kill(H1, "hostsrv", Signal::SIGKILL)?;
    l.is_held(held).context("without the agent")?;
    l.stage.lab.start(H1, "hostsrv")?;
    l.stage.host_is_back(H1)?;
    l.stage.runs(l.set)?;
    l.is_held(held).context("the agent's death")?;
    l.stage.lab.kill(H1, "dockerd", Signal::SIGKILL)?;
    l.stage.lab.start(H1, "dockerd")?;
    l.stage.runs(l.set)?;
    l.is_held(held).context("dockerd's death")?;
    let after = l.counter()?;
    let pid = |counter: &Counter| counter.run.split(' ').next().map(str::to_owned);
    ensure!(pid(&after) == pid(&before) && after.count > before.count, "{before:?}, {after:?}");
    println!("== deaths: held as before, counted on from {} to {}", before.count, after.count);
    Ok(())
}

/// As far as it was started with room for it; the rest waits, and that is told. What its guest sees is `memory.rs`'s story.
fn machine(l: &Limits) -> Result<()> {
    let made = l.stage.create(&request("machine", vec![vm()], Some(H1)))?;
    ensure!(made.body == BodyKind::Vm);
    let has = || l.sh(&format!("virsh -c qemu:///system vcpucount amphi-{} --live --active", made.id));
    let qemu = || l.sh(&format!("pgrep -f [g]uest=amphi-{} | head -n 1", made.id));
    let before = qemu()?;
    ensure!(has()? == "1");
    let seen = l.resize(made.id, json!({"vcpus": 2, "memory_mib": 300}))?;
    println!("== a VM: {} vCPUs; {:?}", has()?, seen.conditions);
    ensure!(has()? == "2" && qemu()? == before);
    ensure!(seen.conditions.iter().any(|c| c.code == "next_start" && c.message.contains("300 MiB")));
    l.stage.ask(l.stage.client.stop_instance(made.id))?;
    l.stage.until(made.id, "stopped", |i| i.state == amphi_api::instance::InstanceState::Stopped)?;
    l.stage.ask(l.stage.client.start_instance(made.id))?;
    let seen = l.stage.runs(made.id)?;
    ensure!(seen.conditions.is_empty() && !seen.resizing, "{seen:?}");
    l.stage.delete(made.id)
}
