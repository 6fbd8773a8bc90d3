//! A set and a VM out of one artifact: the same instance as containers, exchanged to a VM of the same images and back, with
//! the same address, the same bytes on its volume and the same service; and a set that is a VM from the beginning, whose
//! members are seen, looked into and restarted like any others.

use amphi_api::InstanceId;
use amphi_api::instance::{
    BodyKind, BodySpec, ExchangeCreate, ExchangePhase, Instance, InstanceVolume, VmSpec,
};
use amphi_api::set::SetSpec;
use amphi_integration::dockerd::{Docker, done};
use amphi_integration::failing::{PATIENCE, Stage, address, request};
use amphi_integration::lab::Layout;
use amphi_integration::wait::{Seen, seen, until};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const H1: &str = "h1";
/// Exchanges there and back; `AMPHI_EXCHANGES=10` is the long form.
fn rounds() -> usize {
    std::env::var("AMPHI_EXCHANGES").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

fn shop() -> Result<SetSpec> {
    let serve = "trap 'exit 0' TERM INT; httpd -p 80 -h /data; while :; do sleep 1000000 & wait $!; done";
    Ok(serde_json::from_value(json!({"members": [
        {"name": "first", "index": 0, "image": "busybox", "restart": "never", "next_when": "finished",
            "command": ["/bin/sh", "-c", "[ -e /data/index.html ] || { dd if=/dev/urandom of=/data/bytes bs=1k count=3000; echo page >/data/index.html; }; sync"]},
        {"name": "web", "index": 1, "image": "busybox", "command": ["/bin/sh", "-c", serve],
            "probes": {"readiness": {"http": {"port": 80}, "period_s": 1, "timeout_s": 10}}}
    ]}))?)
}

fn exchange(stage: &Stage, instance: &Instance, to: BodyKind) -> Result<()> {
    let began = Instant::now();
    let order = stage.ask(stage.client.create_exchange(instance.id, &ExchangeCreate { to, body: None }))?;
    let ended = stage.ask(stage.client.wait_exchange(order.id, PATIENCE, |_| ()))?;
    ensure!(ended.phase == ExchangePhase::Done, "{ended:?}");
    println!("to {to}: {:.1} s, away for {:?} ms", began.elapsed().as_secs_f32(), ended.outage_ms);
    Ok(())
}

fn members_run(stage: &Stage, id: InstanceId, body: BodyKind) -> Result<Instance> {
    stage.until(id, &format!("a {body} whose members run"), |i| {
        let done = |name: &str| i.members.iter().find(|m| m.name == name);
        i.body == body
            && done("first").is_some_and(|m| m.finished && m.exit_code == Some(0))
            && done("web").is_some_and(|m| m.running && m.ready == Some(true))
    })
}

#[test]
fn one_artifact_has_both_bodies() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let kit = Command::new(root.join("scripts/make-guest-kit.sh")).status()?;
    ensure!(kit.success(), "there is no guest kit");
    let images = root.join("target/lab/images");
    let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("set-as-vm-lab"))?;
    let stage = Stage::up(layout, &images, Path::new(env!("CARGO_BIN_EXE_amphi-lab")), 1, |_| {})?;
    let host = stage.host(H1)?;
    ensure!(host.spec.as_ref().is_some_and(|spec| spec.guest_kit), "{H1} does not tell of its kit: {host:?}");
    let group = json!({"name": "web", "rules": [{"protocol": "tcp", "port_min": 80, "port_max": 80}]});
    stage.ask(stage.client.create_security_group(&serde_json::from_value(group)?))?;
    let peer = stage.create(&request("peer", vec![amphi_integration::failing::set()], Some(H1)))?;

    let mut order = request("shop", vec![BodySpec::Set(shop()?)], Some(H1));
    order.memory_mib = 256;
    order.security_groups = vec!["web".into()];
    order.volume = Some(InstanceVolume { size_gib: Some(1), name: None, id: None });
    let made = stage.create(&order)?;
    let instance = members_run(&stage, made.id, BodyKind::Set)?;
    let at = address(&instance)?;
    stage.serves(peer.id, &at, "page")?;
    let sum = stage.inside(instance.id, "web", "sha256sum </data/bytes")?;
    for round in 0..rounds() {
        for to in [BodyKind::Vm, BodyKind::Set] {
            exchange(&stage, &instance, to).with_context(|| format!("round {round}"))?;
            let now = members_run(&stage, instance.id, to)?;
            ensure!(address(&now)? == at, "its address was {at}: {now:?}");
            stage.serves(peer.id, &at, "page")?;
            ensure!(
                stage.inside(instance.id, "web", "sha256sum </data/bytes")? == sum,
                "its bytes have changed"
            );
            let kernel = stage.inside(instance.id, "web", "uname -r")?;
            println!("as a {to} on kernel {kernel}");
        }
    }
    let listed = stage.show(instance.id)?.bodies;
    ensure!(listed.len() == 2 && listed[1].set().is_some(), "{listed:?}");
    stage.delete(instance.id)?;

    // Isolation is a flag: nothing of it is a container.
    let vm = BodySpec::Vm(VmSpec { set: Some(shop()?), ..VmSpec::default() });
    let mut order = request("alone", vec![vm], Some(H1));
    order.memory_mib = 256;
    order.volume = Some(InstanceVolume { size_gib: Some(1), name: None, id: None });
    let alone = stage.create(&order)?;
    members_run(&stage, alone.id, BodyKind::Vm)?;
    let containers = stage.lab.run(
        H1,
        &["/usr/bin/docker", "-H", "unix:///run/docker.sock", "ps", "-a", "--format", "{{.Names}}"],
    )?;
    ensure!(!containers.contains(&alone.id.to_string()), "{containers}");
    let missing = stage.inside(alone.id, "nobody", "true").expect_err("a member that there is not");
    ensure!(format!("{missing:#}").contains("no member 'nobody'"), "{missing:#}");
    // An agent that dies disturbs no guest, and asks anew.
    let before = stage.inside(alone.id, "web", "cat /proc/sys/kernel/random/boot_id")?;
    stage.lab.kill(H1, "hostsrv", nix::sys::signal::Signal::SIGKILL)?;
    stage.lab.start(H1, "hostsrv")?;
    members_run(&stage, alone.id, BodyKind::Vm)?;
    until("a command runs again", PATIENCE, || {
        match stage.inside(alone.id, "web", "cat /proc/sys/kernel/random/boot_id") {
            Ok(now) => Ok(seen(now == before, || now)),
            Err(error) => Ok(seen(false, || format!("{error:#}"))),
        }
    })?;
    stage.delete(alone.id)?;
    stage.down()
}

