//! The first process of one node: makes the node's own view of the machine, starts its units as concurrently as they allow,
//! answers on the node's control socket, reaps orphans. Its death is the node's power cut, so it never ends by itself while any
//! unit could run; it refuses to know other nodes.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::layout::{CONTROLLER, Layout};
use super::processes::Processes;
use super::program::own_program;
use super::proto::{Reply, Request, listen, send, serve};
use super::unit::{Board, Daemon, Ready, Unit, Work, poll};
use super::{cgroup, controller, disk, host, mounts};

/// How long one daemon may take to serve, on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(90);
/// How an end is told that a daemon's monitor would answer with another start.
const CRASH: &str = "killed by SIGSEGV";
const FILLER: &str = "/var/lib/.filler";

struct Node {
    layout: Layout,
    name: String,
    units: Vec<Unit>,
    board: Board,
    processes: Processes,
}

/// Runs node `name` as the first process of its namespaces; returns only on failure.
pub fn run_node(layout: &Layout, name: &str, engines_only: bool) -> Result<()> {
    let hierarchies = cgroup::enter(layout, name)?;
    // Namespaces belong to threads: this has to come before any other thread is started.
    unshare(CloneFlags::CLONE_NEWCGROUP).context("new cgroup namespace")?;
    let disks = disk::of(layout, name)?;
    mounts::own_namespace()?;
    mounts::own_sys()?;
    cgroup::remount(&hierarchies)?;
    mounts::own_run()?;
    mounts::mount_disk(&disks.disk, &layout.disk(name))?;
    let _ = fs::remove_file(layout.disk(name).join("var/lib/.filler"));
    mounts::own_files(&layout.disk(name))?;
    mounts::hide_kvm()?;
    fs::write("/proc/sys/kernel/hostname", name).context("set the host's name")?;
    controller::write_file("/etc/hostname", &format!("{name}\n"))?;
    controller::write_file("/etc/hosts", &format!("127.0.0.1 localhost {name}\n10.99.0.1 controller\n"))?;
    let binary = |program: &str| -> Result<Option<PathBuf>> {
        if engines_only {
            return Ok(None);
        }
        let path = own_program()?.with_file_name(program);
        ensure!(path.exists(), "{} is not built", path.display());
        Ok(Some(path))
    };
    let units = if name == CONTROLLER {
        controller::units(binary("amphi-controller")?)
    } else {
        host::units(layout, name, &disks, binary("amphi-hostsrv")?)?
    };
    let listener = listen(&layout.node_control(name))?;
    let node = Arc::new(Node {
        layout: layout.clone(),
        name: name.to_owned(),
        board: Board::new(name, &units),
        units,
        processes: Processes::start(),
    });
    for index in 0..node.units.len() {
        let node = node.clone();
        std::thread::spawn(move || {
            let unit = &node.units[index];
            if node.board.await_up(unit.after) {
                node.start(unit);
            }
        });
    }
    let answering = node.clone();
    serve(listener, move |request, mut stream, _| {
        if matches!(request, Request::Follow) {
            answering.board.follow(|unit| send(&mut stream, unit).is_ok());
            return;
        }
        let reply = answering
            .answer(request)
            .unwrap_or_else(|error| Reply::Failed(format!("{}: {error:#}", answering.name)));
        drop(send(&mut stream, &reply));
    });
    bail!("the control socket is gone")
}

impl Node {
    fn answer(self: &Arc<Self>, request: Request) -> Result<Reply> {
        match request {
            Request::Status => Ok(Reply::Node(self.board.status())),
            Request::Start { daemon } => {
                let unit =
                    self.units.iter().find(|u| u.name == daemon).with_context(|| self.no_unit(&daemon))?;
                let running = self.board.unit(&daemon).is_some_and(|u| u.pid.is_some());
                ensure!(!running, "{daemon} runs already");
                self.start(unit);
                let after = self.board.unit(&daemon).with_context(|| self.no_unit(&daemon))?;
                ensure!(
                    matches!(after.state.as_str(), "ready" | "done"),
                    "{daemon} is {}: {}",
                    after.state,
                    after.detail
                );
                Ok(Reply::Done)
            }
            Request::Kill { daemon, signal } => {
                let unit = self.board.unit(&daemon).with_context(|| self.no_unit(&daemon))?;
                let pid = unit.pid.with_context(|| format!("{daemon} does not run: {}", unit.detail))?;
                let signal = Signal::try_from(signal).context("no such signal")?;
                kill(Pid::from_raw(pid), signal).with_context(|| format!("send {signal} to {daemon}"))?;
                if signal == Signal::SIGKILL {
                    self.processes
                        .wait(pid, Duration::from_secs(10))
                        .with_context(|| format!("{daemon} outlives SIGKILL"))?;
                    self.board.change(&daemon, |u| ended(u, "killed by SIGKILL"));
                }
                Ok(Reply::Done)
            }
            Request::DiskFull => fill().map(|()| Reply::Done),
            Request::DiskFree => fs::remove_file(FILLER).context("remove the filler").map(|()| Reply::Done),
            other => bail!("not a request for a node: {other:?}"),
        }
    }

