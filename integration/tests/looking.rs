//! Looking further into a set on a real host, as a person does with `amphi`: output of several members, files, use, tools beside
//! a member, events. Nothing of it reaches the anchor, and nothing of it stays.

use amphi_api::instance::{BodySpec, Instance, InstanceVolume};
use amphi_api::set::{AnchorSpec, DnsSpec, MemberSpec, RestartPolicy, SetSpec};
use amphi_integration::failing::{PATIENCE, Stage, request};
use amphi_integration::lab::Layout;
use amphi_integration::program::{Amphi, text};
use amphi_integration::story::read_env;
use amphi_integration::wait::{seen, until};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Instant;

const HOST: &str = "h1";
const DOCKER: [&str; 3] = ["/usr/bin/docker", "-H", "unix:///run/docker.sock"];
/// Docker takes a line apart into pieces of 16 KiB.
const LONG: usize = 40_000;

struct Looking {
    stage: Stage,
    amphi: Amphi,
}

fn member(index: u32, name: &str, script: &str) -> MemberSpec {
    MemberSpec {
        name: name.into(),
        index,
        image: "busybox".into(),
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        ..MemberSpec::default()
    }
}

impl Looking {
    fn fed(&self, words: &[&str], input: &[u8]) -> Result<Output> {
        let mut child = self
            .amphi
            .command(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // One that is refused may not read it all.
        let _ = child.stdin.take().context("no input")?.write_all(input);
        Ok(child.wait_with_output()?)
    }

    fn inside(&self, script: &str) -> Result<String> {
        Ok(text(&self.amphi.well(&["exec", "shop", "--", "sh", "-c", script])?))
    }

    fn docker(&self, words: &[&str]) -> Result<String> {
        self.stage.lab.run(HOST, &[&DOCKER[..], words].concat())
    }

    fn no_tools(&self, what: &str) -> Result<()> {
        until(what, PATIENCE, || {
            let containers = self.docker(&["ps", "-aq", "--filter", "label=amphi.tools"])?;
            let processes = self.stage.lab.run(HOST, &["ps", "-eo", "args", "--no-headers"])?;
            let left = processes.lines().filter(|line| line.starts_with("sleep 79")).count();
            Ok(seen(containers.trim().is_empty() && left == 0, || {
                format!("{containers:?}, {left} processes")
            }))
        })
    }
}

#[test]
fn members_are_looked_into_and_nothing_stays() -> Result<()> {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("looking-lab"))?;
    let program = PathBuf::from(env!("CARGO_BIN_EXE_amphi-lab"));
    let stage = Stage::up(layout.clone(), &images, &program, 1, |_| {})?;
    let variables = read_env(&layout.env())?;
    let l = Looking { stage, amphi: Amphi { program: program.with_file_name("amphi"), variables } };

    let idle = "trap exit TERM; while :; do sleep 1000 & wait $!; done";
    let tick = format!(
        "head -c {LONG} /dev/zero | tr '\\0' x; echo; n=0; while :; do echo line $n; n=$((n+1)); sleep 0.5; done"
    );
    let once = MemberSpec {
        restart: RestartPolicy::Never,
        ..member(2, "once", "echo first; echo '  second'; echo bad >&2")
    };
    let members = vec![member(0, "web", idle), member(1, "tick", &tick), once];
    let dns = DnsSpec {
        servers: vec![IpAddr::from([10, 77, 0, 53])],
        search: vec!["svc.test".into()],
        options: vec!["timeout:1".into()],
    };
    let anchored = AnchorSpec { dns, ..AnchorSpec::default() };
    let set = SetSpec { members, volume_mount: "/data".into(), anchor: anchored };
    let body = BodySpec::Set(set);
    let mut order = request("shop", vec![body], Some(HOST));
    order.volume = Some(InstanceVolume { size_gib: Some(1), name: None, id: None });
    let shop = l.stage.create(&order)?;

