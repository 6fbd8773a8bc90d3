//! What can be measured of a body, by name, unit and kind, and who measures it. Owns the names; refuses to know where
//! figures come from and where they go.

use super::DriverError;
use amphi_api::InstanceId;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;

/// Whether a figure only grows (until its body starts anew) or goes up and down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Counter,
    Gauge,
}

macro_rules! figures {
    ($($(#[doc = $help:literal])+ $variant:ident = $name:literal, $unit:literal, $shape:ident;)+) => {
        /// One kind of measured number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Figure { $($(#[doc = $help])+ $variant,)+ }

        impl Figure {
            pub const ALL: &[Figure] = &[$(Figure::$variant,)+];

            /// Prometheus' way to name: the base unit in the name, `_total` on counters. Without `amphi_`.
            pub fn name(self) -> &'static str {
                match self { $(Figure::$variant => $name,)+ }
            }

            /// In UCUM, as OTLP wants it: `s`, `By`, `1`.
            pub fn unit(self) -> &'static str {
                match self { $(Figure::$variant => $unit,)+ }
            }

            pub fn shape(self) -> Shape {
                match self { $(Figure::$variant => Shape::$shape,)+ }
            }

            /// One sentence for people.
            pub fn help(self) -> &'static str {
                match self { $(Figure::$variant => concat!($($help),+).trim_ascii(),)+ }
            }
        }
    };
}

figures! {
    /// 1 while it runs.
    Up = "up", "1", Gauge;
    /// CPU time used, all CPUs together.
    Cpu = "cpu_seconds_total", "s", Counter;
    /// Time in which it would have run and was held at its ceiling.
    CpuThrottled = "cpu_throttled_seconds_total", "s", Counter;
    /// Memory that cannot be had back without harm: of a member without pages of files that lie idle, of a VM its process's.
    Memory = "memory_working_set_bytes", "By", Gauge;
    /// Memory that holds pages of files.
    MemoryCache = "memory_cache_bytes", "By", Gauge;
    /// What it may use at most.
    MemoryLimit = "memory_limit_bytes", "By", Gauge;
    /// Of a VM: what its guest says is free. Without a balloon driver in the guest there is none.
    MemoryUnused = "memory_guest_unused_bytes", "By", Gauge;
    /// Processes ended because the memory limit was reached.
    OomKills = "oom_kills_total", "1", Counter;
    /// Processes and threads.
    Processes = "processes", "1", Gauge;
    /// Read from block devices.
    DiskRead = "disk_read_bytes_total", "By", Counter;
    /// Written to block devices.
    DiskWritten = "disk_written_bytes_total", "By", Counter;
    /// Reads from block devices.
    DiskReads = "disk_reads_total", "1", Counter;
    /// Writes to block devices.
    DiskWrites = "disk_writes_total", "1", Counter;
    /// Received by the instance.
    NetReceived = "network_receive_bytes_total", "By", Counter;
    /// Sent by the instance.
    NetSent = "network_transmit_bytes_total", "By", Counter;
    /// Packets received by the instance.
    NetReceivedPackets = "network_receive_packets_total", "1", Counter;
    /// Packets sent by the instance.
    NetSentPackets = "network_transmit_packets_total", "1", Counter;
    /// Packets for the instance that were dropped.
    NetReceivedDropped = "network_receive_drop_total", "1", Counter;
    /// Packets of the instance that were dropped.
    NetSentDropped = "network_transmit_drop_total", "1", Counter;
    /// Size of the file system of a set's shared volume.
    Volume = "volume_size_bytes", "By", Gauge;
    /// What of it is used.
    VolumeUsed = "volume_used_bytes", "By", Gauge;
}

/// One number of one body.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    pub instance: InstanceId,
    /// Of a set: whose it is; none: the whole set's.
    pub member: Option<String>,
    /// The interface (`eth0`) or the disk (`vda`) that it is about.
    pub device: Option<String>,
    pub figure: Figure,
    pub value: f64,
}

/// Reads the figures of all bodies of one kind that run.
#[async_trait]
pub trait Meter: Send + Sync {
    async fn read(&self) -> Result<Vec<Reading>, DriverError>;
}

/// Longest that one meter may take; libvirt's own bound is 10 s, and a controller that asks waits 15 s.
const LIMIT: Duration = Duration::from_secs(12);

/// All meters side by side: of each its readings, or why there are none now.
pub async fn read_all(meters: &[Arc<dyn Meter>]) -> Vec<Result<Vec<Reading>, String>> {
    let asked = meters.iter().map(async |meter| match tokio::time::timeout(LIMIT, meter.read()).await {
        Ok(Ok(readings)) => Ok(readings),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("measuring took longer than {} s", LIMIT.as_secs())),
    });
    futures_util::future::join_all(asked).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_what_prometheus_expects() {
        let names: BTreeSet<_> = Figure::ALL.iter().map(|f| f.name()).collect();
        assert_eq!(names.len(), Figure::ALL.len(), "two figures of one name");
        for figure in Figure::ALL {
            let name = figure.name();
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert_eq!(name.ends_with("_total"), figure.shape() == Shape::Counter, "{name}");
            assert_eq!(name.contains("_bytes"), figure.unit() == "By", "{name}");
            assert_eq!(name.contains("_seconds"), figure.unit() == "s", "{name}");
            assert!(
                figure.help().ends_with('.') && !figure.help().starts_with(' '),
                "{name}: {}",
                figure.help()
            );
        }
    }
}
