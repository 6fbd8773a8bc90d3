//! Owns bodies of kind VM: persistent libvirt domains `amphi-<instance>` that never start by themselves, each with its
//! epoch in its metadata and its files in `instances/<instance>/vm-<epoch>/`.
//!
//! A domain is absent, then defined and shut off, then running, perhaps paused, then shut off again (with its memory on
//! disk, if it was suspended), then absent.
//! libvirt alone remembers which; this module keeps nothing that a fresh process would miss, but for one thing: which
//! guests this process holds still for a snapshot. After a restart such a guest is resumed by the next `ensure`.
//! Refuses to start a body beside one of another epoch, and to touch domains that are not named as ours.

mod agent;
mod console;
mod disks;
mod domain;
mod drive_image;
mod events;
mod export;
mod files;
pub mod guest;
pub mod image_check;
mod landing;
mod link;
mod markup;
mod meter;
mod migrate;
pub mod probe;
#[cfg(test)]
pub(crate) mod sample;
mod sight;
mod sizing;
mod traits;
mod watch;
mod xml;

use super::moves::{BodyMoves, Departure};
use super::streams::{BodyStreams, Opened};
use super::{
    Adjustment, Bell, BodyDriver, BodyExport, BodyPlan, DriverError, EngineFacts, ExportPlan, ObservedBody,
    ObservedState, PortGate, Remains, folders,
};
use crate::crossing::Passages;
use crate::images::roots::Roots;
use amphi_api::InstanceId;
use amphi_api::host::Acceleration;
use amphi_api::instance::{BodyKind, Power};
use amphi_api::streams::StreamTarget;
use async_trait::async_trait;
use disks::{Disk, VolumeIo};
use domain::{TraitCache, condition, lookup, press, read_traits, resume, sweep, undefine, unless_gone};
use files::BodyFiles;
use guest::Guests;
pub use guest::Kit;
use link::{ENGINE, Link};
use sight::{Condition, Way};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use traits::{Plug, plug_of};
use virt::connect::Connect;
use virt_sys as sys;

/// For calls that only read.
const LOOK: Duration = Duration::from_secs(10);
/// For calls that change a domain. libvirt itself waits up to 30 s for a domain's job lock (QEMU_JOB_WAIT_TIME).
const CHANGE: Duration = Duration::from_secs(40);
/// For a start: QEMU, its devices, the switch's ports.
const START: Duration = Duration::from_secs(60);
/// For writing a guest's memory to disk, or reading it back.
const MEMORY: Duration = Duration::from_secs(300);
/// A guest that is still booting misses the power button: it is pressed again this often.
const PRESS_AGAIN: Duration = Duration::from_secs(2);

/// VMs through libvirt.
pub struct VmDriver {
    link: Link,
    state_dir: PathBuf,
    integration_bridge: String,
    acceleration: Acceleration,
    /// What domains say of themselves. It changes only by what happens here or rings.
    traits: Arc<Mutex<TraitCache>>,
    /// Guests that this process paused and will resume.
    held: Mutex<BTreeSet<InstanceId>>,
    consoles: console::Consoles,
    /// Ways to other hosts; none: no guest leaves while it runs.
    passages: Option<Passages>,
    /// Announces the ports of what starts; none: nobody does.
    gate: Option<Arc<dyn PortGate>>,
    /// What sets start from that run as VMs; none: none does here.
    kit: Option<Kit>,
    roots: Roots,
    guests: Guests,
    agents: agent::Agents,
    bell: Bell,
}

