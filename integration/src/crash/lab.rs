//! Where somebody dies: a controller of its own, two hosts in memory, and whoever is to die armed with a trap.

use super::steps::{Scenario, Sight, Step};
use crate::alone::agent::{Agent, Home, Size};
use crate::alone::furnish::furnish;
use crate::alone::{Controller, Host};
use crate::engines::{EnginePort, HostEngines, Registry, Trap};
use amphi_api::client::{Client, ClientError};
use amphi_api::host::{HostState, JoinTokenCreate};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

pub const NETWORK: &str = "lab";
const HOSTS: usize = 2;
/// Until a step has come to be, with all deaths on the way.
const LIMIT: Duration = Duration::from_secs(40);
const LOOK: Duration = Duration::from_millis(10);
/// More commits or calls than any scenario needs.
const MOST: u64 = 80;
/// Of engines' calls that change something: long enough for a death to come between two of them.
const PACE: Duration = Duration::from_millis(1);

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Victim {
    /// At a commit.
    Controller,
    /// Of the host of this number, at a call.
    Agent(usize),
}

/// Where the victim is to die.
enum Mark {
    /// At its next commit or call of this number.
    Number(u64),
    /// At the commit of such a record: `kind` or `kind=phase`.
    Commit(String),
}

/// What a death names: a call, or the records of a commit, each as `kind` and as `kind=phase`.
pub fn words(death: &str) -> Vec<String> {
    let Some(records) = death.strip_prefix("before ").or(death.strip_prefix("after ")) else {
        return vec![death.to_owned()];
    };
    let of = |record: &str| {
        let kind = record.split('/').nth(1).unwrap_or(record).to_owned();
        let phase = record.split_once('=').map(|(_, phase)| format!("{kind}={phase}"));
        [Some(kind), phase]
    };
    records.split_whitespace().flat_map(of).flatten().collect()
}

/// One host: its agent in this process, or in one of its own where it is to be killed.
enum Body {
    Tasks { home: Home, engines: Arc<HostEngines>, agent: Option<Box<Agent>>, boots: u32 },
    Process(Box<Host>),
}

impl Body {
    fn engines(&self) -> &Arc<HostEngines> {
        match self {
            Body::Tasks { engines, .. } => engines,
            Body::Process(host) => &host.engines,
        }
    }

    fn cut_power(&mut self) {
        match self {
            Body::Tasks { home, engines, agent, boots } => {
                *agent = None;
                engines.cut_power();
                *boots += 1;
                home.run = home.state.join(format!("run-{boots}"));
            }
            Body::Process(host) => host.cut_power(),
        }
    }

    /// Starts the agent if it is not there.
    fn start(&mut self) -> Result<()> {
        match self {
            Body::Tasks { agent: Some(_), .. } => Ok(()),
            Body::Tasks { home, engines, agent, .. } => {
                *agent = Some(Box::new(Agent::start(home, &EnginePort::Here(engines.clone()))?));
                Ok(())
            }
            Body::Process(host) => host.start(),
        }
    }

    /// After the controller's death.
    fn link(&mut self) -> Result<()> {
        match self {
            Body::Tasks { agent: Some(agent), .. } => agent.link(),
            _ => Ok(()),
        }
    }
}

pub struct Lab {
    pub client: Client,
    pub names: Vec<String>,
    controller: Controller,
    hosts: Vec<Body>,
    /// Switched off by the lab: nobody starts its agent.
    off: BTreeSet<usize>,
    registry: Arc<Registry>,
    victim: Victim,
    /// What the victim was at when it died; in order.
    reached: Vec<String>,
    spent: Spent,
}

/// Where the time went, by what was waited for.
pub type Spent = BTreeMap<String, Duration>;

/// Goes through a scenario as often as there are steps to die at, before each or after each. The answer is what was died
/// at, one line a death. `program` is `amphi-lab`.
pub async fn run(
    program: &Path,
    scenario: &Scenario,
    victim: Victim,
    after: bool,
    replay: u32,
) -> Result<(Vec<String>, Spent)> {
    let what = format!("{}, death of {victim:?} {}", scenario.name, if after { "after" } else { "before" });
    let mut lab = Lab::raise(program, scenario, victim, after, replay).await.with_context(|| what.clone())?;
    // What commits together varies a little: an order that once needed fewer may need more the next time.
    let mut idle = 0;
    for at in 1.. {
        ensure!(at < MOST, "{what}: no end after {at} steps: {:?}", lab.reached);
        let deaths = lab.reached.len();
        lab.go_through(scenario, &Mark::Number(at), after)
            .await
            .with_context(|| format!("{what} step {at}, died at {:?}", lab.reached.get(deaths)))?;
        idle = if lab.reached.len() == deaths { idle + 1 } else { 0 };
        if idle == 2 {
            break;
        }
    }
    // For the same reason the count may have passed a step over.
    for step in scenario.commits.iter().filter(|_| victim == Victim::Controller) {
        if !lab.reached.iter().any(|death| words(death).iter().any(|word| word == step)) {
            let mark = Mark::Commit((*step).to_owned());
            lab.go_through(scenario, &mark, after).await.with_context(|| format!("{what} at {step}"))?;
        }
    }
    Ok((std::mem::take(&mut lab.reached), std::mem::take(&mut lab.spent)))
}

