//! What every step has at hand: the lab, the API, the `amphi` program, the guests, and what earlier steps noted.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use amphi_api::VolumeId;
use amphi_api::client::{Client, ClientError};
use amphi_api::host::Host;
use amphi_api::instance::{BodyKind, Instance, InstanceCreate, InstanceState};
use amphi_api::volume::{Volume, VolumeState};
use anyhow::{Context, Result, bail, ensure};
use tokio::runtime::Runtime;

use super::cli::Cli;
use super::guest::{Member, Vm};
use super::report::Progress;
use crate::lab::Lab;

/// How long an instance may take to come up, a VM on an emulated processor of a busy machine included.
pub const UP: Duration = Duration::from_secs(180);
/// How long anything else may take.
pub const SOON: Duration = Duration::from_secs(60);

/// The host that carries the story and loses its power, and the other.
pub const HOME: &str = "h1";
pub const AWAY: &str = "h2";

/// The party of the lab that carries the controller and OVN's databases.
pub const CONTROLLER: &str = "controller";

/// The story's network and security group.
pub const NETWORK: &str = "story";
pub const GROUP: &str = "story";

/// What one step leaves for later ones.
#[derive(Default)]
pub struct Notes {
    /// What lay on each party before the story.
    pub before: Vec<(String, BTreeSet<String>)>,
    /// SHA-256 of /data/random on the volume of `web`.
    pub random: String,
    /// SHA-256 of /data/random on the volume of `vm`.
    pub vm_random: String,
    /// /data/born of the bodies that moved, by instance name.
    pub born: Vec<(String, String)>,
}

pub struct Stage<'a> {
    pub lab: &'a Lab,
    pub client: &'a Client,
    pub amphi: Cli,
    pub notes: RefCell<Notes>,
    on: &'a dyn Progress,
    runtime: Runtime,
    directory: PathBuf,
}

impl<'a> Stage<'a> {
    pub fn new(lab: &'a Lab, client: &'a Client, on: &'a dyn Progress) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("start a runtime")?;
        let directory = lab.layout().root().join("story");
        std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let amphi = Cli::beside_this_program(lab)?;
        Ok(Self { lab, client, amphi, notes: RefCell::default(), on, runtime, directory })
    }

    /// One check: does it, times it, tells it. Its text is in front of what went wrong.
    pub fn check<T>(&self, text: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let began = Instant::now();
        let result = act().with_context(|| text.to_owned())?;
        self.on.check(text, began.elapsed());
        Ok(result)
    }

    pub fn note(&self, text: &str) {
        self.on.note(text);
    }

    /// Waits for an answer of the API.
    pub fn ask<T>(&self, answer: impl Future<Output = Result<T, ClientError>>) -> Result<T> {
        Ok(self.runtime.block_on(answer)?)
    }

    /// A file of the story's own, for the `amphi` program to read.
    pub fn file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path.to_string_lossy().into_owned())
    }

    pub fn host(&self, name: &str) -> Result<Host> {
        self.ask(self.client.find_host(name))
    }

    pub fn instance(&self, name: &str) -> Result<Instance> {
        self.ask(self.client.find_instance(name))
    }

    /// Orders an instance and waits until it runs.
    pub fn create(&self, request: &InstanceCreate) -> Result<Instance> {
        let ordered = self.ask(self.client.create_instance(request))?;
        self.running(&ordered.name)
    }

    /// Waits until the instance runs.
    pub fn running(&self, name: &str) -> Result<Instance> {
        self.in_state(name, InstanceState::Running, UP)
    }

    pub fn in_state(&self, name: &str, state: InstanceState, limit: Duration) -> Result<Instance> {
        let id = self.instance(name)?.id;
        let wait = self.client.wait_instance(id, |i| i.state == state, limit, |_| ());
        self.ask(wait).with_context(|| format!("{name} should be {state}"))
    }

    pub fn volume_in(&self, id: VolumeId, state: VolumeState, limit: Duration) -> Result<Volume> {
        let wait = self.client.wait_volume(id, |v| v.is_some_and(|v| v.state == state), limit, |_| ());
        self.ask(wait)
            .with_context(|| format!("volume {id} should be {state:?}"))?
            .with_context(|| format!("volume {id} is gone"))
    }

    /// A member of a set, on the host that the record says.
    pub fn member(&self, instance: &str, member: &str) -> Result<Member<'a>> {
        let record = self.instance(instance)?;
        ensure!(record.body == BodyKind::Set, "{instance} should be a set, it is a {}", record.body);
        let host = record.host_name.clone().with_context(|| format!("{instance} has no host"))?;
        Ok(Member::new(self.lab, &host, record.id, member))
    }

    /// A VM as seen from a peer.
    pub fn vm(&self, instance: &str, from: Member<'a>) -> Result<Vm<'a>> {
        let record = self.instance(instance)?;
        ensure!(record.body == BodyKind::Vm, "{instance} should be a VM, it is a {}", record.body);
        Ok(Vm { address: address(&record)?, from })
    }
}

/// The instance's only address.
pub fn address(instance: &Instance) -> Result<String> {
    match instance.addresses.as_slice() {
        [only] => Ok(only.address.to_string()),
        other => bail!("{} should have one address, it has {other:?}", instance.name),
    }
}

/// Expected against seen, in words.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, expected: &T, saw: &T) -> Result<()> {
    ensure!(expected == saw, "{what}: expected {expected:?}, saw {saw:?}");
    Ok(())
}
