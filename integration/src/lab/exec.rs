//! Running commands on a node from outside, through its namespaces. Refuses to wait without a limit.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// What a command on a node left behind.
#[derive(Clone, Debug)]
pub struct Output {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }
}

/// `argv` inside all namespaces of the process `first`.
pub fn command(first: i32, argv: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--target={first}"))
        .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"])
        .args(argv);
    command
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("TMPDIR", "/run/tmp");
    command
}

/// A command that runs beside the test; killed when dropped.
pub struct Background {
    child: Child,
    line: String,
    stdout: Option<std::thread::JoinHandle<String>>,
    stderr: Option<std::thread::JoinHandle<String>>,
}

impl Background {
    pub fn start(mut command: Command) -> Result<Self> {
        let line = format!("{command:?}");
        // nsenter forks when it enters a pid namespace: only the group reaches both.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {line}"))?;
        let stdout = child.stdout.take().map(drain);
        let stderr = child.stderr.take().map(drain);
        Ok(Self { child, line, stdout, stderr })
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let group = i32::try_from(self.child.id()).context("pid out of range")?;
        killpg(Pid::from_raw(group), signal).with_context(|| format!("send {signal} to {}", self.line))
    }

    /// Waits for the end. Past `timeout` the command is killed and that is an error.
    pub fn finish(mut self, timeout: Duration) -> Result<Output> {
        let deadline = Instant::now() + timeout;
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait().with_context(|| format!("wait for {}", self.line))? {
                break status;
            }
            if Instant::now() > deadline {
                bail!("{}: no end within {timeout:?}", self.line);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let text = |thread: Option<std::thread::JoinHandle<String>>| {
            thread.and_then(|t| t.join().ok()).unwrap_or_default()
        };
        Ok(Output { code: status.code(), stdout: text(self.stdout.take()), stderr: text(self.stderr.take()) })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.signal(Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

fn drain(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
