//! The one process of a lab that stays on the machine. It holds what cannot live inside the lab's namespaces: the lock, the
//! listening socket of the API, the loop devices and the control groups; and it takes them back when the lab has ended, however.

use std::fs::{self, File, OpenOptions};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, setsid};

use super::layout::{CONTROLLER, Layout, host_name};
use super::program::own_program;
use super::{cgroup, clean, disk};

/// Takes the lab's lock; None when a lab lives in this directory.
pub fn take_lock(layout: &Layout) -> Result<Option<Flock<File>>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(layout.lock())
        .context("open the lab's lock")?;
    Ok(Flock::lock(file, FlockArg::LockExclusiveNonblock).ok())
}

/// Runs a lab from start to end. Called as a process of its own, detached.
pub fn guard(layout: &Layout, hosts: u8, engines_only: bool, sizes: disk::Sizes) -> Result<()> {
    // Fails only for a process that leads a group already, which a freshly spawned one may be and which is just as well.
    let _ = setsid();
    let _lock = take_lock(layout)?.context("a lab lives in this directory already")?;
    let nodes: Vec<String> =
        std::iter::once(CONTROLLER.to_owned()).chain((1..=hosts).map(host_name)).collect();
    let result = run(layout, &nodes, engines_only, sizes);
    clean::sweep(layout)?;
    result
}

fn run(layout: &Layout, nodes: &[String], engines_only: bool, sizes: disk::Sizes) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context("open the API's socket")?;
    let address = listener.local_addr().context("address of the API's socket")?;
    fs::write(layout.api_address(), address.to_string()).context("write the API's address")?;
    disk::create(layout, nodes, sizes)?;
    cgroup::create(layout, nodes)?;
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--net",
        "--pid",
        "--uts",
        "--ipc",
        "--fork",
        "--kill-child=KILL",
    ]);
    command.arg(own_program()?).arg("underlay").args(nodes);
    if engines_only {
        command.arg("--engines-only");
    }
    let mut child = command
        .env("AMPHI_LAB_DIR", layout.root())
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .spawn()
        .context("start the lab's namespaces")?;
    // Blocked only after the child was started, which would inherit it.
    let mut asked = SigSet::empty();
    asked.add(Signal::SIGTERM);
    asked.add(Signal::SIGINT);
    asked.thread_block().context("block signals")?;
    let lab = i32::try_from(child.id()).context("pid out of range")?;
    std::thread::spawn(move || {
        if asked.wait().is_ok() {
            let _ = kill(Pid::from_raw(lab), Signal::SIGKILL);
        }
    });
    child.wait().context("wait for the lab").map(drop)
}