    let step = |what: &str, play: &dyn Fn() -> Result<()>| {
        let began = Instant::now();
        play().with_context(|| what.to_owned())?;
        println!("{what}: {:.1} s", began.elapsed().as_secs_f32());
        anyhow::Ok(())
    };
    step("output", &|| output(&l))?;
    step("files", &|| files(&l))?;
    step("use", &|| usage(&l))?;
    step("events", &|| events(&l, &shop))?;
    step("tools", &|| tools(&l, &shop))?;
    step("twins", &|| twins(&l, &shop))?;
    step("the anchor", &|| anchor(&l))?;
    l.stage.delete(shop.id)?;
    let told = text(&l.amphi.well(&["events", "--kind", "deleted"])?);
    ensure!(told.contains("shop"), "{told}");
    l.stage.down()
}

fn output(l: &Looking) -> Result<()> {
    // A line is whole, however long, and there once.
    until("the long line is there", PATIENCE, || {
        let told = l.amphi.well(&["logs", "shop", "-m", "tick"])?;
        let long: Vec<usize> =
            told.split(|b| *b == b'\n').filter(|line| line.starts_with(b"x")).map(<[u8]>::len).collect();
        // And as many lines after it as are asked for below.
        let lines = told.iter().filter(|b| **b == b'\n').count();
        Ok(seen(long == [LONG] && lines > 5, || format!("{long:?}, {lines} lines")))
    })?;
    let told = text(&l.amphi.well(&["logs", "shop", "--all", "--tail", "3"])?);
    let named = |name: &str| told.lines().filter(|line| line.starts_with(&format!("{name:4} | "))).count();
    ensure!(named("tick") == 3 && named("once") >= 2, "{told}");
    ensure!(told.lines().all(|line| line.split_once(" | ").is_some()), "{told}");
    ensure!(told.contains("once |   second\n"), "blanks at a line's begin: {told}");
    // One that has ended, and its error output apart.
    let ended = l.amphi.run(&["logs", "shop", "-m", "once"])?;
    ensure!(ended.stdout == b"first\n  second\n" && ended.stderr == b"bad\n", "{ended:?}");
    let timed = text(&l.amphi.well(&["logs", "shop", "-m", "tick", "--tail", "2", "-t"])?);
    let times: Vec<jiff::Timestamp> = timed
        .lines()
        .map(|line| line.split(' ').next().unwrap_or_default().parse().context("a time"))
        .collect::<Result<_>>()?;
    ensure!(times.len() == 2 && times[0] < times[1], "{timed}");
    let since = format!("{}", times[1]);
    let later = text(&l.amphi.well(&["logs", "shop", "-m", "tick", "-t", "--since", &since])?);
    ensure!(later.lines().next() == timed.lines().nth(1), "{later} after {timed}");
    // Two that are followed: whole lines, each with its member's name.
    let mut follow = l
        .amphi
        .command(&["logs", "shop", "-f", "-m", "tick", "-m", "web", "--tail", "1"])
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(follow.stdout.take().context("no output")?).lines();
    let lines: Vec<String> = lines.take(4).collect::<std::io::Result<_>>()?;
    follow.kill()?;
    follow.wait()?;
    ensure!(lines.iter().all(|line| line.starts_with("tick | line ")), "{lines:?}");
    Ok(())
}

