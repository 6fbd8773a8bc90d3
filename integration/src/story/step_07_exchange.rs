//! Step 7: the set becomes a VM and a set again, while a peer on the other host keeps asking for it.

use amphi_api::instance::{BodyKind, Exchange, ExchangePhase, InstanceState};
use anyhow::{Context, Result, ensure};

use super::engines::Engines;
use super::stage::{HOME, SOON, Stage, UP, address, same};
use crate::wait::{seen, until};

pub fn play(stage: &Stage) -> Result<()> {
    stage.check("`amphi exchange web --to vm`: same IP and MAC, same bytes", || {
        let there = exchange(stage, BodyKind::Vm, &["exchange", "web", "--to", "vm", "--image", "vm"])?;
        stage.note(&there);
        let (far, neighbour) = (stage.member("far", "front")?, stage.member("neighbour", "front")?);
        for peer in [far, neighbour] {
            let vm = stage.vm("web", peer)?;
            vm.answers(UP)?;
            same("checksum in the VM", &stage.notes.borrow().random, &vm.sha256("/data/random")?)?;
            let mac = vm.sh("cat /sys/class/net/eth0/address")?;
            same("MAC in the VM", &stage.instance("web")?.addresses[0].mac, &mac.trim().to_owned())?;
            vm.sh("echo written by the vm >/data/from-vm; sync")?;
        }
        Ok(())
    })?;
    stage.check("`amphi exchange web --to set`: and back, with what the VM wrote", || {
        let back = exchange(stage, BodyKind::Set, &["exchange", "web", "--to", "set"])?;
        stage.note(&back);
        let front = stage.member("web", "front")?;
        same("checksum in the set", &stage.notes.borrow().random, &front.sha256("/data/random")?)?;
        let word = front.run("cat /data/from-vm")?;
        same("what the VM wrote", &"written by the vm", &word.trim())
    })
}

/// One exchange with its checks; the outage in words, as the peer felt it and as the record has it.
fn exchange(stage: &Stage, to: BodyKind, words: &[&str]) -> Result<String> {
    let before = stage.instance("web")?;
    let own = address(&before)?;
    let far = stage.member("far", "front")?;
    far.reaches(&own)?;
    let ping = far.ping(&own)?;
    let exchange: Exchange = stage.amphi.json(words)?;
    same("phase", &ExchangePhase::Done, &exchange.phase)?;
    let after = stage.in_state("web", InstanceState::Running, SOON)?;
    same("body", &to, &after.body)?;
    same("addresses of the record", &before.addresses, &after.addresses)?;
    same("host", &before.host_name, &after.host_name)?;
    ensure!(after.epoch > before.epoch, "the epoch should grow: {} to {}", before.epoch, after.epoch);
    until("the peer reaches the new body", UP, || {
        let answer = far.sh(&format!("ping -c 1 -W 1 {own}"))?;
        Ok(seen(answer.ok(), || answer.stdout.trim().to_owned()))
    })?;
    let pinged = ping.stop()?;
    ensure!(pinged.received > 0, "the peer heard nothing: {pinged:?}");
    let neighbours = far.run("cat /proc/net/arp")?;
    let mac = &before.addresses[0].mac;
    let line = neighbours.lines().find(|l| l.starts_with(&format!("{own} "))).unwrap_or_default();
    ensure!(line.contains(mac), "the peer's ARP should have {own} at {mac}, it has: {neighbours}");
    only_one_body(stage, to)?;
    until("the peer fetches the same bytes over HTTP", UP, || {
        let sum = far.sha256_over_http(&own, "/random", 8 << 20)?;
        Ok(seen(sum == stage.notes.borrow().random, || sum.clone()))
    })?;
    let recorded = exchange.outage_ms.context("the exchange's record has no outage")?;
    Ok(format!(
        "{} to {}: outage {:.2} s as the peer's ping felt it, {:.2} s as recorded; {}",
        exchange.from,
        exchange.to,
        pinged.outage().as_secs_f32(),
        recorded as f32 / 1000.0,
        format_args!("{} of {} packets answered", pinged.received, pinged.sent),
    ))
}

/// The engines hold the body that the record says, and not the other.
fn only_one_body(stage: &Stage, body: BodyKind) -> Result<()> {
    let id = stage.instance("web")?.id;
    let engines = Engines::of(stage.lab, HOME);
    until(&format!("only the {body} is left on the engines"), SOON, || {
        let containers = engines.containers(id, true)?;
        let domains: Vec<_> =
            engines.domains(true)?.into_iter().filter(|d| d.contains(&id.to_string())).collect();
        let right = match body {
            BodyKind::Set => containers.len() == 3 && domains.is_empty(),
            BodyKind::Vm => containers.is_empty() && domains.len() == 1,
        };
        Ok(seen(right, || format!("containers {containers:?}, domains {domains:?}")))
    })
}
