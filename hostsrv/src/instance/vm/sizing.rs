//! A VM's size while it runs. Processors come and go by hotplug within the room that it was started with: twice its own,
//! no more than the host has. Memory comes and goes by virtio-mem, again within twice what it was started with and what the
//! host has: a device of its own beside that memory, out of which the guest takes, and gives back, what is asked for. What
//! has to wait is held from the next start on, since each start defines the domain anew. Refuses to take from a guest what
//! it keeps: what it has is told, and counts, until it lets go.
//!
//! A balloon would not do. What a guest has put into one it can take out again, so that nobody else could be promised it;
//! memory that was given back to this device the guest has to ask for.

use super::domain::{condition, lookup, read_traits};
use super::markup::Element;
use super::traits::Traits;
use super::{CHANGE, LOOK, VmDriver, guest};
use crate::instance::limits::{self, Held, STEP_MIB, WHOLE};
use crate::instance::sizing::BodySizing;
use crate::instance::{BodyPlan, DriverError};
use amphi_api::InstanceId;
use amphi_api::image::ImageFormat;
use amphi_api::wire::BodyDesired;
use amphi_guest::words::MemberLimits;
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use virt::connect::Connect;
use virt_sys as sys;

/// QEMU starts no machine `pc` with room for more.
const MACHINE_MOST: u32 = 255;
/// What a guest puts memory online in, on x86-64: with less room than one of these it could take nothing.
const BLOCK_MIB: u64 = 128;
/// A kernel that may get memory above 4 GiB keeps 64 MiB for devices that reach no further. Where its command line is not
/// ours to say that it need not, only a VM of at least this size can spare them.
const SPARES_BOUNCE_MIB: u64 = 1024;
/// Said to a kernel whose command line is ours: no device of ours needs those 64 MiB; and what comes is put online by
/// itself, where it can be had back.
pub(super) const MEMORY_WORDS: &str = "swiotlb=512 memhp_default_state=online_movable";
/// How long a guest is waited for. libvirt waits so long for one that is to let go of a device.
const TAKES: Duration = Duration::from_secs(5);

/// The most processors that a VM of this size can be given while it runs.
fn most(vcpus: u32, host_cpus: u32) -> u32 {
    vcpus.saturating_mul(2).min(host_cpus).min(MACHINE_MOST).max(vcpus)
}

/// The element of a definition.
pub fn vcpu(vcpus: u32, host_cpus: u32) -> Element {
    match most(vcpus, host_cpus) {
        most if most == vcpus => Element::new("vcpu").text(vcpus),
        most => Element::new("vcpu").attr("current", vcpus).text(most),
    }
}

/// How much memory beside what it starts with a VM can be given while it runs, in MiB; 0: none.
pub fn room(plan: &BodyPlan, host_mib: u64) -> u64 {
    let says_its_words = match plan.runs() {
        BodyDesired::SetVm { .. } => true,
        BodyDesired::Vm { image, .. } => image.format == ImageFormat::KernelInitramfs,
        BodyDesired::Set { .. } => false,
    };
    if !says_its_words && plan.memory_mib < SPARES_BOUNCE_MIB {
        return 0;
    }
    let as_much_again = plan.memory_mib.next_multiple_of(BLOCK_MIB);
    let of_host = host_mib.saturating_sub(plan.memory_mib) / BLOCK_MIB * BLOCK_MIB;
    as_much_again.min(of_host)
}

/// A definition's elements of memory: those of the domain, what its processors' one node has, and the device.
pub struct Memory {
    pub domain: Vec<Element>,
    pub cpu: Option<Element>,
    pub device: Option<Element>,
}

pub fn memory(plan: &BodyPlan, host_mib: u64, host_cpus: u32) -> Memory {
    let mib = |name: &'static str, mib: u64| Element::new(name).attr("unit", "MiB").text(mib);
    let room = room(plan, host_mib);
    if room == 0 {
        return Memory { domain: vec![mib("memory", plan.memory_mib)], cpu: None, device: None };
    }
    let whole = plan.memory_mib + room;
    let last = most(plan.vcpus, host_cpus) - 1;
    let cell = Element::new("cell")
        .attr("id", 0)
        .attr("cpus", format!("0-{last}"))
        .attr("memory", plan.memory_mib)
        .attr("unit", "MiB");
    let target = Element::new("target")
        .child(mib("size", room))
        .child(Element::new("node").text(0))
        .child(mib("block", STEP_MIB))
        .child(mib("requested", 0));
    Memory {
        domain: vec![
            Element::new("maxMemory").attr("slots", 1).attr("unit", "MiB").text(whole),
            mib("memory", whole),
        ],
        cpu: Some(Element::new("numa").child(cell)),
        device: Some(Element::new("memory").attr("model", "virtio-mem").child(target)),
    }
}

