//! The cloud that a storm passes over: the controller's process, hosts whose agents are processes over engines in memory,
//! and a fence device that switches hosts off.

use super::faults::{Blow, Fault};
use crate::alone::agent::Size;
use crate::alone::furnish::furnish;
use crate::alone::{Clock, Controller, Host};
use crate::engines::{Engine, Registry};
use amphi_api::client::Client;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The network of all instances.
pub const NETWORK: &str = "storm";
/// Of engines' calls that change something.
const PACE: Duration = Duration::from_millis(4);
/// How often it is looked whether a host is to be switched off.
const FENCES: Duration = Duration::from_millis(20);
/// How long a host stays off that was fenced.
const OFF: Duration = Duration::from_millis(1500);
/// A call's, as clients of the storm make it.
const CALL: Duration = Duration::from_secs(15);

pub struct Cloud {
    pub controller: tokio::sync::Mutex<Controller>,
    pub hosts: Vec<tokio::sync::Mutex<Host>>,
    /// Their names, in order.
    pub names: Vec<String>,
    pub registry: Arc<Registry>,
    pub client: Client,
    /// The controller's.
    clock: Clock,
    folder: PathBuf,
    /// How often each thing happened.
    tally: Mutex<BTreeMap<String, u64>>,
    /// What must never be and was, beside the registry's.
    wrongs: Mutex<Vec<String>>,
}

impl Cloud {
    /// `program` is `amphi-lab`, beside the others; all is kept in `folder`.
    pub async fn raise(program: &Path, folder: PathBuf, hosts: usize) -> Result<Arc<Self>> {
        // It fails only if one is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let fences = folder.join("fences");
        std::fs::create_dir_all(&fences).context("make the fences' directory")?;
        let names: Vec<String> = (1..=hosts).map(|n| format!("memory-{n}")).collect();
        // Deleted volumes are gone at once, and no host keeps a lease: there is no lease process in memory.
        let mut settings = "recycle_hours = 0\n[failover]\nautomatic = false\n".to_owned();
        for name in &names {
            let script = format!(
                "mkdir -p {0}/$AMPHI_FENCE_HOST; while [ -d {0}/$AMPHI_FENCE_HOST ]; do sleep 0.02; done",
                fences.display()
            );
            settings += &format!(
                "[fence.{name}]\ndriver = \"command\"\nargv = [\"/bin/sh\", \"-c\", '''{script}''']\n"
            );
        }
        let programs = program.parent().context("the program has no directory")?;
        let clock = Clock::at(folder.join("clock"))?;
        let controller = Controller::start_by(programs, folder.clone(), &settings, Some(clock.clone()))?;
        let registry = Arc::new(Registry::default());
        let client = Client::new(controller.url(), &controller.read("admin-token")?)?.with_call_timeout(CALL);
        let mut joined = Vec::new();
        for name in &names {
            let size = Size { cpus: 64, memory_mib: 64 << 10 };
            let mut host = Host::join(&controller, program, &registry, name, size, PACE).await?;
            host.clock = Some(Clock::at(folder.join(format!("{name}.clock")))?);
            host.start()?;
            joined.push(tokio::sync::Mutex::new(host));
        }
        let cloud = Arc::new(Self {
            controller: tokio::sync::Mutex::new(controller),
            hosts: joined,
            names,
            registry,
            client,
            clock,
            folder,
            tally: Mutex::default(),
            wrongs: Mutex::default(),
        });
        furnish(&cloud.client, &cloud.folder, NETWORK, "10.8.0.0/16").await?;
        tokio::spawn(fence(Arc::downgrade(&cloud), fences));
        Ok(cloud)
    }

