//! A VM that runs: what it uses, as libvirt tells of all VMs at once, and processors that come while it runs.

use crate::host::until;
use crate::{MIB, SOON, only};
use amphi_hostsrv::instance::BodyPlan;
use amphi_hostsrv::instance::figures::{Figure, Meter};
use amphi_hostsrv::instance::limits::WHOLE;
use amphi_hostsrv::instance::sizing::BodySizing;
use amphi_hostsrv::instance::vm::VmDriver;

pub async fn measured(vms: &VmDriver, plan: &BodyPlan) {
    let wanted = [Figure::Up, Figure::Cpu, Figure::Memory, Figure::MemoryLimit, Figure::DiskReads];
    let told = until("libvirt tells of it", SOON, || async {
        let all = vms.read().await.unwrap();
        let of =
            |figure| all.iter().find(|r| r.figure == figure && r.instance == plan.instance).map(|r| r.value);
        let told = wanted.map(of);
        if told.iter().all(Option::is_some) { Ok(told.map(Option::unwrap_or_default)) } else { Err(all) }
    })
    .await;
    println!("figures: {told:?}");
    let [up, cpu, memory, limit, reads] = told;
    assert_eq!((up, limit), (1.0, (plan.memory_mib * MIB) as f64));
    // Its kernel has booted and has looked at its disks.
    assert!(cpu > 0.2 && memory > (16 * MIB) as f64 && reads > 0.0, "{told:?}");
}

pub async fn grows(vms: &VmDriver, plan: &BodyPlan) {
    let held = only(vms).await.held[WHOLE];
    let most = held.cpu_most.unwrap();
    assert_eq!((held.cpu_centi, held.memory_bytes), (Some(100), Some(plan.memory_mib * MIB)));
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    assert_eq!(most, 100 * cpus.clamp(1, 2), "room for twice as many, where the host has them");
    let larger = BodyPlan { vcpus: (most / 100) as u32, ..plan.clone() };
    for _ in 0..2 {
        vms.resize(&larger).await.unwrap();
        assert_eq!(only(vms).await.held[WHOLE].cpu_centi, Some(most));
    }
    // Beyond its room nothing is tried: it waits for the next start.
    vms.resize(&BodyPlan { vcpus: 64, ..plan.clone() }).await.unwrap();
    assert_eq!(only(vms).await.held[WHOLE].cpu_centi, Some(most));
}
