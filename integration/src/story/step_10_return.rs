//! Step 10: the dead host returns. What moved away stays away; what waited for its volume has it again.

use amphi_api::host::HostState;
use amphi_api::volume::VolumeState;
use anyhow::{Context, Result, ensure};

use super::engines::Engines;
use super::stage::{AWAY, HOME, SOON, Stage, UP, address, same};
use super::step_04_vm::booted;
use super::step_09_power_cut::{MOVE, STAY};
use super::watch::{Moved, while_doing};
use crate::wait::{seen, until};

pub fn play(stage: &Stage) -> Result<()> {
    let engines = Engines::of(stage.lab, HOME);
    let far = stage.member("far", "front")?;
    let mut moved = Vec::new();
    for name in MOVE {
        let record = stage.instance(name)?;
        let born = stage.notes.borrow().born.iter().find(|(n, _)| n == name).map(|(_, b)| b.clone());
        moved.push(Moved {
            name: name.to_owned(),
            id: record.id,
            port: record.addresses[0].port.to_string(),
            address: address(&record)?,
            born: born.with_context(|| format!("nothing noted of {name}"))?,
            chassis: AWAY.to_owned(),
        });
    }
    stage.check("power returns; all the while one body alone answers for each that moved", || {
        let looks = while_doing(&far, &engines, &moved, || {
            stage.lab.restore(HOME, |_| ())?;
            until("the host is up", UP, || {
                let host = stage.host(HOME)?;
                Ok(seen(host.state == HostState::Up, || format!("{:?}", host.state)))
            })?;
            stale_gone(&engines, &moved)
        })?;
        stage.note(&format!("watched {looks} times"));
        Ok(())
    })?;
    stage.check("its volumes are found again, the stranded instances run, nothing is lost", || {
        for name in STAY {
            let record = stage.running(name)?;
            same(&format!("host of {name}"), &Some(HOME.to_owned()), &record.host_name)?;
            ensure!(record.lost.is_empty(), "{name} still says lost: {:?}", record.lost);
            stage.volume_in(
                record.volume.with_context(|| format!("{name} has no volume"))?,
                VolumeState::InUse,
                SOON,
            )?;
        }
        let front = stage.member("web", "front")?;
        same("checksum in the set", &stage.notes.borrow().random, &front.sha256("/data/random")?)?;
        booted(stage, "vm")?;
        let vm = stage.vm("vm", stage.member("neighbour", "front")?)?;
        vm.answers(UP)?;
        same("checksum in the VM", &stage.notes.borrow().vm_random, &vm.sha256("/data/random")?)
    })?;
    stage.check("peers on both hosts reach them again; the host has no strangers", || {
        for name in STAY.iter().chain(&MOVE) {
            far.reaches(&address(&stage.instance(name)?)?)?;
        }
        until("no strangers on either host", SOON, || {
            let strangers = [stage.host(HOME)?.strangers, stage.host(AWAY)?.strangers].concat();
            Ok(seen(strangers.is_empty(), || strangers.join(", ")))
        })
    })
}

/// Nothing of the moved instances is left on the engines of the host that came back.
fn stale_gone(engines: &Engines, moved: &[Moved]) -> Result<()> {
    for one in moved {
        until(&format!("nothing of {} is left on {}", one.name, engines.host), SOON, || {
            let mut left = engines.containers(one.id, true)?;
            left.extend(engines.domains(true)?.into_iter().filter(|d| d.contains(&one.id.to_string())));
            left.extend(engines.plugged()?.into_iter().filter(|p| *p == one.port));
            Ok(seen(left.is_empty(), || left.join(", ")))
        })?;
    }
    Ok(())
}
