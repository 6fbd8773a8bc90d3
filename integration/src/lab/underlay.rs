//! The first process of the whole lab: the bridges between the nodes, the cuts in it, and the life of each node (power cut,
//! return, pause). It refuses to look inside a node; a node answers for itself on its own socket.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::BufRead;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::layout::{CONTROLLER, Layout, MANAGEMENT, UNDERLAY_MTU, address, mac, management_address};
use super::processes::Processes;
use super::program::own_program;
use super::proto::{Party, Reply, Request, listen, listener_pid, send, serve};
use super::{cgroup, disk, mounts};

/// Without anybody holding the lab by then, whoever started it is gone.
const HOLD_LIMIT: Duration = Duration::from_secs(30);

/// A network between the parties.
struct Wire {
    bridge: &'static str,
    /// As a party sees it.
    interface: &'static str,
    /// What its port of the bridge is called beyond the party's name.
    suffix: &'static str,
    mtu: u32,
    address: fn(&str) -> Result<Ipv4Addr>,
}

/// The underlay carries the hosts' own traffic and their guests', through their switches; the management network leads to the
/// controller past them, as on machines with a port for it.
const WIRES: [Wire; 2] = [
    Wire { bridge: "underlay", interface: "uplink", suffix: "", mtu: UNDERLAY_MTU, address },
    Wire {
        bridge: "management",
        interface: MANAGEMENT,
        suffix: "-m",
        mtu: 1500,
        address: management_address,
    },
];

impl Wire {
    fn port(&self, party: &str) -> String {
        format!("{party}{}", self.suffix)
    }
}

struct Underlay {
    layout: Layout,
    engines_only: bool,
    processes: Processes,
    /// The process that waits for each node's first process; None after a power cut.
    nodes: Mutex<BTreeMap<String, Option<i32>>>,
    cuts: Mutex<BTreeSet<(String, String)>>,
    held: Mutex<bool>,
}

/// Runs the lab as the first process of its namespaces; returns only on failure, ends the process on `down`.
pub fn run_underlay(layout: &Layout, nodes: &[String], engines_only: bool) -> Result<()> {
    cgroup::enter(layout, "underlay")?;
    mounts::own_namespace()?;
    mounts::own_run()?;
    fs::write("/proc/sys/kernel/hostname", "amphi-lab").context("set the lab's name")?;
    let listener = listen(&layout.control())?;
    let underlay = Arc::new(Underlay {
        layout: layout.clone(),
        engines_only,
        processes: Processes::start(),
        nodes: Mutex::new(nodes.iter().map(|n| (n.clone(), None)).collect()),
        cuts: Mutex::default(),
        held: Mutex::new(false),
    });
    underlay.make_bridges()?;
    for node in nodes {
        underlay.power_on(node)?;
    }
    let watching = underlay.clone();
    std::thread::spawn(move || {
        std::thread::sleep(HOLD_LIMIT);
        if !*watching.held.lock().unwrap_or_else(PoisonError::into_inner) {
            eprintln!("nobody holds the lab: ending");
            std::process::exit(0);
        }
    });
    serve(listener, move |request, mut stream, mut reader| {
        if matches!(request, Request::Hold) {
            *underlay.held.lock().unwrap_or_else(PoisonError::into_inner) = true;
            drop(send(&mut stream, &Reply::Done));
            let mut line = String::new();
            if reader.read_line(&mut line).is_ok() && line.trim() == "detach" {
                drop(send(&mut stream, &Reply::Done));
                return;
            }
            eprintln!("the holder is gone: ending");
            std::process::exit(0);
        }
        let down = matches!(request, Request::Down);
        let reply = underlay.answer(request).unwrap_or_else(|error| Reply::Failed(format!("{error:#}")));
        drop(send(&mut stream, &reply));
        if down {
            std::process::exit(0);
        }
    });
    bail!("the control socket is gone")
}

impl Underlay {
    fn answer(&self, request: Request) -> Result<Reply> {
        match request {
            Request::Parties => {
                let nodes = self.nodes();
                let alive = |pid: &Option<i32>| pid.is_some_and(|p| self.processes.exit(p).is_none());
                return Ok(Reply::Parties(
                    nodes
                        .iter()
                        .map(|(name, pid)| Party { name: name.clone(), powered: alive(pid) })
                        .collect(),
                ));
            }
            Request::PowerCut { host } => self.power_cut(&host)?,
            Request::Return { host } => self.power_on(&host)?,
            Request::Cut { from, to } => self.set_cut(&from, &to, true)?,
            Request::Heal { from, to } => self.set_cut(&from, &to, false)?,
            Request::PauseNode { node } => self.signal_all(&node, Signal::SIGSTOP)?,
            Request::ResumeNode { node } => self.signal_all(&node, Signal::SIGCONT)?,
            Request::Down => {}
            other => bail!("not a request for the supervisor: {other:?}"),
        }
        Ok(Reply::Done)
    }

