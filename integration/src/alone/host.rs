//! A host in memory whose agent is a process of its own: its engines and its wire live here, and outlive it.

use super::agent::{Home, Size};
use super::clock::Clock;
use super::controller::Controller;
use super::wire::Wire;
use crate::engines::{HostEngines, Registry, serve};
use amphi_api::HostId;
use amphi_api::client::Client;
use amphi_api::host::JoinTokenCreate;
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

pub struct Host {
    pub id: HostId,
    home: Home,
    pub engines: Arc<HostEngines>,
    pub wire: Wire,
    socket: PathBuf,
    server: JoinHandle<()>,
    /// `amphi-lab`.
    program: PathBuf,
    agent: Option<Child>,
    pid: Arc<AtomicI32>,
    boots: u32,
    /// Its own, where it has one.
    pub clock: Option<Clock>,
}

impl Host {
    /// Joins; its agent is not started yet. `program` is `amphi-lab`.
    pub async fn join(
        controller: &Controller,
        program: &Path,
        registry: &Arc<Registry>,
        name: &str,
        size: Size,
        pace: Duration,
    ) -> Result<Self> {
        let client = Client::new(controller.url(), &controller.read("admin-token")?)?;
        let folder = controller.folder().join(name);
        let wire = Wire::lay(controller.hosts()).await?;
        let url = Some(format!("https://{}", wire.address()));
        let run = folder.join("run-0");
        let home = Home { name: name.to_owned(), state: folder.clone(), run, url, size };
        let token = client.create_join_token(&JoinTokenCreate::default()).await?.token;
        let joined = amphi_hostsrv::join::join(name, &home.pki(), &token).await?;
        let engines = HostEngines::new(name, registry.clone(), pace);
        let socket = folder.join("engines.sock");
        let server = serve(engines.clone(), &socket)?;
        let program = program.to_owned();
        let pid = Arc::default();
        Ok(Self {
            id: joined.host,
            home,
            engines,
            wire,
            socket,
            server,
            program,
            agent: None,
            pid,
            boots: 0,
            clock: None,
        })
    }

    pub fn name(&self) -> &str {
        &self.home.name
    }

    /// Where its ledger lies.
    pub fn state(&self) -> &Path {
        &self.home.state
    }

    /// Starts the agent, unless it runs.
    pub fn start(&mut self) -> Result<()> {
        if self.runs() {
            return Ok(());
        }
        let log = File::options().create(true).append(true).open(self.home.state.join("log"));
        let url = self.home.url.as_deref().unwrap_or_default();
        let mut command = Command::new(&self.program);
        if let Some(clock) = &self.clock {
            clock.give(&mut command);
        }
        let child = command
            .arg("agent")
            .args(["--name", &self.home.name, "--url", url])
            .arg("--state")
            .arg(&self.home.state)
            .arg("--run")
            .arg(&self.home.run)
            .arg("--socket")
            .arg(&self.socket)
            .args(["--cpus", &self.home.size.cpus.to_string()])
            .args(["--memory-mib", &self.home.size.memory_mib.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.context("make an agent's log")?)
            .spawn()
            .context("start an agent")?;
        self.pid.store(i32::try_from(child.id())?, Ordering::Release);
        self.agent = Some(child);
        Ok(())
    }

    pub fn runs(&mut self) -> bool {
        self.agent.as_mut().is_some_and(|agent| matches!(agent.try_wait(), Ok(None)))
    }

    /// What kills the agent, at once. Nobody waits for it here, so that its number is nobody else's until [`Host::kill`] does.
    pub fn killer(&self) -> impl Fn() + Send + Sync + 'static {
        let pid = self.pid.clone();
        move || {
            let pid = pid.load(Ordering::Acquire);
            if pid > 0 {
                // It may have ended by itself.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }

    /// Kills the agent and waits for its end.
    pub fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            self.pid.store(0, Ordering::Release);
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }

    /// All of the host is off, at once; started again, it does not know what it was.
    pub fn cut_power(&mut self) {
        self.kill();
        self.engines.cut_power();
        self.boots += 1;
        self.home.run = self.home.state.join(format!("run-{}", self.boots));
    }

    /// The agent's own words, the last ones.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.home.state.join("log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
        self.server.abort();
    }
}