impl VmDriver {
    /// Connects in the background and for as long as the driver lives; a libvirtd that is down fails calls, not this.
    /// `uri` as libvirt takes it (`qemu:///system`). The bell rings when a domain of ours changes by itself and when
    /// libvirtd comes back. Needs a tokio runtime only for its calls.
    pub fn new(
        uri: impl Into<String>,
        state_dir: impl Into<PathBuf>,
        integration_bridge: impl Into<String>,
        acceleration: Acceleration,
        bell: Bell,
    ) -> Self {
        let state_dir = state_dir.into();
        Self {
            link: Link::new(uri.into(), bell.clone()),
            roots: Roots::new(state_dir.join("roots")),
            agents: agent::Agents::new(&state_dir),
            state_dir,
            integration_bridge: integration_bridge.into(),
            acceleration,
            traits: Arc::default(),
            held: Mutex::default(),
            consoles: console::Consoles::default(),
            passages: None,
            gate: None,
            kit: None,
            guests: Guests::default(),
            bell,
        }
    }

    /// With a network's side that announces what starts.
    pub fn with_gate(self, gate: Arc<dyn PortGate>) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// With ways to other hosts.
    pub fn with_passages(self, passages: Passages) -> Self {
        Self { passages: Some(passages), ..self }
    }

    /// With what sets start from that run as VMs.
    /// Where root file systems of container images are made, for whoever needs one, too.
    pub fn roots(&self) -> Roots {
        self.roots.clone()
    }

    pub fn with_kit(self, kit: Option<Kit>) -> Self {
        Self { kit, ..self }
    }

    async fn find(&self, instance: InstanceId, doing: &str) -> Result<Option<(u64, Condition)>, DriverError> {
        let find = move |c: &Connect| {
            let Some(domain) = lookup(c, instance)? else { return Ok(None) };
            unless_gone((|| Ok((read_traits(&domain)?.epoch, condition(&domain)?)))())
        };
        self.link.call(doing, LOOK, find).await
    }

    async fn disks(&self, plan: &BodyPlan, files: &BodyFiles) -> Result<Vec<Disk>, DriverError> {
        let extra = plan.attachments.iter().map(|extra| &extra.volume);
        let volumes = plan.volume.iter().chain(&plan.root_volume).chain(extra);
        let devices: Vec<PathBuf> = volumes.map(|volume| volume.device.clone()).collect();
        let look = move || {
            Ok(devices.into_iter().map(|device| (device.clone(), files::volume_io(&device))).collect())
        };
        let io: BTreeMap<PathBuf, VolumeIo> = folders::blocking("look at the volumes' devices", look).await?;
        let usual = VolumeIo { block: true, direct: true };
        Ok(disks::of(plan, files, |device| io.get(device).copied().unwrap_or(usual)))
    }

    /// Files and XML for a plan; everything but the domain.
    async fn make_ready(&self, plan: &BodyPlan, files: &BodyFiles) -> Result<String, DriverError> {
        files::ensure(files, plan).await?;
        let mut disks = self.disks(plan, files).await?;
        if let Some((set, images)) = guest::of(plan) {
            disks.extend(guest::make_ready(plan, set, images, files, &self.roots).await?);
        }
        xml::domain(
            plan,
            &xml::Surroundings {
                acceleration: self.acceleration,
                integration_bridge: &self.integration_bridge,
                disks,
                console_log: files.console_log(),
                host_cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
                host_memory_mib: crate::facts::host_memory_mib().unwrap_or(0),
                kit: self.kit.as_ref(),
                guest_socket: files.guest_socket(),
            },
        )
    }

    /// Defines a VM that waits, disks and all, and starts nothing. Its start defines it once more, with its volumes.
    async fn lay_out(&self, plan: &BodyPlan, files: &BodyFiles, xml: String) -> Result<(), DriverError> {
        let doing = format!("define the VM of {}", plan.instance);
        let other = |(epoch, condition): &(u64, Condition)| *epoch != plan.epoch || condition.active();
        if let Some((epoch, _)) = self.find(plan.instance, &doing).await?.filter(other) {
            let message = format!("a body of epoch {epoch} is here");
            return Err(DriverError::EngineRefused { engine: ENGINE, doing, message });
        }
        files::settle(&self.state_dir, files, plan).await?;
        let defined =
            self.link.call(&doing, CHANGE, move |c: &Connect| domain::define(c, &xml).map(drop)).await;
        self.forget_traits();
        defined
    }

