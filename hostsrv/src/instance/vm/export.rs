//! Reads a VM's root disk as it is at one point in time. Of a guest that runs, libvirt's push backup takes the instant:
//! QEMU copies what was there before it lets the guest write over it, so that nothing is held still. A disk that nobody
//! writes is converted as it lies. Blocks only within calls of the link.
#![allow(unsafe_code)]
// virt 0.4 has no names for backups and for ending a job. Each block says why it is sound.

use super::domain::{condition, lookup, read_traits};
use super::link::{ENGINE, Link};
use super::markup::Element;
use super::traits::Plug;
use super::{CHANGE, LOOK};
use crate::instance::{DriverError, ExportPart, ExportPlan, folders};
use crate::qemu_img::{Convert, DiskFormat};
use amphi_api::InstanceId;
use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt_sys as sys;

/// For all bytes of a disk.
const COPY: Duration = Duration::from_secs(1800);
/// Between two looks at a backup under way.
const POLL: Duration = Duration::from_millis(100);

pub async fn export(link: &Link, state_dir: &Path, plan: &ExportPlan) -> Result<(), DriverError> {
    let doing = format!("read the root disk of {}", plan.instance);
    let refused =
        |message: String| DriverError::EngineRefused { engine: ENGINE, doing: doing.clone(), message };
    let (ExportPart::Root { root }, Some(format)) = (&plan.part, DiskFormat::of(plan.format)) else {
        return Err(refused("a VM has no members, and its disk is raw or qcow2".into()));
    };
    let disk = root_of(state_dir, plan.instance, *root).await?;
    let disk = disk.ok_or_else(|| refused(format!("there is no root disk of count {root}")))?;
    let instance = plan.instance;
    let target = move |c: &Connect| {
        let Some(domain) = lookup(c, instance)? else { return Ok(None) };
        if !condition(&domain)?.active() {
            return Ok(None);
        }
        Ok(read_traits(&domain)?.target(Plug::Root).map(str::to_owned))
    };
    let convert = |from: PathBuf| async move {
        let (from, to) = (from.as_path(), plan.to.as_path());
        let from_format = DiskFormat::Qcow2;
        Convert { from, from_format, to, to_format: format, into_device: false, limit: COPY }.run().await
    };
    let Some(target) = link.call(&doing, LOOK, target).await? else {
        return Ok(convert(disk).await?);
    };
    let copy = plan.to.with_extension("backup");
    let copied = back_up(link, &doing, instance, &target, &copy).await;
    let converted = match copied {
        Ok(()) => convert(copy.clone()).await.map_err(DriverError::from),
        Err(error) => Err(error),
    };
    // Whatever is left of it goes with the caller's folder too.
    let _gone = tokio::fs::remove_file(&copy).await;
    converted
}

async fn root_of(state_dir: &Path, instance: InstanceId, count: u64) -> Result<Option<PathBuf>, DriverError> {
    let state_dir = state_dir.to_owned();
    folders::blocking("look for the root disk", move || {
        let found = folders::roots(&state_dir, instance)?.into_iter().filter(|(found, _)| *found == count);
        // Of two of one count, made of different images, the one that was written last is the guest's.
        let written = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        Ok(found.map(|(_, path)| path).max_by_key(|path| written(path)))
    })
    .await
}

async fn back_up(
    link: &Link,
    doing: &str,
    instance: InstanceId,
    target: &str,
    to: &Path,
) -> Result<(), DriverError> {
    let xml = render(target, to);
    let begin = move |c: &Connect| {
        let domain = lookup(c, instance)?;
        domain.map_or(Ok(()), |domain| begin(&domain, &xml))
    };
    let end = move |c: &Connect| lookup(c, instance)?.map_or(Ok(()), |domain| abort(&domain));
    if link.call(doing, CHANGE, begin.clone()).await.is_err() {
        // One that an earlier process began may be under way still.
        let _none = link.call(doing, CHANGE, end).await;
        link.call(doing, CHANGE, begin).await?;
    }
    let deadline = Instant::now() + COPY;
    loop {
        let look = move |c: &Connect| match lookup(c, instance)? {
            Some(domain) => outcome(&domain),
            None => Ok(Some(Err("the VM is gone".into()))),
        };
        let done = link.call(doing, LOOK, look);
        match done.await? {
            Some(Ok(())) => return Ok(()),
            Some(Err(message)) => {
                return Err(DriverError::EngineRefused { engine: ENGINE, doing: doing.to_owned(), message });
            }
            None if Instant::now() > deadline => {
                let _tried = link.call(doing, CHANGE, end).await;
                return Err(DriverError::EngineTimeout {
                    engine: ENGINE,
                    doing: doing.to_owned(),
                    limit: COPY,
                });
            }
            None => tokio::time::sleep(POLL).await,
        }
    }
}