    fn nodes(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Option<i32>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make_bridges(&self) -> Result<()> {
        self.processes.run(&["ip", "link", "set", "dev", "lo", "up"])?;
        for Wire { bridge, .. } in WIRES {
            let quick = ["stp_state", "0", "forward_delay", "0", "mcast_snooping", "0"];
            self.processes
                .run(&[&["ip", "link", "add", "name", bridge, "type", "bridge"], &quick[..]].concat())?;
            self.processes.run(&["ip", "link", "set", "dev", bridge, "up"])?;
        }
        // Where bridged packets pass iptables, a firewall rule could eat them.
        for table in ["iptables", "ip6tables", "arptables"] {
            let switch = format!("/proc/sys/net/bridge/bridge-nf-call-{table}");
            if Path::new(&switch).exists() {
                fs::write(&switch, "0").with_context(|| format!("write {switch}"))?;
            }
        }
        Ok(())
    }

    /// Plugs a party into a network: a port of the network's bridge at this end, an interface with a MAC of its own at the
    /// party's.
    fn plug(&self, wire: &Wire, name: &str) -> Result<()> {
        let (port, mtu, mac) = (wire.port(name), wire.mtu.to_string(), mac((wire.address)(name)?));
        let far = ["peer", "name", wire.interface, "address", &mac, "mtu", &mtu, "netns", name];
        let near = ["ip", "link", "add", "name", &port, "mtu", &mtu, "type", "veth"];
        self.processes.run(&[&near[..], &far[..]].concat())?;
        self.processes.run(&["ip", "link", "set", "dev", &port, "master", wire.bridge, "up"]).map(drop)
    }

    fn power_on(&self, name: &str) -> Result<()> {
        let mut nodes = self.nodes();
        let process = nodes.get_mut(name).with_context(|| format!("no party called {name:?}"))?;
        ensure!(process.is_none(), "{name} is powered already");
        self.processes.run(&["ip", "netns", "add", name])?;
        WIRES.iter().try_for_each(|wire| self.plug(wire, name))?;
        let path = self.layout.log(name, "node");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        let _ = fs::remove_file(self.layout.node_control(name));
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{name}")).args([
            "unshare",
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--fork",
            "--kill-child=KILL",
        ]);
        command.arg(own_program()?).args(["node", name]);
        if self.engines_only {
            command.arg("--engines-only");
        }
        if name == CONTROLLER {
            let socket = std::io::stdin().as_fd().try_clone_to_owned().context("copy the API's socket")?;
            command.stdin(Stdio::from(socket));
        } else {
            command.stdin(Stdio::null());
        }
        command.stdout(log.try_clone().context("share log")?).stderr(log);
        *process = Some(self.processes.spawn(&mut command)?.0);
        Ok(())
    }

    fn power_cut(&self, name: &str) -> Result<()> {
        let mut nodes = self.nodes();
        let process = nodes.get_mut(name).with_context(|| format!("no party called {name:?}"))?;
        let waiting = process.with_context(|| format!("{name} has no power already"))?;
        if self.processes.exit(waiting).is_none() {
            let first = listener_pid(&self.layout.node_control(name))?;
            ensure!(first > 1, "{name}: its first process cannot be told");
            kill(Pid::from_raw(first), Signal::SIGKILL)
                .with_context(|| format!("kill the first process of {name}"))?;
            self.processes
                .wait(waiting, Duration::from_secs(20))
                .with_context(|| format!("{name} outlives its first process"))?;
        }
        *process = None;
        let _ = fs::remove_file(self.layout.node_control(name));
        for wire in &WIRES {
            self.processes.run(&["ip", "link", "del", "dev", &wire.port(name)])?;
        }
        self.processes.run(&["ip", "netns", "del", name])?;
        disk::detach_windows(&self.layout, name)?;
        cgroup::drop_node(&self.layout, name)
    }

    /// A cut drops what one party's ports of the bridges would hand to the other's: tunnels, ARP, everything.
    fn set_cut(&self, from: &str, to: &str, cut: bool) -> Result<()> {
        let nodes = self.nodes();
        for party in [from, to] {
            ensure!(nodes.contains_key(party), "no party called {party:?}");
        }
        ensure!(from != to, "{from} cannot be cut from itself");
        let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        let pair = (from.to_owned(), to.to_owned());
        if cuts.contains(&pair) == cut {
            return Ok(());
        }
        let action = if cut { "-A" } else { "-D" };
        for wire in &WIRES {
            let (from, to) = (wire.port(from), wire.port(to));
            self.processes.run(&["ebtables", action, "FORWARD", "-i", &from, "-o", &to, "-j", "DROP"])?;
        }
        if cut {
            cuts.insert(pair)
        } else {
            cuts.remove(&pair)
        };
        Ok(())
    }

    /// Signals every process of a node until a look finds no process that was not signalled yet.
    fn signal_all(&self, name: &str, signal: Signal) -> Result<()> {
        let first = listener_pid(&self.layout.node_control(name))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut signalled = BTreeSet::new();
        loop {
            let new: Vec<i32> = members(first).difference(&signalled).copied().collect();
            if new.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{name} starts processes faster than they can be stopped");
            for pid in new {
                let _ = kill(Pid::from_raw(pid), signal);
                signalled.insert(pid);
            }
        }
    }
}

/// The processes of the node whose first process is `first`: its descendants (containers have pid namespaces of their own), and
/// whatever entered its pid namespace from outside.
fn members(first: i32) -> BTreeSet<i32> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace(first);
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all: Vec<i32> = entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    let parents: BTreeMap<i32, i32> = all.iter().filter_map(|pid| Some((*pid, parent(*pid)?))).collect();
    let mut found: BTreeSet<i32> =
        all.iter().copied().filter(|pid| own.is_some() && namespace(*pid) == own).collect();
    loop {
        let more: Vec<i32> = parents
            .iter()
            .filter(|(pid, parent)| found.contains(parent) && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")).and_then(|value| value.trim().parse().ok())
}
