//! Hosts cut off from the controller, many at once, and the controller gone: who must go on and who must stop.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use amphi_api::instance::Instance;
use anyhow::{Context, Result, ensure};

use super::bodies::{Eyes, Process};
use super::watch::Watch;
use crate::failing::{PATIENCE, Stage, request, set, vm};
use crate::lab::Lab;
use crate::wait::{Seen, seen, until};

const CONTROLLER: &str = "controller";
/// How long most of the hosts are cut off: several leases.
pub const CUT: Duration = Duration::from_secs(12);
/// Between two looks at what must not change.
const LOOK: Duration = Duration::from_millis(250);

/// Hosts with something to lose: a set on each, and a VM on the first.
pub struct Crowd<'a> {
    stage: &'a Stage,
    watch: &'a Watch,
    hosts: Vec<String>,
    instances: Vec<Instance>,
    failovers: usize,
}

impl<'a> Crowd<'a> {
    pub fn gather(stage: &'a Stage, watch: &'a Watch, hosts: &[&str]) -> Result<Self> {
        let mut ordered = Vec::new();
        for (number, host) in hosts.iter().enumerate() {
            ordered.push(stage.order(&request(&format!("on-{host}"), vec![set()], Some(host)))?);
            if number == 0 {
                ordered.push(stage.order(&request("machine", vec![vm()], Some(host)))?);
            }
        }
        ordered.iter().for_each(|i| watch.made(i));
        let instances = ordered.iter().map(|i| stage.runs(i.id)).collect::<Result<_>>()?;
        for host in hosts {
            stage.lease_is(host, "held", PATIENCE)?;
        }
        let failovers = stage.ask(stage.client.failovers())?.len();
        let hosts = hosts.iter().map(|h| (*h).to_owned()).collect();
        Ok(Self { stage, watch, hosts, instances, failovers })
    }

    fn eyes(&self) -> Result<Eyes> {
        Ok(Eyes::new(Lab::attach(self.stage.lab.layout().clone())?, self.hosts.clone()))
    }

    /// Every process of every body, and each host's boot: the same ones mean that nobody was stopped or fenced.
    fn all(&self, eyes: &mut Eyes) -> Result<(BTreeSet<Process>, Vec<String>)> {
        let boots = self.hosts.iter().map(|h| self.stage.boot(h)).collect::<Result<_>>()?;
        Ok((eyes.look().processes, boots))
    }