/// Only the disks that are named take part.
fn render(target: &str, to: &Path) -> String {
    let disk = Element::new("disk")
        .attr("name", target)
        .attr("backup", "yes")
        .attr("type", "file")
        .child(Element::new("driver").attr("type", "qcow2"))
        .child(Element::new("target").attr("file", to.display()));
    Element::new("domainbackup").attr("mode", "push").child(Element::new("disks").child(disk)).render()
}

fn begin(domain: &Domain, xml: &str) -> Result<(), Error> {
    // XML of ours has no NUL: what cannot be said in XML was replaced.
    let xml = CString::new(xml).unwrap_or_default();
    // SAFETY: the domain is alive as long as the borrow; the text is NUL-terminated and copied by libvirt; no checkpoint.
    let done = unsafe { sys::virDomainBackupBegin(domain.as_ptr(), xml.as_ptr(), std::ptr::null(), 0) };
    if done == 0 { Ok(()) } else { Err(Error::last_error()) }
}

fn abort(domain: &Domain) -> Result<(), Error> {
    // SAFETY: the domain is alive as long as the borrow.
    let done = unsafe { sys::virDomainAbortJob(domain.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(Error::last_error()) }
}

/// None: under way.
fn outcome(domain: &Domain) -> Result<Option<Result<(), String>>, Error> {
    if job(domain, 0)?.0 != sys::VIR_DOMAIN_JOB_NONE as c_int {
        return Ok(None);
    }
    match job(domain, sys::VIR_DOMAIN_JOB_STATS_COMPLETED)? {
        (done, _) if done == sys::VIR_DOMAIN_JOB_COMPLETED as c_int => Ok(Some(Ok(()))),
        (_, why) => Ok(Some(Err(why.unwrap_or_else(|| "the backup ended before its end".into())))),
    }
}

/// The type of the present job, or of the last one that ended, and its error. (virt 0.4's own way to ask takes a null
/// pointer for an array where there is no job.)
fn job(domain: &Domain, flags: sys::virDomainGetJobStatsFlags) -> Result<(c_int, Option<String>), Error> {
    let (mut kind, mut count) = (0, 0);
    let mut params: sys::virTypedParameterPtr = std::ptr::null_mut();
    let mut text: *const c_char = std::ptr::null();
    // SAFETY: the domain is alive as long as the borrow; libvirt writes the type, the array and its length, and returns 0
    // only when all three are good; an array of length 0 may be null, which the two calls below take as an empty one.
    unsafe {
        if sys::virDomainGetJobStats(domain.as_ptr(), &mut kind, &mut params, &mut count, flags) != 0 {
            return Err(Error::last_error());
        }
        let found = sys::virTypedParamsGetString(params, count, c"errmsg".as_ptr(), &mut text);
        // The text belongs to the array and is NUL-terminated.
        let why =
            (found == 1 && !text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned());
        sys::virTypedParamsFree(params, count);
        Ok((kind, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_disk_is_named() {
        let xml = render("vda", Path::new("/s/exports/x/disk.backup"));
        assert_eq!(
            xml,
            "<domainbackup mode=\"push\">\n  <disks>\n    <disk name=\"vda\" backup=\"yes\" type=\"file\">\n      \
             <driver type=\"qcow2\"/>\n      <target file=\"/s/exports/x/disk.backup\"/>\n    </disk>\n  \
             </disks>\n</domainbackup>\n"
        );
    }
}