    /// Brings a domain that is there where the plan says.
    async fn settle(&self, plan: &BodyPlan, doing: &str) -> Result<(), DriverError> {
        let files = BodyFiles::new(&self.state_dir, plan);
        let mut wanted: Vec<(Plug, String)> = Vec::new();
        for disk in self.disks(plan, &files).await? {
            wanted.extend(plug_of(&disk.alias).map(|plug| (plug, disk.element().render())));
        }
        for port in &plan.ports {
            wanted.push((Plug::Port(port.id), xml::interface(port, &self.integration_bridge).render()));
        }
        let (instance, power, held) = (plan.instance, plan.power, self.holds(plan.instance));
        if power != Power::On {
            // It stays halted when the snapshot's copy is done.
            self.hold(instance, false);
        }
        let settle = move |c: &Connect| {
            let Some(domain) = lookup(c, instance)? else { return Ok(()) };
            domain::plug(&domain, &wanted)?;
            domain::carry_out(&domain, sight::movement(condition(&domain)?, power, held))
        };
        let limit = if power == Power::Suspended { MEMORY } else { CHANGE };
        let settled = self.link.call(doing, limit, settle).await;
        self.forget_traits();
        settled
    }

    /// The agent in a running guest, where one listens.
    fn agent(&self, instance: InstanceId, xml: &str) -> Result<agent::Agent, DriverError> {
        let missing = |why: &str| Err(console::refused(instance, &format!("{why}: {}", agent::MISSING)));
        match traits::agent(xml) {
            Some(true) => Ok(self.agents.of(&self.link, instance)),
            Some(false) => missing("no guest agent listens in it"),
            None => Err(console::refused(
                instance,
                "it was started without a port for a guest agent; stop and start it",
            )),
        }
    }

    /// A guest that starts need not do it itself.
    fn announce(&self, plan: &BodyPlan) {
        if let Some(gate) = &self.gate {
            plan.ports.iter().for_each(|port| gate.announce(port));
        }
    }

    /// After a change of ours: its event may come later than the next sweep.
    fn forget_traits(&self) {
        self.traits.lock().unwrap_or_else(PoisonError::into_inner).traits.clear();
    }

    fn holds(&self, instance: InstanceId) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(&instance)
    }

    fn hold(&self, instance: InstanceId, still: bool) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if still {
            held.insert(instance)
        } else {
            held.remove(&instance)
        };
    }
}

#[async_trait]
impl BodyDriver for VmDriver {
    async fn probe(&self) -> Result<EngineFacts, DriverError> {
        let versions = |c: &Connect| Ok((c.get_lib_version()?, c.get_hyp_version()?));
        let (libvirt, qemu) = self.link.call("ask for its version", LOOK, versions).await?;
        Ok(EngineFacts { version: format!("{} (QEMU {})", version(libvirt), version(qemu)) })
    }

