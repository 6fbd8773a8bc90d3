//! Hosts that are taken for dead and are not: frozen past their lease and woken up, or cut off from the controller while the
//! tenants' network still carries what they say. What a peer hears of the old body must end before it hears the new one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::watch::Watch;
use crate::failing::{PATIENCE, PEER, Stage, address, loud, request};
use crate::wait::{Seen, until};

/// How long a host that is back is listened for after it was let in and has buried what moved.
const LISTEN: Duration = Duration::from_secs(1);

/// So long a body is heard before anything is broken, in milliseconds.
const HEARD: u64 = 300;

/// What is done to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breaking {
    /// All its processes are stopped, its guests' included.
    Freeze,
    /// No packet passes between it and the controller; its tunnels to the other hosts stand.
    Cut,
    /// What it sends to the controller is lost; what it is sent arrives.
    Mute,
    /// What the controller sends to it is lost; what it says arrives.
    Deaf,
}

/// What a peer saw of one round.
#[derive(Clone, Debug)]
pub struct Round {
    /// From the breaking to the first answer of the new body.
    pub answered_ms: u64,
    /// How often the old body was heard after the new one had begun to call, and how long after.
    pub late: usize,
    pub overlap_ms: u64,
    /// Second answers to one question.
    pub twice: usize,
    /// From the last call of the old body to the first one of the new.
    pub quiet_ms: u64,
}

impl Round {
    pub fn is_clean(&self) -> bool {
        self.late == 0 && self.overlap_ms == 0 && self.twice == 0
    }
}

/// A set on h1 calls the watcher all the time; h1 is broken, failed over, and after `longer` comes back.
pub fn round(stage: &Stage, watch: &Watch, breaking: Breaking, longer: Duration) -> Result<Round> {
    const HOST: &str = "h1";
    let loud = stage.create(&request("loud", vec![loud()], Some(HOST)))?;
    watch.made(&loud);
    let watched = [address(&loud)?];
    let (watcher, probe) = stage.watch(&watched)?;
    watch.made(&watcher);
    let heard = |more_than: usize| {
        until("a body is heard", PATIENCE, || {
            let voices = probe.voices(&watched[0])?;
            let enough = voices.len() > more_than
                && voices.last().is_some_and(|v| v.last > v.first + HEARD && v.times > 3);
            Ok(if enough { Seen::Enough(voices) } else { Seen::Not(format!("{voices:?}")) })
        })
    };
    heard(0)?;
    let lab = &stage.lab;
    let outage = stage.fail(HOST, &probe, &watched, || match breaking {
        Breaking::Freeze => lab.pause(HOST),
        Breaking::Cut => lab.cut(HOST, "controller", false),
        Breaking::Mute => lab.cut(HOST, "controller", true),
        Breaking::Deaf => lab.cut("controller", HOST, true),
    });
    // The new one has to be heard before the old one can be late.
    let outage = outage.and_then(|outage| heard(1).map(|_| outage));
    let until_woken = Instant::now() + longer;
    while Instant::now() < until_woken {
        std::thread::sleep(Duration::from_millis(50));
    }
    match breaking {
        Breaking::Freeze => {
            watch.wakes(HOST);
            lab.resume(HOST)?;
        }
        // Nothing stood still there: it has ended its bodies by itself, and is forgiven none.
        Breaking::Cut | Breaking::Mute | Breaking::Deaf => lab.heal(HOST, "controller")?,
    }
    let outage = outage.with_context(|| format!("{breaking:?}"))?;
    stage.host_is_back(HOST)?;
    stage.buried(HOST, loud.id)?;
    watch.buried(HOST);
    std::thread::sleep(LISTEN);
    let now = stage.runs(loud.id)?;
    ensure!(now.epoch > loud.epoch && now.host != loud.host, "it should be elsewhere: {now:?}");
    let voices = probe.voices(&watched[0])?;
    println!("  {breaking:?}: {voices:?}");
    ensure!(voices.len() >= 2, "the new body is not heard: {voices:?}");
    let round = Round {
        answered_ms: outage.answered[0],
        late: voices.iter().map(|v| v.late).sum(),
        overlap_ms: voices.iter().map(|v| v.late_ms).max().unwrap_or(0),
        twice: probe.count("twice", &watched[0], 0)?,
        quiet_ms: voices[1].first.saturating_sub(voices[0].last),
    };
    for instance in [&loud, &watcher] {
        watch.goes(instance.id);
        stage.delete(instance.id)?;
    }
    ensure!(stage.host(PEER)?.barred_since.is_none(), "{PEER} was never broken");
    Ok(round)
}