impl Lab {
    async fn raise(
        program: &Path,
        scenario: &Scenario,
        victim: Victim,
        after: bool,
        replay: u32,
    ) -> Result<Self> {
        let who = match victim {
            Victim::Controller => "c".to_owned(),
            Victim::Agent(at) => format!("a{at}"),
        };
        let name =
            format!("crash-{}-{who}-{}{replay}-{}", scenario.name, u8::from(after), std::process::id());
        let programs = program.parent().context("the program has no directory")?;
        let folder = program.with_file_name(name);
        std::fs::create_dir_all(&folder)?;
        let names: Vec<String> = (1..=HOSTS).map(|n| format!("h{n}")).collect();
        let mut settings = "recycle_hours = 0\n[failover]\nautomatic = false\n".to_owned();
        for name in &names {
            let file = folder.join(format!("{name}-is-off"));
            settings +=
                &format!("[fence.{name}]\ndriver = \"command\"\nargv = [\"test\", \"-e\", {file:?}]\n");
        }
        let controller = Controller::start_in(programs, folder, &settings)?;
        let client = Client::new(controller.url(), &controller.read("admin-token")?)?;
        let registry = Arc::new(Registry::default());
        let size = Size { cpus: 16, memory_mib: 16 << 10 };
        let mut hosts = Vec::new();
        for name in &names {
            let body = if let Victim::Agent(_) = victim {
                Body::Process(Box::new(Host::join(&controller, program, &registry, name, size, PACE).await?))
            } else {
                let state = controller.folder().join(name);
                let home = Home { name: name.clone(), run: state.join("run-0"), state, url: None, size };
                let token = client.create_join_token(&JoinTokenCreate::default()).await?.token;
                amphi_hostsrv::join::join(name, &home.pki(), &token).await?;
                let engines = HostEngines::new(name, registry.clone(), PACE);
                Body::Tasks { home, engines, agent: None, boots: 0 }
            };
            hosts.push(body);
        }
        let off = BTreeSet::new();
        let mut lab = Self {
            client,
            names,
            controller,
            hosts,
            off,
            registry,
            victim,
            reached: Vec::new(),
            spent: Spent::new(),
        };
        lab.hosts.iter_mut().try_for_each(Body::start)?;
        furnish(&lab.client, lab.controller.folder(), NETWORK, "10.8.0.0/24").await?;
        Ok(lab)
    }

    fn spent(&mut self, on: &str, since: Instant) {
        *self.spent.entry(on.to_owned()).or_default() += since.elapsed();
    }

    async fn go_through(&mut self, scenario: &Scenario, mark: &Mark, after: bool) -> Result<()> {
        let began = Instant::now();
        self.all_up().await?;
        self.spent("hosts up", began);
        for step in scenario.before {
            self.take(*step).await?;
        }
        match (self.victim, mark) {
            (Victim::Controller, Mark::Number(at)) => self.controller.set_trap(&at.to_string(), after)?,
            (Victim::Controller, Mark::Commit(record)) => self.controller.set_trap(record, after)?,
            (Victim::Agent(_), Mark::Commit(_)) => bail!("an agent commits nothing"),
            (Victim::Agent(host), Mark::Number(at)) => {
                let (host, at) = (host, *at);
                let Body::Process(body) = &self.hosts[host] else { bail!("nobody to kill") };
                let spring = Box::new(body.killer());
                body.engines.set_trap(Trap { at, after, spring });
            }
        }
        for step in scenario.steps {
            self.take(*step).await?;
        }
        if self.victim == Victim::Controller {
            self.controller.unset_trap();
        }
        for step in scenario.after {
            self.take(*step).await?;
        }
        let began = Instant::now();
        self.nothing_left().await?;
        self.spent("nothing left", began);
        // What is cleared away after an order's end is a call too.
        if let Victim::Agent(host) = self.victim {
            self.hosts[host].engines().unset_trap();
        }
        self.bury()
    }