    fn no_unit(&self, name: &str) -> String {
        let names: Vec<_> = self.units.iter().map(|u| u.name).collect();
        format!("nothing called {name:?} here ({})", names.join(", "))
    }

    fn start(self: &Arc<Self>, unit: &Unit) {
        let began = Instant::now();
        self.board.change(unit.name, |u| {
            u.state = "starting".to_owned();
            u.detail.clear();
        });
        let result = match &unit.work {
            Work::Step(step) => step(&self.processes).map(|()| ("done", None)),
            Work::Daemon(daemon) => {
                let first = self.launch(unit.name, daemon);
                let crashed = |error: &anyhow::Error| daemon.monitored && error.to_string().ends_with(CRASH);
                let pid =
                    if first.as_ref().is_err_and(crashed) { self.launch(unit.name, daemon) } else { first };
                pid.map(|pid| ("ready", Some(pid)))
            }
        };
        self.board.change(unit.name, |u| {
            u.seconds = began.elapsed().as_secs_f64();
            match result {
                Ok((state, pid)) => (u.state, u.pid) = (state.to_owned(), pid),
                Err(error) => (u.state, u.pid, u.detail) = ("failed".to_owned(), None, format!("{error:#}")),
            }
        });
    }

    /// Starts a daemon, waits until it serves, and leaves a thread that notes its end.
    fn launch(self: &Arc<Self>, name: &'static str, daemon: &Daemon) -> Result<i32> {
        let path = self.layout.log(&self.name, name);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        let from = log.metadata().context("size of log")?.len();
        let mut command = if daemon.api_socket {
            // The socket came as this process's standard input; sd_listen_fds wants it as 3 and its own pid beside it.
            let mut shell = Command::new("sh");
            shell
                .args([
                    "-c",
                    "LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec \"$@\" 3<&0 </dev/null",
                    "sh",
                ])
                .args(&daemon.argv);
            let socket = std::io::stdin().as_fd().try_clone_to_owned().context("copy the API's socket")?;
            shell.stdin(Stdio::from(socket));
            shell
        } else {
            let (program, arguments) = daemon.argv.split_first().context("empty command")?;
            let mut plain = Command::new(program);
            plain.args(arguments).stdin(Stdio::null());
            plain
        };
        command
            .env("TMPDIR", "/run/tmp")
            .env("HOME", "/root")
            .env_remove("LISTEN_FDS")
            .stdout(log.try_clone().context("share log")?)
            .stderr(log);
        let (pid, _) = self.processes.spawn(&mut command)?;
        self.board.change(name, |u| u.pid = Some(pid));
        let alive = || match self.processes.exit(pid) {
            Some(exit) => Err(anyhow::anyhow!("ended before it served: {exit}")),
            None => Ok(()),
        };
        let served = poll(START_LIMIT, || self.serves(&daemon.ready, &path, from), alive)?;
        if !served {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            bail!("does not serve within {START_LIMIT:?}");
        }
        let (node, monitored) = (self.clone(), daemon.monitored);
        std::thread::spawn(move || {
            let exit = loop {
                if let Some(exit) = node.processes.wait(pid, Duration::from_secs(3600)) {
                    break exit;
                }
            };
            let ours = node.board.unit(name).is_some_and(|u| u.pid == Some(pid));
            let unit = node.units.iter().find(|u| u.name == name);
            if let Some(unit) = unit.filter(|_| ours && monitored && exit == CRASH) {
                eprintln!("{name}: {exit}; it is started again");
                return node.start(unit);
            }
            node.board.change(name, |u| {
                if u.pid == Some(pid) {
                    ended(u, &exit);
                }
            });
        });
        Ok(pid)
    }

    fn serves(&self, ready: &Ready, log: &Path, from: u64) -> bool {
        match ready {
            Ready::Socket(path) => std::os::unix::net::UnixStream::connect(path).is_ok(),
            Ready::Command(argv) => {
                let Some((program, arguments)) = argv.split_first() else { return false };
                let finished =
                    self.processes.output(Command::new(program).args(arguments), Duration::from_secs(60));
                finished.is_ok_and(|f| f.exit == "exit code 0")
            }
            Ready::Line(wanted) => {
                let mut text = String::new();
                let read = File::open(log).and_then(|mut f| {
                    f.seek(SeekFrom::Start(from)).and_then(|_| f.read_to_string(&mut text))
                });
                read.is_ok() && text.lines().any(|line| line == *wanted)
            }
        }
    }
}

fn ended(unit: &mut super::proto::UnitStatus, exit: &str) {
    unit.state = "exited".to_owned();
    unit.detail = exit.to_owned();
    unit.pid = None;
}

/// Takes all room on the node's own disk: halving the bite until not even a page fits.
fn fill() -> Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(FILLER).context("open the filler")?;
    let mut bite: i64 = 8 << 30;
    while bite >= 4096 {
        let end = i64::try_from(file.metadata().context("size of the filler")?.len())
            .context("filler too large")?;
        if nix::fcntl::posix_fallocate(&file, end, bite).is_err() {
            bite /= 2;
        }
    }
    Ok(())
}
