//! Step 11: everything is deleted; the engines hold what they held before the story, and the records nothing.

use amphi_api::host::HostState;
use anyhow::{Result, ensure};

use super::residue;
use super::stage::{AWAY, HOME, SOON, Stage, UP};
use crate::wait::{seen, until};

pub fn play(stage: &Stage) -> Result<()> {
    stage.check("both hosts are there to be cleaned", || {
        for name in [HOME, AWAY] {
            let state = stage.host(name)?.state;
            ensure!(state == HostState::Up, "{name} is {state:?}");
        }
        Ok(())
    })?;
    stage.check("`amphi instance delete --with-volume` of all", || {
        for instance in stage.ask(stage.client.instances())? {
            stage.amphi.run(&["instance", "delete", &instance.id.to_string(), "--with-volume"])?;
        }
        Ok(())
    })?;
    stage.check("snapshots and volumes are deleted, the recycle bin is purged", || {
        for snapshot in stage.ask(stage.client.snapshots())? {
            stage.amphi.run(&["snapshot", "delete", &snapshot.id.to_string()])?;
        }
        for volume in stage.ask(stage.client.volumes())? {
            stage.amphi.run(&["volume", "delete", &volume.id.to_string()])?;
        }
        for volume in stage.ask(stage.client.recycle_bin())? {
            stage.amphi.run(&["recycle-bin", "purge", &volume.id.to_string()])?;
        }
        Ok(())
    })?;
    stage.check("network, security group and images are deleted", || {
        for network in stage.ask(stage.client.networks())? {
            stage.amphi.run(&["network", "delete", &network.id.to_string()])?;
        }
        for group in stage.ask(stage.client.security_groups())? {
            stage.amphi.run(&["security-group", "delete", &group.id.to_string()])?;
        }
        for image in stage.ask(stage.client.images())? {
            stage.amphi.run(&["image", "delete", &image.id.to_string()])?;
        }
        Ok(())
    })?;
    stage.check("no record is left", || {
        until("empty lists", SOON, || {
            let counts = [
                ("instances", stage.ask(stage.client.instances())?.len()),
                ("ports", stage.ask(stage.client.ports())?.len()),
                ("volumes", stage.ask(stage.client.volumes())?.len()),
                ("deleted volumes", stage.ask(stage.client.recycle_bin())?.len()),
                ("snapshots", stage.ask(stage.client.snapshots())?.len()),
                ("networks", stage.ask(stage.client.networks())?.len()),
                ("security groups", stage.ask(stage.client.security_groups())?.len()),
                ("images", stage.ask(stage.client.images())?.len()),
            ];
            let left: Vec<_> =
                counts.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")).collect();
            Ok(seen(left.is_empty(), || left.join(", ")))
        })?;
        for name in [HOME, AWAY] {
            let host = stage.host(name)?;
            ensure!(host.claims == Default::default(), "{name} still has claims: {:?}", host.claims);
            ensure!(host.strangers.is_empty(), "{name} has strangers: {:?}", host.strangers);
        }
        Ok(())
    })?;
    let before = stage.notes.borrow().before.clone();
    for (party, was) in &before {
        stage.check(
            &format!("nothing is left on {party}: LV, port, link, container, domain, mount, file"),
            || {
                until("as before the story", UP, || {
                    let left: Vec<_> = residue::on(stage.lab, party)?.difference(was).cloned().collect();
                    Ok(seen(left.is_empty(), || left.join(", ")))
                })
            },
        )?;
    }
    Ok(())
}
