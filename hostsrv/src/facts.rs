//! What this host is and has, measured: CPUs, memory, volume group, engines with versions and present trouble. Looked
//! at again now and then, so that an engine's death or return is seen within seconds. Refuses to guess: what an engine
//! did not say stays empty.

use crate::config::Config;
use crate::instance::BodyDriver;
use crate::instance::set::isolation;
use crate::network::ovs::Switch;
use crate::reconcile::{Drivers, Troubles};
use crate::storage::{Activation, StorageFacts};
use amphi_api::host::{Acceleration, Engine, EngineName, HostSpec, VolumeActivation};
use amphi_api::instance::BodyKind;
use amphi_api::resize::Isolation;
use anyhow::Context;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::sync::watch;

/// How often the engines are asked.
const PERIOD: Duration = Duration::from_secs(10);
/// How often LVM is asked while it works: each time forks a process.
const STORAGE_PERIOD: Duration = Duration::from_secs(60);

/// Which boot of the kernel this is (proc_sys_kernel(5)). Empty where the kernel does not say.
pub fn boot() -> &'static str {
    static BOOT: LazyLock<String> = LazyLock::new(|| {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        id.trim().to_owned()
    });
    &BOOT
}

/// Whom to ask.
pub struct Sources {
    pub config: Arc<Config>,
    pub drivers: Drivers,
    pub switch: Arc<Switch>,
    pub acceleration: Acceleration,
    /// Sets can run as VMs here.
    pub guest_kit: bool,
}

/// Asks everybody once.
pub struct Facts {
    sources: Sources,
    qemu: String,
    ovn: String,
    /// For switches whose database does not say: the field is filled only by some ways of starting them.
    ovs: String,
    physical_networks: Vec<String>,
    storage: Result<StorageFacts, String>,
    storage_at: tokio::time::Instant,
    versions: std::collections::BTreeMap<EngineName, String>,
    /// A kernel does not change while it runs.
    isolation: Isolation,
}

impl Facts {
    pub async fn new(sources: Sources) -> Self {
        let (qemu, ovn, ovs) = tokio::join!(
            version_of("qemu-system-x86_64", "version "),
            version_of("ovn-controller", "ovn-controller "),
            version_of("ovs-vswitchd", "(Open vSwitch) ")
        );
        let storage = sources.drivers.volumes.probe().await.map_err(|e| e.to_string());
        let storage_at = tokio::time::Instant::now();
        let physical_networks = Vec::new();
        let isolation = isolation(&sources.config.docker_root);
        let versions = Default::default();
        Self { sources, qemu, ovn, ovs, physical_networks, storage, storage_at, versions, isolation }
    }

    /// Looks again, every [`PERIOD`] and whenever the reconciler's troubles change.
    pub async fn run(
        mut self,
        spec: watch::Sender<Arc<HostSpec>>,
        health: watch::Sender<Arc<(Vec<Engine>, u64)>>,
        mut troubles: watch::Receiver<Arc<Troubles>>,
    ) {
        loop {
            let _ = tokio::time::timeout(PERIOD, troubles.changed()).await;
            let now = troubles.borrow_and_update().clone();
            if self.storage.is_err() || now.volumes.is_some() || self.storage_at.elapsed() > STORAGE_PERIOD {
                self.storage = self.sources.drivers.volumes.probe().await.map_err(|e| e.to_string());
                self.storage_at = tokio::time::Instant::now();
            }
            match self.gather().await {
                Ok(mut next) => {
                    next.engines.extend(ledger_in_trouble(&now));
                    health.send_replace(Arc::new((next.engines.clone(), next.volume_group_free_bytes)));
                    spec.send_if_modified(|held| {
                        // Free bytes travel with the heartbeat; they alone are no news worth a hello.
                        let mut same = next.clone();
                        same.volume_group_free_bytes = held.volume_group_free_bytes;
                        let differs = **held != same;
                        if differs {
                            *held = Arc::new(next);
                        }
                        differs
                    });
                }
                Err(error) => tracing::warn!("cannot look at this host: {error:#}"),
            }
        }
    }

