//! How long an instance is away while its body is exchanged, as the record has it.

use std::time::Duration;

use amphi_api::instance::{BodyKind, BodySpec, ExchangeCreate, ExchangePhase, VmSpec};
use anyhow::{Context, Result, ensure};

use super::{Bench, Figure, runs, set};
use crate::wait::{seen, until};

const LIMIT: Duration = Duration::from_secs(180);
const NAME: &str = "changing";

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
    ])
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