    async fn all_up(&mut self) -> Result<()> {
        let end = Instant::now() + LIMIT;
        loop {
            self.bury()?;
            let hosts = self.client.hosts().await.unwrap_or_default();
            if hosts.iter().filter(|h| h.state == HostState::Up && h.barred_since.is_none()).count() == HOSTS
            {
                return Ok(());
            }
            ensure!(Instant::now() < end, "the hosts are not up: {hosts:?}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Gives the order, again where its answer was lost and it was not taken, and waits until it has come to be.
    async fn take(&mut self, step: Step) -> Result<()> {
        let began = Instant::now();
        let end = began + LIMIT;
        let mut acknowledged = false;
        match step {
            Step::Fail(at) => self.switch(at, false)?,
            Step::Return(at) => self.switch(at, true)?,
            _ => {}
        }
        loop {
            self.bury()?;
            let sight = step.look(self).await;
            match &sight {
                Ok(Sight::Done) => break,
                Ok(Sight::Unordered) if acknowledged => bail!("{step:?} was acknowledged and is lost"),
                Ok(Sight::Failed(why)) if acknowledged && Instant::now() >= end => {
                    bail!("{step:?} failed: {why}")
                }
                Ok(Sight::Unordered | Sight::Failed(_)) => match step.order(self).await {
                    Ok(()) => acknowledged = true,
                    Err(error) if error.is_passing() => {}
                    // A controller that has just started does not know its hosts yet.
                    Err(ClientError::Api { status: 409, .. }) if Instant::now() < end => {
                        tokio::time::sleep(LOOK).await;
                    }
                    Err(error) => bail!("{step:?}: {error}"),
                },
                Ok(Sight::UnderWay(_)) => tokio::time::sleep(LOOK).await,
                Err(error) if error.is_passing() => tokio::time::sleep(LOOK).await,
                Err(error) => bail!("{step:?}: {error}"),
            }
            let violations = self.registry.violations();
            ensure!(violations.is_empty(), "{step:?}: {}", violations.join("\n"));
            if Instant::now() >= end {
                let log = self.controller.log().unwrap_or_default();
                bail!("{step:?} has not come to be: {sight:?}\nthe controller says:\n{log}");
            }
        }
        self.spent(&format!("{step:?}"), began);
        Ok(())
    }

    /// Starts again who has died.
    fn bury(&mut self) -> Result<()> {
        if !self.controller.runs() {
            let at = self.controller.sprung();
            let Some(at) = at else {
                bail!("the controller has ended by itself: {}", self.controller.log()?)
            };
            self.controller.unset_trap();
            let began = Instant::now();
            // Other labs' hosts are tasks of the same few threads.
            tokio::task::block_in_place(|| self.controller.start_again())?;
            self.spent("(of it: starts of the controller)", began);
            self.reached.push(at);
            self.hosts.iter_mut().try_for_each(Body::link)?;
        }
        for (at, body) in self.hosts.iter_mut().enumerate() {
            let Body::Process(host) = body else { continue };
            if self.off.contains(&at) || host.runs() {
                continue;
            }
            match host.engines.sprung() {
                Some(call) if self.victim == Victim::Agent(at) => self.reached.push(call.to_owned()),
                _ => bail!("the agent of {} has ended by itself: {}", host.name(), host.log()),
            }
            host.kill();
            host.start()?;
        }
        Ok(())
    }

    /// Takes a host's power away, or gives it back. The fence device knows it.
    fn switch(&mut self, at: usize, on: bool) -> Result<()> {
        let file = self.controller.folder().join(format!("{}-is-off", self.names[at]));
        if on {
            std::fs::remove_file(&file).context("switch a host on")?;
            self.off.remove(&at);
            self.hosts[at].start()
        } else {
            self.hosts[at].cut_power();
            self.off.insert(at);
            std::fs::write(&file, "").context("switch a host off")
        }
    }

    /// All that was made is gone, in the records and on the hosts.
    async fn nothing_left(&mut self) -> Result<()> {
        let end = Instant::now() + LIMIT;
        loop {
            self.bury()?;
            let mut left: Vec<_> = self.hosts.iter().flat_map(|h| h.engines().leftovers()).collect();
            match self.client.hosts().await {
                Ok(hosts) => left.extend(
                    hosts
                        .iter()
                        .filter(|h| h.claims != Default::default())
                        .map(|h| format!("{:?}", h.claims)),
                ),
                Err(error) => left.push(error.to_string()),
            }
            match self.client.ports().await {
                Ok(ports) => left.extend(ports.iter().map(|p| format!("port {:?}", p.address))),
                Err(error) => left.push(error.to_string()),
            }
            if left.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < end, "left behind: {}", left.join("\n"));
            tokio::time::sleep(LOOK).await;
        }
    }
}
