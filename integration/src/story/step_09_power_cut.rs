//! Step 9: one host loses its power whole. By order its instances come up on the other, with the same addresses; the
//! one whose volume is on the dead host says what is lost.

use std::collections::BTreeSet;

use amphi_api::host::{Evacuation, HostState};
use amphi_api::instance::{Instance, InstanceState};
use amphi_api::volume::VolumeState;
use anyhow::{Context, Result, ensure};

use super::cli::{FAILED, NO_SUCH, REFUSED};
use super::descriptions::{plain_set, plain_vm};
use super::engines::{Engines, chassis_of};
use super::stage::{AWAY, HOME, SOON, Stage, UP, address, same};
use super::step_04_vm::booted;
use crate::wait::{seen, until};

/// Instances without a volume and without a host of their choice: these move.
pub const MOVE: [&str; 2] = ["drift", "drift-vm"];
/// Deleted while its host is dead.
const DOOMED: &str = "doomed";
/// Instances whose volume is on the host: these wait.
pub const STAY: [&str; 3] = ["web", "neighbour", "vm"];

pub fn play(stage: &Stage) -> Result<()> {
    stage
        .check("a set and a VM that may run anywhere come to the host with the most room", || drift(stage))?;
    stage.check("`amphi host evacuate` of a live host is refused", || {
        let complaint = stage.amphi.fails(&["host", "evacuate", HOME], REFUSED)?;
        ensure!(complaint.contains(HOME), "the complaint should name {HOME}: {complaint}");
        for name in MOVE {
            same(&format!("host of {name}"), &Some(HOME.to_owned()), &stage.instance(name)?.host_name)?;
        }
        Ok(())
    })?;
    let before = MOVE.iter().map(|name| stage.instance(name)).collect::<Result<Vec<_>>>()?;
    stage.check(
        "power cut: the host is down, its instances are unknown, its volumes out of reach",
        || {
            stage.lab.power_cut(HOME)?;
            until("the host is down", SOON, || {
                let host = stage.host(HOME)?;
                Ok(seen(host.state == HostState::Down, || format!("{:?}", host.state)))
            })?;
            for name in MOVE.iter().chain(&STAY) {
                stage.in_state(name, InstanceState::Unknown, SOON)?;
            }
            let volume = stage.instance("web")?.volume.context("web has no volume")?;
            stage.volume_in(volume, VolumeState::Unreachable, SOON)?;
            same("state of far", &InstanceState::Running, &stage.instance("far")?.state)
        },
    )?;
    stage.check("`amphi instance delete` says at once that the dead host is waited for", || {
        let complaint = stage.amphi.fails(&["instance", "delete", DOOMED], FAILED)?;
        for word in ["host_down", "the order stands", "amphi host evacuate"] {
            ensure!(complaint.contains(word), "expected {word:?} in: {complaint}");
        }
        stage.in_state(DOOMED, InstanceState::Deleting, SOON).map(drop)
    })?;
    stage.check("`amphi host evacuate`: those without a volume move, the others wait for theirs", || {
        let evacuation: Evacuation = stage.amphi.json(&["host", "evacuate", HOME])?;
        // An instance that a failed step left behind is not this step's affair.
        let fates = |names: Vec<&str>| -> BTreeSet<String> {
            names.into_iter().filter(|n| MOVE.contains(n) || STAY.contains(n)).map(str::to_owned).collect()
        };
        let all = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        same("moved", &all(&MOVE), &fates(evacuation.moved.iter().map(|m| m.name.as_str()).collect()))?;
        same("waiting", &all(&STAY), &fates(evacuation.waiting.iter().map(|w| w.name.as_str()).collect()))?;
        ensure!(evacuation.refused.is_empty(), "refused: {:?}", evacuation.refused);
        stage.amphi.fails(&["instance", "show", DOOMED], NO_SUCH)?;
        for wait in &evacuation.waiting {
            same(
                &format!("volumes of {}", wait.name),
                &stage.instance(&wait.name)?.volume.into_iter().collect::<Vec<_>>(),
                &wait.volumes,
            )?;
        }
        Ok(())
    })?;
    stage.check("they run on the other host with the same IP and MAC; the peer reaches them", || {
        for was in &before {
            came_up(stage, was)?;
        }
        Ok(())
    })?;
    stage.check("the others are stranded, and say which volume is lost on which host", || {
        for name in STAY {
            let record = stage.in_state(name, InstanceState::Stranded, SOON)?;
            let [lost] = record.lost.as_slice() else {
                anyhow::bail!("{name} should have lost one volume: {:?}", record.lost);
            };
            same("lost volume", &record.volume, &Some(lost.volume))?;
            same("host of the lost volume", &HOME, &lost.host_name.as_str())?;
        }
        let page = stage.amphi.run(&["instance", "show", "web"])?;
        ensure!(
            page.contains("stranded") && page.contains(HOME),
            "expected the word and the host, saw:\n{page}"
        );
        stage.note(page.lines().take(3).collect::<Vec<_>>().join("\n").trim_end());
        Ok(())
    })
}

