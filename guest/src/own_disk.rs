//! What a disk starts that was made of a container image: finds its root file system and becomes its init; or, where its
//! command is no init, gives the machine an address and runs the command, again whenever it ends, until the power button is
//! pressed. Refuses to know members: nobody speaks with such a machine.

use crate::boot::{mount, told};
use crate::convert::probe::{self, Content};
use crate::{calls, dhcp, launch, network, power, processes};
use amphi_guest::config::{Interface, Member, Route};
use amphi_guest::conversion::{ROOT_WORD, START_FILE, START_MAX, Start};
use nix::mount::{MntFlags, MsFlags, umount2};
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

const ROOT: &str = "/disk";
/// How long the disk may take to appear.
const APPEAR: Duration = Duration::from_secs(20);
/// Between the end of the command and its next start.
const AGAIN: Duration = Duration::from_secs(1);
/// For its orderly end.
const GRACE: Duration = Duration::from_secs(15);
/// Where its role finds how it starts.
const START: &str = "/run/start.json";

/// The UUID of the root file system, if this machine runs from a disk of its own.
pub fn wanted() -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let word =
        |word: &str| word.strip_prefix(ROOT_WORD).and_then(|rest| rest.strip_prefix('=')).map(str::to_owned);
    line.split_whitespace().find_map(word)
}

/// Goes on as its system. Comes back only where something is wrong.
pub fn run(uuid: &str) -> io::Result<()> {
    let root = find(uuid)?;
    let start = told("how it starts", start(&root))?;
    mount(&root.to_string_lossy(), ROOT, "ext4", MsFlags::empty(), "")?;
    if let Some(init) = &start.init {
        return become_init(init);
    }
    processes::reap();
    fs::write(START, serde_json::to_vec(&start)?)?;
    for (kind, target) in [("proc", "proc"), ("sysfs", "sys"), ("devtmpfs", "dev"), ("tmpfs", "run")] {
        mount(kind, &format!("{ROOT}/{target}"), kind, MsFlags::MS_NOSUID, "")?;
    }
    fs::create_dir_all(format!("{ROOT}/dev/pts"))?;
    mount("pts", &format!("{ROOT}/dev/pts"), "devpts", MsFlags::MS_NOSUID, "ptmxmode=0666,mode=0620,gid=5")?;
    fs::create_dir_all(format!("{ROOT}/dev/shm"))?;
    mount("shm", &format!("{ROOT}/dev/shm"), "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    if let Err(error) = address() {
        crate::say(&format!("the network: {error}"));
    }
    static RUNS: AtomicI32 = AtomicI32::new(0);
    static ENDS: AtomicBool = AtomicBool::new(false);
    let signal = if start.stop_signal > 0 { start.stop_signal } else { nix::libc::SIGTERM };
    power::listen(move || {
        ENDS.store(true, Ordering::SeqCst);
        // It may have ended by itself.
        let _gone = calls::kill(RUNS.load(Ordering::SeqCst), signal);
    });
    while !ENDS.load(Ordering::SeqCst) {
        let service = processes::start(&["service", "own"], Stdio::null(), console(), console())?;
        RUNS.store(service.pid, Ordering::SeqCst);
        crate::say("running");
        let code = loop {
            let since = Instant::now();
            let limit = if ENDS.load(Ordering::SeqCst) { GRACE } else { Duration::from_secs(1) };
            match service.wait(Some(limit)) {
                Some(code) => break Some(code),
                None if ENDS.load(Ordering::SeqCst) && since.elapsed() >= GRACE => break None,
                None => {}
            }
        };
        crate::say(&format!("its command has ended with {code:?}"));
        if !ENDS.load(Ordering::SeqCst) {
            std::thread::sleep(AGAIN);
        }
    }
    power::off_with(|| {
        let _nobody = calls::kill(-1, nix::libc::SIGKILL);
        nix::unistd::sync();
        // Whatever still holds it, it is whole on its disk.
        let _held = umount2(ROOT, MntFlags::MNT_DETACH);
    });
    Ok(())
}

fn console() -> Stdio {
    File::options().write(true).open("/dev/console").map_or_else(|_| Stdio::null(), Stdio::from)
}

