//! How long an instance is away while its body is exchanged, as the record has it; and how long a set takes to be there as a
//! VM, beside a bare kernel in the same lab.

use std::time::{Duration, Instant};

use amphi_api::instance::{BodyKind, BodySpec, ExchangeCreate, ExchangePhase, VmSpec};
use anyhow::{Context, Result, ensure};

use super::{Bench, Figure, median, runs, set};
use crate::wait::{seen, until};

const LIMIT: Duration = Duration::from_secs(180);
const NAME: &str = "changing";
/// Starts of each kind as a VM that count.
const ROUNDS: usize = 3;

pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    bench.runtime.block_on(async {
        let ordered = bench.client.create_instance(&set(NAME, true, 256)?).await?;
        bench.client.wait_instance(ordered.id, runs, LIMIT, |_| ()).await.context("the set should run")
    })?;
    let vm = BodySpec::Vm(VmSpec::new("vm", None));
    let there = one(bench, ExchangeCreate { to: BodyKind::Vm, body: Some(vm) })?;
    booted(bench)?;
    let back = one(bench, ExchangeCreate { to: BodyKind::Set, body: None })?;
    bench.delete(NAME, true)?;
    Ok(vec![
        Figure { name: "exchange_set_to_vm_outage_ms", value: there, goal: "" },
        Figure { name: "exchange_vm_to_set_outage_ms", value: back, goal: "" },
        as_vm(bench)?,
    ])
}

/// From the order to members that run, over the same way of a bare kernel to its own word; they take turns. The first round
/// makes the root file system and warms the caches, as it does for the bare kernel, and does not count.
fn as_vm(bench: &Bench) -> Result<Figure> {
    let (mut bare, mut members) = (Vec::new(), Vec::new());
    for _ in 0..=ROUNDS {
        let image = BodySpec::Vm(VmSpec { image: "vm".to_owned(), ..VmSpec::default() });
        bare.push(there(bench, image)?);
        let set = set(NAME, false, 256)?.bodies.remove(0).counterpart().context("a set has a counterpart")?;
        members.push(there(bench, set)?);
    }
    let (bare, members) = (median(&bare[1..]), median(&members[1..]));
    println!("a bare kernel after {bare:.0} ms, a set's members after {members:.0} ms");
    Ok(Figure { name: "set_as_vm_over_bare_kernel", value: members / bare, goal: "at most 1.5" })
}

/// Milliseconds from the order until what it runs has said so; it is deleted then.
fn there(bench: &Bench, body: BodySpec) -> Result<f64> {
    let bare = body.set().is_none();
    let request = amphi_api::instance::InstanceCreate { bodies: vec![body], ..set(NAME, false, 256)? };
    let began = Instant::now();
    let id = bench.runtime.block_on(bench.client.create_instance(&request))?.id;
    if bare {
        booted(bench)?;
    } else {
        bench.runtime.block_on(bench.client.wait_instance(id, runs, LIMIT, |_| ()))?;
    }
    let took = began.elapsed().as_secs_f64() * 1000.0;
    bench.delete(NAME, false)?;
    Ok(took)
}

/// A guest that has not booted yet does not hear its power button.
fn booted(bench: &Bench) -> Result<()> {
    let id = bench.runtime.block_on(bench.client.find_instance(NAME))?.id;
    until("the VM says that it is ready", LIMIT, || {
        let log = bench.runtime.block_on(bench.client.console_log(id, Some(100), None))?;
        Ok(seen(log.text.contains("amphi-vm: ready"), || {
            log.text.lines().last().unwrap_or_default().to_owned()
        }))
    })
}

fn one(bench: &Bench, request: ExchangeCreate) -> Result<f64> {
    bench.runtime.block_on(async {
        let instance = bench.client.find_instance(NAME).await?;
        let exchange = bench.client.create_exchange(instance.id, &request).await?;
        let ended = bench.client.wait_exchange(exchange.id, LIMIT, |_| ()).await?;
        ensure!(
            ended.phase == ExchangePhase::Done,
            "the exchange to {} failed: {:?}",
            request.to,
            ended.fault
        );
        Ok(ended.outage_ms.context("no outage in the record")? as f64)
    })
}
