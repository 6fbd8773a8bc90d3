//! What has to be so, during a storm and after it.

use super::beliefs::{Existence, InstanceBelief};
use super::client::StormClient;
use super::cloud::Cloud;
use amphi_api::InstanceId;
use amphi_api::host::HostState;
use amphi_api::instance::{Instance, InstanceState, Power};
use amphi_api::volume::{SnapshotState, VolumeState};
use anyhow::{Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const LOOK: Duration = Duration::from_millis(200);
/// For all to come to rest after the last fault: the longest pause of a retry, twice.
const REST: Duration = Duration::from_secs(90);

/// Looks all the time, until it is ended: at what clients are shown. What runs, the registry sees by itself.
pub async fn watch(cloud: Arc<Cloud>, clients: Vec<Arc<StormClient>>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let before = counted_on(&clients);
        if let Ok(instances) = cloud.client.instances().await {
            cloud.count("looks at all instances");
            let after = counted_on(&clients);
            let seen: BTreeSet<_> = instances.iter().map(|i| i.id).collect();
            for id in before.intersection(&after).filter(|id| !seen.contains(*id)) {
                cloud.wrong(format!("instance {id} was acknowledged, and is not in the list"));
            }
            unique(&cloud, &instances);
        }
    }
}

/// Instances that were acknowledged and that nobody is doing anything about.
fn counted_on(clients: &[Arc<StormClient>]) -> BTreeSet<InstanceId> {
    let of = |client: &Arc<StormClient>| -> Vec<InstanceId> {
        let beliefs = client.beliefs();
        let sure = |b: &&InstanceBelief| b.thing.existence == Existence::There && !b.thing.busy;
        beliefs.every_instance().filter(sure).filter_map(|b| b.thing.id).collect()
    };
    clients.iter().flat_map(of).collect()
}

fn unique(cloud: &Cloud, instances: &[Instance]) {
    let mut addresses = BTreeMap::new();
    let mut macs = BTreeMap::new();
    for instance in instances {
        for address in &instance.addresses {
            if let Some(other) = addresses.insert((address.network, address.address), instance.id) {
                cloud.wrong(format!("{} is given to {other} and {}", address.address, instance.id));
            }
            if let Some(other) = macs.insert((address.network, address.mac.clone()), instance.id) {
                cloud.wrong(format!("{} is given to {other} and {}", address.mac, instance.id));
            }
        }
    }
}

