//! Owns what is said to libvirt about one domain of ours: find it, read its traits and condition, start it, plug and
//! unplug, press its button, halt, resume and forget it. Every function blocks and runs within a call of the link. Refuses domains that are not named
//! as ours.

use super::sight::{Condition, Movement};
use super::traits::{Plug, Traits};
use super::xml;
use amphi_api::InstanceId;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::{Error, ErrorNumber};
use virt_sys as sys;

/// What was read from domains' XML, good until the event counter moves.
#[derive(Default)]
pub struct TraitCache {
    at_change: u64,
    pub traits: BTreeMap<Uuid, Traits>,
}

/// A domain of ours as a sweep finds it.
pub struct Found {
    pub instance: InstanceId,
    pub traits: Traits,
    pub condition: Condition,
}

fn is_missing(error: &Error) -> bool {
    error.code() == ErrorNumber::NoDomain
}

/// A domain that goes away while it is looked at is no error.
pub fn unless_gone<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Err(error) if is_missing(&error) => Ok(None),
        other => other.map(Some),
    }
}

pub fn lookup(connection: &Connect, instance: InstanceId) -> Result<Option<Domain>, Error> {
    unless_gone(Domain::lookup_by_name(connection, &xml::domain_name(instance)))
}

pub fn condition(domain: &Domain) -> Result<Condition, Error> {
    let (state, reason) = domain.get_state()?;
    let saved = state == sys::VIR_DOMAIN_SHUTOFF && domain.has_managed_save(0)?;
    let held =
        state == sys::VIR_DOMAIN_PAUSED && i32::try_from(sys::VIR_DOMAIN_PAUSED_MIGRATION) == Ok(reason);
    // The receiving end refuses to tell of its job.
    let job = i32::try_from(sys::VIR_DOMAIN_JOB_NONE).ok();
    let crossing = held && domain.get_job_info().map_or(true, |told| Some(told.r#type) != job);
    Ok(Condition { state, reason, saved, crossing })
}

/// Of the running definition, if it runs.
pub fn read_traits(domain: &Domain) -> Result<Traits, Error> {
    Ok(Traits::read(&domain.get_xml_desc(0)?))
}

pub fn sweep(connection: &Connect, cache: &Mutex<TraitCache>, change: u64) -> Result<Vec<Found>, Error> {
    let mut known = {
        let cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.at_change == change { cache.traits.clone() } else { BTreeMap::new() }
    };
    let mut found = Vec::new();
    let mut all = BTreeMap::new();
    for domain in connection.list_all_domains(0)? {
        let name = domain.get_name()?;
        let Some(instance) = name.strip_prefix("amphi-").and_then(|id| id.parse::<InstanceId>().ok()) else {
            continue;
        };
        let traits = match known.remove(&instance.0) {
            Some(traits) => Some(traits),
            None => unless_gone(read_traits(&domain))?,
        };
        let condition = unless_gone(condition(&domain))?;
        if let (Some(traits), Some(condition)) = (traits, condition) {
            all.insert(instance.0, traits.clone());
            found.push(Found { instance, traits, condition });
        }
    }
    *cache.lock().unwrap_or_else(PoisonError::into_inner) = TraitCache { at_change: change, traits: all };
    Ok(found)
}

/// Defines and starts. Anew each time: this heals a definition that was left half made or with another host's paths.
pub fn make(connection: &Connect, xml: &str, paused: bool) -> Result<(), Error> {
    start(&define(connection, xml)?, paused)
}

/// Nothing starts it but an order.
pub fn define(connection: &Connect, xml: &str) -> Result<Domain, Error> {
    let domain = Domain::define_xml(connection, xml)?;
    domain.set_autostart(false)?;
    Ok(domain)
}

/// Starts; with its memory, where that is on disk.
pub fn start(domain: &Domain, paused: bool) -> Result<(), Error> {
    match domain.create_with_flags(if paused { sys::VIR_DOMAIN_START_PAUSED } else { 0 }) {
        Err(_) if domain.is_active()? => Ok(()),
        other => other.map(drop),
    }
}

/// Plugs and unplugs until the devices of ours are `wanted`, by alias and XML. Of what the guest has not let go of when
/// libvirt stops waiting for it (5 s), nothing is said here: it is seen at the next look.
pub fn plug(domain: &Domain, wanted: &[(Plug, String)]) -> Result<(), Error> {
    let now = read_traits(domain)?;
    for device in &now.devices {
        if device.plug == Plug::Root || wanted.iter().any(|(plug, _)| *plug == device.plug) {
            continue;
        }
        match everywhere(|impact| domain.detach_device_flags(&device.xml, impact)) {
            // Asked already; the guest has not answered.
            Err(error) if error.message().contains("in the process of unplug") => {}
            other => other?,
        }
    }
    for (plug, xml) in wanted {
        if !now.devices.iter().any(|device| device.plug == *plug) {
            everywhere(|impact| domain.attach_device_flags(xml, impact))?;
        }
    }
    Ok(())
}

/// In the running domain and in its definition; in the running one alone where the definition has it so already.
fn everywhere(change: impl Fn(u32) -> Result<u32, Error>) -> Result<(), Error> {
    let (live, config) = (sys::VIR_DOMAIN_AFFECT_LIVE, sys::VIR_DOMAIN_AFFECT_CONFIG);
    change(live | config).or_else(|_| change(live)).map(drop)
}

pub fn carry_out(domain: &Domain, movement: Movement) -> Result<(), Error> {
    match movement {
        Movement::None => Ok(()),
        Movement::Resume => resume(domain),
        Movement::Pause => domain.suspend().map(drop),
        Movement::Save => domain.managed_save(0).map(drop),
    }
}

/// Presses the power button, or pulls the plug. Whether the VM is off.
pub fn press(connection: &Connect, instance: InstanceId, force: bool) -> Result<bool, Error> {
    let Some(domain) = lookup(connection, instance)? else { return Ok(true) };
    let now = condition(&domain)?;
    if !now.active() {
        if now.saved {
            // Off means off: what its memory held is let go, as by pulling the plug.
            domain.managed_save_remove(0)?;
        }
        return Ok(true);
    }
    if force {
        return match domain.destroy() {
            Err(_) if !domain.is_active()? => Ok(true),
            other => other.map(|()| true),
        };
    }
    if now.paused() {
        // A paused guest cannot hear the button. If it cannot be resumed, the plug is pulled in the end.
        let _still_paused = resume(&domain);
    }
    match domain.shutdown_flags(sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN) {
        Err(_) if !domain.is_active()? => Ok(true),
        other => other.map(|_| false),
    }
}

pub fn resume(domain: &Domain) -> Result<(), Error> {
    let now = condition(domain)?;
    match now.state {
        sys::VIR_DOMAIN_PAUSED => domain.resume().map(drop),
        sys::VIR_DOMAIN_PMSUSPENDED => domain.pm_wakeup(0).map(drop),
        _ => Ok(()),
    }
}

/// Ends and forgets the domain, if its epoch is at most `epoch`.
pub fn undefine(connection: &Connect, instance: InstanceId, epoch: u64) -> Result<(), Error> {
    let Some(domain) = lookup(connection, instance)? else { return Ok(()) };
    let gone = (|| {
        if read_traits(&domain)?.epoch > epoch {
            return Ok(());
        }
        match domain.destroy() {
            Err(error) if domain.is_active()? => return Err(error),
            _ => {}
        }
        domain.undefine_flags(
            sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                | sys::VIR_DOMAIN_UNDEFINE_NVRAM,
        )
    })();
    unless_gone(gone).map(drop)
}
