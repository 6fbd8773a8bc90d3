//! What befalls a storm's cloud, and when. The sequence depends on the seed alone.

use super::cloud::Cloud;
use super::dice::Dice;
use crate::engines::Engine;
use anyhow::Result;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// A host is named by its number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    KillController,
    KillAgent(usize),
    /// Everything on the host is off; what is on its disks stays.
    CutPower(usize),
    /// What the host says is not heard.
    CutUp(usize),
    /// What is said to the host is not heard.
    CutDown(usize),
    Cut(usize),
    Hang(usize, Engine),
    /// No room on the host's disks.
    Fill(usize),
    /// The controller's date, off by so many seconds.
    Date(i64),
    HostDate(usize, i64),
}

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Fault::KillController => "kill -9 of the controller",
            Fault::KillAgent(_) => "kill -9 of an agent",
            Fault::CutPower(_) => "power cut",
            Fault::CutUp(_) => "cut, host to controller",
            Fault::CutDown(_) => "cut, controller to host",
            Fault::Cut(_) => "cut, both ways",
            Fault::Hang(..) => "hung engine",
            Fault::Fill(_) => "full disk",
            Fault::Date(_) => "wrong date, controller",
            Fault::HostDate(..) => "wrong date, host",
        }
    }
}

/// A fault, how long before it the last one came, and how long it lasts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Blow {
    pub after: Duration,
    pub fault: Fault,
    pub lasts: Duration,
}

/// Blows without an end.
pub struct Blows {
    dice: Dice,
    hosts: u64,
}

impl Blows {
    pub fn new(seed: u64, hosts: usize) -> Self {
        Self { dice: Dice::new(seed, 0), hosts: hosts as u64 }
    }

    /// How far off a clock is set, in seconds: from a second to a month, in either direction.
    fn date(&mut self) -> i64 {
        let most = [1, 60, 3600, 86_400, 30 * 86_400][self.dice.below(5) as usize];
        let off = self.dice.within(1, most).cast_signed();
        if self.dice.below(2) == 0 { -off } else { off }
    }

    pub fn next(&mut self) -> Blow {
        let after = Duration::from_millis(self.dice.within(100, 900));
        let host = self.dice.below(self.hosts) as usize;
        let engine = Engine::ALL[self.dice.below(3) as usize];
        let off = self.date();
        let (fault, least, most) = match self.dice.below(112) {
            0..18 => (Fault::KillController, 0, 800),
            18..42 => (Fault::KillAgent(host), 0, 1000),
            42..50 => (Fault::CutPower(host), 500, 5000),
            50..60 => (Fault::CutUp(host), 300, 10_000),
            60..70 => (Fault::CutDown(host), 300, 10_000),
            70..74 => (Fault::Cut(host), 300, 10_000),
            74..90 => (Fault::Hang(host, engine), 300, 8000),
            90..100 => (Fault::Fill(host), 500, 5000),
            100..106 => (Fault::Date(off), 2000, 8000),
            _ => (Fault::HostDate(host, off), 2000, 8000),
        };
        Blow { after, fault, lasts: Duration::from_millis(self.dice.within(least, most)) }
    }
}

/// Strikes until `end`; all is whole again when it returns.
pub async fn strike(cloud: &Arc<Cloud>, seed: u64, end: tokio::time::Instant) -> Result<()> {
    let mut blows = Blows::new(seed, cloud.hosts.len());
    let mut under_way = JoinSet::new();
    loop {
        let blow = blows.next();
        tokio::time::sleep(blow.after).await;
        if tokio::time::Instant::now() >= end {
            break;
        }
        let cloud = cloud.clone();
        under_way.spawn(async move { cloud.suffer(blow).await });
        while let Some(done) = under_way.try_join_next() {
            done??;
        }
    }
    while let Some(done) = under_way.join_next().await {
        done??;
    }
    cloud.mend().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_replays_and_every_fault_comes() {
        let blows = |seed| {
            let mut blows = Blows::new(seed, 4);
            (0..300).map(|_| blows.next()).collect::<Vec<_>>()
        };
        assert_eq!(blows(3), blows(3));
        assert_ne!(blows(3), blows(4));
        let names: std::collections::BTreeSet<_> = blows(3).iter().map(|b| b.fault.name()).collect();
        assert_eq!(names.len(), 10, "{names:?}");
    }
}
