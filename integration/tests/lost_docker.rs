//! A dockerd that dies, comes back, and comes back without what it knew of its containers. Members run on while it is away;
//! what it still knows is taken over as it runs; what it has lost is ended before it is made anew, so that there are never two
//! of one; the address and the volume's bytes are the same afterwards, and nothing is left.

use amphi_api::host::{EngineName, Host};
use amphi_api::instance::{BodySpec, InstanceState, InstanceVolume};
use amphi_api::set::{MemberSpec, SetSpec};
use amphi_integration::failing::{PATIENCE, Stage, address, request};
use amphi_integration::lab::Layout;
use amphi_integration::story;
use amphi_integration::wait::{Seen, seen, until};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

const H1: &str = "h1";
const DOCKER: [&str; 3] = ["/usr/bin/docker", "-H", "unix:///run/docker.sock"];
/// What a member is known by, whoever looks.
const MARK: &str = "trap exit TERM; : member";

fn member(index: u32, name: &str) -> MemberSpec {
    let script = format!("{MARK} {name}; while :; do sleep 1000 & wait $!; done");
    MemberSpec {
        name: name.into(),
        index,
        image: "busybox".into(),
        command: ["/bin/sh".to_owned(), "-c".to_owned(), script].to_vec(),
        ..MemberSpec::default()
    }
}

/// The members' processes, by name and id.
fn members(stage: &Stage) -> Result<BTreeSet<(String, String)>> {
    let all = stage.lab.run(H1, &["ps", "-eo", "pid,args", "--no-headers"])?;
    let own = all.lines().filter_map(|line| {
        let (pid, command) = line.trim().split_once(' ')?;
        let (_, rest) = command.trim().strip_prefix("/bin/sh -c ")?.split_once(": member ")?;
        Some((rest.split(';').next()?.to_owned(), pid.to_owned()))
    });
    Ok(own.collect())
}

fn trouble(host: &Host) -> Option<String> {
    let engines = host.spec.iter().flat_map(|spec| &spec.engines);
    engines.filter(|e| e.name == EngineName::Docker).find_map(|e| e.trouble.clone())
}

#[test]
fn a_docker_that_has_lost_its_containers_never_doubles_them() -> Result<()> {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("lost-docker-lab"))?;
    let program = Path::new(env!("CARGO_BIN_EXE_amphi-lab"));
    let stage = Stage::up(layout, &images, program, 1, |_| {})?;
    let before = story::residue::on(&stage.lab, H1)?;
    let set = SetSpec {
        members: vec![member(0, "web"), member(1, "db")],
        volume_mount: "/data".into(),
        ..SetSpec::default()
    };
    let mut order = request("shop", vec![BodySpec::Set(set)], Some(H1));
    order.volume = Some(InstanceVolume { size_gib: Some(1), name: None, id: None });
    let shop = stage.create(&order)?;
    let other = stage.create(&request("other", vec![amphi_integration::failing::set()], Some(H1)))?;
    let container = format!("amphi-{}-web", shop.id);
    let inside =
        |script: &str| stage.lab.run(H1, &[&DOCKER[..], &["exec", &container, "sh", "-c", script]].concat());
    inside("echo kept >/data/mark && sync")?;
    let first = members(&stage)?;
    ensure!(first.len() == 2, "{first:?}");

    println!("a dockerd that dies");
    stage.lab.kill(H1, "dockerd", Signal::SIGKILL)?;
    let host = stage.host_in(H1, |host| trouble(host).is_some())?;
    println!("  the host says: {:?}", trouble(&host));
    ensure!(members(&stage)? == first, "members were touched");
    stage.lab.start(H1, "dockerd")?;
    stage.host_in(H1, |host| trouble(host).is_none())?;
    let seen_again = stage.runs(shop.id)?;
    ensure!(members(&stage)? == first, "what ran on was not taken over: {:?}", members(&stage)?);
    ensure!(seen_again.members.iter().all(|member| member.restarts == 0), "{seen_again:?}");

    let state = ["/var/lib/docker/containers", "/var/lib/docker/network/files"];
    for (round, lost) in [&state[..1], &state[..]].into_iter().enumerate() {
        println!("a dockerd that has lost {lost:?}");
        let began = Instant::now();
        let old = members(&stage)?;
        stage.lab.kill(H1, "dockerd", Signal::SIGKILL)?;
        for path in lost {
            // Each container's shared memory is mounted there.
            let script =
                format!("grep ' {path}/' /proc/mounts | cut -d' ' -f2 | xargs -r umount -l; rm -rf {path}/*");
            stage.lab.run(H1, &["sh", "-c", &script])?;
        }
        ensure!(members(&stage)? == old, "members ended with Docker's files");
        stage.lab.start(H1, "dockerd")?;
        // Whenever it is looked: never two of one.
        let names =
            |all: &BTreeSet<(String, String)>| all.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let mut twice = (BTreeSet::new(), 0);
        until("all is made anew", PATIENCE, || {
            let now = members(&stage)?;
            let mut once = names(&now);
            once.dedup();
            if once.len() != now.len() {
                // A shell that is about to become its child looks like two for a moment.
                twice = if twice.0 == now { (now.clone(), twice.1 + 1) } else { (now.clone(), 1) };
                // An error would count as not yet.
                assert!(twice.1 < 3, "two of one: {now:?}");
            }
            let shown = stage.show(shop.id)?;
            let anew = now.len() == 2 && now.is_disjoint(&old);
            let well = shown.state == InstanceState::Running && shown.fault.is_none();
            Ok(seen(anew && well, || format!("{now:?}, {:?} {:?}", shown.state, shown.fault)))
        })?;
        println!("  made anew after {:.1} s", began.elapsed().as_secs_f32());
        stage.runs(other.id)?;
        ensure!(inside("cat /data/mark")? == "kept\n", "round {round}: the volume's bytes");
        let addresses = inside("ip addr")?;
        ensure!(addresses.contains(&address(&shop)?), "{addresses}");
        let shims =
            stage.lab.run(H1, &["sh", "-c", "ps -eo args | grep -c '[c]ontainerd-shim.* -id ' || true"])?;
        // Two anchors, three members.
        ensure!(shims.trim() == "5", "{shims} shims are left");
        stage.host_in(H1, |host| trouble(host).is_none())?;
    }

    for id in [shop.id, other.id] {
        stage.delete(id)?;
    }
    until("nothing is left", PATIENCE, || {
        let bin = stage.ask(stage.client.recycle_bin())?;
        for volume in &bin {
            // One that is being purged already refuses a second order.
            let _ = stage.ask(stage.client.purge_volume(volume.id));
        }
        let now = story::residue::on(&stage.lab, H1)?;
        let left: BTreeSet<_> = now.difference(&before).cloned().collect();
        Ok(if bin.is_empty() && left.is_empty() { Seen::Enough(()) } else { Seen::Not(format!("{left:?}")) })
    })
    .context("after the last")?;
    stage.down()
}
