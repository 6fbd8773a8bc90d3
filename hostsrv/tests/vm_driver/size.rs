//! A VM that runs: what it uses, as libvirt tells of all VMs at once, and processors and memory that come while it runs; memory
//! goes, too.

use crate::host::until;
use crate::{MIB, SOON, console, only};
use amphi_hostsrv::instance::figures::{Figure, Meter};
use amphi_hostsrv::instance::limits::WHOLE;
use amphi_hostsrv::instance::sizing::BodySizing;
use amphi_hostsrv::instance::vm::VmDriver;
use amphi_hostsrv::instance::{BodyDriver, BodyPlan};

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
    memory(vms, &larger).await;
    // Beyond its room nothing is tried: it waits for the next start.
    vms.resize(&BodyPlan { vcpus: 64, ..plan.clone() }).await.unwrap();
    assert_eq!(only(vms).await.held[WHOLE].cpu_centi, Some(most));
}

/// Up to twice what it was started with and back, as the guest itself sees it.
async fn memory(vms: &VmDriver, plan: &BodyPlan) {
    let inside = |text: &str| -> Vec<u64> {
        let told = text
            .lines()
            .filter_map(|line| line.split_once("guest: memory ")?.1.split(' ').next()?.parse().ok());
        told.collect()
    };
    let begun = inside(&console(vms, plan.instance, "guest: memory").await)[0];
    let mib = |bytes: Option<u64>| bytes.unwrap() >> 20;
    for wanted in [plan.memory_mib + 64, plan.memory_mib * 2, plan.memory_mib + 32, plan.memory_mib] {
        vms.resize(&BodyPlan { memory_mib: wanted, ..plan.clone() }).await.unwrap();
        let more = wanted - plan.memory_mib;
        until(&format!("{wanted} MiB"), SOON, || async {
            let held = only(vms).await.held[WHOLE];
            let seen = inside(&vms.console_log(plan.instance, None, 1000).await.unwrap());
            let there = (mib(held.memory_bytes), mib(held.memory_taken)) == (wanted, wanted);
            if there && seen.last().is_some_and(|now| now.abs_diff(begun + more) <= 2) {
                Ok(())
            } else {
                Err((held, seen))
            }
        })
        .await;
        println!("{wanted} MiB: {:?}", inside(&vms.console_log(plan.instance, None, 1000).await.unwrap()));
        let limits = vms.read().await.unwrap();
        let limit = limits.iter().find(|r| r.figure == Figure::MemoryLimit).map(|r| r.value);
        assert_eq!(limit, Some((wanted * MIB) as f64), "what is measured goes with it");
    }
    // More than its room, less than it was started with: it stays.
    for wanted in [plan.memory_mib * 2 + 2, plan.memory_mib - 2] {
        vms.resize(&BodyPlan { memory_mib: wanted, ..plan.clone() }).await.unwrap();
        assert_eq!(mib(only(vms).await.held[WHOLE].memory_bytes), plan.memory_mib);
    }
}
