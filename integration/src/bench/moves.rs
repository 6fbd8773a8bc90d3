//! How long an instance with a volume is away when it moves: its bytes copied while it is stopped, and ahead of that.

use std::path::Path;
use std::time::{Duration, Instant};

use amphi_api::InstanceId;
use amphi_api::instance::{ExchangePhase, InstanceVolume, MoveCreate};
use anyhow::{Context, Result, bail, ensure};

use super::Figure;
use crate::failing::{PATIENCE, Stage, request, set};
use crate::lab::{Layout, UnitStatus};

/// What is written on the volume, in MiB: random, so that nothing of it can be left out.
const WRITTEN_MIB: u64 = 300;
const LIMIT: Duration = Duration::from_secs(600);

/// On a lab of its own, of two hosts.
pub(super) fn measure(layout: Layout, program: &Path, unit: impl FnMut(&UnitStatus)) -> Result<Vec<Figure>> {
    let stage = Stage::up(layout.clone(), &layout.images(), program, 2, unit)?;
    let mut wish = request("traveller", vec![set()], Some("h1"));
    wish.volume = Some(InstanceVolume { size_gib: Some(1), name: None, id: None });
    let one = stage.create(&wish)?;
    let fill = format!("dd if=/dev/urandom of=/data/bytes bs=1M count={WRITTEN_MIB} 2>/dev/null; sync");
    let docker = "/usr/bin/docker -H unix:///run/docker.sock";
    let script = format!("{docker} exec amphi-{}-only sh -c '{fill}'", one.id);
    ensure!(stage.lab.exec("h1", &["sh", "-c", &script], LIMIT)?.ok(), "the volume is not written");
    let stopped = moved(&stage, one.id, "h2", false)?;
    stage.buried("h1", one.id)?;
    let ahead = moved(&stage, one.id, "h1", true)?;
    stage.delete(one.id)?;
    stage.down()?;
    Ok(vec![
        Figure { name: "move_300_mib_copied_while_stopped_outage_ms", value: stopped, goal: "" },
        Figure { name: "move_300_mib_copied_ahead_outage_ms", value: ahead, goal: "" },
        Figure { name: "move_stopped_to_ahead_outage_ratio", value: stopped / ahead.max(1.0), goal: "" },
    ])
}

fn moved(stage: &Stage, id: InstanceId, to: &str, ahead: bool) -> Result<f64> {
    let wish = MoveCreate {
        to: Some(to.into()),
        ahead: Some(ahead),
        reason: "a measurement".into(),
        ..MoveCreate::default()
    };
    let deadline = Instant::now() + PATIENCE;
    let exchange = loop {
        // What is left of the last move goes first.
        match stage.ask(stage.client.create_move(id, &wish)) {
            Ok(exchange) => break exchange,
            Err(error) if Instant::now() >= deadline => bail!("{error:#}"),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    };
    let ended = stage.ask(stage.client.wait_exchange(exchange.id, LIMIT, |_| ()))?;
    ensure!(ended.phase == ExchangePhase::Done, "the move to {to} failed: {:?}", ended.fault);
    Ok(ended.outage_ms.context("no outage in the record")? as f64)
}
