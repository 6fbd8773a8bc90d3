//! What host and guest say to each other when a set runs as a VM: the description that the guest starts from
//! ([`config`]) and the lines over its serial port ([`words`]). Refuses to know how either side carries it out.

pub mod config;
pub mod conversion;
pub mod words;

/// Raised when a description or a line changes its meaning; each side refuses another one by name.
pub const VERSION: u32 = 1;
/// The virtio-serial port that lines go over.
pub const PORT: &str = "org.amphi.guest.0";
/// The serial number of the disk that holds the description as JSON, filled up with zeros.
pub const CONFIG_SERIAL: &str = "amphi-guest";
/// The serial number of the disk that members write on: ext4.
pub const SCRATCH_SERIAL: &str = "scratch";
/// Largest description, in bytes: 64 members with 256 KiB of files each, and what JSON makes of them.
pub const CONFIG_MAX: usize = 64 << 20;
