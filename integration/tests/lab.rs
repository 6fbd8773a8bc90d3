//! The lab itself, on real engines without our own binaries: two hosts reach each other through a tunnel, cuts cut, a power cut
//! kills and keeps what a power cut kills and keeps, and nothing is left behind.

use std::path::Path;
use std::time::{Duration, Instant};

use amphi_integration::lab::{Lab, Layout, UpOptions, end, leftovers};
use nix::sys::signal::Signal;

fn lab(directory: &Path) -> Lab {
    let layout = Layout::at(directory).expect("lab directory");
    let mut options = UpOptions::new(layout, env!("CARGO_BIN_EXE_amphi-lab").into(), 2);
    options.engines_only = true;
    let began = Instant::now();
    let lab = Lab::up(&options, |_| {}).expect("lab up");
    println!("lab up in {:.2} s", began.elapsed().as_secs_f64());
    lab
}

/// Waits until `check` is satisfied; says what it saw last otherwise.
fn eventually(what: &str, mut check: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match check() {
            Ok(()) => return,
            Err(seen) if Instant::now() > deadline => panic!("{what}: not within 30 s; last seen: {seen}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A guest: an OVS internal port in a network namespace of its own, bound to a logical port.
fn plug(lab: &Lab, host: &str, port: &str, number: u8) {
    let (mac, ip) = (format!("02:aa:00:00:00:{number:02x}"), format!("192.168.7.{number}"));
    lab.run(
        "controller",
        &[
            "ovn-nbctl",
            "--may-exist",
            "lsp-add",
            "net",
            port,
            "--",
            "lsp-set-addresses",
            port,
            &format!("{mac} {ip}"),
        ],
    )
    .expect("logical port");
    let script = format!(
        "ovs-vsctl --may-exist add-port br-int {port} -- set Interface {port} type=internal external_ids:iface-id={port} && ip netns add {port} && ip link set {port} netns {port} && \
         ip -n {port} link set {port} address {mac} mtu 1500 up && ip -n {port} addr add {ip}/24 dev {port}"
    );
    lab.run(host, &["sh", "-c", &script]).expect("plug");
}

fn ping(lab: &Lab, host: &str, from: &str, to: u8) -> Result<(), String> {
    let to = format!("192.168.7.{to}");
    let argv = ["ip", "netns", "exec", from, "busybox", "ping", "-c", "1", "-W", "1", &to];
    match lab.exec(host, &argv, Duration::from_secs(10)) {
        Ok(output) if output.ok() => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn engines_guests_cuts_and_power() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("directory");
    let lab = lab(directory.path());
    let layout = lab.layout().clone();

    // Real engines answer on both hosts, each with its own state.
    for host in ["h1", "h2"] {
        assert_eq!(lab.run(host, &["hostname"]).unwrap().trim(), host);
        let driver = lab
            .run(host, &["curl", "-sf", "--unix-socket", "/run/docker.sock", "http://docker/info"])
            .unwrap();
        assert!(driver.contains("\"Driver\":\"overlay2\""), "{driver}");
        assert!(lab.run(host, &["virsh", "-c", "qemu:///system", "list", "--all"]).is_ok());
        assert!(
            lab.run(host, &["vgs", "--driverloaded", "n", "--noheadings", "-o", "vg_name"])
                .unwrap()
                .contains("amphi")
        );
    }

    // A tunnel between two guests.
    lab.run("controller", &["ovn-nbctl", "ls-add", "net"]).unwrap();
    plug(&lab, "h1", "p1", 1);
    plug(&lab, "h2", "p2", 2);
    eventually("guests reach each other", || ping(&lab, "h1", "p1", 2));

    // A cut stops the tunnel, one way as well as both; the controller is still reached.
    lab.cut("h1", "h2", true).unwrap();
    assert!(ping(&lab, "h1", "p1", 2).is_err(), "a one-way cut lets a ping through");
    lab.heal("h1", "h2").unwrap();
    eventually("guests reach each other again", || ping(&lab, "h1", "p1", 2));
    lab.cut("h2", "controller", false).unwrap();
    assert!(ping(&lab, "h1", "p1", 2).is_ok(), "a cut from the controller stops the tunnel between hosts");
    let reach = |lab: &Lab| {
        lab.exec("h2", &["busybox", "ping", "-c", "1", "-W", "1", "10.99.0.1"], Duration::from_secs(10))
            .unwrap()
            .ok()
    };
    assert!(!reach(&lab), "h2 still reaches the controller");
    lab.heal("h2", "controller").unwrap();
    assert!(reach(&lab), "h2 does not reach the controller after the heal");

    // One daemon: killed, seen as dead, started again. Paused, it does not answer.
    lab.kill("h1", "dockerd", Signal::SIGKILL).unwrap();
    let docker =
        |lab: &Lab| lab.status("h1").unwrap().units.into_iter().find(|u| u.name == "dockerd").unwrap();
    assert_eq!(docker(&lab).state, "exited");
    lab.start("h1", "dockerd").unwrap();
    assert_eq!(docker(&lab).state, "ready");
    lab.pause("h1/dockerd").unwrap();
    let asked = lab
        .exec(
            "h1",
            &["curl", "-sf", "--max-time", "1", "--unix-socket", "/run/docker.sock", "http://docker/_ping"],
            Duration::from_secs(10),
        )
        .unwrap();
    assert_eq!(asked.code, Some(28), "curl's exit for a timeout: {asked:?}");
    lab.resume("h1/dockerd").unwrap();

    // A frozen host answers nothing and comes back as it was.
    lab.pause("h2").unwrap();
    assert!(lab.status("h2").is_err(), "a frozen host tells its status");
    assert!(ping(&lab, "h1", "p1", 2).is_err(), "a frozen host answers");
    lab.resume("h2").unwrap();
    eventually("the frozen host is back", || ping(&lab, "h1", "p1", 2));

    // No room, and room again.
    let write = |lab: &Lab| {
        lab.exec(
            "h1",
            &["dd", "if=/dev/zero", "of=/var/lib/amphi/x", "bs=64k", "count=16"],
            Duration::from_secs(20),
        )
        .unwrap()
    };
    lab.disk_full("h1").unwrap();
    assert!(write(&lab).stderr.contains("No space left on device"));
    lab.disk_free("h1").unwrap();
    assert!(write(&lab).ok());

    // A power cut: gone at once, with a window over its volumes' disk open; state is kept, /run is not.
    let pv = lab.run("h2", &["pvs", "--driverloaded", "n", "--noheadings", "-o", "pv_name"]).unwrap();
    lab.run("h2", &["sh", "-c", &format!("echo kept > /var/lib/amphi/kept; echo lost > /run/lost; sync; losetup -f --offset 1048576 --sizelimit 1048576 {}", pv.trim())]).unwrap();
    lab.run(
        "h2",
        &["lvcreate", "--driverloaded", "n", "-an", "-Zn", "-Wn", "-L", "16m", "-n", "vol-x", "amphi"],
    )
    .unwrap();
    lab.power_cut("h2").unwrap();
    assert!(ping(&lab, "h1", "p1", 2).is_err(), "a host without power answers");
    assert!(lab.exec("h2", &["true"], Duration::from_secs(5)).is_err());
    let began = Instant::now();
    lab.restore("h2", |_| {}).expect("h2 returns");
    println!("h2 back in {:.2} s", began.elapsed().as_secs_f64());
    assert_eq!(lab.run("h2", &["cat", "/var/lib/amphi/kept"]).unwrap(), "kept\n");
    assert!(!lab.exec("h2", &["test", "-e", "/run/lost"], Duration::from_secs(5)).unwrap().ok());
    assert!(
        lab.run("h2", &["lvs", "--driverloaded", "n", "--noheadings", "-o", "lv_name"])
            .unwrap()
            .contains("vol-x")
    );
    plug(&lab, "h2", "p2", 2);
    eventually("the returned host's guest is reached", || ping(&lab, "h1", "p1", 2));

    // No way out.
    let route = lab.run("h1", &["ip", "route", "show", "default"]).unwrap();
    assert_eq!(route, "", "a host has a way out");

    lab.down().expect("down");
    assert_eq!(leftovers(&layout), Vec::<String>::new());
}

#[test]
fn a_lab_whose_owner_vanishes_takes_itself_down() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("directory");
    let lab = lab(directory.path());
    let layout = lab.layout().clone();
    assert!(!leftovers(&layout).is_empty(), "the check finds nothing of a lab that is up");
    drop(lab);
    end(&layout).expect("the lab ends");
    assert_eq!(leftovers(&layout), Vec::<String>::new());
}

#[test]
fn a_killed_supervisor_leaves_nothing_that_the_next_up_does_not_clean() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("directory");
    let first = lab(directory.path());
    let layout = first.layout().clone();
    let supervisor = amphi_integration::lab::supervisor_pid(&layout).expect("supervisor");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(supervisor), Signal::SIGKILL).expect("kill");
    end(&layout).expect("the lab ends");
    assert_eq!(leftovers(&layout), Vec::<String>::new());
    let second = lab(directory.path());
    second.down().expect("down");
    assert_eq!(leftovers(&layout), Vec::<String>::new());
}
