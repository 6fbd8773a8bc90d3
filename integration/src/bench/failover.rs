//! From the power cut of a host to the answer of each of its instances from another host: what a peer sees of it.

use std::path::Path;

use amphi_api::InstanceId;
use amphi_api::failover::{Failover, FailoverFate};
use amphi_api::instance::{BodyKind, FailoverPolicy, Instance};
use anyhow::{Context, Result, ensure};

use super::Figure;
use super::bare::{Bare, Plug};
use crate::failing::{PEER, Stage, address, request, set, vm};
use crate::lab::{Layout, UnitStatus};

/// What lives on the host that loses its power. `AMPHI_FAILOVER=SETS,VMS` says otherwise.
const SETS: usize = 40;
const VMS: usize = 10;

/// On a lab of its own, of three hosts.
pub(super) fn measure(layout: Layout, program: &Path, unit: impl FnMut(&UnitStatus)) -> Result<Vec<Figure>> {
    let (sets, vms) = load()?;
    let stage = Stage::up(layout.clone(), &layout.images(), program, 3, unit)?;
    super::rest::widen(&stage.lab)?;
    for host in ["h1", "h2", PEER] {
        stage.host_is_back(host)?;
    }
    stage.warm(&["h1", "h2", PEER])?;
    let (mut figures, _) = power_cut(&stage, sets, vms, false, |_| {})?;
    figures.extend(engine_alone(&stage, sets)?);
    stage.down()?;
    Ok(figures)
}

/// As many containers as the sets of the dead host have, started at once by plain Docker on one of the hosts that took them:
/// what of a failover is the engine's.
fn engine_alone(stage: &Stage, sets: usize) -> Result<Vec<Figure>> {
    let failover = stage.failover("h1", None)?;
    let moved = failover.instances.iter().find_map(|item| match &item.fate {
        FailoverFate::Moved { to_name, body: BodyKind::Set, .. } => Some((to_name, item.instance)),
        _ => None,
    });
    let Some((host, instance)) = moved else { return Ok(Vec::new()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let took = runtime.block_on(async {
        let bare = Bare::beside(&stage.lab, host, &format!("amphi-{instance}-only")).await?;
        bare.at_once(sets, 1, std::thread::available_parallelism()?.get().max(2) * 2, Plug::Nothing).await
    })?;
    let took: Vec<u64> = took.iter().map(|one| one.as_millis() as u64).collect();
    Ok(vec![
        figure("bare_containers_p50_ms", percentile(&took, 50), "as many, by plain Docker"),
        figure("bare_containers_p99_ms", percentile(&took, 99), ""),
    ])
}

/// Cuts the power of h1 under so many sets and VMs, on a stage whose hosts are warm and promise enough room. Answers who
/// lived there, and the watcher: all of them run elsewhere. With `twins` each of them has one ready before the cut. `made` hears of each as soon as its order was acknowledged.
pub fn power_cut(
    stage: &Stage,
    sets: usize,
    vms: usize,
    twins: bool,
    made: impl Fn(&Instance),
) -> Result<(Vec<Figure>, Vec<InstanceId>)> {
    let mut addresses = (Vec::new(), Vec::new());
    let mut ordered = Vec::new();
    for number in 0..sets + vms {
        let body = if number < sets { set() } else { vm() };
        let mut order = request(&format!("i{number}"), vec![body], Some("h1"));
        if twins {
            order.failover = FailoverPolicy::Twin;
        }
        let instance = stage.order(&order)?;
        made(&instance);
        ordered.push(instance.id);
    }
    for (number, id) in ordered.iter().enumerate() {
        let told = if number < sets { &mut addresses.0 } else { &mut addresses.1 };
        told.push(address(&stage.runs(*id)?)?);
    }
    if twins {
        for id in &ordered {
            stage.until(*id, "with its twin", |i| i.twin.as_ref().is_some_and(|twin| twin.ready))?;
        }
    }
    let all = [addresses.0.clone(), addresses.1.clone()].concat();
    let (watcher, probe) = stage.watch(&all)?;
    made(&watcher);
    let outage = stage.fail("h1", &probe, &all, || stage.lab.power_cut("h1"))?;
    for address in &all {
        ensure!(probe.count("twice", address, 0)? == 0, "{address} was answered twice");
    }
    let (of_sets, of_vms) = outage.answered.split_at(addresses.0.len());
    let mut figures = Vec::new();
    if !of_sets.is_empty() {
        figures.push(figure("failover_sets_p50_ms", percentile(of_sets, 50), "under 6000"));
        figures.push(figure("failover_sets_p99_ms", percentile(of_sets, 99), "under 12000"));
    }
    if !of_vms.is_empty() {
        figures.push(figure("failover_vms_p50_ms", percentile(of_vms, 50), "sets' + boot"));
        figures.push(figure("failover_vms_p99_ms", percentile(of_vms, 99), "sets' + boot"));
    }
    let detection = outage.failover.decided_at.duration_since(outage.cut_at).as_millis() as u64;
    let beyond: Vec<u64> = of_sets.iter().map(|answered| answered.saturating_sub(detection)).collect();
    if !beyond.is_empty() {
        let goal = if twins { "under 1000" } else { "" };
        figures.push(figure("failover_sets_beyond_detection_p50_ms", percentile(&beyond, 50), goal));
        figures.push(figure("failover_sets_beyond_detection_p99_ms", percentile(&beyond, 99), ""));
    }
    figures.extend(phases(&outage.failover, outage.cut_at)?);
    ordered.push(watcher.id);
    Ok((figures, ordered))
}

fn load() -> Result<(usize, usize)> {
    let Ok(text) = std::env::var("AMPHI_FAILOVER") else { return Ok((SETS, VMS)) };
    let (sets, vms) = text.split_once(',').context("AMPHI_FAILOVER is SETS,VMS")?;
    Ok((sets.parse().context("AMPHI_FAILOVER")?, vms.parse().context("AMPHI_FAILOVER")?))
}

fn figure(name: &'static str, value: f64, goal: &'static str) -> Figure {
    Figure { name, value, goal }
}

/// Where the time went, by the failover's record.
fn phases(failover: &Failover, cut: jiff::Timestamp) -> Result<Vec<Figure>> {
    let between = |from: jiff::Timestamp, to: jiff::Timestamp| to.duration_since(from).as_millis() as f64;
    let barred = failover.barred_at.context("it was never barred")?;
    let moved = failover.moved_at.context("nothing was moved")?;
    let mut starts: Vec<u64> = Vec::new();
    for item in &failover.instances {
        if let FailoverFate::Moved { running_at: Some(at), .. } = &item.fate {
            starts.push(between(moved, *at) as u64);
        }
    }
    let mut figures = vec![
        figure("failover_detection_ms", between(cut, failover.decided_at), ""),
        figure("failover_bar_ms", between(failover.decided_at, barred), ""),
        figure("failover_commit_ms", between(barred, moved), ""),
    ];
    if !starts.is_empty() {
        figures.push(figure("failover_start_p50_ms", percentile(&starts, 50), ""));
        figures.push(figure("failover_start_p99_ms", percentile(&starts, 99), ""));
    }
    Ok(figures)
}

/// The value that so many percent do not exceed.
fn percentile(values: &[u64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).clamp(1, sorted.len());
    sorted[rank - 1] as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_rank() {
        let values: Vec<u64> = (1..=100).rev().collect();
        assert_eq!((percentile(&values, 50), percentile(&values, 99)), (50.0, 99.0));
        assert_eq!(percentile(&[7], 99), 7.0);
        assert_eq!(percentile(&[1, 2, 3], 99), 3.0);
    }
}
