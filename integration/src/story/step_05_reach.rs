//! Step 5: who reaches whom, and on which port. Every pair of set and VM on one host and across hosts, both ways.

use std::fmt::Write;

use anyhow::{Context, Result, ensure};

use super::descriptions::plain_set;
use super::guest::{Member, Tcp, Vm};
use super::stage::{AWAY, Stage, UP, address, same};

/// The port that the security group lets in, and one on which every guest of the story listens in vain.
const OPEN: u16 = 80;
const CLOSED: u16 = 8080;

enum Guest<'a> {
    Set(Member<'a>),
    Vm(Vm<'a>),
}

pub fn play(stage: &Stage) -> Result<()> {
    stage.check("a third set, on the other host", || {
        let instance = stage.create(&plain_set("far", Some(AWAY)))?;
        same("host", &Some(AWAY.to_owned()), &instance.host_name)
    })?;
    let [web, neighbour, far, vm] = ["web", "neighbour", "far", "vm"];
    stage.check("everyone listens on the closed port: only the group keeps it closed", || {
        for (instance, member) in [(web, "back"), (neighbour, "front"), (far, "front")] {
            let saw = stage.member(instance, member)?.tcp("127.0.0.1", CLOSED)?;
            same(&format!("{instance}, port {CLOSED} from within"), &Tcp::Open, &saw)?;
        }
        let guest = stage.vm(vm, stage.member(neighbour, "front")?)?;
        guest.answers(UP)?;
        same("vm, port 8080 from within", &Tcp::Open, &guest.tcp("127.0.0.1", CLOSED)?)
    })?;
    let on_one_host = [(web, neighbour), (neighbour, web), (web, vm), (vm, web)];
    stage.check("set and set, set and VM on one host: ping and TCP 80 yes, TCP 8080 no", || {
        pairs(stage, &on_one_host)
    })?;
    let across = [(web, far), (far, web), (far, vm), (vm, far)];
    stage.check("the same across hosts, through the tunnel", || pairs(stage, &across))
}

/// All pairs at once; every complaint is told.
fn pairs(stage: &Stage, pairs: &[(&str, &str)]) -> Result<()> {
    let mut cast = Vec::new();
    for (from, to) in pairs {
        let guest = match *from {
            "vm" => Guest::Vm(stage.vm(from, stage.member("neighbour", "front")?)?),
            _ => Guest::Set(stage.member(from, "front")?),
        };
        cast.push((guest, address(&stage.instance(to)?)?, format!("{from} to {to}")));
    }
    let mut complaints = String::new();
    std::thread::scope(|scope| {
        let running: Vec<_> =
            cast.iter().map(|(from, to, what)| scope.spawn(move || (what, reach(from, to)))).collect();
        for thread in running {
            let result = thread.join().map_err(|_| anyhow::anyhow!("a probe panicked"));
            if let Ok((what, Err(error))) = result {
                let _ = write!(complaints, "{what}: {error:#}; ");
            } else if let Err(error) = result {
                let _ = write!(complaints, "{error}; ");
            }
        }
    });
    ensure!(complaints.is_empty(), "{complaints}");
    Ok(())
}

fn reach(from: &Guest, to: &str) -> Result<()> {
    match from {
        Guest::Set(member) => member.reaches(to)?,
        Guest::Vm(vm) => {
            let said = vm.sh(&format!("ping -c 5 -W 1 {to}")).context("ping from the VM")?;
            ensure!(said.contains("64 bytes from"), "no answer to ping: {said}");
        }
    }
    let tcp = |port| match from {
        Guest::Set(member) => member.tcp(to, port),
        Guest::Vm(vm) => vm.tcp(to, port),
    };
    same(&format!("TCP {OPEN}"), &Tcp::Open, &tcp(OPEN)?)?;
    same(&format!("TCP {CLOSED}"), &Tcp::Silent, &tcp(CLOSED)?)
}
