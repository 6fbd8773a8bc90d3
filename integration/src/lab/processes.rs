//! The children of a namespace's first process. Such a process inherits every orphan of its namespace, so one thread reaps
//! whatever ends and keeps the exit of those it knows. Refuses to let anybody else wait: a second waiter would steal exits.

use std::collections::HashMap;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

#[derive(Clone, Default)]
pub struct Processes {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// None while it runs.
    children: Mutex<HashMap<i32, Option<String>>>,
    changed: Condvar,
}

/// What a finished command left.
pub struct Finished {
    pub exit: String,
    pub stdout: String,
    pub stderr: String,
}

/// This process's children, where a reaper runs.
static HERE: OnceLock<Processes> = OnceLock::new();

/// Runs a command to its end, through the reaper where there is one: beside it, a wait of one's own finds no child.
pub fn output(command: &mut Command, timeout: Duration) -> Result<Finished> {
    if let Some(processes) = HERE.get() {
        return processes.output(command, timeout);
    }
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let exit = match output.status.code() {
        Some(code) => format!("exit code {code}"),
        None => output.status.to_string(),
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Finished { exit, stdout: text(output.stdout), stderr: text(output.stderr) })
}

impl Processes {
    /// Starts the reaper. Call once per process.
    pub fn start() -> Self {
        let processes = HERE.get_or_init(Self::default).clone();
        let reaper = processes.clone();
        std::thread::spawn(move || reaper.reap());
        processes
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Option<String>>> {
        self.shared.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reap(&self) {
        loop {
            match waitpid(None, None) {
                Ok(WaitStatus::Exited(pid, code)) => self.record(pid, format!("exit code {code}")),
                Ok(WaitStatus::Signaled(pid, signal, _)) => self.record(pid, format!("killed by {signal}")),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => {
                    // No child at all: sleep until somebody starts one.
                    let children = self.lock();
                    if children.values().all(Option::is_some) {
                        drop(self.shared.changed.wait_timeout(children, Duration::from_millis(50)));
                    }
                }
            }
        }
    }

    fn record(&self, pid: Pid, exit: String) {
        // The lock is held while a child is started, so a known child is always listed before its end is seen here.
        if let Some(entry) = self.lock().get_mut(&pid.as_raw()) {
            *entry = Some(exit);
        }
        self.shared.changed.notify_all();
    }

    /// Starts `command` in a process group of its own and returns its pid with its pipes.
    pub fn spawn(&self, command: &mut Command) -> Result<(i32, std::process::Child)> {
        let program = command.get_program().to_owned();
        let mut children = self.lock();
        let child =
            command.process_group(0).spawn().with_context(|| format!("start {}", program.display()))?;
        let pid = i32::try_from(child.id()).context("pid out of range")?;
        children.insert(pid, None);
        self.shared.changed.notify_all();
        Ok((pid, child))
    }

    /// How the child ended, if it has.
    pub fn exit(&self, pid: i32) -> Option<String> {
        match self.lock().get(&pid) {
            Some(exit) => exit.clone(),
            None => Some("unknown process".to_owned()),
        }
    }

    /// Waits for the child's end.
    pub fn wait(&self, pid: i32, timeout: Duration) -> Option<String> {
        let deadline = Instant::now() + timeout;
        let mut children = self.lock();
        loop {
            match children.get(&pid) {
                None => return Some("unknown process".to_owned()),
                Some(Some(exit)) => return Some(exit.clone()),
                Some(None) => {}
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            children =
                self.shared.changed.wait_timeout(children, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Runs a command to its end with its output captured; kills its process group when `timeout` is over.
    pub fn output(&self, command: &mut Command, timeout: Duration) -> Result<Finished> {
        let line = format!("{command:?}");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (pid, mut child) = self.spawn(command)?;
        let stdout = child.stdout.take().map(drain);
        let stderr = child.stderr.take().map(drain);
        let Some(exit) = self.wait(pid, timeout) else {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            self.wait(pid, Duration::from_secs(5));
            bail!("{line}: no end within {timeout:?}");
        };
        self.lock().remove(&pid);
        let text = |thread: Option<std::thread::JoinHandle<String>>| {
            thread.and_then(|t| t.join().ok()).unwrap_or_default()
        };
        Ok(Finished { exit, stdout: text(stdout), stderr: text(stderr) })
    }

    /// [`Self::output`] of a program with arguments that must succeed; returns its standard output.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        let (program, arguments) = argv.split_first().context("empty command")?;
        let mut command = Command::new(program);
        command.args(arguments);
        let finished = self.output(&mut command, Duration::from_secs(30))?;
        if finished.exit != "exit code 0" {
            bail!("{}: {}: {}", argv.join(" "), finished.exit, finished.stderr.trim());
        }
        Ok(finished.stdout)
    }
}

fn drain(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
