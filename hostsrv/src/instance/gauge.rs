//! What the bodies of this host use now, for whoever asks once: the meters' figures, one row for each member and each VM.
//! Refuses to keep any, and to reckon rates: whoever asks twice can.

use super::figures::{Figure, Meter, Reading, read_all};
use amphi_api::InstanceId;
use amphi_api::looking::{Use, UseRow};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Clone, Default)]
pub struct Gauge(Vec<Arc<dyn Meter>>);

impl Gauge {
    pub fn new(meters: Vec<Arc<dyn Meter>>) -> Self {
        Self(meters)
    }

    /// What could be read; a meter that cannot be read now leaves its rows out, and says so in the log.
    pub async fn read(&self) -> Vec<UseRow> {
        let mut readings = Vec::new();
        for answer in read_all(&self.0).await {
            match answer {
                Ok(read) => readings.extend(read),
                Err(error) => tracing::warn!("figures are missing: {error}"),
            }
        }
        rows(&readings, Timestamp::now())
    }
}

/// Devices are summed up.
fn rows(readings: &[Reading], at: Timestamp) -> Vec<UseRow> {
    let mut rows: BTreeMap<(InstanceId, Option<&str>), Use> = BTreeMap::new();
    for reading in readings {
        let used = rows.entry((reading.instance, reading.member.as_deref())).or_default();
        let value = reading.value;
        match reading.figure {
            Figure::Cpu => used.cpu_seconds += value,
            Figure::CpuThrottled => used.throttled_seconds += value,
            Figure::Memory => used.memory_bytes += value,
            Figure::MemoryLimit => *used.memory_limit_bytes.get_or_insert(0.0) += value,
            Figure::OomKills => used.oom_kills += value,
            Figure::Processes => *used.processes.get_or_insert(0.0) += value,
            Figure::DiskRead => used.disk_read_bytes += value,
            Figure::DiskWritten => used.disk_written_bytes += value,
            Figure::NetReceived => used.net_received_bytes += value,
            Figure::NetSent => used.net_sent_bytes += value,
            _ => {}
        }
    }
    let row = |((instance, member), used): ((InstanceId, Option<&str>), Use)| UseRow {
        instance,
        member: member.map(str::to_owned),
        at,
        used,
    };
    rows.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_for_each_member_and_one_for_the_set() {
        let instance = InstanceId::new();
        let reading = |member: Option<&str>, device: Option<&str>, figure, value| Reading {
            instance,
            member: member.map(str::to_owned),
            device: device.map(str::to_owned),
            figure,
            value,
        };
        let rows = rows(
            &[
                reading(Some("web"), None, Figure::Cpu, 1.5),
                reading(None, Some("eth0"), Figure::NetSent, 10.0),
                reading(None, Some("eth1"), Figure::NetSent, 5.0),
                reading(Some("web"), None, Figure::Memory, 4096.0),
                reading(Some("log"), None, Figure::Processes, 2.0),
            ],
            Timestamp::UNIX_EPOCH,
        );
        let members: Vec<_> = rows.iter().map(|row| row.member.as_deref()).collect();
        assert_eq!(members, [None, Some("log"), Some("web")]);
        assert_eq!((rows[0].used.net_sent_bytes, rows[0].used.processes), (15.0, None));
        assert_eq!(rows[1].used.processes, Some(2.0));
        assert_eq!((rows[2].used.cpu_seconds, rows[2].used.memory_bytes), (1.5, 4096.0));
    }
}
