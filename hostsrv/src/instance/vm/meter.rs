//! Measures VMs: one call to libvirt for all of them, which asks no guest and waits for none that is busy.
#![allow(unsafe_code)]
// virt 0.4 has the call, but never gives back what libvirt allocated for it. Each block says why it is sound.

use super::domain::{TraitCache, lookup, read_traits, unless_gone};
use super::{LOOK, VmDriver};
use crate::instance::DriverError;
use crate::instance::figures::{Figure, Meter, Reading};
use amphi_api::InstanceId;
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::{Mutex, PoisonError};
use virt::connect::Connect;
use virt::error::Error;
use virt_sys as sys;

const KINDS: sys::virDomainStatsTypes = sys::VIR_DOMAIN_STATS_CPU_TOTAL
    | sys::VIR_DOMAIN_STATS_BALLOON
    | sys::VIR_DOMAIN_STATS_INTERFACE
    | sys::VIR_DOMAIN_STATS_BLOCK;

#[async_trait]
impl Meter for VmDriver {
    async fn read(&self) -> Result<Vec<Reading>, DriverError> {
        let cache = self.traits.clone();
        let all = self.link.call("measure VMs", LOOK, move |c| statistics(c, &cache)).await?;
        Ok(all.iter().flat_map(|(instance, stats)| readings(*instance, stats)).collect())
    }
}

/// What libvirt says of one domain, by its own names (virConnectGetAllDomainStats).
#[derive(Debug, Default, PartialEq)]
struct Stats {
    /// What the guest has. libvirt's `balloon.current` counts what it could have as well.
    memory_kib: Option<u64>,
    numbers: BTreeMap<String, f64>,
    texts: BTreeMap<String, String>,
}

fn statistics(connection: &Connect, cache: &Mutex<TraitCache>) -> Result<Vec<(InstanceId, Stats)>, Error> {
    let mut records: *mut sys::virDomainStatsRecordPtr = std::ptr::null_mut();
    let flags = sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT;
    // SAFETY: the connection is open; libvirt writes one pointer, and only where the answer is not negative.
    let count =
        unsafe { sys::virConnectGetAllDomainStats(connection.as_ptr(), KINDS, &raw mut records, flags) };
    if count < 0 {
        return Err(Error::last_error());
    }
    let mut all = Vec::new();
    for at in 0..count as usize {
        // SAFETY: libvirt gave `count` records, each valid until the list is freed below; a domain's name lives as long
        // as the domain, which the record holds.
        let (name, parameters) = unsafe {
            let record = &**records.add(at);
            let name = CStr::from_ptr(sys::virDomainGetName(record.dom)).to_string_lossy().into_owned();
            let parameters: &[sys::virTypedParameter] = match record.nparams {
                1.. => std::slice::from_raw_parts(record.params, record.nparams as usize),
                _ => &[],
            };
            (name, parameters)
        };
        let instance = name.strip_prefix("amphi-").and_then(|id| id.parse::<InstanceId>().ok());
        if let Some(instance) = instance {
            all.push((instance, read(parameters)));
        }
    }
    // SAFETY: the list came from the call above, nothing borrowed from it is left, and it is freed once.
    unsafe { sys::virDomainStatsRecordListFree(records) };
    for (instance, stats) in &mut all {
        let known = cache.lock().unwrap_or_else(PoisonError::into_inner).traits.get(&instance.0).cloned();
        let traits = match known {
            Some(traits) => Some(traits),
            None => match lookup(connection, *instance)? {
                Some(domain) => unless_gone(read_traits(&domain))?,
                None => None,
            },
        };
        stats.memory_kib =
            traits.map(|traits| traits.memory_kib + traits.room.map_or(0, |room| room.taken_kib));
    }
    Ok(all)
}

