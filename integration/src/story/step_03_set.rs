//! Step 3: a set from its JSON description, and everything a set promises to its members.

use amphi_api::instance::{Instance, InstanceState};
use amphi_api::set::SetSpec;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::cli::REFUSED;
use super::descriptions::{new_volume, plain_set, web};
use super::engines::Engines;
use super::guest::CGI;
use super::stage::{GROUP, HOME, NETWORK, Stage, address, same};

/// The size of the set, and the shares of `front` and `back` in `descriptions::web`.
const VCPUS: i64 = 2;
const MEMORY_MIB: i64 = 512;
const SHARES: [(&str, i64, i64); 2] = [("front", 60, 50), ("back", 40, 40)];

pub fn play(stage: &Stage) -> Result<()> {
    let file = stage.file("web.json", &web())?;
    stage.check("`amphi set check` takes the description and puts the members in order", || {
        let set: SetSpec = stage.amphi.json(&["set", "check", &file])?;
        let names: Vec<&str> = set.members.iter().map(|m| m.name.as_str()).collect();
        same("start order", &vec!["front", "back"], &names)?;
        let twice = stage.file("twice.json", &web().replace("\"index\": 2", "\"index\": 1"))?;
        let complaint = stage.amphi.fails(&["set", "check", &twice], REFUSED)?;
        ensure!(complaint.contains("index"), "the complaint should name the field `index`: {complaint}");
        Ok(())
    })?;
    stage.check("`amphi set create`: runs, with address and volume", || {
        let words = [
            "set",
            "create",
            "web",
            "--file",
            &file,
            "--network",
            NETWORK,
            "--security-group",
            GROUP,
            "--volume-gib",
            "1",
            "--host",
            HOME,
            "--vcpus",
            "2",
            "--memory",
            "512MiB",
        ];
        let instance: Instance = stage.amphi.json(&words)?;
        same("state", &InstanceState::Running, &instance.state)?;
        same("host", &Some(HOME.to_owned()), &instance.host_name)?;
        ensure!(instance.volume.is_some(), "it should have a volume");
        stage.note(stage.amphi.run(&["instance", "list"])?.trim_end());
        Ok(())
    })?;
    stage.check("a second set with a volume of its own beside it", || {
        let request = amphi_api::instance::InstanceCreate {
            volume: new_volume(1),
            ..plain_set("neighbour", Some(HOME))
        };
        stage.create(&request).map(drop)
    })?;
    let record = stage.instance("web")?;
    let engines = Engines::of(stage.lab, HOME);
    stage.check("anchor first, then the members in order of index", || start_order(&engines, &record))?;
    stage.check("each member had eth0 with the record's address at its first instruction", || {
        let expected = format!("inet {}/24", address(&record)?);
        let mac = &record.addresses[0].mac;
        for (name, ..) in SHARES {
            let first = stage.member("web", name)?.run(&format!("cat /data/first-{name}"))?;
            ensure!(
                first.contains(&expected) && first.contains(mac),
                "{name}: expected {expected} and {mac}, saw: {first}"
            );
        }
        Ok(())
    })?;
    stage.check("anchor and members share network and IPC; the anchor's sysctls hold", || {
        for kind in ["net", "ipc"] {
            let namespace = |member: &str| engines.namespace(engines.pid(record.id, member)?, kind);
            let anchor = namespace("anchor")?;
            for (name, ..) in SHARES {
                same(&format!("{kind} namespace of {name}"), &anchor, &namespace(name)?)?;
            }
        }
        let value = stage.member("web", "front")?.run("cat /proc/sys/net/core/somaxconn")?;
        same("net.core.somaxconn", &"512", &value.trim())
    })?;
    stage.check("shares of CPU and memory are the engine's limits", || {
        for (name, cpu, mem) in SHARES {
            limits(&engines.inspect(&format!("amphi-{}-{name}", record.id))?, cpu, mem)
                .with_context(|| name.to_owned())?;
        }
        Ok(())
    })?;
    stage.check("both members see the same volume", || {
        let (front, back) = (stage.member("web", "front")?, stage.member("web", "back")?);
        front.run("head -c 8388608 /dev/urandom >/data/random && sync")?;
        let sum = front.sha256("/data/random")?;
        same("checksum of a file of the other member", &sum, &back.sha256("/data/random")?)?;
        front.run(&format!("mkdir -p /data/cgi-bin && cat >/data/cgi-bin/run <<'CGI'\n{CGI}CGI\nchmod 755 /data/cgi-bin/run && sync"))?;
        stage.notes.borrow_mut().random = sum;
        Ok(())
    })?;
    stage.check("past 1 GiB there is no space left, and nobody else is harmed", || overflow(stage, &engines))
}

fn start_order(engines: &Engines, record: &Instance) -> Result<()> {
    let at = |name: &str| {
        let member = record.members.iter().find(|m| m.name == name);
        member
            .and_then(|m| m.started_at_us)
            .with_context(|| format!("no start of {name}: {:?}", record.members))
    };
    let (front, back) = (at("front")?, at("back")?);
    ensure!(front < back, "front (index 1) should start before back (index 2): {front} µs, {back} µs");
    // RFC 3339 in UTC with fixed width up to the second: compares as text as far as that.
    let started = |name: &str| -> Result<String> {
        let inspected = engines.inspect(&format!("amphi-{}-{name}", record.id))?;
        Ok(inspected["State"]["StartedAt"].as_str().context("StartedAt")?.to_owned())
    };
    let (anchor, first) = (started("anchor")?, started("front")?);
    ensure!(anchor[..19] <= first[..19], "the anchor should start first: {anchor}, {first}");
    Ok(())
}

fn limits(container: &Value, cpu: i64, mem: i64) -> Result<()> {
    let config = &container["HostConfig"];
    let number = |key: &str| config[key].as_i64().unwrap_or(0);
    // Hundredths of a CPU, however the engine was told.
    let seen = if number("NanoCpus") > 0 {
        number("NanoCpus") / 10_000_000
    } else {
        number("CpuQuota") * 100 / number("CpuPeriod").max(1)
    };
    same("hundredths of a CPU", &(VCPUS * cpu), &seen)?;
    same("bytes of memory", &((MEMORY_MIB << 20) * mem / 100), &number("Memory"))
}

fn overflow(stage: &Stage, engines: &Engines) -> Result<()> {
    let front = stage.member("web", "front")?;
    let free = engines.disk_free()?;
    let output = front.sh("dd if=/dev/zero of=/data/fill bs=1M count=1200; sync")?;
    ensure!(
        output.stderr.contains("No space left on device"),
        "dd should hit ENOSPC, it said: {}",
        output.stderr
    );
    let size: u64 = front.run("stat -c %s /data/fill")?.trim().parse().context("size of the file")?;
    ensure!(size < 1 << 30, "{size} bytes fit on a volume of 1 GiB");
    let neighbour = stage.member("neighbour", "front")?;
    neighbour
        .run("dd if=/dev/urandom of=/data/mine bs=1M count=16 2>/dev/null && sync && rm /data/mine")
        .context("another instance's volume takes writes")?;
    let lost = free.saturating_sub(engines.disk_free()?);
    ensure!(lost < 200 << 20, "the host's own disk lost {} MiB", lost >> 20);
    for instance in ["web", "neighbour"] {
        same(&format!("state of {instance}"), &InstanceState::Running, &stage.instance(instance)?.state)?;
    }
    front.run("rm /data/fill && sync")?;
    same("checksum after", &stage.notes.borrow().random, &front.sha256("/data/random")?)
}