    async fn observe(&self) -> Result<Vec<ObservedBody>, DriverError> {
        let change = *self.link.changes().borrow();
        let cache = self.traits.clone();
        let found = self.link.call("list its VMs", LOOK, move |c| sweep(c, &cache, change)).await?;
        let lines = found.iter().filter(|found| found.condition.active());
        let lines = lines.filter_map(|found| Some((found.instance, found.traits.guest.clone()?))).collect();
        self.guests.keep(&lines, &self.bell);
        let listens = |found: &&domain::Found| found.condition.active() && found.traits.agent;
        let connected = found.iter().filter(listens).map(|found| found.instance).collect();
        let here: BTreeSet<InstanceId> = found.iter().map(|found| found.instance).collect();
        self.agents.keep(&connected, |instance| here.contains(&instance), &self.link, &self.bell);
        Ok(found
            .into_iter()
            .map(|found| {
                let (state, trouble) = sight::observed(found.condition);
                // Held still for a moment, by us: nothing to tell, and nobody else's order.
                let still = state == ObservedState::Paused && self.holds(found.instance);
                let held = found.condition.active().then(|| sizing::held(&found.traits));
                let guest = self.guests.get(found.instance).map(|guest| guest.told());
                // A set's guest has a line of its own.
                let agent =
                    (found.condition.active() && guest.is_none()).then(|| self.agents.told(found.instance));
                // A set runs when its members do, whatever is around them.
                let state = match &guest {
                    Some(told) if state == ObservedState::Running && !told.whole() => ObservedState::Degraded,
                    _ => state,
                };
                let told = guest.unwrap_or_default();
                let holds_devices = state != ObservedState::Stopped;
                ObservedBody {
                    instance: found.instance,
                    kind: BodyKind::Vm,
                    epoch: found.traits.epoch,
                    state: if still { ObservedState::Running } else { state },
                    held: held.unwrap_or_default(),
                    ports: if holds_devices { found.traits.ports() } else { Vec::new() },
                    volumes: if holds_devices { found.traits.volumes() } else { Vec::new() },
                    rescued: found.traits.rescued,
                    away: sight::went_over(found.condition),
                    members: told.members,
                    agent,
                    trouble: trouble.or(told.trouble),
                }
            })
            .collect())
    }

    /// Checks the definition by having libvirt translate it into a QEMU command line: defining it would replace the
    /// persistent definition of a running body of an older epoch, which has the same name and UUID.
    async fn prepare(&self, plan: &BodyPlan) -> Result<(), DriverError> {
        let files = BodyFiles::new(&self.state_dir, plan);
        let xml = self.make_ready(plan, &files).await?;
        if plan.twin {
            return self.lay_out(plan, &files, xml).await;
        }
        let doing = format!("check the definition of the VM of {}", plan.instance);
        let check = move |c: &Connect| c.domain_xml_to_native("qemu-argv", &xml, 0).map(drop);
        self.link.call(&doing, CHANGE, check).await
    }

    async fn ensure(&self, plan: &BodyPlan) -> Result<(), DriverError> {
        let instance = plan.instance;
        let doing = format!("start the VM of {instance}");
        let paused = plan.power != Power::On;
        match sight::way(self.find(instance, &doing).await?, plan.epoch, plan.power) {
            Way::Nothing => return Ok(()),
            Way::Stale { newer } => {
                return Err(DriverError::EngineRefused {
                    engine: ENGINE,
                    doing,
                    message: format!("a body of epoch {newer} is here, epoch {} is over", plan.epoch),
                });
            }
            Way::Adjust => return self.settle(plan, &doing).await,
            Way::Restore => {
                let restore =
                    move |c: &Connect| lookup(c, instance)?.map_or(Ok(()), |d| domain::start(&d, paused));
                let restored = self.link.call(&doing, MEMORY, restore).await;
                self.forget_traits();
                restored?;
                self.announce(plan);
                return self.settle(plan, &doing).await;
            }
            Way::Replace { older } => self.remove(instance, older, Remains::Roots).await?,
            Way::Make => {}
        }
        let files = BodyFiles::new(&self.state_dir, plan);
        let xml = self.make_ready(plan, &files).await?;
        files::settle(&self.state_dir, &files, plan).await?;
        let made = self.link.call(&doing, START, move |c: &Connect| domain::make(c, &xml, paused)).await;
        self.forget_traits();
        made?;
        self.announce(plan);
        if paused { self.settle(plan, &doing).await } else { Ok(()) }
    }

