//! Sends a guest to another host's libvirt while it runs: peer to peer, over three local sockets that lead there, with all
//! of its disks, and halted at the end. libvirt guarantees that at most one of the two may run; halted, neither does until
//! somebody who knows says so. Blocks only within calls of the link.
#![allow(unsafe_code)]
// virt 0.4 has no name for ending a job. The block says why it is sound.

use super::domain::{condition, lookup};
use super::landing;
use super::link::{ENGINE, Link};
use super::{CHANGE, LOOK};
use crate::crossing::Passage;
use crate::instance::DriverError;
use crate::instance::moves::Departure;
use amphi_api::InstanceId;
use std::path::Path;
use std::time::Duration;
use virt::connect::Connect;
use virt::domain::MigrateParameters;
use virt::error::Error;
use virt_sys as sys;

/// For all bytes of a guest: a TiB over a link of 1 Gbit/s takes 2.5 hours.
const CROSS: Duration = Duration::from_secs(6 * 3600);

pub async fn depart(link: &Link, departure: &Departure, passage: &Passage) -> Result<(), DriverError> {
    let instance = departure.instance;
    let doing = format!("send the VM of {instance} to host {}", departure.to);
    let refused =
        |message: String| DriverError::EngineRefused { engine: ENGINE, doing: doing.clone(), message };
    let running = move |c: &Connect| {
        let Some(domain) = lookup(c, instance)? else { return Ok(None) };
        if !condition(&domain)?.active() {
            return Ok(None);
        }
        let flags = sys::VIR_DOMAIN_XML_MIGRATABLE | sys::VIR_DOMAIN_XML_SECURE;
        domain.get_xml_desc(flags).map(Some)
    };
    let Some(running) = link.call(&doing, LOOK, running).await? else { return Ok(()) };
    let there = passage.receive().await.map_err(&refused)?;
    let xml = landing::definition(&running, &there).map_err(&refused)?;
    let sockets = passage.sockets();
    let uri = |path: &Path| format!("unix://{}", path.display());
    let to = format!("qemu+unix:///system?socket={}", sockets.engine.display());
    let (memory, disks) = (uri(&sockets.memory), uri(&sockets.disks));
    let send = move |c: &Connect| {
        let Some(domain) = lookup(c, instance)? else { return Ok(()) };
        if !condition(&domain)?.active() {
            return Ok(());
        }
        let parameters = MigrateParameters {
            uri: Some(memory.clone()),
            disks_uri: Some(disks.clone()),
            dest_xml: Some(xml.clone()),
            persist_xml: Some(xml.clone()),
            ..MigrateParameters::default()
        };
        // A guest that writes faster than its memory goes over is slowed down until it fits.
        let flags = sys::VIR_MIGRATE_LIVE
            | sys::VIR_MIGRATE_PEER2PEER
            | sys::VIR_MIGRATE_PERSIST_DEST
            | sys::VIR_MIGRATE_NON_SHARED_DISK
            | sys::VIR_MIGRATE_PAUSED
            | sys::VIR_MIGRATE_ABORT_ON_ERROR
            | sys::VIR_MIGRATE_AUTO_CONVERGE;
        domain.migrate_to_uri3(Some(&to), parameters, flags)
    };
    link.call(&doing, CROSS, send).await
}

pub async fn recall(link: &Link, instance: InstanceId) -> Result<(), DriverError> {
    let doing = format!("call the VM of {instance} back");
    let end = move |c: &Connect| {
        let Some(domain) = lookup(c, instance)? else { return Ok(()) };
        // SAFETY: the domain is alive as long as the borrow.
        let done = unsafe { sys::virDomainAbortJob(domain.as_ptr()) };
        if done == 0 { Ok(()) } else { Err(Error::last_error()) }
    };
    link.call(&doing, CHANGE, end).await
}
