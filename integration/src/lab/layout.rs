//! Where the lab's files lie and what its parties are called: pure names and addresses, no I/O beyond reading the environment.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

/// The party that carries OVN central and the controller.
pub const CONTROLLER: &str = "controller";
/// OVN's northbound and southbound databases, as the underlay sees them.
pub const OVN_NB: &str = "tcp:10.99.0.1:6641";
pub const OVN_SB: &str = "tcp:10.99.0.1:6642";
/// The MTU of the underlay: room for a geneve header around a guest's full 1500 bytes.
pub const UNDERLAY_MTU: u32 = 9000;

/// One lab directory; everything a lab ever writes lies below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// `AMPHI_LAB_DIR`, else `target/lab` below the current directory.
    pub fn from_env() -> Result<Self> {
        match std::env::var_os("AMPHI_LAB_DIR") {
            Some(dir) if !dir.is_empty() => Self::at(Path::new(&dir)),
            _ => Self::at(Path::new("target/lab")),
        }
    }

    /// A lab in `root`, which is created.
    pub fn at(root: &Path) -> Result<Self> {
        std::fs::create_dir_all(root).with_context(|| format!("create lab directory {}", root.display()))?;
        let root =
            root.canonicalize().with_context(|| format!("resolve lab directory {}", root.display()))?;
        for hidden in ["/run", "/proc", "/sys", "/dev", "/etc", "/var/lib", "/var/log", "/var/cache"] {
            ensure!(
                !root.starts_with(hidden),
                "a lab in {} would be hidden from its own hosts, which have a private {hidden}",
                root.display()
            );
        }
        Ok(Self { root })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `amphi-lab-` and eight hex digits of the directory's name: marks this lab's cgroups.
    pub fn id(&self) -> String {
        let digest = Sha256::digest(self.root.as_os_str().as_encoded_bytes());
        format!("amphi-lab-{}", hex::encode(&digest[..4]))
    }

    /// Held (flock) by the guardian for as long as the lab lives.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The supervisor's control socket.
    pub fn control(&self) -> PathBuf {
        self.root.join("control.sock")
    }

    /// Shell variables for clients: AMPHI_URL and AMPHI_TOKEN, and OpenStack's OS_*.
    pub fn env(&self) -> PathBuf {
        self.root.join("env")
    }

    /// `127.0.0.1:PORT` of the API, written by the guardian.
    pub fn api_address(&self) -> PathBuf {
        self.root.join("api-address")
    }

    /// The images made by scripts/make-images.sh.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub fn node(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub fn node_control(&self, name: &str) -> PathBuf {
        self.node(name).join("control.sock")
    }

    pub fn logs(&self, name: &str) -> PathBuf {
        self.node(name).join("log")
    }

    pub fn log(&self, name: &str, daemon: &str) -> PathBuf {
        self.logs(name).join(format!("{daemon}.log"))
    }

    /// The node's own disk: an image with an ext4 that holds its /var and the parts of /etc that engines write.
    pub fn disk_image(&self, name: &str) -> PathBuf {
        self.node(name).join("disk.img")
    }

    /// Where a node mounts its disk, in its own mount namespace only.
    pub fn disk(&self, name: &str) -> PathBuf {
        self.node(name).join("disk")
    }

    /// The image behind a host's LVM physical volume.
    /// The disk that every host sees.
    pub fn shared_image(&self) -> PathBuf {
        self.root().join("shared.img")
    }

    pub fn pv_image(&self, name: &str) -> PathBuf {
        self.node(name).join("pv.img")
    }

    /// The token a new host exchanges for its certificate; written from outside once the controller serves.
    pub fn join_token(&self, name: &str) -> PathBuf {
        self.node(name).join("join-token")
    }
}

/// `h1`, `h2`, …
pub fn host_name(number: u8) -> String {
    format!("h{number}")
}

/// The number in `h1`, `h2`, …; None for anything else.
pub fn host_number(name: &str) -> Option<u8> {
    let number: u8 = name.strip_prefix('h')?.parse().ok()?;
    (number > 0 && number <= 200 && host_name(number) == name).then_some(number)
}

/// A party's interface on the management network.
pub const MANAGEMENT: &str = "mgmt";

/// A party's address on the underlay 10.99.0.0/24: the controller has .1, host N has .10+N.
pub fn address(name: &str) -> Result<Ipv4Addr> {
    if name == CONTROLLER {
        return Ok(Ipv4Addr::new(10, 99, 0, 1));
    }
    let number =
        host_number(name).with_context(|| format!("no party called {name:?} (controller, h1, h2 …)"))?;
    Ok(Ipv4Addr::new(10, 99, 0, 10 + number))
}

/// A party's address on the management network 10.98.0.0/24: numbered as on the underlay.
pub fn management_address(name: &str) -> Result<Ipv4Addr> {
    let [_, _, _, last] = address(name)?.octets();
    Ok(Ipv4Addr::new(10, 98, 0, last))
}

/// A MAC that stays the same over power cuts, as a real machine's does.
pub fn mac(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parties_have_fixed_addresses() {
        for (name, expected) in [
            ("controller", Some("10.99.0.1")),
            ("h1", Some("10.99.0.11")),
            ("h12", Some("10.99.0.22")),
            ("h0", None),
            ("h01", None),
            ("x", None),
        ] {
            assert_eq!(address(name).ok().map(|a| a.to_string()).as_deref(), expected, "{name}");
        }
        assert_eq!(management_address("h1").unwrap().to_string(), "10.98.0.11");
        assert_eq!(mac(address("h1").unwrap()), "02:00:0a:63:00:0b");
    }

    #[test]
    fn a_lab_below_a_private_path_is_refused() {
        let error = Layout::at(Path::new("/proc/self")).unwrap_err().to_string();
        assert!(error.contains("hidden from its own hosts"), "{error}");
    }
}