    async fn stop(&self, instance: InstanceId, grace: Duration) -> Result<(), DriverError> {
        let doing = format!("stop the VM of {instance}");
        let deadline = Instant::now() + grace;
        let mut changes = self.link.changes();
        self.hold(instance, false);
        loop {
            // Marked before looking, so that a change after the look ends the wait below at once.
            changes.mark_unchanged();
            let left = deadline.saturating_duration_since(Instant::now());
            let force = left.is_zero();
            let off = self.link.call(&doing, CHANGE, move |c| press(c, instance, force)).await?;
            if off {
                return Ok(());
            }
            let again = Instant::now() + PRESS_AGAIN.min(left);
            while Instant::now() < again {
                let Ok(Ok(())) = tokio::time::timeout_at(again, changes.changed()).await else { break };
                let now = self.find(instance, &doing).await?;
                if !now.is_some_and(|(_, condition)| condition.active()) {
                    return Ok(());
                }
            }
        }
    }

    async fn remove(&self, instance: InstanceId, epoch: u64, remains: Remains) -> Result<(), DriverError> {
        let doing = format!("remove the VM of {instance}");
        let gone = self.link.call(&doing, CHANGE, move |c| undefine(c, instance, epoch)).await;
        self.forget_traits();
        gone?;
        self.hold(instance, false);
        folders::remove(&self.state_dir, instance, BodyKind::Vm, epoch, remains).await
    }

    async fn console_log(
        &self,
        instance: InstanceId,
        member: Option<&str>,
        lines: u32,
    ) -> Result<String, DriverError> {
        if let (Some(member), Some(guest)) = (member, self.guests.get(instance)) {
            return guest::tail(&guest, instance, member, lines).await;
        }
        files::console_tail(&self.state_dir, instance, lines).await
    }

    async fn adjust(&self, instance: InstanceId, adjustment: Adjustment) -> Result<(), DriverError> {
        let resumes = adjustment == Adjustment::Resume;
        let doing = match &adjustment {
            Adjustment::VolumeGrown { volume, bytes } => {
                format!("grow volume {volume} of {instance} to {bytes} bytes")
            }
            Adjustment::Pause => format!("hold the VM of {instance} still"),
            Adjustment::Resume => format!("resume the VM of {instance}"),
            Adjustment::RestartMember(member) => {
                // A VM of its own image has none.
                if let Some(guest) = self.guests.get(instance) {
                    guest.say(amphi_guest::words::ToGuest::Restart { member: member.clone() }).await;
                }
                return Ok(());
            }
        };
        if adjustment == Adjustment::Pause {
            // Noted first, so that nobody takes the pause for somebody's order; unless it is one.
            let found = self.find(instance, &doing).await?;
            if found.is_none_or(|(_, condition)| !condition.active() || condition.paused()) {
                return Ok(());
            }
            self.hold(instance, true);
        }
        if resumes && !self.holds(instance) {
            return Ok(());
        }
        let ordered = adjustment.clone();
        let adjust = move |c: &Connect| {
            let adjustment = ordered.clone();
            // A VM that does not run has nothing to be told.
            let Some(domain) = lookup(c, instance)? else { return Ok(()) };
            let condition = condition(&domain)?;
            if !condition.active() {
                return Ok(());
            }
            match adjustment {
                Adjustment::VolumeGrown { volume, bytes } => {
                    match read_traits(&domain)?.target(Plug::Volume(volume)) {
                        Some(disk) => {
                            domain.block_resize(disk, bytes, sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES).map(drop)
                        }
                        None => Ok(()),
                    }
                }
                Adjustment::Pause if condition.paused() => Ok(()),
                Adjustment::Pause => domain.suspend().map(drop),
                Adjustment::Resume => resume(&domain),
                Adjustment::RestartMember(_) => Ok(()),
            }
        };
        let grown = match &adjustment {
            Adjustment::VolumeGrown { volume, .. } => Some(disks::volume_serial(*volume)),
            _ => None,
        };
        let done = self.link.call(&doing, CHANGE, adjust).await;
        if let (Some(serial), Some(guest), Ok(())) = (grown, self.guests.get(instance), &done) {
            // The file system in it takes what the disk has got.
            guest.say(amphi_guest::words::ToGuest::Grown { serial }).await;
        }
        if resumes {
            self.hold(instance, false);
        }
        done
    }
}