    /// The same bodies run, for so long and at every look.
    fn unchanged(&self, eyes: &mut Eyes, before: &BTreeSet<Process>, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            let now = eyes.look().processes;
            let (gone, new) = (before.difference(&now), now.difference(before));
            let changed: Vec<_> = gone.chain(new).collect();
            ensure!(changed.is_empty(), "bodies have changed: {changed:?}");
            if Instant::now() > end {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
    }

    fn no_failover(&self) -> Result<()> {
        let all = self.stage.ask(self.stage.client.failovers())?;
        ensure!(all.len() == self.failovers, "a failover was begun: {:?}", all.first());
        Ok(())
    }

    fn settled(&self) -> Result<()> {
        for host in &self.hosts {
            self.stage.host_is_back(host)?;
            self.stage.lease_is(host, "held", PATIENCE)?;
        }
        self.instances.iter().try_for_each(|i| self.stage.runs(i.id).map(drop))
    }

    /// More than half of the hosts lose the controller at once: no failover, no guest stopped, and all as before at the end.
    pub fn most_are_cut(&self, cut: &[&str], apart: bool) -> Result<()> {
        let mut eyes = self.eyes()?;
        let before = self.all(&mut eyes)?;
        ensure!(before.0.iter().map(|p| p.instance).collect::<BTreeSet<_>>().len() == self.instances.len());
        let pairs = self.pairs(cut, apart);
        pairs.iter().try_for_each(|(a, b)| self.stage.lab.cut(a, b, false))?;
        let result = cut
            .iter()
            .try_for_each(|host| self.stage.lease_is(host, "hold", PATIENCE))
            .and_then(|()| self.unchanged(&mut eyes, &before.0, CUT))
            .and_then(|()| self.no_failover());
        pairs.iter().try_for_each(|(a, b)| self.stage.lab.heal(a, b))?;
        result.with_context(|| format!("{cut:?} cut off"))?;
        self.settled()?;
        self.no_failover()?;
        let after = self.all(&mut eyes)?;
        ensure!(after == before, "after the cut has healed: {after:?}, before {before:?}");
        Ok(())
    }

    /// At most half of the hosts lose the controller at once: they stop their guests, and the rest takes over.
    pub fn few_are_cut(&self, cut: &[&str], apart: bool) -> Result<Duration> {
        let mut eyes = self.eyes()?;
        let boots: Vec<String> = cut.iter().map(|h| self.stage.boot(h)).collect::<Result<_>>()?;
        let began = Instant::now();
        let pairs = self.pairs(cut, apart);
        pairs.iter().try_for_each(|(a, b)| self.stage.lab.cut(a, b, false))?;
        let taken_over = self.taken_over(cut, &mut eyes, &boots).map(|()| began.elapsed());
        pairs.iter().try_for_each(|(a, b)| self.stage.lab.heal(a, b))?;
        let took = taken_over.with_context(|| format!("{cut:?} cut off"))?;
        self.settled()?;
        for instance in &self.instances {
            if instance.host_name.as_deref().is_some_and(|host| cut.contains(&host)) {
                self.stage.buried(instance.host_name.as_deref().unwrap_or_default(), instance.id)?;
            }
        }
        Ok(took)
    }

    fn taken_over(&self, cut: &[&str], eyes: &mut Eyes, boots: &[String]) -> Result<()> {
        for (host, boot) in cut.iter().zip(boots) {
            self.stage.lease_is(host, "fenced", PATIENCE)?;
            ensure!(self.stage.boot(host)? != *boot, "{host} still goes by its old orders");
            until(&format!("{host} has stopped its guests"), PATIENCE, || {
                let left = format!("{:?}", eyes.look().on(host));
                Ok(seen(left == "{}", || left))
            })?;
        }
        for was in &self.instances {
            let lost = was.host_name.as_deref().is_some_and(|host| cut.contains(&host));
            let now = self.stage.until(was.id, "running where the controller is", |i| {
                i.state == amphi_api::instance::InstanceState::Running
                    && !i.host_name.as_deref().is_some_and(|host| cut.contains(&host))
            })?;
            ensure!(now.addresses == was.addresses, "{now:?}");
            ensure!(lost == (now.epoch > was.epoch), "only what was cut off moves: {was:?}, {now:?}");
        }
        // What the records say lives there, lives there.
        until("every body runs", PATIENCE, || {
            let look = eyes.look();
            let missing: Vec<_> =
                self.instances.iter().filter(|i| !look.hosts().contains_key(&i.id)).collect();
            Ok(if missing.is_empty() { Seen::Enough(()) } else { Seen::Not(format!("{missing:?}")) })
        })
    }

    /// The controller and all of OVN's databases lose their power for so long: no guest stops.
    pub fn without_controller(&self, time: Duration) -> Result<()> {
        let mut eyes = self.eyes()?;
        let before = self.all(&mut eyes)?;
        self.stage.lab.power_cut(CONTROLLER)?;
        let result = self
            .hosts
            .iter()
            .try_for_each(|host| self.stage.lease_is(host, "hold", PATIENCE))
            .and_then(|()| self.unchanged(&mut eyes, &before.0, time));
        self.stage.lab.restore(CONTROLLER, |_| {})?;
        result.with_context(|| format!("the controller was gone for {time:?}"))?;
        self.settled()?;
        self.no_failover()?;
        let after = self.all(&mut eyes)?;
        ensure!(after == before, "when the controller is back: {after:?}, before {before:?}");
        Ok(())
    }

    fn pairs(&self, cut: &[&str], apart: bool) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for one in cut {
            found.push(((*one).to_owned(), CONTROLLER.to_owned()));
            let others = self.hosts.iter().filter(|h| apart && !cut.contains(&h.as_str()));
            found.extend(others.map(|other| ((*one).to_owned(), other.clone())));
        }
        found
    }

    pub fn leave(self) -> Result<()> {
        for instance in &self.instances {
            self.watch.goes(instance.id);
            self.stage.delete(instance.id)?;
        }
        Ok(())
    }
}