    pub fn count(&self, what: impl Into<String>) {
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner).entry(what.into()).or_default() += 1;
    }

    pub fn tally(&self) -> BTreeMap<String, u64> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Something that must never be was seen.
    pub fn wrong(&self, what: String) {
        self.wrongs.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// All that must never be and was.
    pub fn wrongs(&self) -> Vec<String> {
        let seen = self.wrongs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.registry.violations().into_iter().chain(seen).collect()
    }

    /// A fault, from its beginning to its end.
    pub async fn suffer(&self, blow: Blow) -> Result<()> {
        self.count(blow.fault.name());
        let pause = tokio::time::sleep(blow.lasts);
        match blow.fault {
            Fault::KillController => {
                let mut controller = self.controller.lock().await;
                tokio::task::block_in_place(|| controller.kill())?;
                pause.await;
                tokio::task::block_in_place(|| controller.start_again())?;
            }
            Fault::KillAgent(at) => {
                tokio::task::block_in_place(|| self.hosts[at].blocking_lock().kill());
                pause.await;
                self.hosts[at].lock().await.start()?;
            }
            // The fence device may come meanwhile: nobody holds the host.
            Fault::CutPower(at) => {
                tokio::task::block_in_place(|| self.hosts[at].blocking_lock().cut_power());
                pause.await;
                self.hosts[at].lock().await.start()?;
            }
            Fault::CutUp(at) => self.cut(at, (false, true), pause).await,
            Fault::CutDown(at) => self.cut(at, (true, false), pause).await,
            Fault::Cut(at) => self.cut(at, (false, false), pause).await,
            Fault::Hang(at, engine) => {
                let engines = self.hosts[at].lock().await.engines.clone();
                engines.hang(engine, true);
                pause.await;
                engines.hang(engine, false);
            }
            Fault::Date(off) => {
                self.clock.set(off)?;
                pause.await;
                self.clock.set(0)?;
            }
            Fault::HostDate(at, off) => {
                let clock = self.hosts[at].lock().await.clock.clone();
                clock.iter().try_for_each(|clock| clock.set(off))?;
                pause.await;
                clock.iter().try_for_each(|clock| clock.set(0))?;
            }
            Fault::Fill(at) => {
                let engines = self.hosts[at].lock().await.engines.clone();
                engines.fill(true);
                pause.await;
                engines.fill(false);
            }
        }
        Ok(())
    }

    async fn cut(&self, at: usize, (up, down): (bool, bool), pause: tokio::time::Sleep) {
        self.hosts[at].lock().await.wire.set(up, down);
        pause.await;
        self.hosts[at].lock().await.wire.set(true, true);
    }

    /// Everything works again.
    pub async fn mend(&self) -> Result<()> {
        for host in &self.hosts {
            let mut host = host.lock().await;
            host.wire.set(true, true);
            Engine::ALL.into_iter().for_each(|engine| host.engines.hang(engine, false));
            host.engines.fill(false);
            host.start()?;
        }
        let mut controller = self.controller.lock().await;
        if !controller.runs() {
            tokio::task::block_in_place(|| controller.start_again())?;
        }
        Ok(())
    }
}

/// Switches hosts off when the controller's device says so, and on again a while later.
async fn fence(cloud: std::sync::Weak<Cloud>, folder: PathBuf) {
    while let Some(cloud) = cloud.upgrade() {
        for (name, host) in cloud.names.iter().zip(&cloud.hosts) {
            let order = folder.join(name);
            if !order.exists() {
                continue;
            }
            let mut host = host.lock().await;
            tokio::task::block_in_place(|| host.cut_power());
            cloud.count("fenced");
            // The device says that it is off: by then it is.
            let _ = std::fs::remove_dir(&order);
            drop(host);
            let (cloud, name) = (cloud.clone(), name.clone());
            tokio::spawn(async move {
                tokio::time::sleep(OFF).await;
                let at = cloud.names.iter().position(|n| *n == name).unwrap_or_default();
                if let Err(error) = cloud.hosts[at].lock().await.start() {
                    eprintln!("{name} does not start: {error:#}");
                }
            });
        }
        drop(cloud);
        tokio::time::sleep(FENCES).await;
    }
}
