//! A VM's size while it runs. Processors come and go by hotplug within the room that it was started with: twice its own,
//! no more than the host has. Memory stays as it was at the start: giving it back needs a balloon that a guest may refuse,
//! and more of it a guest's own hand. What has to wait is held from the next start on, since each start defines the
//! domain anew. Refuses to ask a guest for what it will not let go of twice in one call.

use super::domain::{condition, lookup};
use super::markup::Element;
use super::traits::Traits;
use super::{CHANGE, VmDriver};
use crate::instance::limits::{Held, WHOLE};
use crate::instance::sizing::BodySizing;
use crate::instance::{BodyPlan, DriverError};
use async_trait::async_trait;
use std::collections::BTreeMap;
use virt::connect::Connect;
use virt_sys as sys;

/// QEMU starts no machine `pc` with room for more.
const MACHINE_MOST: u32 = 255;

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

/// What a running VM has.
pub fn held(traits: &Traits) -> BTreeMap<String, Held> {
    let known = |number: u64| (number > 0).then_some(number);
    let whole = Held {
        cpu_centi: known(u64::from(traits.vcpus) * 100),
        cpu_most: known(u64::from(traits.vcpus_most) * 100),
        memory_bytes: known(traits.memory_kib << 10),
        memory_most: Some(0),
        running: true,
        ..Held::default()
    };
    BTreeMap::from([(WHOLE.to_owned(), whole)])
}

#[async_trait]
impl BodySizing for VmDriver {
    async fn resize(&self, plan: &BodyPlan) -> Result<(), DriverError> {
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
        let done = self.link.call(&doing, CHANGE, change).await;
        self.forget_traits();
        done
    }
}

#[cfg(test)]
mod tests {
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
    fn what_libvirt_says_is_held() {
        let xml = "<domain><memory unit='KiB'>131072</memory><vcpu placement='static' current='1'>2</vcpu></domain>";
        let held = held(&Traits::read(xml))[WHOLE];
        assert_eq!(
            (held.cpu_centi, held.cpu_most, held.memory_bytes),
            (Some(100), Some(200), Some(128 << 20))
        );
        let all = Traits::read("<vcpu placement='static'>3</vcpu>");
        assert_eq!((all.vcpus, all.vcpus_most, all.memory_kib), (3, 3, 0));
    }
}
