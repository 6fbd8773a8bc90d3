//! The controller's process: started with settings and a directory of its own, killed and started again as often as a
//! test wants, ended and swept away with its owner.

use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::clock::Clock;
use anyhow::{Context, Result, bail, ensure};

/// For closing its store; then it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// For what has to listen at the same place again: see [`free_port`].
const PORTS: Range<u16> = 20_000..32_000;

/// The file that arms the store's trap, as `controller/src/store/trap.rs` reads it.
const TRAP: &str = "trap";

/// A controller of our own; ends when this is dropped, and its records with it unless `AMPHI_KEEP` is set.
pub struct Controller {
    child: Child,
    program: PathBuf,
    folder: PathBuf,
    url: String,
    hosts: SocketAddr,
    clock: Option<Clock>,
}

impl Controller {
    /// Starts the `amphi-controller` that lies in `programs`, in a new directory beside that one named after `purpose`.
    pub fn start(programs: &Path, purpose: &str) -> Result<Self> {
        let folder = programs.with_file_name(format!("{purpose}-{}", std::process::id()));
        Self::start_in(programs, folder, "")
    }

    /// The same in a directory of one's choice, with further settings (TOML).
    pub fn start_in(programs: &Path, folder: PathBuf, settings: &str) -> Result<Self> {
        Self::start_by(programs, folder, settings, None)
    }

    /// The same by a wall clock of its own.
    pub fn start_by(programs: &Path, folder: PathBuf, settings: &str, clock: Option<Clock>) -> Result<Self> {
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let (listen, hosts) = (free_port()?, free_port()?);
        let state = folder.join("state");
        // Nobody listens at OVN's addresses: what waits for it is tried again and holds up nothing else.
        let nobody = folder.join("nobody.sock");
        let mut text = String::new();
        writeln!(text, "state_dir = {state:?}\nlisten = \"127.0.0.1:{listen}\"")?;
        writeln!(text, "hosts_listen = \"127.0.0.1:{hosts}\"\nhosts_url = \"https://127.0.0.1:{hosts}\"")?;
        writeln!(text, "ovn_nb = \"unix:{0}\"\novn_sb = \"unix:{0}\"", nobody.display())?;
        writeln!(text, "{settings}")?;
        std::fs::write(folder.join("controller.toml"), text).context("write the settings")?;
        let program = programs.join("amphi-controller");
        let child = spawn(&program, &folder, clock.as_ref())?;
        let url = format!("http://127.0.0.1:{listen}");
        let mut own = Self { child, program, folder, url, hosts: ([127, 0, 0, 1], hosts).into(), clock };
        own.ready()?;
        Ok(own)
    }

    fn ready(&mut self) -> Result<()> {
        let mut line = String::new();
        let stdout = self.child.stdout.take().context("the controller's output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        if line.trim() != "ready" {
            bail!("the controller did not start: {}", self.log()?);
        }
        Ok(())
    }

    /// Starts it again where it was; it must have ended.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(!self.runs(), "the controller runs");
        self.child = spawn(&self.program, &self.folder, self.clock.as_ref())?;
        self.ready()
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("kill the controller")?;
        self.child.wait().context("wait for the controller's end")?;
        Ok(())
    }

    /// From now on the process aborts at its commit of this count, before it is written or after. Debug builds only.
    pub fn set_trap(&self, commit: &str, after: bool) -> Result<()> {
        let when = if after { "after" } else { "before" };
        let next = self.folder.join("trap.next");
        std::fs::write(&next, format!("{commit} {when}")).context("set the trap")?;
        std::fs::rename(&next, self.folder.join(TRAP)).context("set the trap")
    }

    /// Takes the trap away.
    pub fn unset_trap(&self) {
        // It is gone already when it has sprung.
        let _ = std::fs::remove_file(self.folder.join(TRAP));
    }

    /// What the trap sprang at, as the process said with its last word: `before KEY KEY=PHASE …`. None while it runs, and
    /// when it ended otherwise.
    pub fn sprung(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        (status.signal() == Some(nix::libc::SIGABRT)).then_some(())?;
        let log = self.log().ok()?;
        log.lines().rev().find_map(|line| line.split_once("trap: ").map(|(_, rest)| rest.to_owned()))
    }

    /// Where hosts reach it.
    pub fn hosts(&self) -> SocketAddr {
        self.hosts
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Of its native and its OpenStack faces.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where its records lie; for further files of the same purpose too.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A file of its state: `admin-token`, `admin-password`, `ca/ca.pem`.
    pub fn read(&self, name: &str) -> Result<String> {
        let path = self.folder.join("state").join(name);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    /// Warnings and worse.
    pub fn log(&self) -> Result<String> {
        std::fs::read_to_string(self.folder.join("log")).context("read the controller's log")
    }

    /// Whether its process still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Resident, in MiB.
    pub fn resident_mib(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .context("the controller's figures")?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
        Ok(kib.context("no VmRSS")?.parse::<f64>().context("VmRSS")? / 1024.0)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        let end = std::time::Instant::now() + GRACE;
        while self.runs() && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::env::var_os("AMPHI_KEEP").is_none() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

fn spawn(program: &Path, folder: &Path, clock: Option<&Clock>) -> Result<Child> {
    let log = std::fs::File::options().create(true).append(true).open(folder.join("log"));
    let mut command = Command::new(program);
    if let Some(clock) = clock {
        clock.give(&mut command);
    }
    command
        .arg("--config")
        .arg(folder.join("controller.toml"))
        .env("RUST_LOG", "warn")
        .env("AMPHI_TRAP", folder.join(TRAP))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.context("make the log")?)
        .spawn()
        .context("start amphi-controller")
}

/// A port that stays free while the process that listens there is killed and started again: below those that the kernel gives
/// to connections by itself (ip(7), `ip_local_port_range`), where processes of several tests begin at different places.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(61);
    for _ in 0..PORTS.len() {
        let step = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS.len() as u32;
        let port = PORTS.start + step as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port from {} to {}", PORTS.start, PORTS.end)
}