/// Looks until nothing is wrong any more; the error has what was wrong last.
async fn until_right<F: Future<Output = Result<Vec<String>>>>(
    cloud: &Cloud,
    what: &str,
    mut look: impl FnMut() -> F,
) -> Result<()> {
    let end = Instant::now() + REST;
    loop {
        let wrong = look().await.unwrap_or_else(|error| vec![format!("{error:#}")]);
        if wrong.is_empty() {
            return Ok(());
        }
        if Instant::now() >= end {
            let mut hosts = String::new();
            for host in &cloud.hosts {
                let host = host.lock().await;
                hosts += &format!("\n--- {}:\n{}", host.name(), host.log());
            }
            let log = cloud.controller.lock().await.log().unwrap_or_default();
            let log: Vec<_> = log.lines().collect();
            let log = log[log.len().saturating_sub(60)..].join("\n");
            bail!(
                "{what}, not within {} s:\n{}\n--- controller:\n{log}{hosts}",
                REST.as_secs(),
                wrong.join("\n")
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

pub async fn hosts_are_up(cloud: &Cloud) -> Result<()> {
    until_right(cloud, "all hosts are up", || async {
        let hosts = cloud.client.hosts().await?;
        let up = hosts.iter().filter(|h| h.state == HostState::Up).count();
        let all = cloud.hosts.len();
        Ok(if up == all { vec![] } else { vec![format!("{up} of {all} hosts are up")] })
    })
    .await
}

/// After the storm: all that was acknowledged is there and as ordered, and what was deleted is not.
pub async fn all_as_acknowledged(cloud: &Cloud, clients: &[Arc<StormClient>]) -> Result<()> {
    until_right(cloud, "all is as acknowledged", || async {
        let mut wrong = Vec::new();
        for host in cloud.client.hosts().await? {
            if host.state != HostState::Up || host.barred_since.is_some() || !host.strangers.is_empty() {
                wrong.push(format!("host {}: {:?} {:?}", host.name, host.state, host.strangers));
            }
        }
        let all = cloud.client.instances().await?;
        let instances: BTreeMap<_, _> = all.iter().map(|i| (i.id, i)).collect();
        let living = cloud.registry.living();
        for instance in &all {
            judge_instance(instance, &living, &mut wrong);
        }
        for (id, place) in living.iter().filter(|(id, _)| !instances.contains_key(id)) {
            wrong.push(format!("nobody knows instance {id}, which lives as {place}"));
        }
        let volumes: BTreeMap<_, _> = cloud.client.volumes().await?.into_iter().map(|v| (v.id, v)).collect();
        let snapshots: BTreeMap<_, _> =
            cloud.client.snapshots().await?.into_iter().map(|s| (s.id, s)).collect();
        let networks: BTreeSet<_> = cloud.client.networks().await?.into_iter().map(|n| n.id).collect();
        for exchange in cloud.client.all_exchanges().await? {
            if exchange.ended_at.is_none() {
                wrong.push(format!(
                    "exchange of {} is {:?}: {:?}",
                    exchange.instance, exchange.phase, exchange.fault
                ));
            }
        }
        for client in clients {
            let beliefs = client.beliefs();
            for belief in beliefs.every_instance() {
                let Some(id) = belief.thing.id else { continue };
                let here = instances.get(&id);
                presence(&belief.thing.name, belief.thing.existence, here.is_some(), &mut wrong);
                let (Some(here), Existence::There) = (here, belief.thing.existence) else { continue };
                if belief.power.is_some_and(|power| power != here.power) {
                    wrong.push(format!("{}: power {:?}, ordered {:?}", here.name, here.power, belief.power));
                }
                let address = here.addresses.first().map(|a| a.address);
                if address != belief.address {
                    wrong.push(format!("{}: address {address:?}, was {:?}", here.name, belief.address));
                }
            }
            for belief in beliefs.every_volume() {
                let Some(id) = belief.thing.id else { continue };
                let here = volumes.get(&id);
                presence(&belief.thing.name, belief.thing.existence, here.is_some(), &mut wrong);
                let (Some(here), Existence::There) = (here, belief.thing.existence) else { continue };
                let bytes = belief.size_gib.map(|gib| gib << 30);
                if here.state != VolumeState::Available || bytes.is_some() && here.size_bytes != bytes {
                    wrong.push(format!("volume {here:?}, ordered with {bytes:?} bytes"));
                }
            }
            for thing in beliefs.every_snapshot() {
                let here = thing.id.and_then(|id| snapshots.get(&id));
                if thing.id.is_some() {
                    presence(&thing.name, thing.existence, here.is_some(), &mut wrong);
                }
                if here.is_some_and(|s| s.state != SnapshotState::Available) {
                    wrong.push(format!("snapshot {here:?}"));
                }
            }
            for thing in beliefs.every_network() {
                let Some(id) = thing.id else { continue };
                presence(&thing.name, thing.existence, networks.contains(&id), &mut wrong);
            }
        }
        Ok(wrong)
    })
    .await
}

fn presence(name: &str, believed: Existence, here: bool, wrong: &mut Vec<String>) {
    match (believed, here) {
        (Existence::There, false) => wrong.push(format!("{name} was acknowledged and is lost")),
        (Existence::Gone, true) => wrong.push(format!("{name} was deleted and is there")),
        _ => {}
    }
}

fn judge_instance(instance: &Instance, living: &BTreeMap<InstanceId, String>, wrong: &mut Vec<String>) {
    let lives = living.get(&instance.id);
    let right = match instance.power {
        Power::On => instance.state == InstanceState::Running && lives.is_some(),
        _ => instance.state == InstanceState::Stopped && lives.is_none(),
    };
    let place = format!(
        "{} on {} at epoch {}",
        instance.body,
        instance.host_name.as_deref().unwrap_or("?"),
        instance.epoch
    );
    if !right || lives.is_some_and(|lives| *lives != place) {
        wrong.push(format!(
            "{} ({}): ordered {:?} as {place}, told as {}, lives as {lives:?}; {:?} {:?}",
            instance.name, instance.id, instance.power, instance.state, instance.fault, instance.lost
        ));
    }
}

/// Deletes all there is, and nothing may be left anywhere.
pub async fn gone_without_a_trace(cloud: &Cloud) -> Result<()> {
    until_right(cloud, "all is gone without a trace", || async {
        let client = &cloud.client;
        let mut left = Vec::new();
        for instance in client.instances().await? {
            left.push(format!("instance {} {}", instance.name, instance.state));
            if instance.state != InstanceState::Deleting {
                client.delete_instance(instance.id, true).await?;
            }
        }
        for snapshot in client.snapshots().await? {
            left.push(format!("snapshot {} {:?} {:?}", snapshot.name, snapshot.state, snapshot.fault));
            if snapshot.state == SnapshotState::Available {
                client.delete_snapshot(snapshot.id).await?;
            }
        }
        for volume in client.volumes().await? {
            left.push(format!("volume {} {:?} {:?}", volume.name, volume.state, volume.fault));
            if volume.state == VolumeState::Available {
                client.delete_volume(volume.id).await?;
            }
        }
        let binned = client.recycle_bin().await?;
        left.extend(binned.iter().map(|v| format!("volume {} in the bin, {:?}", v.name, v.state)));
        if left.is_empty() {
            for network in client.networks().await? {
                left.push(format!("network {}", network.name));
                client.delete_network(network.id).await?;
            }
        }
        left.extend(client.ports().await?.into_iter().map(|p| format!("port {:?}", p.address)));
        for host in client.hosts().await? {
            if host.claims != Default::default() {
                left.push(format!("{}: claims {:?}", host.name, host.claims));
            }
        }
        for host in &cloud.hosts {
            let host = host.lock().await;
            left.extend(host.engines.leftovers());
            left.extend(
                remembered(&host.state().join("ledger.json"))
                    .into_iter()
                    .map(|what| format!("{} remembers {what}", host.name())),
            );
        }
        Ok(left)
    })
    .await
}

/// What an agent's ledger holds beyond itself.
fn remembered(ledger: &std::path::Path) -> Vec<String> {
    let read = std::fs::read(ledger).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let Some(pages): Option<serde_json::Value> = read else { return vec!["nothing at all".to_owned()] };
    let mut left = Vec::new();
    let mut holds = |what: &str, value: &serde_json::Value| {
        let empty =
            value.as_array().is_none_or(Vec::is_empty) && value.as_object().is_none_or(|o| o.is_empty());
        if !empty {
            left.push(format!("{what}: {value}"));
        }
    };
    holds("begun", &pages["begun"]);
    for what in ["instances", "expected", "volumes", "snapshots", "tombstones"] {
        holds(what, &pages["desired"][what]);
    }
    left
}
