//! VMs under their probes: who is asked, from where, and what becomes of one that fails. A VM has no network namespace on its
//! host, so it is asked from the metadata service's place on its network, at its first IPv4 address; OVN lets that through
//! for the probed ports alone. Refuses to decide when (`crate::health`), and to ask a guest that is halted, on its way to
//! another host, or rescued.

use super::Reconciler;
use super::observe::World;
use crate::health::{Asked, Health, Run, Subject, ask};
use crate::instance::{Bell, BodyDriver, ObservedState};
use crate::metadata::Places;
use amphi_api::instance::{BodyKind, Power};
use amphi_api::set::{Probe, Probes};
use amphi_api::wire::{BodyState, HostDesired, HostStatus, InstanceDesired};
use amphi_api::{InstanceId, NetworkId};
use async_trait::async_trait;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// What a guest has for its end that is ended for its probes.
const GRACE: Duration = Duration::from_secs(10);

/// Whom the loop has asked. Without places nobody is.
#[derive(Default)]
pub(super) struct Guests {
    places: OnceLock<Places>,
    health: Arc<Health>,
}

impl Reconciler {
    /// Has VMs with probes asked from these places. Without, nobody asks them. `run_dir` is gone when the host starts anew, as
    /// its guests are.
    pub fn ask_from(&self, places: Places, run_dir: &Path) {
        self.guests.health.remember(run_dir.join("guests-up.json"));
        // Called once, by the composition root.
        let _first = self.guests.places.set(places);
    }

    /// Begins to ask those that run and are yet to be asked, and asks nobody else any more.
    pub(super) fn watch_guests(&self, world: &World) {
        let (Some(places), Some(driver)) = (self.guests.places.get(), self.driver(BodyKind::Vm)) else {
            return;
        };
        if !world.answered.contains(&BodyKind::Vm) {
            return;
        }
        type Asked = (Run, Probes, NetworkId, Ipv4Addr, InstanceId);
        let (asked, here): (Vec<Asked>, HashSet<String>) = {
            let ledger = self.ledger();
            let all = ledger.desired().map(|desired| desired.instances.as_slice()).unwrap_or_default();
            let here = all.iter().map(|i| i.id.to_string()).collect();
            let runs = |i: &&InstanceDesired| is_asked(i, world);
            let asked = all
                .iter()
                .filter(runs)
                .filter_map(|i| {
                    let (network, address) = place_of(i)?;
                    let run = run_of(i, ledger.begun(i.id).restarts);
                    Some((run, i.body.vm_probes()?.clone(), network, address, i.id))
                })
                .collect();
            (asked, here)
        };
        let runs: HashSet<&Run> = asked.iter().map(|(run, ..)| run).collect();
        // Why one was ended is told until it is gone.
        self.guests.health.keep(|run| runs.contains(run), |id| here.contains(id));
        for (run, probes, network, address, instance) in &asked {
            self.guests.health.watch(run, Duration::ZERO, probes, || {
                Arc::new(Guest {
                    instance: *instance,
                    network: *network,
                    address: *address,
                    places: places.clone(),
                    driver: driver.clone(),
                    bell: self.bell.clone(),
                })
            });
        }
    }

    /// Says what is known of those that are asked.
    pub(super) fn tell_guests(
        &self,
        desired: Option<&HostDesired>,
        restarts: impl Fn(InstanceId) -> u64,
        status: &mut HostStatus,
    ) {
        let all = desired.map(|desired| desired.instances.as_slice()).unwrap_or_default();
        for instance in all.iter().filter(|i| i.body.vm_probes().is_some()) {
            let Some(told) = status.instances.iter_mut().find(|told| told.id == instance.id) else {
                continue;
            };
            let probes = instance.body.vm_probes();
            let outlook = self.guests.health.outlook(&run_of(instance, restarts(instance.id)));
            let runs = told.state == BodyState::Running;
            // Until it is asked it has not answered.
            let unasked = probes.is_some_and(Probes::tell_ready).then_some(false);
            told.ready = if runs { outlook.ready.or(unasked) } else { None };
            told.reason = outlook.reason;
        }
    }
}

fn is_asked(instance: &InstanceDesired, world: &World) -> bool {
    let runs = world.bodies.iter().any(|body| {
        (body.instance, body.epoch, body.kind) == (instance.id, instance.epoch, BodyKind::Vm)
            && body.state == ObservedState::Running
            && !body.rescued
    });
    runs && instance.power == Power::On
        && instance.rescue.is_none()
        && instance.leaving.is_none()
        && instance.body.vm_probes().is_some()
}

/// The network and the address at which a guest is asked.
fn place_of(instance: &InstanceDesired) -> Option<(NetworkId, Ipv4Addr)> {
    instance.ports.iter().find_map(|port| {
        let mut all = std::iter::once(port.address).chain(port.further.iter().map(|further| further.address));
        all.find_map(|address| match address.addr() {
            IpAddr::V4(address) => Some((port.network, address)),
            IpAddr::V6(_) => None,
        })
    })
}

/// The epoch's body since it was started by order last.
fn run_of(instance: &InstanceDesired, restarts: u64) -> Run {
    (instance.id.to_string(), ((instance.epoch << 24) | (restarts & 0xff_ffff)) as i64)
}

struct Guest {
    instance: InstanceId,
    network: NetworkId,
    address: Ipv4Addr,
    places: Places,
    driver: Arc<dyn BodyDriver>,
    bell: Bell,
}

#[async_trait]
impl Subject for Guest {
    async fn ask(&self, probe: &Probe) -> Asked {
        // The agent has just started, or the bridge was lost: the guest is not to blame.
        let Some(namespace) = self.places.way_to(self.network, self.address) else { return Asked::Unknown };
        let mut probe = probe.clone();
        let address = Some(IpAddr::V4(self.address));
        probe.http.iter_mut().for_each(|http| http.address = address);
        probe.tcp.iter_mut().for_each(|tcp| tcp.address = address);
        let path = PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
        ask::over_network(&path, &probe).await.unwrap_or(Asked::Unknown)
    }

    fn turned(&self) {
        self.bell.notify_one();
    }

    async fn end(&self, reason: &str) {
        tracing::info!(instance = %self.instance, reason, "a VM is ended, to start again");
        if let Err(error) = self.driver.stop(self.instance, GRACE).await {
            // It is asked again: whoever looks next finds it running and unwatched.
            tracing::warn!(instance = %self.instance, %error, "a VM that fails its probes cannot be ended");
        }
        self.bell.notify_one();
    }
}
