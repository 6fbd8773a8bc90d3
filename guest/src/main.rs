//! The first process of a set that runs as a VM: mounts what members stand on, brings up the network, starts the
//! members in order, and tells its host. Refuses to decide what should run: that is in its description.

mod boot;
mod calls;
mod cgroup;
mod channel;
mod convert;
mod dhcp;
mod launch;
mod logs;
mod members;
mod network;
mod own_disk;
mod power;
mod probes;
mod processes;
mod rootfs;
mod streams;
mod user;

use amphi_guest::SCRATCH_SERIAL;
use amphi_guest::config::{Guest, resolv_conf};
use boot::{mount, told};
use members::Members;
use nix::mount::MsFlags;
use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// On the machine's console, whoever reads it.
pub fn say(what: &str) {
    if let Ok(mut console) = fs::File::options().write(true).open("/dev/console") {
        // Nobody may be there to read it.
        let _unread = writeln!(console, "amphi-guest: {what}");
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // A member's first process has the number 1 too, in its own namespace; the kernel starts no init with these words.
    if let [role, name] = words.as_slice()
        && matches!(role.as_str(), "member" | "enter" | "exec" | "within" | "service")
    {
        return launch::run(role, name);
    }
    if std::process::id() != 1 {
        eprintln!("amphi-guest-init is the first process of a virtual machine, started by its kernel");
        return ExitCode::from(2);
    }
    match run() {
        Ok(members) => {
            say("running");
            // Threads do all that is left to do.
            members.wait(None, |_| false);
        }
        Err(error) => say(&format!("this guest cannot go on: {error}")),
    }
    // A first process that ended would be a panic of the kernel; this way the console can be read.
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn run() -> io::Result<Arc<Members>> {
    boot::settle()?;
    say("init");
    if let Some(what) = convert::wanted() {
        convert::run(&what)?;
    }
    if let Some(root) = own_disk::wanted() {
        own_disk::run(&root)?;
    }
    processes::reap();
    let guest = told("the description", boot::description())?;
    fs::write(launch::DESCRIPTION, serde_json::to_vec(&guest)?)?;
    told("the disk that members write on", mount_scratch())?;
    let mut trouble = Vec::new();
    lay_out(&guest, &mut trouble)?;
    let members = Members::new(guest)?;
    if !trouble.is_empty() {
        let text = trouble.join("; ");
        say(&text);
        members.change(|table| table.trouble = Some(text));
    }
    channel::Channel::open(&members)?;
    let ends = members.clone();
    power::listen(move || power::off(&ends));
    // Members without the volume or the network that they are promised would do harm.
    if trouble.is_empty() {
        members.begin();
    }
    Ok(members)
}

fn mount_scratch() -> io::Result<()> {
    let device = boot::disk(SCRATCH_SERIAL)?;
    mount(&device.to_string_lossy(), "/scratch", "ext4", MsFlags::MS_NODEV, "")
}

/// Everything that members stand on. What is wrong with it and can be told over the port goes into `trouble`.
fn lay_out(guest: &Guest, trouble: &mut Vec<String>) -> io::Result<()> {
    let mut note = |result: io::Result<()>, what: &str| {
        if let Err(error) = result {
            trouble.push(format!("{what}: {error}"));
        }
    };
    cgroup::settle()?;
    mount(
        "shm",
        "/run/shm",
        "tmpfs",
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        &format!("mode=1777,size={}m", guest.shm_mib),
    )?;
    nix::unistd::sethostname(&guest.hostname)?;
    note(network::bring_up(&guest.interfaces), "the network");
    for (key, value) in &guest.sysctls {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        note(fs::write(&path, value), &format!("kernel parameter {key}"));
    }
    for member in &guest.members {
        let target = format!("/images/{}", member.root);
        if !fs::exists(&target)? {
            fs::create_dir_all(&target)?;
            let mounted = boot::disk(&member.root).and_then(|device| {
                mount(
                    &device.to_string_lossy(),
                    &target,
                    "squashfs",
                    MsFlags::MS_RDONLY | MsFlags::MS_NODEV,
                    "",
                )
            });
            note(mounted, &format!("the image of {}", member.name));
        }
        note(cgroup::make(member), &format!("the limits of {}", member.name));
    }
    if let Some(volume) = &guest.volume {
        note(boot::mount_volume(&volume.serial, "/volume", volume.read_only), "the volume");
    }
    for (name, disk) in &guest.further {
        let target = format!("/further/{name}");
        note(boot::mount_volume(&disk.serial, &target, disk.read_only), &format!("the volume {name}"));
    }
    if !guest.config_drive.is_empty() {
        let mounted = boot::disk(&guest.config_drive).and_then(|device| {
            let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
            mount(&device.to_string_lossy(), "/config", "vfat", flags, "")
        });
        note(mounted, "the config drive");
    }
    names(guest)
}

/// The files by which names are resolved, the same for all members.
fn names(guest: &Guest) -> io::Result<()> {
    let folder = format!("{}/etc", rootfs::FILES);
    fs::create_dir_all(&folder)?;
    let resolv = resolv_conf(&guest.dns, &guest.dns_search, &guest.dns_options);
    let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for (name, address) in &guest.hosts {
        hosts.push_str(&format!("{address}\t{name}\n"));
    }
    fs::write(format!("{folder}/resolv.conf"), resolv)?;
    fs::write(format!("{folder}/hosts"), hosts)?;
    fs::write(format!("{folder}/hostname"), format!("{}\n", guest.hostname))
}
