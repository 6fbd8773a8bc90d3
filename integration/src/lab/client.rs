//! The lab as its users see it: up, break, look, down. All calls block and have time limits; from asynchronous code use
//! `spawn_blocking`. Nothing here is state of the lab: a `Lab` is a directory and, for its owner, the connection it lives by.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::clean;
use super::environment::environment;
use super::exec::{self, Background, Output};
use super::guardian::take_lock;
use super::layout::{CONTROLLER, Layout, host_name, host_number};
use super::proto::{
    NodeStatus, Party, Reply, Request, UnitStatus, call, connect_when_up, listener_pid, send,
};

/// Long enough for a power cut or a daemon's start on a busy machine.
const CALL_LIMIT: Duration = Duration::from_secs(120);

/// What `up` is asked for.
pub struct UpOptions {
    pub layout: Layout,
    /// The `amphi-lab` program; amphi-controller and amphi-hostsrv are taken from beside it.
    pub program: PathBuf,
    pub hosts: u8,
    /// Leaves out everything of ours: engines, switch and OVN only.
    pub engines_only: bool,
    /// Hands every host a join token. Without it the hosts wait for [`Lab::join`], everything else on them up.
    pub join: bool,
    /// Size of each host's LVM physical volume, a sparse file.
    pub pv_bytes: u64,
    /// Size of a disk that every host sees, with a shared volume group on it; 0: there is none.
    pub shared_bytes: u64,
}

impl UpOptions {
    pub fn new(layout: Layout, program: PathBuf, hosts: u8) -> Self {
        Self { layout, program, hosts, engines_only: false, join: true, pv_bytes: 20 << 30, shared_bytes: 0 }
    }
}

/// A running lab. The one that `up` returned takes the lab down when it is dropped, or when its process dies in whatever way,
/// unless it was detached.
pub struct Lab {
    layout: Layout,
    hold: Option<UnixStream>,
}

impl Lab {
    /// Starts a lab and waits until everything in it serves. `progress` hears of every unit that comes up. On failure the error
    /// carries the end of the failing daemon's log, and nothing is left.
    pub fn up(options: &UpOptions, mut progress: impl FnMut(&UnitStatus)) -> Result<Self> {
        let layout = options.layout.clone();
        match take_lock(&layout)? {
            None => bail!("a lab is up in {} already", layout.root().display()),
            Some(_lock) => {
                clean::sweep(&layout).context("clean up after an earlier lab")?;
                for node in clean::nodes(&layout) {
                    fs::remove_dir_all(layout.node(&node))
                        .with_context(|| format!("remove the old {node}"))?;
                }
            }
        }
        let path = layout.root().join("supervisor.log");
        let log = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
        let mut command = Command::new(&options.program);
        command.args([
            "supervise",
            "--hosts",
            &options.hosts.to_string(),
            "--pv-bytes",
            &options.pv_bytes.to_string(),
            "--shared-bytes",
            &options.shared_bytes.to_string(),
        ]);
        if options.engines_only {
            command.arg("--engines-only");
        }
        command
            .env("AMPHI_LAB_DIR", layout.root())
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share log")?)
            .stderr(log);
        let mut guardian = command.spawn().with_context(|| format!("start {}", options.program.display()))?;
        let hold =
            connect_when_up(&layout.control(), Duration::from_secs(30), || match guardian.try_wait() {
                Ok(Some(status)) => bail!("the lab ended at once ({status}):\n{}", tail(&path)),
                _ => Ok(()),
            });
        // Reaps the guardian when it ends; a test that starts many labs would collect zombies otherwise.
        std::thread::spawn(move || guardian.wait());
        let mut lab = Self { layout, hold: Some(hold?) };
        match lab.hold_and_follow(options, &mut progress) {
            Ok(()) => Ok(lab),
            Err(error) => {
                lab.hold = None;
                let gone = lab.await_end();
                Err(gone.err().map_or(error, |also| anyhow::anyhow!("and taking the lab down: {also:#}")))
            }
        }
    }