fn read(parameters: &[sys::virTypedParameter]) -> Stats {
    let mut stats = Stats::default();
    for parameter in parameters {
        // SAFETY: libvirt ends the field's name with a zero within its 80 bytes.
        let name = unsafe { CStr::from_ptr(parameter.field.as_ptr()) }.to_string_lossy().into_owned();
        let value = &parameter.value;
        // SAFETY: `type_` says which variant libvirt wrote; a text is zero-ended and lives as long as the list.
        let number = unsafe {
            match parameter.type_ as sys::virTypedParameterType {
                sys::VIR_TYPED_PARAM_INT => f64::from(value.i),
                sys::VIR_TYPED_PARAM_UINT => f64::from(value.ui),
                sys::VIR_TYPED_PARAM_LLONG => value.l as f64,
                sys::VIR_TYPED_PARAM_ULLONG => value.ul as f64,
                sys::VIR_TYPED_PARAM_DOUBLE => value.d,
                sys::VIR_TYPED_PARAM_STRING => {
                    stats.texts.insert(name, CStr::from_ptr(value.s).to_string_lossy().into_owned());
                    continue;
                }
                _ => continue,
            }
        };
        stats.numbers.insert(name, number);
    }
    stats
}

/// Pure. Interfaces are counted as the instance's ports are: the first is eth0.
fn readings(instance: InstanceId, stats: &Stats) -> Vec<Reading> {
    let one = |device: Option<String>, figure: Figure, value: f64| Reading {
        instance,
        member: None,
        device,
        figure,
        value,
    };
    let number = |name: &str| stats.numbers.get(name).copied();
    let mut all = vec![one(None, Figure::Up, 1.0)];
    // libvirt's balloon figures are in KiB.
    for (name, figure, factor) in [
        ("cpu.time", Figure::Cpu, 1e-9),
        ("balloon.rss", Figure::Memory, 1024.0),
        ("balloon.unused", Figure::MemoryUnused, 1024.0),
    ] {
        all.extend(number(name).map(|value| one(None, figure, value * factor)));
    }
    all.extend(stats.memory_kib.map(|kib| one(None, Figure::MemoryLimit, kib as f64 * 1024.0)));
    for (group, prefix, fields) in [
        (
            "net",
            "eth",
            &[
                ("rx.bytes", Figure::NetReceived),
                ("rx.pkts", Figure::NetReceivedPackets),
                ("rx.drop", Figure::NetReceivedDropped),
                ("tx.bytes", Figure::NetSent),
                ("tx.pkts", Figure::NetSentPackets),
                ("tx.drop", Figure::NetSentDropped),
            ][..],
        ),
        (
            "block",
            "",
            &[
                ("rd.bytes", Figure::DiskRead),
                ("wr.bytes", Figure::DiskWritten),
                ("rd.reqs", Figure::DiskReads),
                ("wr.reqs", Figure::DiskWrites),
            ],
        ),
    ] {
        for at in 0..number(&format!("{group}.count")).unwrap_or(0.0) as u32 {
            let device = match prefix {
                "" => stats.texts.get(&format!("{group}.{at}.name")).cloned(),
                prefix => Some(format!("{prefix}{at}")),
            };
            for (field, figure) in fields {
                let value = number(&format!("{group}.{at}.{field}"));
                all.extend(value.map(|value| one(device.clone(), *figure, value)));
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libvirt_s_names_become_figures() {
        let numbers = [
            ("cpu.time", 2e9),
            ("balloon.rss", 4.0),
            ("net.count", 1.0),
            ("net.0.rx.bytes", 10.0),
            ("net.0.tx.drop", 1.0),
            ("block.count", 2.0),
            ("block.0.rd.bytes", 5.0),
            ("block.1.wr.reqs", 6.0),
        ];
        let texts = [("block.0.name", "vda"), ("block.1.name", "vdb"), ("net.0.name", "tap0")];
        let stats = Stats {
            memory_kib: Some(8),
            numbers: numbers.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            texts: texts.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        };
        let told: Vec<_> = readings(InstanceId::new(), &stats)
            .into_iter()
            .map(|r| format!("{} {} {}", r.device.unwrap_or_default(), r.figure.name(), r.value))
            .collect();
        assert_eq!(
            told,
            [
                " up 1",
                " cpu_seconds_total 2",
                " memory_working_set_bytes 4096",
                " memory_limit_bytes 8192",
                "eth0 network_receive_bytes_total 10",
                "eth0 network_transmit_drop_total 1",
                "vda disk_read_bytes_total 5",
                "vdb disk_writes_total 6",
            ]
        );
    }
}
