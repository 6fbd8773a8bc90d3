//! Step 6: what may die under an instance without its network, its neighbours or its guests noticing.

use amphi_api::host::HostState;
use amphi_api::instance::InstanceState;
use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::engines::Engines;
use super::stage::{HOME, SOON, Stage, UP, address, same};
use crate::wait::{Seen, seen, until};

pub fn play(stage: &Stage) -> Result<()> {
    let record = stage.instance("web")?;
    let own = address(&record)?;
    let engines = Engines::of(stage.lab, HOME);
    let far = stage.member("far", "front")?;
    stage.check(
        "a member is killed (SIGKILL): it comes back with network, IPC and volume; its peers stay",
        || {
            let before = ["anchor", "front", "back"].map(|m| engines.pid(record.id, m));
            let [anchor, front, back] = before;
            let (anchor, front, back) = (anchor?, front?, back?);
            let restarts = restarts(stage)?;
            engines.kill_9(front)?;
            let new = until("front runs again", SOON, || {
                let pid = engines.pid(record.id, "front")?;
                Ok(if pid == front {
                    Seen::Not("still the old process".to_owned())
                } else {
                    Seen::Enough(pid)
                })
            })?;
            same(
                "processes of anchor and back",
                &(anchor, back),
                &(engines.pid(record.id, "anchor")?, engines.pid(record.id, "back")?),
            )?;
            for kind in ["net", "ipc"] {
                same(
                    &format!("{kind} namespace of the new front"),
                    &engines.namespace(anchor, kind)?,
                    &engines.namespace(new, kind)?,
                )?;
            }
            until("the record counts one restart of front", SOON, || {
                let now = self::restarts(stage)?;
                Ok(seen(now == restarts + 1, || format!("{now} restarts, {restarts} before")))
            })?;
            stage.running("web")?;
            let first = stage.member("web", "front")?.run("cat /data/first-front")?;
            ensure!(
                first.contains(&format!("inet {own}/")),
                "at its first instruction the new front saw: {first}"
            );
            far.reaches(&own)?;
            until("it serves its volume again", SOON, || {
                let sum = far.sha256_over_http(&own, "/random", 8 << 20)?;
                Ok(seen(sum == stage.notes.borrow().random, || sum.clone()))
            })
        },
    )?;
    stage.check("`amphi instance stop` and `start`: the whole set, again in order, same address", || {
        stage.amphi.run(&["instance", "stop", "web"])?;
        same("state", &InstanceState::Stopped, &stage.instance("web")?.state)?;
        let running = engines.containers(record.id, false)?;
        ensure!(running.is_empty(), "stopped, yet these run: {running:?}");
        stage.amphi.run(&["instance", "start", "web"])?;
        let now = stage.instance("web")?;
        same("state", &InstanceState::Running, &now.state)?;
        same("addresses", &record.addresses, &now.addresses)?;
        let mut by_start: Vec<_> = now.members.iter().map(|m| (m.started_at_us, m.index)).collect();
        by_start.sort_unstable();
        ensure!(by_start.is_sorted_by_key(|(_, index)| *index), "start order: {:?}", now.members);
        far.reaches(&own)
    })?;
    stage.check(
        "the agent is killed (SIGKILL) and restarted under a ping: nothing lost, no guest restarted",
        || agent(stage, &engines),
    )
}

fn restarts(stage: &Stage) -> Result<u32> {
    let record = stage.instance("web")?;
    Ok(record.members.iter().filter(|m| m.name == "front").map(|m| m.restarts).sum())
}

fn agent(stage: &Stage, engines: &Engines) -> Result<()> {
    let far = stage.member("far", "front")?;
    let (web, vm) = (stage.instance("web")?, stage.instance("vm")?);
    let guests = || -> Result<Vec<i64>> {
        let members = ["anchor", "front", "back"].map(|m| engines.pid(web.id, m));
        members.into_iter().chain([engines.qemu_pid(vm.id)]).collect()
    };
    far.reaches(&address(&web)?)?;
    far.reaches(&address(&vm)?)?;
    let before = guests()?;
    let pings = [("the set", far.ping(&address(&web)?)?), ("the VM", far.ping(&address(&vm)?)?)];
    pings[1].1.hear(1)?;
    stage.lab.kill(HOME, "hostsrv", Signal::SIGKILL)?;
    let seen_at = stage.host(HOME)?.seen_at;
    stage.lab.start(HOME, "hostsrv")?;
    until("the controller hears the new agent", UP, || {
        let host = stage.host(HOME)?;
        let heard = host.state == HostState::Up && host.seen_at > seen_at;
        Ok(seen(heard, || format!("{:?}, heard at {:?}", host.state, host.seen_at)))
    })?;
    for name in ["web", "vm"] {
        stage.running(name)?;
    }
    for (what, ping) in pings {
        // The new agent has looked at everything by now; if it were to break something, it would show.
        ping.hear(40)?;
        let pinged = ping.stop()?;
        ensure!(pinged.sent >= 40, "the ping to {what} covered too little: {pinged:?}");
        ensure!(pinged.lost == 0, "{what} lost packets: {pinged:?}");
        stage.note(&format!("{what}: {} packets sent, {} lost", pinged.sent, pinged.lost));
    }
    same("processes of the guests", &before, &guests()?)
}
