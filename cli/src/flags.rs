//! The flags that `set create` and `vm create` share, and the request that they make.

use crate::failure::Failure;
use amphi_api::VolumeId;
use amphi_api::failover::{FailoverTerms, LocalVolume, PRIORITY_DEFAULT};
use amphi_api::instance::{
    BodyKind, BodySpec, FailoverPolicy, InstanceCreate, InstanceNetwork, InstanceVolume,
};
use amphi_api::placement::Qos;
use amphi_api::resize::{Bandwidth, NetworkBandwidth};
use clap::{Args, ValueEnum};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct InstanceFlags {
    /// Virtual CPUs.
    #[arg(long, default_value_t = 1)]
    pub vcpus: u32,
    /// Memory: `512`, `512MiB`, `4GiB`.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = memory)]
    pub memory: u64,
    /// Name or id of a network; repeat it for eth1 and so on.
    #[arg(long, value_name = "NETWORK")]
    network: Vec<String>,
    /// Address on the network; repeat it in the networks' order. Default: a free one.
    #[arg(long, value_name = "ADDRESS")]
    address: Vec<IpAddr>,
    /// Most kbit/s towards the instance and from it, of one of its networks: `lan=10000/5000`, `lan=10000/`, `lan=/5000`.
    #[arg(long, value_name = "NETWORK=IN/OUT", value_parser = bandwidth)]
    bandwidth: Vec<NetworkBandwidth>,
    /// Name or id of a security group; may be repeated.
    #[arg(long, value_name = "GROUP")]
    security_group: Vec<String>,
    /// Make a data volume of this size, in GiB.
    #[arg(long, value_name = "GIB", conflicts_with = "volume")]
    volume_gib: Option<u64>,
    /// Take this volume (id) as data volume.
    #[arg(long, value_name = "VOLUME")]
    volume: Option<VolumeId>,
    /// File with text for the guest.
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    /// File with public keys, one a line; may be repeated.
    #[arg(long, value_name = "FILE")]
    ssh_key: Vec<PathBuf>,
    /// KEY=VALUE; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    metadata: Vec<(String, String)>,
    /// What may happen when its host is lost.
    #[arg(long, value_enum, default_value_t = Failover::AnyKind)]
    failover: Failover,
    /// Who goes first when a host is lost: 0 to 1,000, the lower the earlier.
    #[arg(long, value_name = "NUMBER", default_value_t = PRIORITY_DEFAULT)]
    failover_priority: u32,
    /// When a host is lost with its data volume, go on elsewhere with a blank one. Default: wait for the host.
    #[arg(long)]
    failover_fresh_volume: bool,
    /// The kind of body that waits on a second host. Default: a set before a VM. Only with `--failover twin`.
    #[arg(long, value_enum, value_name = "KIND")]
    twin_body: Option<TwinBody>,
    /// Name or id of the one host it may go to.
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// What stands behind its vCPUs and memory: guaranteed, burstable_2, burstable_5, burstable_10, best_effort.
    #[arg(long, value_name = "CLASS", default_value_t = Qos::Standard)]
    qos: Qos,
    /// The scheduler that places it: spread, pack.
    #[arg(long, value_name = "NAME")]
    scheduler: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Failover {
    Never,
    SameKind,
    AnyKind,
    /// As `any-kind`, with a body ready on a second host.
    Twin,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum TwinBody {
    Set,
    Vm,
}

impl Failover {
    pub fn policy(self) -> FailoverPolicy {
        match self {
            Self::Never => FailoverPolicy::Never,
            Self::SameKind => FailoverPolicy::SameKind,
            Self::AnyKind => FailoverPolicy::AnyKind,
            Self::Twin => FailoverPolicy::Twin,
        }
    }
}

impl TwinBody {
    pub fn kind(self) -> BodyKind {
        match self {
            Self::Set => BodyKind::Set,
            Self::Vm => BodyKind::Vm,
        }
    }
}

impl InstanceFlags {
    /// The request for an instance with these bodies, not yet checked.
    pub fn request(self, name: String, bodies: Vec<BodySpec>) -> Result<InstanceCreate, Failure> {
        if self.address.len() > self.network.len() {
            return Err(Failure::new(2, "more --address than --network"));
        }
        if let Some(one) = self.bandwidth.iter().find(|one| !self.network.contains(&one.network)) {
            return Err(Failure::new(
                2,
                format!("--bandwidth of '{}', which no --network names", one.network),
            ));
        }
        let mut addresses = self.address.into_iter();
        let networks = self
            .network
            .into_iter()
            .map(|network| {
                let limited = self.bandwidth.iter().find(|one| one.network == network);
                let bandwidth = limited.map(|one| one.bandwidth).unwrap_or_default();
                InstanceNetwork { network, address: addresses.next(), port: None, bandwidth }
            })
            .collect();
        let volume = match (self.volume_gib, self.volume) {
            (None, None) => None,
            (size_gib, id) => Some(InstanceVolume { size_gib, name: None, id }),
        };
        let mut ssh_keys = Vec::new();
        for path in &self.ssh_key {
            let text = read(path)?;
            ssh_keys.extend(
                text.lines()
                    .map(str::trim)
                    .filter(|l| !l.is_empty() && !l.starts_with('#'))
                    .map(str::to_owned),
            );
        }
        Ok(InstanceCreate {
            name,
            vcpus: self.vcpus,
            memory_mib: self.memory,
            bodies,
            networks,
            security_groups: self.security_group,
            volume,
            user_data: self.user_data.as_deref().map(read).transpose()?,
            ssh_keys,
            metadata: self.metadata.into_iter().collect(),
            failover: self.failover.policy(),
            failover_terms: FailoverTerms {
                priority: self.failover_priority,
                local_volume: match self.failover_fresh_volume {
                    true => LocalVolume::Fresh,
                    false => LocalVolume::Wait,
                },
                twin_body: self.twin_body.map(TwinBody::kind),
            },
            host: self.host,
            qos: self.qos,
            scheduler: self.scheduler,
        })
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|e| Failure::new(2, format!("{}: cannot be read: {e}", path.display())))
}

/// Memory in MiB, of a number with `M`, `MiB` (or nothing), `G` or `GiB` behind it.
pub fn memory(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| "not a size: 512, 512MiB or 4GiB".to_owned())?;
    let factor = match &text[digits..] {
        "" | "M" | "MiB" => 1,
        "G" | "GiB" => 1024,
        unit => return Err(format!("unknown unit '{unit}': MiB or GiB")),
    };
    number.checked_mul(factor).ok_or_else(|| "too large".to_owned())
}

/// `NETWORK=IN/OUT` in kbit/s, either of them empty: no limit.
pub fn bandwidth(text: &str) -> Result<NetworkBandwidth, String> {
    let shape = "not NETWORK=IN/OUT, as lan=10000/5000";
    let (network, rates) = text.rsplit_once('=').ok_or(shape)?;
    let (ingress, egress) = rates.split_once('/').ok_or(shape)?;
    let rate = |text: &str| match text {
        "" => Ok(None),
        number => number.parse::<u32>().map(Some).map_err(|_| shape.to_owned()),
    };
    let bandwidth = Bandwidth { ingress_kbps: rate(ingress)?, egress_kbps: rate(egress)? };
    Ok(NetworkBandwidth { network: network.to_owned(), bandwidth })
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("not KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_in_mib() {
        let table =
            [("512", Ok(512)), ("512MiB", Ok(512)), ("512M", Ok(512)), ("4GiB", Ok(4096)), ("4G", Ok(4096))];
        for (text, mib) in table {
            assert_eq!(memory(text), mib, "{text}");
        }
        for bad in ["", "G", "4GB", "-1", "1.5G", "99999999999999999999", "18446744073709551615G"] {
            assert!(memory(bad).is_err(), "{bad}");
        }
    }
}
