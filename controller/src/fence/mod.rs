//! Fence devices: what makes sure, from outside, that a host is off. `Ok` is a promise: the host runs nothing now. Every
//! driver is bounded, names the host and the device in its errors, and never says a secret.
//!
//! Owns how devices are asked. Refuses to decide when: see `tasks/failover`.

mod command;
mod ipmi;
mod redfish;
#[cfg(test)]
mod tests;

use async_trait::async_trait;
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use command::Command;
pub use ipmi::Ipmi;
pub use redfish::Redfish;

/// How long a device may take in all, unless the settings say otherwise.
pub const TIMEOUT_SECONDS: u64 = 20;
/// Pause between two questions whether the host is off by now.
const POLL: Duration = Duration::from_millis(250);

#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    #[error("{device} cannot be asked to fence '{host}': {message}")]
    Asked { device: &'static str, host: String, message: String },
    #[error("{device} has not said within {seconds} s that '{host}' is off")]
    Late { device: &'static str, host: String, seconds: u64 },
}

/// A device that switches one host off.
#[async_trait]
pub trait FenceDriver: Send + Sync + 'static {
    fn name(&self) -> &'static str;
    /// Returns when the host is off for sure, or why that is not known. Bounded by [`fence`].
    async fn switch_off(&self, host: &str) -> Result<(), FenceError>;
}

/// One host's device, as the settings have it: `[fence.HOST]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(tag = "driver", rename_all = "snake_case", deny_unknown_fields)]
pub enum FenceConfig {
    /// A program that exits with 0 when, and only when, the host is off. It finds the host's name in `AMPHI_FENCE_HOST`.
    Command {
        /// Program and arguments.
        argv: Vec<String>,
        #[serde(default = "timeout")]
        timeout_seconds: u64,
    },
    /// `ipmitool` over lanplus.
    Ipmi {
        address: String,
        user: String,
        /// Holds the password and nothing else.
        password_file: PathBuf,
        #[serde(default = "ipmitool")]
        program: PathBuf,
        #[serde(default = "timeout")]
        timeout_seconds: u64,
    },
    /// DMTF Redfish.
    Redfish {
        /// Of the system: `https://BMC/redfish/v1/Systems/1`.
        url: String,
        user: String,
        /// Holds the password and nothing else.
        password_file: PathBuf,
        /// The CA (PEM) that the BMC's certificate is signed by. Default: the machine's own.
        #[serde(default)]
        ca_file: Option<PathBuf>,
        #[serde(default = "timeout")]
        timeout_seconds: u64,
    },
}

fn timeout() -> u64 {
    TIMEOUT_SECONDS
}

fn ipmitool() -> PathBuf {
    "ipmitool".into()
}

/// A device with its bound.
#[derive(Clone)]
pub struct Fence {
    pub driver: Arc<dyn FenceDriver>,
    pub timeout: Duration,
}

impl FenceConfig {
    pub fn open(&self) -> anyhow::Result<Fence> {
        let (driver, seconds): (Arc<dyn FenceDriver>, u64) = match self {
            Self::Command { argv, timeout_seconds } => {
                anyhow::ensure!(!argv.is_empty(), "argv is empty");
                (Arc::new(Command { argv: argv.clone() }), *timeout_seconds)
            }
            Self::Ipmi { address, user, password_file, program, timeout_seconds } => (
                Arc::new(Ipmi {
                    program: program.clone(),
                    address: address.clone(),
                    user: user.clone(),
                    password_file: password_file.clone(),
                }),
                *timeout_seconds,
            ),
            Self::Redfish { url, user, password_file, ca_file, timeout_seconds } => {
                (Arc::new(Redfish::open(url, user, password_file, ca_file.as_deref())?), *timeout_seconds)
            }
        };
        anyhow::ensure!((1..=300).contains(&seconds), "timeout_seconds must be 1 to 300");
        Ok(Fence { driver, timeout: Duration::from_secs(seconds) })
    }
}

impl Fence {
    /// Switches the host off. An error says nothing about the host.
    pub async fn fence(&self, host: &str) -> Result<(), FenceError> {
        let late = |_| FenceError::Late {
            device: self.driver.name(),
            host: host.to_owned(),
            seconds: self.timeout.as_secs(),
        };
        tokio::time::timeout(self.timeout, self.driver.switch_off(host)).await.map_err(late)?
    }
}