/// A page and a key of its own, which the volume keeps; nginx and sshd of a whole Debian.
fn debian(image: &str) -> Result<SetSpec> {
    let page = "mkdir -p /data/www && [ -e /data/www/index.html ] || { head -c 3000000 /dev/urandom >/data/bytes; echo page >/data/www/index.html; }; sync";
    Ok(serde_json::from_value(json!({"members": [
        {"name": "first", "index": 0, "image": image, "restart": "never", "next_when": "finished",
            "command": ["/bin/sh", "-c", page]},
        {"name": "web", "index": 1, "image": image,
            "probes": {"readiness": {"http": {"port": 80}, "period_s": 1, "timeout_s": 10}}}
    ]}))?)
}

/// The first line that a port says by itself.
fn greeting(stage: &Stage, peer: InstanceId, address: &str, port: u16) -> Result<String> {
    until(&format!("{address}:{port} says something"), PATIENCE, || {
        let said = stage.inside(peer, "only", &format!("nc -w 5 {address} {port} </dev/null | head -n 1"))?;
        Ok(match said.is_empty() {
            true => Seen::Not("nothing".to_owned()),
            false => Seen::Enough(said),
        })
    })
}

/// Made of Debian's packages, pushed with docker and with skopeo, pulled by the host layer by layer, and run both ways: its page
/// and its ssh server's key are the same whatever body it has.
#[test]
fn a_debian_of_packages_is_pushed_and_has_both_bodies() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let kit = Command::new(root.join("scripts/make-guest-kit.sh")).status()?;
    ensure!(kit.success(), "there is no guest kit");
    let archive = root.join("target/lab-cache/debian-web-story.tar");
    let made = Command::new(root.join("scripts/make-debian-image.sh")).arg(&archive).status()?;
    ensure!(made.success(), "there is no Debian");
    let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("debian-lab"))?;
    let images = root.join("target/lab/images");
    let stage = Stage::up(layout, &images, Path::new(env!("CARGO_BIN_EXE_amphi-lab")), 1, |_| {})?;
    let group = json!({"name": "web", "rules": [{"protocol": "tcp", "port_min": 80, "port_max": 80}, {"protocol": "tcp", "port_min": 22, "port_max": 22}]});
    stage.ask(stage.client.create_security_group(&serde_json::from_value(group)?))?;
    let env = amphi_integration::story::read_env(&stage.lab.layout().env())?;
    let of = |name: &str| {
        let found = env.iter().find(|(key, _)| key.as_str() == name).map(|(_, value)| value.clone());
        found.with_context(|| format!("{name} is not in the lab's env"))
    };
    let (registry, password) = (of("AMPHI_URL")?.replace("http://", ""), of("OS_PASSWORD")?);
    // skopeo first, the whole; then docker, which finds every layer there.
    let began = Instant::now();
    done(Command::new("skopeo").args(["--insecure-policy", "copy", "--dest-tls-verify=false"]).args([
        format!("--dest-creds=admin:{password}"),
        format!("docker-archive:{}", archive.display()),
        format!("docker://{registry}/admin/debian:skopeo"),
    ]));
    println!("pushed with skopeo after {:.1} s", began.elapsed().as_secs_f32());
    let docker = Docker::start();
    done(&mut docker.login(&registry, &password));
    done(docker.run(&["load", "-i"]).arg(&archive));
    let pushed = format!("{registry}/admin/debian:docker");
    done(&mut docker.run(&["tag", "debian-web:latest", &pushed]));
    let said = done(&mut docker.run(&["push", &pushed]));
    println!("pushed with docker: {}", said.lines().last().unwrap_or_default());
    drop(docker);
    std::fs::remove_file(&archive)?;

    let peer = stage.create(&request("peer", vec![amphi_integration::failing::set()], Some(H1)))?;
    let mut order = request("debian", vec![BodySpec::Set(debian("debian:docker")?)], Some(H1));
    order.memory_mib = 512;
    order.security_groups = vec!["web".into()];
    order.volume = Some(InstanceVolume { size_gib: Some(1), name: None, id: None });
    let began = Instant::now();
    let made = stage.create(&order)?;
    let instance = members_run(&stage, made.id, BodyKind::Set)?;
    println!("runs as containers after {:.1} s", began.elapsed().as_secs_f32());
    let at = address(&instance)?;
    let look = |body: BodyKind| -> Result<(String, String, String)> {
        members_run(&stage, instance.id, body)?;
        stage.serves(peer.id, &at, "page")?;
        let ssh = greeting(&stage, peer.id, &at, 22)?;
        let key = stage.inside(instance.id, "web", "ssh-keyscan -T 30 127.0.0.1 2>/dev/null")?;
        ensure!(ssh.starts_with("SSH-2.0-OpenSSH") && key.contains("ssh-ed25519"), "{ssh} {key}");
        Ok((stage.inside(instance.id, "web", "sha256sum </data/bytes")?, ssh, key))
    };
    let before = look(BodyKind::Set)?;
    for to in [BodyKind::Vm, BodyKind::Set] {
        exchange(&stage, &instance, to)?;
        let now = look(to)?;
        ensure!(now == before, "as a {to}: {now:?}, before: {before:?}");
        println!("as a {to} on kernel {}", stage.inside(instance.id, "web", "uname -r")?);
    }
    stage.delete(instance.id)?;
    stage.down()
}
