//! What instances use of what they may have, in whole percent, for those that the controller asks about. Owns the rate of
//! looking; refuses to look while nobody asks, and to keep more than the round before.

use crate::instance::figures::{Figure, Meter, Reading, read_all};
use amphi_api::InstanceId;
use amphi_api::group::InstanceFigures;
use amphi_api::wire::HostDesired;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

/// Between two looks. A scaling that is quicker than this would follow noise.
const PERIOD: Duration = Duration::from_secs(5);

/// Runs until the process ends.
pub async fn keep(
    meters: Vec<Arc<dyn Meter>>,
    orders: watch::Receiver<Option<Arc<HostDesired>>>,
    tell: watch::Sender<Arc<Vec<InstanceFigures>>>,
) {
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before: Option<(Instant, Spent)> = None;
    loop {
        tick.tick().await;
        let desired = orders.borrow().clone().filter(|desired| !desired.measured.is_empty());
        let Some(desired) = desired else {
            before = None;
            continue;
        };
        // What cannot be measured is left out: the controller knows how old its figures are.
        let readings: Vec<Reading> = read_all(&meters).await.into_iter().flatten().flatten().collect();
        let (now, spent) = (Instant::now(), spent(&readings));
        if let Some((then, earlier)) = &before {
            let figures = figures(&desired, &readings, earlier, &spent, now.duration_since(*then));
            tell.send_replace(Arc::new(figures));
        }
        before = Some((now, spent));
    }
}

/// Seconds of CPU that each body's part has used.
type Spent = HashMap<(InstanceId, Option<String>), f64>;

fn spent(readings: &[Reading]) -> Spent {
    let cpu = readings.iter().filter(|reading| reading.figure == Figure::Cpu);
    cpu.map(|reading| ((reading.instance, reading.member.clone()), reading.value)).collect()
}

fn figures(
    desired: &HostDesired,
    readings: &[Reading],
    earlier: &Spent,
    now: &Spent,
    passed: Duration,
) -> Vec<InstanceFigures> {
    let mut used: HashMap<InstanceId, f64> = HashMap::new();
    for ((id, part), seconds) in now {
        // A part that has started anew counts from nothing.
        let since = earlier.get(&(*id, part.clone())).filter(|before| *before <= seconds).unwrap_or(&0.0);
        if earlier.contains_key(&(*id, part.clone())) {
            *used.entry(*id).or_default() += seconds - since;
        }
    }
    let measured = desired.instances.iter().filter(|i| desired.measured.contains(&i.id));
    measured
        .filter_map(|i| {
            let cpu = used.get(&i.id)? / passed.as_secs_f64().max(0.001) / f64::from(i.vcpus.max(1)) * 100.0;
            let of = |figure| {
                let all = readings.iter().filter(move |r| r.instance == i.id && r.figure == figure);
                all.map(|r| r.value).reduce(|a, b| a + b)
            };
            let all = (i.memory_mib << 20) as f64;
            let used = of(Figure::MemoryUnused).map(|unused| all - unused).or_else(|| of(Figure::Memory))?;
            let percent = |value: f64| value.round().clamp(0.0, f64::from(u16::MAX)) as u16;
            Some(InstanceFigures {
                id: i.id,
                cpu: percent(cpu),
                memory: percent(used / all.max(1.0) * 100.0),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn id(n: u128) -> InstanceId {
        InstanceId(uuid::Uuid::from_u128(n))
    }

    fn read(n: u128, member: &str, figure: Figure, value: f64) -> Reading {
        let member = (!member.is_empty()).then(|| member.to_owned());
        Reading { instance: id(n), member, device: None, figure, value }
    }

    #[test]
    fn percent_of_what_they_may_have() {
        let instance = |n: u128, vcpus: u32| {
            json!({"id": id(n), "project": id(9), "name": "x", "epoch": 1, "power": "on", "restarts": 0, "vcpus": vcpus,
                "memory_mib": 100, "ports": [], "volume": null,
                "body": {"set": {"set": {"members": []}, "images": []}}})
        };
        let desired: HostDesired = serde_json::from_value(json!({
            "host": id(8), "generation": 1, "instances": [instance(1, 2), instance(2, 1), instance(3, 1)],
            "volumes": [], "snapshots": [], "tombstones": [], "measured": [id(1), id(2)],
        }))
        .unwrap();
        let mib = f64::from(1 << 20);
        let earlier = [
            read(1, "a", Figure::Cpu, 10.0),
            read(1, "b", Figure::Cpu, 7.0),
            read(2, "", Figure::Cpu, 5.0),
            read(3, "", Figure::Cpu, 5.0),
        ];
        let now = [
            read(1, "a", Figure::Cpu, 15.0),
            // Started anew.
            read(1, "b", Figure::Cpu, 1.0),
            read(1, "a", Figure::Memory, 20.0 * mib),
            read(1, "b", Figure::Memory, 30.0 * mib),
            read(2, "", Figure::Cpu, 5.0),
            read(2, "", Figure::Memory, 90.0 * mib),
            read(2, "", Figure::MemoryUnused, 75.0 * mib),
            read(3, "", Figure::Cpu, 15.0),
            read(3, "", Figure::Memory, 1.0 * mib),
        ];
        let got = figures(&desired, &now, &spent(&earlier), &spent(&now), Duration::from_secs(10));
        let want =
            [(1, 30, 50), (2, 0, 25)].map(|(n, cpu, memory)| InstanceFigures { id: id(n), cpu, memory });
        assert_eq!(got, want);
    }
}