    /// The present facts.
    pub async fn gather(&mut self) -> anyhow::Result<HostSpec> {
        let engines = self.engines().await;
        let config = &self.sources.config;
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let memory_mib = host_memory_mib().context("/proc/meminfo")?;
        let storage = self.storage.as_ref().ok();
        Ok(HostSpec {
            name: config.name.clone(),
            chassis: config.name.clone(),
            address: config.address.to_string(),
            cpus,
            memory_mib,
            reserved_cpus: config.reserve_cpus(cpus),
            reserved_memory_mib: config.reserve_memory_mib(memory_mib),
            volume_group_bytes: storage.map_or(0, |s| s.size_bytes),
            volume_group_free_bytes: storage.map_or(0, |s| s.free_bytes),
            acceleration: self.sources.acceleration,
            activation: match storage.map(|s| s.activation) {
                Some(Activation::Dm) => VolumeActivation::Dm,
                _ => VolumeActivation::Loop,
            },
            engines,
            shared_groups: storage.map(|s| s.shared.clone()).unwrap_or_default(),
            physical_networks: self.physical_networks.clone(),
            moves_at: Some(config.moves_listen()),
            takes_passes: true,
            guest_kit: self.sources.guest_kit,
            isolation: Some(self.isolation.clone()),
            wire: amphi_api::wire::WIRE,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    async fn engines(&mut self) -> Vec<Engine> {
        let driver = |kind| self.sources.drivers.bodies.get(&kind).cloned();
        let (docker, libvirt, ovs) =
            tokio::join!(probe(driver(BodyKind::Set)), probe(driver(BodyKind::Vm)), async {
                match self.sources.switch.facts().await {
                    Ok(facts) => {
                        Ok((facts.ovs_version.unwrap_or_else(|| self.ovs.clone()), facts.physical_networks))
                    }
                    Err(error) => Err(error.to_string()),
                }
            });
        let ovs = ovs.map(|(version, networks)| {
            // A switch that is silent still has the bridges it had.
            self.physical_networks = networks;
            version
        });
        let lvm = self.storage.as_ref().map(|s| s.lvm_version.clone()).map_err(String::clone);
        let fixed = |version: &String, what| {
            if version.is_empty() { Err(format!("{what} does not run here")) } else { Ok(version.clone()) }
        };
        let answers = [
            (EngineName::Docker, docker),
            (EngineName::Libvirt, libvirt),
            (EngineName::Qemu, fixed(&self.qemu, "qemu-system-x86_64")),
            (EngineName::Ovs, ovs),
            (EngineName::Ovn, fixed(&self.ovn, "ovn-controller")),
            (EngineName::Lvm, lvm),
        ];
        answers
            .into_iter()
            .map(|(name, answer)| {
                let trouble = match answer {
                    Ok(version) => {
                        self.versions.insert(name, version);
                        None
                    }
                    Err(trouble) => Some(trouble),
                };
                Engine { name, version: self.versions.get(&name).cloned().unwrap_or_default(), trouble }
            })
            .collect()
    }
}

/// What the agent keeps is named only while it cannot be written.
pub fn ledger_in_trouble(troubles: &Troubles) -> Option<Engine> {
    let trouble = Some(troubles.ledger.clone()?);
    Some(Engine { name: EngineName::Ledger, version: env!("CARGO_PKG_VERSION").to_owned(), trouble })
}

async fn probe(driver: Option<Arc<dyn BodyDriver>>) -> Result<String, String> {
    match driver {
        Some(driver) => driver.probe().await.map(|f| f.version).map_err(|e| e.to_string()),
        None => Err("is not driven by this agent".to_owned()),
    }
}

/// The word after `before` in the first line that `program --version` prints; empty when it does not run.
async fn version_of(program: &str, before: &str) -> String {
    let run = tokio::process::Command::new(program).arg("--version").kill_on_drop(true).output();
    let Ok(Ok(output)) = tokio::time::timeout(Duration::from_secs(5), run).await else {
        return String::new();
    };
    version_in(&String::from_utf8_lossy(&output.stdout), before).to_owned()
}

fn version_in<'a>(text: &'a str, before: &str) -> &'a str {
    let line = text.lines().next().unwrap_or_default();
    line.split_once(before).and_then(|(_, rest)| rest.split_whitespace().next()).unwrap_or_default()
}

/// What the host has, in MiB.
pub fn host_memory_mib() -> Option<u64> {
    memory_mib(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// `MemTotal`, in MiB.
fn memory_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|l| l.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_programs_print() {
        let qemu = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright";
        assert_eq!(version_in(qemu, "version "), "7.2.22");
        assert_eq!(version_in("ovn-controller 23.03.1\nOpen vSwitch", "ovn-controller "), "23.03.1");
        assert_eq!(version_in("ovs-vswitchd (Open vSwitch) 3.1.0", "(Open vSwitch) "), "3.1.0");
        assert_eq!(version_in("", "version "), "");
        assert_eq!(memory_mib("MemTotal:       24684084 kB\nMemFree: 1 kB"), Some(24_105));
        assert_eq!(memory_mib(""), None);
    }
}
