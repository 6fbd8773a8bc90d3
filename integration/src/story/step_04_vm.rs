//! Step 4: a VM on the same network with a volume of its own.

use amphi_api::instance::{Instance, InstanceState};
use anyhow::{Context, Result, ensure};

use super::descriptions::vm_user_data;
use super::engines::Engines;
use super::stage::{GROUP, HOME, NETWORK, Stage, UP, address, same};
use crate::wait::{seen, until};

pub fn play(stage: &Stage) -> Result<()> {
    let user_data = stage.file("vm-user-data", &vm_user_data())?;
    stage.check("`amphi vm create`: the domain runs", || {
        let words = [
            "vm",
            "create",
            "vm",
            "--image",
            "vm",
            "--network",
            NETWORK,
            "--security-group",
            GROUP,
            "--volume-gib",
            "1",
            "--host",
            HOME,
            "--vcpus",
            "1",
            "--memory",
            "256MiB",
            "--user-data",
            &user_data,
        ];
        let instance: Instance = stage.amphi.json(&words)?;
        same("state", &InstanceState::Running, &instance.state)?;
        let domains = Engines::of(stage.lab, HOME).domains(false)?;
        let own = format!("amphi-{}", instance.id);
        ensure!(domains.contains(&own), "libvirt should run {own}, it runs {domains:?}");
        Ok(())
    })?;
    stage.check("it boots, asks DHCP and gets the record's address, as its console says", || {
        booted(stage, "vm")
    })?;
    stage.check("`amphi instance console-log` shows the console", || {
        let text = stage.amphi.run(&["instance", "console-log", "vm", "--lines", "400"])?;
        ensure!(text.contains("amphi-vm: init"), "no boot in the console log: {text}");
        Ok(())
    })?;
    stage.check("user data ran, the volume is mounted", || {
        let vm = stage.vm("vm", stage.member("neighbour", "front")?)?;
        vm.answers(UP)?;
        let mounted = vm.sh("grep ' /data ' /proc/mounts")?;
        ensure!(mounted.contains("xfs"), "expected xfs on /data, saw: {mounted}");
        vm.sh("head -c 4194304 /dev/urandom >/data/random; sync")?;
        stage.notes.borrow_mut().vm_random = vm.sha256("/data/random")?;
        let address = vm.sh("cat /sys/class/net/eth0/address")?;
        same("MAC in the guest", &stage.instance("vm")?.addresses[0].mac, &address.trim().to_owned())
    })
}

/// Waits until the VM's console says that it has the address of the record.
pub fn booted(stage: &Stage, name: &str) -> Result<()> {
    let record = stage.instance(name)?;
    let ready = format!("amphi-vm: ready {}", address(&record)?);
    until(&format!("the console of {name} says '{ready}'"), UP, || {
        let log = stage
            .ask(stage.client.console_log(record.id, Some(200), None))
            .context("read the console log")?;
        let tail: Vec<&str> = log.text.lines().rev().take(3).collect();
        Ok(seen(log.text.contains(&ready), || tail.join(" / ")))
    })
}
