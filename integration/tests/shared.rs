//! Volumes in a group that three real hosts see: a set and a VM lose their host, the group's keeper, and have their bytes
//! elsewhere, one of them by its twin; the group has another keeper; the host that returns lets go of what was taken over; a
//! planned move copies nothing. No volume is ever mounted on two hosts.

use amphi_api::failover::FailoverFate;
use amphi_api::instance::{BodyKind, ExchangePhase, FailoverPolicy, Instance, InstanceVolume, MoveCreate};
use amphi_api::volume::{Volume, VolumeCreate, VolumeState};
use amphi_api::{InstanceId, VolumeId};
use amphi_integration::chaos::Watch;
use amphi_integration::failing::{PATIENCE, Stage, request, set, vm};
use amphi_integration::lab::{Layout, SHARED_GROUP, UpOptions};
use amphi_integration::wait::{Seen, until};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::Duration;

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

fn stage() -> Result<Stage> {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    ensure!(images.exists(), "{} is missing: make images", images.display());
    let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("shared-lab"))?;
    let program = Path::new(env!("CARGO_BIN_EXE_amphi-lab")).to_owned();
    let options = UpOptions { shared_bytes: 16 << 30, ..UpOptions::new(layout, program, 3) };
    Stage::up_with(&options, &images, |_| {})
}

fn volume_is(stage: &Stage, id: VolumeId, what: &str, ok: impl Fn(&Volume) -> bool) -> Result<Volume> {
    until(what, PATIENCE, || {
        let seen = stage.ask(stage.client.volume(id))?;
        Ok(if ok(&seen) { Seen::Enough(seen) } else { Seen::Not(format!("{seen:?}")) })
    })
}

fn volume(stage: &Stage, name: &str) -> Result<Volume> {
    let group = Some(SHARED_GROUP.to_owned());
    let request = VolumeCreate { name: name.into(), size_gib: Some(1), snapshot: None, host: None, group };
    let made = stage.ask(stage.client.create_volume(&request))?;
    volume_is(stage, made.id, "a shared volume that is there", |v| v.state == VolumeState::Available)
}

fn holds(volume: &Volume) -> Option<InstanceVolume> {
    Some(InstanceVolume { size_gib: None, name: None, id: Some(volume.id) })
}

fn in_member(stage: &Stage, host: &str, id: InstanceId, command: &str) -> Result<String> {
    let script = format!("/usr/bin/docker -H unix:///run/docker.sock exec amphi-{id}-only sh -c '{command}'");
    let done = stage.lab.exec(host, &["sh", "-c", &script], Duration::from_secs(60))?;
    ensure!(done.ok(), "{command} on {host}: {done:?}");
    Ok(done.stdout.trim().to_owned())
}

fn host_of(instance: &Instance) -> Result<String> {
    instance.host_name.clone().with_context(|| format!("{} has no host", instance.name))
}

/// The volumes that are active on the host, as its mounts and loop devices say.
fn is_mounted(stage: &Stage, host: &str, id: VolumeId) -> Result<bool> {
    Ok(stage.lab.run(host, &["cat", "/proc/mounts"])?.contains(&id.to_string()))
}