/// Both instances on [`HOME`], without being bound to it: the other host is nearly full while they are placed.
fn drift(stage: &Stage) -> Result<()> {
    let spec = stage.host(AWAY)?.spec.context("the other host has said nothing of itself")?;
    let mut ballast = plain_set("ballast", Some(AWAY));
    ballast.memory_mib = (spec.memory_mib - spec.reserved_memory_mib) * 8 / 10;
    stage.create(&ballast)?;
    for request in [plain_set(MOVE[0], None), plain_vm(MOVE[1], None)] {
        let instance = stage.create(&request)?;
        same(&format!("host of {}", instance.name), &Some(HOME.to_owned()), &instance.host_name)?;
    }
    stage.create(&plain_set(DOOMED, Some(HOME)))?;
    booted(stage, MOVE[1])?;
    stage.amphi.run(&["instance", "delete", "ballast"])?;
    let far = stage.member("far", "front")?;
    for name in MOVE {
        let record = stage.instance(name)?;
        far.reaches(&address(&record)?)?;
        let own = far.get(&address(&record)?, "/born")?;
        stage.notes.borrow_mut().born.push((name.to_owned(), own));
    }
    Ok(())
}

fn came_up(stage: &Stage, was: &Instance) -> Result<()> {
    let name = was.name.as_str();
    let now = stage.running(name)?;
    same(&format!("host of {name}"), &Some(AWAY.to_owned()), &now.host_name)?;
    same(&format!("addresses of {name}"), &was.addresses, &now.addresses)?;
    ensure!(now.epoch > was.epoch, "the epoch of {name} should grow: {} to {}", was.epoch, now.epoch);
    let far = stage.member("far", "front")?;
    let own = address(&now)?;
    far.reaches(&own)?;
    let old = stage.notes.borrow().born.iter().find(|(n, _)| n == name).map(|(_, b)| b.clone());
    let old = old.with_context(|| format!("nothing noted of {name}"))?;
    let born = until(&format!("the new {name} serves /born"), UP, || {
        let born = far.get(&own, "/born")?;
        Ok(if born == old {
            crate::wait::Seen::Not("the old body answers".to_owned())
        } else {
            crate::wait::Seen::Enough(born)
        })
    })?;
    for (noted, word) in &mut stage.notes.borrow_mut().born {
        if noted == name {
            word.clone_from(&born);
        }
    }
    same(
        &format!("OVN's chassis of {name}"),
        &AWAY.to_owned(),
        &chassis_of(stage.lab, &now.addresses[0].port.to_string())?,
    )?;
    let engines = Engines::of(stage.lab, AWAY);
    let bodies = engines.containers(now.id, false)?.len()
        + usize::from(engines.domains(false)?.contains(&format!("amphi-{}", now.id)));
    ensure!(bodies > 0, "{name} has no body on the engines of {AWAY}");
    Ok(())
}