    fn hold_and_follow(&mut self, options: &UpOptions, progress: &mut impl FnMut(&UnitStatus)) -> Result<()> {
        let hold = self.hold.as_mut().context("not held")?;
        send(hold, &Request::Hold)?;
        let nodes: Vec<String> =
            std::iter::once(CONTROLLER.to_owned()).chain((1..=options.hosts).map(host_name)).collect();
        let (sender, receiver) = std::sync::mpsc::channel::<Result<UnitStatus>>();
        std::thread::scope(|scope| {
            for node in &nodes {
                let (sender, layout) = (sender.clone(), &self.layout);
                let enough = if options.join { |_: &[UnitStatus]| false } else { awaits_join };
                scope.spawn(move || {
                    let followed = follow(layout, node, enough, |unit| drop(sender.send(Ok(unit.clone()))));
                    drop(followed.map_err(|error| sender.send(Err(error))));
                });
            }
            drop(sender);
            let mut failure = None;
            for event in receiver {
                match event {
                    Ok(unit) => {
                        if unit.node == CONTROLLER
                            && unit.name == "controller"
                            && unit.state == "ready"
                            && let Err(error) = self.open_the_door(if options.join { &nodes } else { &[] })
                        {
                            failure.get_or_insert(error);
                            let _ = call(&self.layout.control(), &Request::Down, Duration::from_secs(5));
                        }
                        progress(&unit);
                    }
                    Err(error) => {
                        // The first failure is the reason; ending the lab lets the other followers go.
                        failure.get_or_insert(error);
                        let _ = call(&self.layout.control(), &Request::Down, Duration::from_secs(5));
                    }
                }
            }
            failure.map_or(Ok(()), Err)
        })
    }

    /// Writes `env` for clients, and a join token for each of these hosts.
    fn open_the_door(&self, nodes: &[String]) -> Result<()> {
        let address = fs::read_to_string(self.layout.api_address()).context("read the API's address")?;
        let secret = |name: &str| -> Result<String> {
            let path = Path::new(super::controller::STATE_DIR).join(name);
            let path = self.file(CONTROLLER, &path)?;
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            Ok(text.trim().to_owned())
        };
        let (url, token) = (format!("http://{address}"), secret("admin-token")?);
        let path = self.layout.env();
        fs::write(&path, environment(&url, &token, &secret("admin-password")?))
            .with_context(|| format!("write {}", path.display()))?;
        for node in nodes.iter().filter(|n| host_number(n).is_some()) {
            self.hand(node, &super::join::token(&url, &token, node)?)?;
        }
        Ok(())
    }