/// What a running VM has.
pub fn held(traits: &Traits) -> BTreeMap<String, Held> {
    BTreeMap::from([(WHOLE.to_owned(), whole(traits))])
}

fn whole(traits: &Traits) -> Held {
    let known = |number: u64| (number > 0).then_some(number);
    let base = traits.memory_kib << 10;
    let room = traits.room.clone().unwrap_or_default();
    Held {
        cpu_centi: known(u64::from(traits.vcpus) * 100),
        cpu_most: known(u64::from(traits.vcpus_most) * 100),
        memory_bytes: known(base + (room.asked_kib << 10)),
        memory_least: known(base),
        memory_most: known(base + (room.size_kib << 10)),
        memory_taken: known(base + (room.taken_kib << 10)),
        running: true,
        ..Held::default()
    }
}

#[async_trait]
impl BodySizing for VmDriver {
    async fn resize(&self, plan: &BodyPlan) -> Result<(), DriverError> {
        // One does not wait for the other.
        let memory = self.ask_for_memory(plan).await;
        let processors = self.plug_processors(plan).await;
        self.forget_traits();
        memory.and(processors)?;
        self.limit_members(plan).await
    }
}

impl VmDriver {
    async fn plug_processors(&self, plan: &BodyPlan) -> Result<(), DriverError> {
        let (instance, vcpus) = (plan.instance, plan.vcpus);
        let doing = format!("give the VM of {instance} {vcpus} vCPUs");
        let change = move |c: &Connect| {
            // One that does not run is made as large as ordered when it starts.
            let Some(domain) = lookup(c, instance)? else { return Ok(()) };
            if !condition(&domain)?.active() {
                return Ok(());
            }
            let live = sys::VIR_DOMAIN_VCPU_LIVE;
            let most = domain.get_vcpus_flags(live | sys::VIR_DOMAIN_VCPU_MAXIMUM)?;
            if domain.get_vcpus_flags(live)? == vcpus || vcpus > most {
                return Ok(());
            }
            domain.set_vcpus_flags(vcpus, live).map(drop)
        };
        self.link.call(&doing, CHANGE, change).await
    }

    /// Asks the guest to have so much, and waits a little until it does. What it does later is seen by libvirt's event.
    async fn ask_for_memory(&self, plan: &BodyPlan) -> Result<(), DriverError> {
        let (instance, bytes) = (plan.instance, plan.memory_mib << 20);
        let doing = format!("give the VM of {instance} {} MiB of memory", plan.memory_mib);
        let ask = move |c: &Connect| {
            let Some(domain) = lookup(c, instance)? else { return Ok(false) };
            let condition = condition(&domain)?;
            if !condition.active() {
                return Ok(false);
            }
            let traits = read_traits(&domain)?;
            let Some((room, within)) = traits.room.as_ref().zip(whole(&traits).memory_within(bytes)) else {
                return Ok(false);
            };
            let asked_kib = (within >> 10) - traits.memory_kib;
            if asked_kib == room.asked_kib {
                return Ok(false);
            }
            domain.update_device_flags(&room.asking(asked_kib), sys::VIR_DOMAIN_AFFECT_LIVE)?;
            Ok(!condition.paused())
        };
        if self.link.call(&doing, CHANGE, ask).await? {
            self.until_taken(instance, &doing).await?;
        }
        Ok(())
    }

    /// Members of a set's VM have their shares of what it has now.
    async fn limit_members(&self, plan: &BodyPlan) -> Result<(), DriverError> {
        let Some((guest, (set, _))) = self.guests.get(plan.instance).zip(guest::of(plan)) else {
            return Ok(());
        };
        let doing = format!("see the size of the VM of {}", plan.instance);
        let instance = plan.instance;
        let look = move |c: &Connect| match lookup(c, instance)? {
            Some(domain) => read_traits(&domain).map(Some),
            None => Ok(None),
        };
        let Some(traits) = self.link.call(&doing, LOOK, look).await? else { return Ok(()) };
        let memory_mib = whole(&traits).memory_bytes.unwrap_or(0) >> 20;
        let limits = limits::of_set(set, traits.vcpus, memory_mib).into_iter();
        let limits = limits.map(|(name, limits)| MemberLimits {
            name,
            cpu_centi: limits.cpu_centi,
            memory_bytes: limits.memory_bytes,
        });
        guest.limit(limits.collect()).await;
        Ok(())
    }