/// The partition with this file system, once it is there.
fn find(uuid: &str) -> io::Result<PathBuf> {
    let deadline = Instant::now() + APPEAR;
    loop {
        for entry in fs::read_dir("/sys/class/block")?.flatten() {
            let device = Path::new("/dev").join(entry.file_name());
            let mut head = Vec::new();
            let read =
                File::open(&device).and_then(|file| file.take(probe::HEAD as u64).read_to_end(&mut head));
            if read.is_ok()
                && matches!(probe::content(&head), Some(Content::Files { uuid: found, .. }) if found == uuid)
            {
                return Ok(device);
            }
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("no disk has the file system {uuid}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What the first partition of the root's disk says.
fn start(root: &Path) -> io::Result<Start> {
    let name = root.to_string_lossy().into_owned();
    let first = name.strip_suffix('2').map(|disk| format!("{disk}1")).unwrap_or_default();
    mount(&first, "/config", "vfat", MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID, "")?;
    let mut text = Vec::new();
    File::open(format!("/config/{START_FILE}"))?.take(START_MAX).read_to_end(&mut text)?;
    umount2("/config", MntFlags::empty())?;
    Ok(serde_json::from_slice(&text)?)
}

/// Leaves this root for the disk's, with the kernel's file systems.
fn become_init(init: &str) -> io::Result<()> {
    for path in ["/run/cgroup", "/dev/pts"] {
        umount2(path, MntFlags::MNT_DETACH)?;
    }
    // What is shared cannot be moved.
    mount("", "/", "", MsFlags::MS_REC | MsFlags::MS_PRIVATE, "")?;
    for path in ["/dev", "/proc", "/sys", "/run"] {
        mount(path, &format!("{ROOT}{path}"), "", MsFlags::MS_MOVE, "")?;
    }
    std::env::set_current_dir(ROOT)?;
    mount(".", "/", "", MsFlags::MS_MOVE, "")?;
    nix::unistd::chroot(".")?;
    std::env::set_current_dir("/")?;
    let error = Command::new(init)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/")
        .env("TERM", "linux")
        .exec();
    Err(io::Error::other(format!("{init}: {error}")))
}

/// An address for each interface, and servers of names; the first one is waited for, and all are asked for again in time.
fn address() -> io::Result<()> {
    let mut macs: Vec<String> = fs::read_dir("/sys/class/net")?
        .flatten()
        .filter(|entry| entry.file_name() != "lo")
        .map(|entry| fs::read_to_string(entry.path().join("address")).unwrap_or_default().trim().to_owned())
        .collect();
    macs.sort();
    let up = |mac: &String| Interface { mac: mac.clone(), mtu: 0, ..Interface::default() };
    network::bring_up(&macs.iter().map(up).collect::<Vec<_>>())?;
    let Some(mac) = macs.first().cloned() else { return Ok(()) };
    let lease = take(&mac)?;
    std::thread::spawn(move || {
        let mut seconds = lease.seconds;
        loop {
            // Half of its time is the rule.
            std::thread::sleep(Duration::from_secs(u64::from(seconds.clamp(60, 86_400)) / 2));
            match take(&mac) {
                Ok(lease) => seconds = lease.seconds,
                Err(error) => crate::say(&format!("the address is not prolonged: {error}")),
            }
        }
    });
    Ok(())
}

fn take(mac: &str) -> io::Result<dhcp::Lease> {
    let mut bytes = [0; 6];
    for (byte, text) in bytes.iter_mut().zip(mac.split(':')) {
        *byte = u8::from_str_radix(text, 16).map_err(io::Error::other)?;
    }
    let lease = dhcp::lease("eth0", bytes)?;
    let routes = lease.routes.iter().map(|(to, prefix, via)| Route {
        to: IpAddr::V4(*to),
        prefix: *prefix,
        via: Some(IpAddr::V4(*via)).filter(|via| !via.is_unspecified()),
    });
    let interface = Interface {
        mac: mac.to_owned(),
        mtu: lease.mtu.map_or(0, u32::from),
        addresses: vec![(IpAddr::V4(lease.address), lease.prefix)],
        gateways: lease.gateway.into_iter().filter(|_| lease.routes.is_empty()).collect(),
        routes: routes.collect(),
    };
    network::add(&interface)?;
    let servers: String = lease.dns.iter().map(|server| format!("nameserver {server}\n")).collect();
    let path = format!("{ROOT}/etc/resolv.conf");
    // One that is a link leads where this root has nothing.
    if !servers.is_empty() && !Path::new(&path).is_symlink() {
        fs::write(path, servers)?;
    }
    crate::say(&format!("eth0 has {}", lease.address));
    Ok(lease)
}

/// The role of the process that becomes the command.
pub fn become_service() -> io::Result<Command> {
    let start: Start = serde_json::from_slice(&fs::read(START)?)?;
    nix::unistd::setsid()?;
    nix::unistd::chroot(ROOT)?;
    std::env::set_current_dir("/")?;
    let hostname =
        nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // The machine is its own: nothing is taken from it.
    let member = Member { capabilities: (0..64).collect(), ..Member::default() };
    launch::become_user(&member, &start.user, &start.directory, &start.argv, &start.env, &hostname)
}
