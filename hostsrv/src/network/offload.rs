//! Switches a device's transmit checksum offload off. A userspace datapath hands packets on as
//! they are: with the offload on, a guest's TCP segments would arrive with checksums that nobody
//! ever filled in, pings would pass and TCP would stall.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// linux/ethtool.h: ETHTOOL_STXCSUM.
const SET_TX_CHECKSUM: u32 = 0x17;

/// linux/ethtool.h: struct ethtool_value.
#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    data: u32,
}

pub fn disable_tx_checksum(device: &str) -> io::Result<()> {
    let name = device.as_bytes();
    if name.is_empty() || name.len() >= nix::libc::IFNAMSIZ || name.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a device name"));
    }
    let control = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut value = EthtoolValue { cmd: SET_TX_CHECKSUM, data: 0 };
    // SAFETY: all-zero bytes are a valid ifreq, which is plain C data.
    let mut request: nix::libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = *from as nix::libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: SIOCETHTOOL reads an ifreq (ours, alive, its name terminated by the zeroes above)
    // and the ethtool_value behind ifru_data, which outlives the call.
    let done =
        unsafe { nix::libc::ioctl(control.as_raw_fd(), nix::libc::SIOCETHTOOL as _, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_names_that_are_none_and_reports_missing_devices() {
        for bad in ["", "a\0b", "a-name-that-is-too-long"] {
            assert_eq!(disable_tx_checksum(bad).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(disable_tx_checksum("nosuchdevice0").unwrap_err().raw_os_error(), Some(nix::libc::ENODEV));
    }
}
