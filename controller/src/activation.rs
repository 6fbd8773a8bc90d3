//! A listening socket handed over by whoever started us (systemd's protocol, `LISTEN_FDS=1`: descriptor 3).
#![allow(unsafe_code)]

use anyhow::{Context, ensure};
use std::net::TcpListener;
use std::os::fd::FromRawFd;

/// The first descriptor after standard error, as sd_listen_fds(3) has it.
const FIRST: i32 = 3;

/// The socket that was handed over, if there is one. To be called once, before anything opens a file.
pub fn listener() -> anyhow::Result<Option<TcpListener>> {
    let Ok(count) = std::env::var("LISTEN_FDS") else { return Ok(None) };
    if std::env::var("LISTEN_PID").is_ok_and(|pid| pid != std::process::id().to_string()) {
        return Ok(None);
    }
    ensure!(count == "1", "LISTEN_FDS is {count}; one socket is taken, not more");
    // Sound: by the protocol descriptor 3 is ours alone, and nothing in this process has opened or taken it yet.
    let listener = unsafe { TcpListener::from_raw_fd(FIRST) };
    listener.local_addr().context("descriptor 3 is no listening TCP socket")?;
    listener.set_nonblocking(true)?;
    Ok(Some(listener))
}