    /// The host's agent finds it and joins with it.
    fn hand(&self, node: &str, token: &str) -> Result<()> {
        let (path, partial) = (self.layout.join_token(node), self.layout.node(node).join("join-token.new"));
        fs::write(&partial, token)
            .and_then(|()| fs::rename(&partial, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// Whether the host has yet to join; see [`UpOptions::join`].
    pub fn awaits_join(&self, node: &str) -> Result<bool> {
        Ok(awaits_join(&self.status(node)?.units))
    }

    /// Has the host's agent join with this token, and waits until everything on the host serves.
    pub fn join(&self, node: &str, token: &str) -> Result<()> {
        self.hand(node, token)?;
        follow(&self.layout, node, |_| false, |_| ())
    }

    /// A lab that somebody else holds or that was detached.
    pub fn attach(layout: Layout) -> Result<Self> {
        let lab = Self { layout, hold: None };
        lab.parties().with_context(|| format!("no lab is up in {}", lab.layout.root().display()))?;
        Ok(lab)
    }

    /// Lets the lab live on when this value and this process are gone.
    pub fn detach(&mut self) -> Result<()> {
        let Some(mut hold) = self.hold.take() else { return Ok(()) };
        hold.write_all(b"detach\n").context("detach from the lab")?;
        hold.set_read_timeout(Some(Duration::from_secs(10))).context("set timeout")?;
        let mut answers = BufReader::new(hold).lines();
        // One answer to the hold, one to this.
        for _ in 0..2 {
            answers.next().context("the lab ended")?.context("detach from the lab")?;
        }
        Ok(())
    }

    /// Ends the lab and waits until nothing of it is left.
    pub fn down(mut self) -> Result<()> {
        self.hold = None;
        let _ = call(&self.layout.control(), &Request::Down, Duration::from_secs(10));
        self.await_end()
    }

    fn await_end(&self) -> Result<()> {
        end(&self.layout)
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub fn parties(&self) -> Result<Vec<Party>> {
        match self.supervisor(&Request::Parties)? {
            Reply::Parties(parties) => Ok(parties),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    /// A paused node does not answer: an error after 5 s.
    pub fn status(&self, node: &str) -> Result<NodeStatus> {
        match call(&self.layout.node_control(node), &Request::Status, Duration::from_secs(5))? {
            Reply::Node(status) => Ok(status),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    /// Kills the node whole: every daemon, container and guest at once.
    pub fn power_cut(&self, node: &str) -> Result<()> {
        self.supervisor(&Request::PowerCut { host: node.to_owned() }).map(drop)
    }

    /// Powers the node on again over the disks it had, and waits until everything on it serves.
    pub fn restore(&self, node: &str, mut progress: impl FnMut(&UnitStatus)) -> Result<()> {
        self.supervisor(&Request::Return { host: node.to_owned() })?;
        follow(&self.layout, node, |_| false, |unit| progress(unit))
    }

    /// Drops everything between two parties, or only what `a` sends to `b`.
    pub fn cut(&self, a: &str, b: &str, one_way: bool) -> Result<()> {
        self.supervisor(&Request::Cut { from: a.to_owned(), to: b.to_owned() })?;
        if one_way {
            return Ok(());
        }
        self.supervisor(&Request::Cut { from: b.to_owned(), to: a.to_owned() }).map(drop)
    }

    /// Undoes [`Self::cut`], in both directions.
    pub fn heal(&self, a: &str, b: &str) -> Result<()> {
        self.supervisor(&Request::Heal { from: a.to_owned(), to: b.to_owned() })?;
        self.supervisor(&Request::Heal { from: b.to_owned(), to: a.to_owned() }).map(drop)
    }

    /// Freezes a node (`h1`) with all it runs, guests included, or one daemon (`h1/dockerd`).
    pub fn pause(&self, what: &str) -> Result<()> {
        match what.split_once('/') {
            Some((node, daemon)) => self.kill(node, daemon, Signal::SIGSTOP),
            None => self.supervisor(&Request::PauseNode { node: what.to_owned() }).map(drop),
        }
    }

    pub fn resume(&self, what: &str) -> Result<()> {
        match what.split_once('/') {
            Some((node, daemon)) => self.kill(node, daemon, Signal::SIGCONT),
            None => self.supervisor(&Request::ResumeNode { node: what.to_owned() }).map(drop),
        }
    }

    /// Sends a signal to a daemon; after SIGKILL its process is gone when this returns.
    pub fn kill(&self, node: &str, daemon: &str, signal: Signal) -> Result<()> {
        self.node(node, &Request::Kill { daemon: daemon.to_owned(), signal: signal as i32 }).map(drop)
    }

    /// Starts a daemon that has ended and waits until it serves.
    pub fn start(&self, node: &str, daemon: &str) -> Result<()> {
        self.node(node, &Request::Start { daemon: daemon.to_owned() }).map(drop)
    }

    /// Leaves no room on the node's own disk (Docker, libvirt, state; not the volume group).
    pub fn disk_full(&self, node: &str) -> Result<()> {
        self.node(node, &Request::DiskFull).map(drop)
    }

    pub fn disk_free(&self, node: &str) -> Result<()> {
        self.node(node, &Request::DiskFree).map(drop)
    }

    /// Runs a command on a node; a non-zero exit is in the output, not an error.
    pub fn exec(&self, node: &str, argv: &[&str], timeout: Duration) -> Result<Output> {
        self.background(node, argv)?.finish(timeout)
    }

    /// [`Self::exec`] that must succeed within 30 s; returns its standard output.
    pub fn run(&self, node: &str, argv: &[&str]) -> Result<String> {
        let output = self.exec(node, argv, Duration::from_secs(30))?;
        ensure!(
            output.ok(),
            "{node}: {}: exit code {:?}: {}{}",
            argv.join(" "),
            output.code,
            output.stdout,
            output.stderr
        );
        Ok(output.stdout)
    }

    /// Starts a command on a node beside the caller.
    pub fn background(&self, node: &str, argv: &[&str]) -> Result<Background> {
        Background::start(self.command(node, argv)?)
    }

    /// The bare command, for a caller that wants the terminal.
    pub fn command(&self, node: &str, argv: &[&str]) -> Result<Command> {
        Ok(exec::command(self.first_process(node)?, argv))
    }

    /// A path on a node as the machine reaches it, for files and unix sockets alike.
    pub fn file(&self, node: &str, path: &Path) -> Result<PathBuf> {
        let below = path.strip_prefix("/").with_context(|| format!("{} is not absolute", path.display()))?;
        Ok(PathBuf::from(format!("/proc/{}/root", self.first_process(node)?)).join(below))
    }

    /// The machine's id of the node's first process.
    pub fn first_process(&self, node: &str) -> Result<i32> {
        listener_pid(&self.layout.node_control(node)).with_context(|| format!("{node} is not powered"))
    }

    fn supervisor(&self, request: &Request) -> Result<Reply> {
        call(&self.layout.control(), request, CALL_LIMIT)
    }

    fn node(&self, node: &str, request: &Request) -> Result<Reply> {
        call(&self.layout.node_control(node), request, CALL_LIMIT)
    }
}

/// The machine's id of the first process of the lab's namespaces.
pub fn supervisor_pid(layout: &Layout) -> Result<i32> {
    listener_pid(&layout.control()).context("no lab is up")
}

/// Waits for the end of whatever lab lives in `layout`, then removes what a killed one may have left.
pub fn end(layout: &Layout) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(_lock) = take_lock(layout)? {
            return clean::sweep(layout);
        }
        ensure!(Instant::now() < deadline, "the lab in {} does not end", layout.root().display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_up(unit: &UnitStatus) -> bool {
    matches!(unit.state.as_str(), "ready" | "done")
}

/// All is up but for what waits for the join token.
fn awaits_join(units: &[UnitStatus]) -> bool {
    let of = |name: &str| units.iter().find(|u| u.name == name).map(|u| u.state.as_str());
    of(super::host::JOIN) == Some("starting")
        && [super::host::AGENT, super::host::LEASE].iter().all(|name| of(name) == Some("waiting"))
        && units
            .iter()
            .filter(|u| {
                ![super::host::JOIN, super::host::AGENT, super::host::LEASE].contains(&u.name.as_str())
            })
            .all(is_up)
}

/// Hears of a node's units until all are up, or what was heard is enough; the error of a lost one carries the end of its log.
fn follow(
    layout: &Layout,
    node: &str,
    enough: impl Fn(&[UnitStatus]) -> bool,
    mut each: impl FnMut(&UnitStatus),
) -> Result<()> {
    let alive = || {
        let Reply::Parties(parties) = call(&layout.control(), &Request::Parties, Duration::from_secs(10))?
        else {
            bail!("unexpected answer")
        };
        ensure!(
            parties.iter().any(|p| p.name == node && p.powered),
            "{node} ended at once:\n{}",
            tail(&layout.log(node, "node"))
        );
        Ok(())
    };
    let mut stream = connect_when_up(&layout.node_control(node), Duration::from_secs(60), alive)?;
    send(&mut stream, &Request::Follow)?;
    stream.set_read_timeout(Some(Duration::from_secs(180))).context("set timeout")?;
    let mut last = Vec::<UnitStatus>::new();
    for line in BufReader::new(stream).lines() {
        let unit: UnitStatus = serde_json::from_str(&line.with_context(|| format!("follow {node}"))?)
            .context("decode status")?;
        each(&unit);
        if matches!(unit.state.as_str(), "failed" | "exited") {
            bail!(
                "{node}: {} {}: {}\n{}",
                unit.name,
                unit.state,
                unit.detail,
                tail(&layout.log(node, &unit.name))
            );
        }
        last.retain(|u| u.name != unit.name);
        last.push(unit);
        if enough(&last) {
            return Ok(());
        }
    }
    let missing: Vec<_> = last.iter().filter(|u| !is_up(u)).map(|u| u.name.as_str()).collect();
    ensure!(!last.is_empty() && missing.is_empty(), "{node} ended while starting {}", missing.join(", "));
    Ok(())
}

/// The last lines of a log; nothing for a step, which has none.
fn tail(path: &Path) -> String {
    let Ok(bytes) = fs::read(path) else { return String::new() };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(15)..].join("\n");
    format!("--- {}\n{last}", path.display())
}