#[async_trait]
impl BodyMoves for VmDriver {
    async fn depart(&self, departure: &Departure) -> Result<(), DriverError> {
        let doing = || format!("open a way for the VM of {}", departure.instance);
        let refused =
            |message: String| DriverError::EngineRefused { engine: ENGINE, doing: doing(), message };
        let passages = self.passages.as_ref();
        let passages = passages.ok_or_else(|| refused("this agent has no ways to other hosts".into()))?;
        let passage = passages.open(departure).map_err(|error| refused(format!("{error:#}")))?;
        let departed = migrate::depart(&self.link, departure, &passage).await;
        self.forget_traits();
        departed
    }

    async fn recall(&self, instance: InstanceId) -> Result<(), DriverError> {
        migrate::recall(&self.link, instance).await
    }

    /// Its root disk is as large as ordered; what it holds comes over it.
    async fn receive(&self, plan: &BodyPlan) -> Result<String, DriverError> {
        let files = BodyFiles::new(&self.state_dir, plan);
        let xml = self.make_ready(plan, &files).await?;
        files::settle(&self.state_dir, &files, plan).await?;
        Ok(xml)
    }
}

#[async_trait]
impl BodyExport for VmDriver {
    async fn export(&self, plan: &ExportPlan) -> Result<(), DriverError> {
        export::export(&self.link, &self.state_dir, plan).await
    }
}

#[async_trait]
impl BodyStreams for VmDriver {
    async fn open(&self, instance: InstanceId, what: &StreamTarget) -> Result<Opened, DriverError> {
        let doing = format!("look into the VM of {instance}");
        let refused = |message: &str| console::refused(instance, message);
        let running = move |c: &Connect| {
            let Some(domain) = lookup(c, instance)? else { return Ok(None) };
            unless_gone((|| Ok(if domain.is_active()? { Some(domain.get_xml_desc(0)?) } else { None }))())
                .map(Option::flatten)
        };
        if let Some(guest) = self.guests.get(instance)
            && let Some((target, input)) = guest::target(what)
        {
            return guest::open(&guest, instance, target, input).await;
        }
        if let StreamTarget::Logs(spec) = what {
            // The mark first: what is written between the two is told twice rather than lost.
            let mark = watch::mark(&self.state_dir, instance).await?;
            let begin = files::console_tail(&self.state_dir, instance, spec.tail.unwrap_or(u32::MAX)).await?;
            return Ok(watch::open(&self.state_dir, instance, spec, begin, mark));
        }
        let xml = self.link.call(&doing, LOOK, running).await?.ok_or_else(|| refused("it does not run"))?;
        match what {
            StreamTarget::Console { .. } => {
                let pty = traits::serial_pty(&xml).ok_or_else(|| refused("it has no serial line"))?;
                self.consoles.open(instance, Path::new(pty))
            }
            StreamTarget::Screen => {
                let none = "it was started without a screen; restart it";
                let socket = traits::screen_socket(&xml).ok_or_else(|| refused(none))?;
                console::screen(socket).await.map_err(|source| DriverError::Io { doing, source })
            }
            StreamTarget::Exec(spec) => self.agent(instance, &xml)?.exec(spec).await,
            StreamTarget::Logs(_) => Err(refused("its output is a file")),
            StreamTarget::Copy(_) if self.guests.get(instance).is_some() => {
                Err(refused("nothing inside it takes files"))
            }
            StreamTarget::Copy(spec) => self.agent(instance, &xml)?.copy(spec).await,
            StreamTarget::Tools(_) => Err(refused("it has no members")),
        }
    }
}

/// libvirt's way to pack a version: 1,000,000 major + 1,000 minor + release.
fn version(packed: u32) -> String {
    format!("{}.{}.{}", packed / 1_000_000, packed / 1_000 % 1_000, packed % 1_000)
}