    async fn until_taken(&self, instance: InstanceId, doing: &str) -> Result<(), DriverError> {
        let deadline = Instant::now() + TAKES;
        let mut changes = self.link.changes();
        loop {
            // Marked before looking, so that a change after the look ends the wait below at once.
            changes.mark_unchanged();
            let look = move |c: &Connect| match lookup(c, instance)? {
                Some(domain) if domain.is_active()? => read_traits(&domain).map(|traits| traits.room),
                _ => Ok(None),
            };
            let room = self.link.call(doing, LOOK, look).await?;
            if room.is_none_or(|room| room.asked_kib == room.taken_kib) {
                return Ok(());
            }
            let Ok(Ok(())) = tokio::time::timeout_at(deadline, changes.changed()).await else {
                return Ok(());
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn there_is_room_for_twice_as_many_on_a_host_that_has_them() {
        let table = [
            (1, 8, 2),
            (4, 8, 8),
            (6, 8, 8),
            (8, 8, 8),
            (12, 8, 12),
            (1, 1, 1),
            (127, 512, 254),
            (128, 512, 255),
            (255, 512, 255),
        ];
        for (vcpus, host, expected) in table {
            assert_eq!(most(vcpus, host), expected, "{vcpus} of {host}");
        }
        assert_eq!(vcpu(2, 8).render().trim(), r#"<vcpu current="2">4</vcpu>"#);
        assert_eq!(vcpu(2, 2).render().trim(), "<vcpu>2</vcpu>");
    }

    #[test]
    fn there_is_room_for_twice_the_memory_where_the_host_has_it_and_the_guest_can_spare_it() {
        let kernel = ImageFormat::KernelInitramfs;
        for (format, mib, host, expected) in [
            (kernel, 128, 8192, 128),
            (kernel, 16, 8192, 128),
            (kernel, 192, 8192, 256),
            (kernel, 4096, 8192, 4096),
            (kernel, 4096, 6100, 1920),
            (kernel, 8192, 8192, 0),
            (kernel, 8192, 4096, 0),
            (ImageFormat::Qcow2, 1023, 8192, 0),
            (ImageFormat::Qcow2, 1024, 8192, 1024),
        ] {
            let plan = BodyPlan { memory_mib: mib, ..sample::plan(format) };
            assert_eq!(room(&plan, host), expected, "{mib} MiB of {host}, {format:?}");
        }
    }

    #[test]
    fn what_libvirt_says_is_held() {
        let xml = "<domain><memory unit='KiB'>131072</memory><vcpu placement='static' current='1'>2</vcpu></domain>";
        let told = held(&Traits::read(xml))[WHOLE];
        assert_eq!((told.cpu_centi, told.cpu_most), (Some(100), Some(200)));
        let mib = |told: &Held| {
            [told.memory_bytes, told.memory_least, told.memory_most, told.memory_taken]
                .map(|bytes| bytes.map(|bytes| bytes >> 20))
        };
        assert_eq!(mib(&told), [Some(128); 4], "one that was started without room");
        let all = Traits::read("<vcpu placement='static'>3</vcpu>");
        assert_eq!((all.vcpus, all.vcpus_most, all.memory_kib), (3, 3, 0));
        let xml = "<domain><maxMemory slots='1' unit='KiB'>262144</maxMemory>\n<memory unit='KiB'>262144</memory>\n\
            <devices><memory model='virtio-mem'>\n<target>\n<size unit='KiB'>131072</size>\n<node>0</node>\n\
            <block unit='KiB'>2048</block>\n<requested unit='KiB'>65536</requested>\n<current unit='KiB'>32768</current>\n\
            </target>\n<alias name='virtiomem0'/>\n</memory></devices></domain>";
        let traits = Traits::read(xml);
        assert_eq!(mib(&whole(&traits)), [Some(192), Some(128), Some(256), Some(160)]);
        let asking = traits.room.unwrap().asking(2048);
        assert!(asking.contains("<requested unit='KiB'>2048</requested>"), "{asking}");
        assert!(asking.starts_with("<memory model=") && asking.ends_with("</memory>"), "{asking}");
    }
}
