//! Owns what is said to libvirt about one domain of ours: find it, read its epoch and condition, press its button, hold,
//! resume and forget it. Every function blocks and runs within a call of the link. Refuses domains that are not named
//! as ours.

use super::sight::Condition;
use super::xml;
use amphi_api::InstanceId;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::{Error, ErrorNumber};
use virt_sys as sys;

/// What was read from domains' metadata, good until the event counter moves.
#[derive(Default)]
pub struct EpochCache {
    at_change: u64,
    pub epochs: BTreeMap<Uuid, u64>,
}

/// A domain of ours as a sweep finds it.
pub struct Found {
    pub instance: InstanceId,
    pub epoch: u64,
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
    Ok(Condition { state, reason })
}

/// Of the running definition, if it runs. 0 if the domain says nothing: older than every epoch.
pub fn read_epoch(domain: &Domain) -> Result<u64, Error> {
    let kind = sys::VIR_DOMAIN_METADATA_ELEMENT as i32;
    match domain.get_metadata(kind, Some(xml::NAMESPACE), sys::VIR_DOMAIN_AFFECT_CURRENT) {
        Ok(text) => Ok(xml::epoch_of(&text)),
        Err(error) if error.code() == ErrorNumber::NoDomainMetadata => Ok(0),
        Err(error) => Err(error),
    }
}

pub fn sweep(connection: &Connect, cache: &Mutex<EpochCache>, change: u64) -> Result<Vec<Found>, Error> {
    let mut known = {
        let cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.at_change == change { cache.epochs.clone() } else { BTreeMap::new() }
    };
    let mut found = Vec::new();
    let mut epochs = BTreeMap::new();
    for domain in connection.list_all_domains(0)? {
        let name = domain.get_name()?;
        let Some(instance) = name.strip_prefix("amphi-").and_then(|id| id.parse::<InstanceId>().ok()) else {
            continue;
        };
        let epoch = match known.remove(&instance.0) {
            Some(epoch) => Some(epoch),
            None => unless_gone(read_epoch(&domain))?,
        };
        let condition = unless_gone(condition(&domain))?;
        if let (Some(epoch), Some(condition)) = (epoch, condition) {
            epochs.insert(instance.0, epoch);
            found.push(Found { instance, epoch, condition });
        }
    }
    *cache.lock().unwrap_or_else(PoisonError::into_inner) = EpochCache { at_change: change, epochs };
    Ok(found)
}

/// Presses the power button, or pulls the plug. Whether the VM is off.
pub fn press(connection: &Connect, instance: InstanceId, force: bool) -> Result<bool, Error> {
    let Some(domain) = lookup(connection, instance)? else { return Ok(true) };
    let now = condition(&domain)?;
    if !now.active() {
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
        if read_epoch(&domain)? > epoch {
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