#[test]
fn what_is_on_a_shared_group_is_taken_over() -> Result<()> {
    let stage = stage()?;
    stage.warm(&HOSTS)?;
    let watch = Watch::start(&stage.lab, &HOSTS)?;
    let (for_set, for_vm) = (volume(&stage, "for-set")?, volume(&stage, "for-vm")?);
    let for_twin = volume(&stage, "for-twin")?;
    ensure!(for_set.group_name.as_deref() == Some(SHARED_GROUP), "{for_set:?}");
    let keeper = for_set.host_name.clone();
    println!("{keeper} keeps the group; its instances run there too");
    let keeps = Some(keeper.as_str());
    let mut order = request("data", vec![set()], keeps);
    order.volume = holds(&for_set);
    let data = stage.create(&order)?;
    let mut order = request("machine", vec![vm()], keeps);
    order.volume = holds(&for_vm);
    let machine = stage.create(&order)?;
    let mut order = request("twinned", vec![set()], keeps);
    order.volume = holds(&for_twin);
    order.failover = FailoverPolicy::Twin;
    let twinned = stage.create(&order)?;
    [&data, &machine, &twinned].into_iter().for_each(|i| watch.made(i));
    for id in [data.id, twinned.id] {
        in_member(&stage, &keeper, id, "echo kept > /data/word; sync")?;
    }
    let waits = stage.until(twinned.id, "a twin", |i| i.twin.as_ref().is_some_and(|twin| twin.ready))?;
    let waits = waits.twin.and_then(|twin| twin.host_name).context("it waits nowhere")?;
    ensure!(
        waits != keeper && !is_mounted(&stage, &waits, for_twin.id)?,
        "it has the volume before its time"
    );

    println!("power cut of the keeper");
    let before = stage.last_failover(&keeper)?;
    stage.lab.power_cut(&keeper)?;
    let failover = stage.failover(&keeper, before)?;
    let (now, vm_now) = (stage.runs(data.id)?, stage.runs(machine.id)?);
    let twin_now = stage.runs(twinned.id)?;
    let moved = [(&data, &now, &for_set), (&machine, &vm_now, &for_vm), (&twinned, &twin_now, &for_twin)];
    for (was, now, volume) in moved {
        ensure!(now.epoch > was.epoch && now.host != was.host, "{} should be elsewhere: {now:?}", was.name);
        ensure!(now.addresses == was.addresses, "{now:?}");
        let told = stage.failover_done(failover.id)?;
        let fate = told.instances.iter().find(|i| i.instance == was.id).map(|i| i.fate.clone());
        let Some(FailoverFate::Moved { taken_over, fresh_volume: None, twin, .. }) = fate else {
            anyhow::bail!("{}: {fate:?}", was.name)
        };
        ensure!(twin == (was.id == twinned.id), "{} by a twin: {twin}", was.name);
        ensure!(taken_over == [volume.id], "{taken_over:?}");
        let seen = stage.ask(stage.client.volume(volume.id))?;
        ensure!(Some(&seen.host_name) == now.host_name.as_ref(), "{seen:?}");
    }
    let there = host_of(&now)?;
    ensure!(in_member(&stage, &there, data.id, "cat /data/word")? == "kept");
    ensure!(host_of(&twin_now)? == waits, "{twin_now:?}");
    ensure!(in_member(&stage, &waits, twinned.id, "cat /data/word")? == "kept");
    in_member(&stage, &there, data.id, "echo more >> /data/word; sync")?;

    println!("another keeper makes and grows volumes");
    let later = volume(&stage, "later")?;
    ensure!(later.host_name != keeper, "a dead host keeps nothing: {later:?}");
    stage.ask(stage.client.extend_volume(for_set.id, 2))?;
    until("the file system grows where it is mounted", PATIENCE, || {
        let kib = in_member(&stage, &there, data.id, "df -k /data | tail -n 1")?;
        let total = kib.split_whitespace().filter_map(|word| word.parse::<u64>().ok()).next();
        let enough = total.is_some_and(|kib| kib > 1_700_000);
        Ok(if enough { Seen::Enough(()) } else { Seen::Not(kib) })
    })?;

    println!("the host returns, and has let go");
    stage.lab.restore(&keeper, |_| {})?;
    stage.host_is_back(&keeper)?;
    for (was, volume) in [(&data, &for_set), (&machine, &for_vm), (&twinned, &for_twin)] {
        stage.buried(&keeper, was.id)?;
        ensure!(!is_mounted(&stage, &keeper, volume.id)?);
    }
    ensure!(in_member(&stage, &there, data.id, "cat /data/word")? == "kept\nmore");

    println!("a planned move back copies nothing");
    let to = MoveCreate { to: Some(keeper.clone()), reason: "a test".into(), ..MoveCreate::default() };
    let order = stage.ask(stage.client.create_move(data.id, &to))?;
    let done = until("the move", PATIENCE, || {
        let seen = stage.ask(stage.client.exchange(order.id))?;
        let over = matches!(seen.phase, ExchangePhase::Done | ExchangePhase::Failed);
        Ok(if over { Seen::Enough(seen) } else { Seen::Not(format!("{:?}", seen.phase)) })
    })?;
    ensure!(done.phase == ExchangePhase::Done, "{done:?}");
    ensure!(done.journey.as_ref().is_some_and(|j| j.volumes.is_none()), "nothing was to be copied: {done:?}");
    let back = stage.runs(data.id)?;
    ensure!(host_of(&back)? == keeper && back.body == BodyKind::Set, "{back:?}");
    ensure!(in_member(&stage, &keeper, data.id, "cat /data/word")? == "kept\nmore");
    ensure!(!is_mounted(&stage, &there, for_set.id)?, "one holder at a time");

    for instance in [&data, &machine, &twinned] {
        watch.goes(instance.id);
        stage.delete(instance.id)?;
    }
    volume_is(&stage, later.id, "nobody's", |v| v.state == VolumeState::Available)?;
    stage.ask(stage.client.delete_volume(later.id))?;
    for one in [&for_set, &for_vm, &for_twin, &later] {
        volume_is(&stage, one.id, "in the bin", |v| v.state == VolumeState::Trashed && v.fault.is_none())?;
    }
    ensure!(watch.broken().is_empty() && watch.looks() > 50, "{:?}", watch.broken());
    drop(watch);
    stage.down()
}
