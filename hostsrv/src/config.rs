//! The agent's configuration file: read once, every key known, every default said here. Refuses unknown keys.

use anyhow::{Context, bail};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// One host's settings, TOML.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The host's name, also its OVN chassis name (Open vSwitch's `system-id`).
    pub name: String,
    /// The tunnel end's address: where other hosts' geneve packets arrive.
    pub address: std::net::IpAddr,
    /// What survives a reboot: certificate, ledger, image cache, mount points.
    #[serde(default = "state_dir")]
    pub state_dir: PathBuf,
    /// What must not survive a reboot (a tmpfs): the mark by which the agent knows that the host was restarted.
    #[serde(default = "run_dir")]
    pub run_dir: PathBuf,
    #[serde(default = "docker")]
    pub docker: String,
    #[serde(default = "libvirt")]
    pub libvirt: String,
    #[serde(default = "ovsdb")]
    pub ovsdb: String,
    #[serde(default = "integration_bridge")]
    pub integration_bridge: String,
    #[serde(default = "volume_group")]
    pub volume_group: String,
    /// Volume groups on disks that other hosts see too, by name; each has the LVM tag `amphi.shared`.
    #[serde(default)]
    pub shared_volume_groups: Vec<String>,
    /// Where `docker-plugin` listens. dockerd looks for drivers in /run/docker/plugins.
    #[serde(default = "plugin_socket")]
    pub plugin_socket: PathBuf,
    /// Where the lease process answers other hosts. Default: the host's address, port 7444.
    pub lease_listen: Option<std::net::SocketAddr>,
    /// Where the agent takes VMs that come from other hosts while they run. Default: the host's address, port 7445.
    pub moves_listen: Option<std::net::SocketAddr>,
    /// Which figures of bodies go where; looked at again all the time. It need not be there.
    #[serde(default = "monitoring")]
    pub monitoring: PathBuf,
    /// Docker's data root: says whose a container is when Docker itself cannot be asked.
    #[serde(default = "docker_root")]
    pub docker_root: PathBuf,
    /// CPUs kept for the host itself. Default 1 (2 from 16 CPUs on); 0 where there are fewer than 4.
    pub reserved_cpus: Option<u32>,
    /// Memory kept for the host itself, MiB. Default 1,024, at most a quarter of all.
    pub reserved_memory_mib: Option<u64>,
    /// Bound of the image cache, in GiB: above it, what no body uses goes, the least recently used first.
    #[serde(default = "image_cache_gib")]
    pub image_cache_gib: u64,
    /// Bound of what Docker keeps of images that this agent had it pull, in GiB, as Docker counts them: above it, those that
    /// nothing is made of go, the least recently used first.
    #[serde(default = "docker_images_gib")]
    pub docker_images_gib: u64,
    /// Where the agent serves images to this host's dockerd, on loopback. Port 0: any.
    #[serde(default = "registry_listen")]
    pub registry_listen: std::net::SocketAddr,
    /// Folder with `kernel` and `initramfs`, from which sets start that run as VMs (scripts/make-guest-kit.sh makes them).
    #[serde(default = "guest_kit")]
    pub guest_kit: PathBuf,
}

fn state_dir() -> PathBuf {
    "/var/lib/amphi".into()
}
fn run_dir() -> PathBuf {
    "/run/amphi".into()
}
fn docker() -> String {
    "unix:///run/docker.sock".into()
}
fn libvirt() -> String {
    "qemu:///system".into()
}
fn ovsdb() -> String {
    "unix:/run/openvswitch/db.sock".into()
}
fn integration_bridge() -> String {
    "br-int".into()
}
fn volume_group() -> String {
    "amphi".into()
}
fn plugin_socket() -> PathBuf {
    "/run/docker/plugins/amphi.sock".into()
}
fn monitoring() -> PathBuf {
    "/etc/amphi/monitoring.toml".into()
}
fn docker_root() -> PathBuf {
    "/var/lib/docker".into()
}
fn guest_kit() -> PathBuf {
    "/usr/lib/amphi/guest".into()
}
fn image_cache_gib() -> u64 {
    50
}
fn docker_images_gib() -> u64 {
    50
}
fn registry_listen() -> std::net::SocketAddr {
    (std::net::Ipv4Addr::LOCALHOST, 0).into()
}

impl Config {
    /// Reads and checks a file; the error names the file and the key.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text)?;
        amphi_api::validate::label("name", &config.name)?;
        for (key, path) in [("state_dir", &config.state_dir), ("run_dir", &config.run_dir)] {
            if !path.is_absolute() {
                bail!("{key}: must be an absolute path, is {}", path.display());
            }
        }
        // Docker takes a registry without TLS at 127.0.0.0/8 only, and nobody else has any business there.
        if !config.registry_listen.ip().is_loopback() {
            bail!("registry_listen: must be on loopback, is {}", config.registry_listen);
        }
        for (key, gib) in
            [("image_cache_gib", config.image_cache_gib), ("docker_images_gib", config.docker_images_gib)]
        {
            if gib > 1 << 30 {
                bail!("{key}: at most {}, is {gib}", 1 << 30);
            }
        }
        Ok(config)
    }

    /// Certificates and keys.
    pub fn pki_dir(&self) -> PathBuf {
        self.state_dir.join("pki")
    }

    pub fn lease_listen(&self) -> std::net::SocketAddr {
        self.lease_listen.unwrap_or((self.address, amphi_api::lease::LEASE_PORT).into())
    }

    pub fn moves_listen(&self) -> std::net::SocketAddr {
        self.moves_listen.unwrap_or((self.address, crate::crossing::PORT).into())
    }

    /// CPUs kept for the host, of `cpus`. A platform that gives everything away starves its own switch and agent;
    /// production accounts keep 1 to 2 cores per host.
    pub fn reserve_cpus(&self, cpus: u32) -> u32 {
        self.reserved_cpus.unwrap_or(match cpus {
            0..4 => 0,
            4..16 => 1,
            _ => 2,
        })
    }

    /// Memory kept for the host, of `memory` MiB.
    pub fn reserve_memory_mib(&self, memory: u64) -> u64 {
        self.reserved_memory_mib.unwrap_or((memory / 4).min(1024))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_refusals() {
        let config = Config::parse("name = 'h1'\naddress = '10.0.0.1'").unwrap();
        assert_eq!(config.volume_group, "amphi");
        assert_eq!(config.lease_listen().to_string(), "10.0.0.1:7444");
        assert_eq!((config.reserve_cpus(2), config.reserve_cpus(8), config.reserve_cpus(64)), (0, 1, 2));
        assert_eq!((config.reserve_memory_mib(2048), config.reserve_memory_mib(65_536)), (512, 1024));
        for (bad, word) in [
            ("name = 'h 1'\naddress = '10.0.0.1'", "name"),
            ("name = 'h1'", "address"),
            ("name = 'h1'\naddress = '10.0.0.1'\nstate_dirr = '/x'", "state_dirr"),
            ("name = 'h1'\naddress = '10.0.0.1'\nstate_dir = 'x'", "state_dir"),
            ("name = 'h1'\naddress = '10.0.0.1'\nregistry_listen = '10.0.0.1:5'", "registry_listen"),
            ("name = 'h1'\naddress = '10.0.0.1'\nimage_cache_gib = 1073741825", "image_cache_gib"),
        ] {
            let error = format!("{:#}", Config::parse(bad).unwrap_err());
            assert!(error.contains(word), "{bad}: {error}");
        }
    }
}