fn files(l: &Looking) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let from = dir.path().join("from");
    std::fs::create_dir_all(from.join("sub"))?;
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(from.join("sub/bytes"), &bytes)?;
    std::os::unix::fs::chown(from.join("sub/bytes"), Some(1234), Some(5678))?;
    std::fs::set_permissions(from.join("sub/bytes"), PermissionsExt::from_mode(0o4640))?;
    std::os::unix::fs::symlink("sub/bytes", from.join("link"))?;
    let local = |path: &Path| path.to_str().map(str::to_owned).context("a name");
    for there in ["/tmp/in", "/data/in"] {
        l.amphi.well(&["cp", &local(&from)?, &format!("shop:web:{there}")])?;
        let told = l.inside(&format!(
            "stat -c '%a %u %g %s' {there}/sub/bytes; readlink {there}/link; md5sum <{there}/link"
        ))?;
        ensure!(told.starts_with("4640 1234 5678 3000000\nsub/bytes\n"), "{told}");
        let back = dir.path().join(there.trim_start_matches('/').replace('/', "-"));
        l.amphi.well(&["cp", &format!("shop:{there}"), &local(&back)?])?;
        ensure!(std::fs::read(back.join("sub/bytes"))? == bytes, "other bytes");
        let seen = std::fs::metadata(back.join("sub/bytes"))?;
        ensure!((seen.mode() & 0o7777, seen.uid(), seen.gid()) == (0o4640, 1234, 5678), "{seen:?}");
        ensure!(std::fs::read_link(back.join("link"))? == Path::new("sub/bytes"));
    }
    // What a member has on the volume, the others have.
    ensure!(text(&l.amphi.well(&["exec", "shop", "-m", "tick", "--", "ls", "/data/in"])?).contains("sub"));
    // Into a directory that is there, one file, and one that has ended.
    l.amphi.well(&["cp", &local(&from.join("sub/bytes"))?, "shop:/tmp"])?;
    ensure!(l.inside("stat -c %s /tmp/bytes")? == "3000000\n");
    l.amphi.well(&["cp", &local(&from.join("sub/bytes"))?, "shop:once:/bytes"])?;
    let stream = l.amphi.well(&["cp", "shop:once:/bytes", "-"])?;
    let mut archive = tar::Archive::new(&stream[..]);
    let names: Vec<_> = archive.entries()?.map(|e| Ok(e?.path()?.into_owned())).collect::<Result<_>>()?;
    ensure!(names == [PathBuf::from("bytes")], "{names:?}");
    let put = l.fed(&["cp", "-", "shop:/data"], &stream)?;
    ensure!(put.status.success() && l.inside("stat -c %s /data/bytes")? == "3000000\n", "{put:?}");
    // What leads out is refused, and what is cut off too.
    let mut evil = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    header.as_old_mut().name[..7].copy_from_slice(b"../evil");
    header.set_cksum();
    evil.append(&header, std::io::empty())?;
    let told = l.fed(&["cp", "-", "shop:/data"], &evil.into_inner()?)?;
    ensure!(!told.status.success() && text(&told.stderr).contains("leads out"), "{told:?}");
    ensure!(l.inside("ls / /data")?.lines().all(|name| name != "evil"));
    let cut = l.fed(&["cp", "-", "shop:/data"], &stream[..100_000])?;
    ensure!(!cut.status.success(), "half an archive: {cut:?}");
    l.amphi.refused(&["cp", "shop:/no/such", "-"], 4, "no such file")?;
    l.amphi.refused(&["cp", &local(&from)?, "shop:/no/such/place"], 4, "no such directory")?;
    l.amphi.refused(&["cp", "shop:/../etc", "-"], 4, "path")
}

fn usage(l: &Looking) -> Result<()> {
    let top = |words: &[&str]| -> Result<Vec<Value>> {
        let words = [&["top", "--once", "--json"], words].concat();
        let told: Value = serde_json::from_slice(&l.amphi.well(&words)?)?;
        Ok(told["lines"].as_array().context("lines")?.clone())
    };
    // The agent reads them itself: dockerd is not asked.
    l.stage.lab.pause("h1/dockerd")?;
    let lines = top(&["shop"]);
    l.stage.lab.resume("h1/dockerd")?;
    let lines = lines?;
    let of = |name: Option<&str>| lines.iter().find(|line| line["member"].as_str() == name);
    let (sum, tick) = (of(None).context("no sum")?, of(Some("tick")).context("no member")?);
    ensure!(tick["cpu_percent"].is_number() && tick["memory_bytes"].as_f64() > Some(0.0), "{tick}");
    ensure!(tick["processes"].as_f64() >= Some(1.0) && tick["memory_limit_bytes"].is_number(), "{tick}");
    ensure!(sum["net_received_per_second"].is_number() && sum["host"] == HOST, "{sum}");
    ensure!(top(&["--host", HOST, "--sort", "memory"])?.len() == 1);
    let table = text(&l.amphi.well(&["top", "--once", "-m"])?);
    ensure!(table.contains("CPU%") && table.contains("  tick"), "{table}");
    Ok(())
}

fn events(l: &Looking, shop: &Instance) -> Result<()> {
    let told = text(&l.amphi.well(&["events", "shop"])?);
    for word in ["created", "ordered", "create is done", "member_started", "shop/web"] {
        ensure!(told.contains(word), "no {word} in {told}");
    }
    let mut follow = l
        .amphi
        .command(&["events", "-f", "--json", "--kind", "member_restarted", "shop"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(follow.stdout.take().context("no output")?).lines();
    // It may not listen yet: that is seen by a later restart.
    let container = format!("amphi-{}-tick", shop.id);
    let (told, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || told.send(lines.next()));
    let event: Value = until("a restart is told", PATIENCE, || {
        l.docker(&["kill", &container])?;
        Ok(match heard.recv_timeout(std::time::Duration::from_secs(10)) {
            Ok(Some(Ok(line))) => amphi_integration::wait::Seen::Enough(serde_json::from_str(&line)?),
            other => amphi_integration::wait::Seen::Not(format!("{other:?}")),
        })
    })?;
    follow.kill()?;
    follow.wait()?;
    ensure!(event["member"] == "tick" && event["kind"] == "member_restarted", "{event}");
    // What came after it, by its cursor.
    let cursor = event["cursor"].as_str().context("a cursor")?;
    let after = text(&l.amphi.well(&["events", "--after", cursor])?);
    ensure!(!after.contains("create is done"), "{after}");
    l.stage.runs(shop.id).map(drop)
}

fn tools(l: &Looking, shop: &Instance) -> Result<()> {
    let run = |words: &[&str]| -> Result<String> {
        let all = [&["tools", "shop", "-m", "web", "--image", "busybox", "--"], words].concat();
        Ok(text(&l.amphi.well(&all)?))
    };
    l.inside("echo here >/tmp/mark")?;
    let processes = run(&["ps"])?;
    ensure!(processes.contains("trap exit TERM") && !processes.contains("line $n"), "{processes}");
    ensure!(run(&["cat", "/proc/1/root/tmp/mark"])? == "here\n", "the member's files");
    let addresses =
        |text: &str| text.lines().filter(|l| l.contains("inet ")).map(str::to_owned).collect::<Vec<_>>();
    let own = addresses(&l.inside("ip addr")?);
    ensure!(addresses(&run(&["ip", "addr"])?) == own && own.len() == 2, "{own:?}");
    // Whom to ask for names: nobody inside dockerd.
    let names = "nameserver 10.77.0.53\nsearch svc.test\noptions timeout:1\n";
    for (who, told) in
        [("a member", l.inside("cat /etc/resolv.conf")?), ("tools", run(&["cat", "/etc/resolv.conf"])?)]
    {
        ensure!(told == names, "{who} asks for names as in {told:?}");
    }
    // Within the member's limits: its group is in the member's.
    let member = l.docker(&["inspect", "-f", "{{.Id}}", &format!("amphi-{}-web", shop.id)])?;
    let groups = run(&["cat", "/proc/self/cgroup"])?;
    let memory =
        groups.lines().find(|line| line.contains(":memory:")).context("version 2 has no such group")?;
    ensure!(memory.contains(&format!("/{}/", member.trim())), "{memory}");
    let coded = l.amphi.run(&["tools", "shop", "--image", "busybox", "--", "sh", "-c", "exit 7"])?;
    ensure!(coded.status.code() == Some(7), "{coded:?}");
    let echoed = l.fed(&["tools", "-i", "shop", "--image", "busybox", "--", "cat"], b"a\0b\xff")?;
    ensure!(echoed.stdout == b"a\0b\xff", "{echoed:?}");
    l.no_tools("tools are gone when they have ended")?;
    let started = |sleep: &str| -> Result<std::process::Child> {
        let script = format!("(sleep {sleep}1 &); exec sleep {sleep}2");
        let words = ["tools", "-i", "shop", "--image", "busybox", "--", "sh", "-c", &script];
        let client = l
            .amphi
            .command(&words)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        until("tools run", PATIENCE, || {
            let all = l.stage.lab.run(HOST, &["ps", "-eo", "args", "--no-headers"])?;
            let count = all.lines().filter(|line| line.starts_with(&format!("sleep {sleep}"))).count();
            Ok(seen(count == 2, || format!("{count}")))
        })?;
        Ok(client)
    };
    let mut client = started("790")?;
    client.kill()?;
    client.wait()?;
    l.no_tools("tools are gone with their client")?;
    let mut client = started("791")?;
    l.stage.lab.kill(HOST, "hostsrv", Signal::SIGKILL)?;
    client.wait()?;
    l.stage.lab.start(HOST, "hostsrv")?;
    l.no_tools("tools are gone with their agent")?;
    l.stage.host_is_back(HOST)?;
    // The set has not felt any of it.
    ensure!(l.inside("cat /tmp/mark")? == "here\n");
    l.amphi.refused(&["tools", "shop", "--image", "vm", "--", "sh"], 4, "container image")?;
    l.amphi.refused(&["tools", "shop", "-m", "once", "--image", "busybox", "--", "sh"], 4, "does not run")
}

fn twins(l: &Looking, shop: &Instance) -> Result<()> {
    l.inside("echo mine >/data/own")?;
    let told = text(&l.amphi.well(&["debug", "shop", "-m", "tick"])?);
    ensure!(told.contains("shop-debug") && told.contains("1 GiB"), "{told}");
    let exec = |name: &str, script: &str| -> Result<String> {
        Ok(text(&l.amphi.well(&["exec", name, "-m", "tick", "--", "sh", "-c", script])?))
    };
    ensure!(
        exec("shop-debug", "ls /data; cat /proc/1/cmdline | tr '\\0' ' '")?.starts_with("/bin/sh -c trap")
    );
    ensure!(exec("shop-debug", "ip addr")? != exec("shop", "ip addr")?, "one address for two");
    let twin = l.stage.ask(l.stage.client.find_instance("shop-debug"))?;
    l.stage.delete(twin.id)?;
    // Instead: the same address and volume, another command; and back.
    let addresses = l.inside("ip addr | grep 'inet '")?;
    l.amphi.well(&["debug", "shop", "-m", "tick", "--instead", "--", "sleep", "7800"])?;
    let script = "cat /proc/1/cmdline | tr '\\0' ' '; cat /data/own; ip addr | grep 'inet '";
    until("another command instead", PATIENCE, || {
        let now = exec("shop", script)?;
        Ok(seen(now == format!("sleep 7800 mine\n{addresses}"), || now.clone()))
    })?;
    l.amphi.refused(&["debug", "shop", "--instead"], 4, "")?;
    l.amphi.well(&["debug", "shop", "--end"])?;
    until("itself again", PATIENCE, || {
        let now = exec("shop", "cat /proc/1/cmdline")?;
        Ok(seen(now.contains("line $n"), || now.clone()))
    })?;
    l.stage.runs(shop.id)?;
    Ok(())
}

/// By none of the verbs.
fn anchor(l: &Looking) -> Result<()> {
    for words in [
        &["exec", "shop", "-m", "anchor", "--", "sh"][..],
        &["console", "shop", "-m", "anchor"],
        &["logs", "shop", "-m", "anchor"],
        &["cp", "shop:anchor:/etc", "-"],
        &["cp", "-", "shop:anchor:/"],
        &["tools", "shop", "-m", "anchor", "--image", "busybox", "--", "sh"],
    ] {
        l.amphi.refused(words, 4, "member")?;
    }
    Ok(())
}
