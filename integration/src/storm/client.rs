//! One client of a storm: gives its orders one after the other through the native face, and writes down what was
//! acknowledged.

use super::beliefs::{Beliefs, Existence, InstanceBelief, Outcome, Thing, VolumeBelief};
use super::cloud::{Cloud, NETWORK};
use super::orders::{INSTANCES, Order, Orders, VOLUMES};
use crate::alone::furnish::{ARCHIVE, DISK};
use amphi_api::client::ClientError;
use amphi_api::instance::{BodyKind, ExchangeCreate, InstanceCreate, InstanceState, MoveCreate, Power};
use amphi_api::network::NetworkCreate;
use amphi_api::volume::{SnapshotCreate, VolumeCreate};
use anyhow::Result;
use serde_json::json;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a client waits at most for what it ordered, and how often it looks.
const PATIENCE: Duration = Duration::from_millis(1500);
const LOOK: Duration = Duration::from_millis(60);

pub struct StormClient {
    cloud: Arc<Cloud>,
    number: u64,
    pub beliefs: Mutex<Beliefs>,
}

/// What came of a call; answers that no client should ever get are told.
fn judge<T>(cloud: &Cloud, what: &str, outcome: Result<T, ClientError>) -> Outcome<T> {
    let outcome = match outcome {
        Ok(answer) => Outcome::Acknowledged(answer),
        Err(ClientError::Api { status, detail, .. }) if status >= 500 && status != 503 => {
            cloud.count(format!("answer {status} to {what}: {}", detail.message));
            cloud.wrong(format!("{what} was answered with {status}: {}", detail.message));
            Outcome::Unsure
        }
        Err(ClientError::Api { status: 400..500, detail, .. }) => {
            if std::env::var_os("AMPHI_STORM_REFUSALS").is_some() {
                cloud.count(format!("refused {what}: {}", detail.message));
            }
            Outcome::Refused
        }
        Err(_) => Outcome::Unsure,
    };
    cloud.count(match &outcome {
        Outcome::Acknowledged(_) => "orders acknowledged",
        Outcome::Refused => "orders refused",
        Outcome::Unsure => "orders whose answer was lost",
    });
    if let Outcome::Acknowledged(_) = outcome {
        cloud.count(format!("{what} acknowledged"));
    }
    outcome
}

fn body(kind: BodyKind) -> serde_json::Value {
    match kind {
        BodyKind::Vm => json!({ "vm": { "image": DISK } }),
        BodyKind::Set => json!({ "set": { "members": [{ "index": 1, "image": ARCHIVE }] } }),
    }
}

impl StormClient {
    pub fn new(cloud: Arc<Cloud>, number: u64) -> Self {
        let beliefs =
            Beliefs { instances: vec![None; INSTANCES], volumes: vec![None; VOLUMES], ..Beliefs::default() };
        Self { cloud, number, beliefs: Mutex::new(beliefs) }
    }

    pub fn beliefs(&self) -> MutexGuard<'_, Beliefs> {
        self.beliefs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Orders until `end`, or so many times; answers how many orders it gave.
    pub async fn work(&self, seed: u64, end: Instant, most: u64) -> u64 {
        let mut orders = Orders::new(seed, self.number, self.cloud.hosts.len());
        let mut given = 0;
        while given < most && Instant::now() < end {
            let (order, wait) = orders.next();
            given += 1;
            self.give(order, given).await;
            // Without a controller orders are only lost.
            while self.cloud.client.hosts().await.is_err() && Instant::now() < end {
                tokio::time::sleep(LOOK).await;
            }
            if wait {
                self.settle(end).await;
            }
        }
        given
    }

    async fn give(&self, order: Order, count: u64) {
        let name = format!("c{}-{count}", self.number);
        match order {
            Order::CreateInstance { slot, first, volume, fresh } => {
                self.create_instance(slot, name, first, volume, fresh).await;
            }
            Order::DeleteInstance { slot, .. }
            | Order::Stop { slot }
            | Order::Start { slot }
            | Order::Restart { slot }
            | Order::Exchange { slot, .. }
            | Order::Move { slot, .. }
            | Order::Cancel { slot } => self.order_instance(slot, order).await,
            Order::CreateVolume { slot } => {
                let request = VolumeCreate {
                    name: name.clone(),
                    size_gib: Some(1),
                    snapshot: None,
                    host: None,
                    group: None,
                };
                let made = self.cloud.client.create_volume(&request).await.map(|v| v.id);
                let outcome = judge(&self.cloud, "create volume", made);
                let thing = Thing::created(name, &outcome);
                let mut beliefs = self.beliefs();
                let old = beliefs.volumes[slot].take();
                beliefs.old_volumes.extend(old);
                beliefs.volumes[slot] =
                    thing.map(|thing| VolumeBelief { thing, size_gib: Some(1), snapshot: None });
            }
            Order::Extend { slot }
            | Order::Snapshot { slot }
            | Order::DeleteSnapshot { slot }
            | Order::DeleteVolume { slot } => self.order_volume(slot, name, order).await,
            Order::CreateNetwork => {
                let cidr = format!("10.{}.{}.0/24", 100 + self.number, count % 256);
                // The description is fixed: it always fits.
                let Ok(request) = serde_json::from_value::<NetworkCreate>(
                    json!({ "name": name, "subnet": { "cidr": cidr } }),
                ) else {
                    return;
                };
                let made = self.cloud.client.create_network(&request).await.map(|n| n.id);
                let outcome = judge(&self.cloud, "create network", made);
                let mut beliefs = self.beliefs();
                let old = beliefs.network.take();
                beliefs.old_networks.extend(old);
                beliefs.network = Thing::created(name, &outcome);
            }
            Order::DeleteNetwork => {
                let Some(mut thing) = self.beliefs().network.take() else { return };
                if let Some(id) = thing.id {
                    let gone = self.cloud.client.delete_network(id).await;
                    thing.deleted(&judge(&self.cloud, "delete network", gone));
                }
                self.beliefs().old_networks.push(thing);
            }
        }
    }

    async fn create_instance(&self, slot: usize, name: String, first: BodyKind, volume: bool, fresh: bool) {
        let other = if first == BodyKind::Vm { BodyKind::Set } else { BodyKind::Vm };
        let mut request = json!({
            "name": name, "vcpus": 1, "memory_mib": 64, "bodies": [body(first), body(other)],
            "networks": [{ "network": NETWORK }],
        });
        if volume {
            request["volume"] = json!({ "size_gib": 1 });
            if fresh {
                request["failover_terms"] = json!({ "local_volume": "fresh" });
            }
        } else if fresh {
            request["failover"] = json!("twin");
        }
        let Ok(request) = serde_json::from_value::<InstanceCreate>(request) else { return };
        let made = self.cloud.client.create_instance(&request).await;
        let outcome = judge(&self.cloud, "create instance", made);
        let (outcome, address) = match outcome {
            Outcome::Acknowledged(made) => {
                (Outcome::Acknowledged(made.id), made.addresses.first().map(|a| a.address))
            }
            Outcome::Refused => (Outcome::Refused, None),
            Outcome::Unsure => (Outcome::Unsure, None),
        };
        let mut beliefs = self.beliefs();
        let old = beliefs.instances[slot].take();
        beliefs.old_instances.extend(old);
        beliefs.instances[slot] = Thing::created(name, &outcome).map(|thing| InstanceBelief {
            thing,
            power: Some(Power::On),
            address,
        });
    }

    async fn order_instance(&self, slot: usize, order: Order) {
        let id = {
            let mut beliefs = self.beliefs();
            let Some(belief) = &mut beliefs.instances[slot] else { return };
            let Some(id) = belief.thing.id else { return };
            belief.thing.busy = true;
            id
        };
        let (cloud, client) = (&self.cloud, &self.cloud.client);
        let power = match order {
            Order::DeleteInstance { volume, .. } => {
                let gone = judge(cloud, "delete instance", client.delete_instance(id, volume).await);
                if let Some(belief) = &mut self.beliefs().instances[slot] {
                    belief.thing.deleted(&gone);
                }
                None
            }
            Order::Stop { .. } => {
                Some((Power::Off, judge(cloud, "stop", client.stop_instance(id).await.map(drop))))
            }
            Order::Start { .. } => {
                Some((Power::On, judge(cloud, "start", client.start_instance(id).await.map(drop))))
            }
            Order::Restart { .. } => {
                judge(cloud, "restart", client.restart_instance(id).await);
                None
            }
            Order::Exchange { to, .. } => {
                judge(
                    cloud,
                    "exchange",
                    client.create_exchange(id, &ExchangeCreate { to, body: None }).await,
                );
                None
            }
            Order::Move { to, .. } => {
                let to = to.map(|at| cloud.names[at].clone());
                let request = MoveCreate {
                    to,
                    kind: None,
                    live: None,
                    reason: "storm".to_owned(),
                    ..MoveCreate::default()
                };
                judge(cloud, "move", client.create_move(id, &request).await);
                None
            }
            _ => {
                let open = client.exchanges(id).await.unwrap_or_default();
                if let Some(open) = open.iter().find(|e| e.ended_at.is_none()) {
                    judge(cloud, "cancel", client.cancel_exchange(open.id).await);
                }
                None
            }
        };
        let mut beliefs = self.beliefs();
        let Some(belief) = &mut beliefs.instances[slot] else { return };
        belief.thing.busy = false;
        match power {
            Some((power, Outcome::Acknowledged(()))) => belief.power = Some(power),
            Some((power, Outcome::Unsure)) if belief.power != Some(power) => belief.power = None,
            _ => {}
        }
    }

    async fn order_volume(&self, slot: usize, name: String, order: Order) {
        let (id, size, snapshot) = {
            let mut beliefs = self.beliefs();
            let Some(belief) = &mut beliefs.volumes[slot] else { return };
            let Some(id) = belief.thing.id else { return };
            belief.thing.busy = true;
            (id, belief.size_gib, belief.snapshot.clone())
        };
        let (cloud, client) = (&self.cloud, &self.cloud.client);
        let mut taken = None;
        let mut gone = None;
        let mut grown = None;
        match order {
            Order::Extend { .. } => {
                let Some(size) = size else { return };
                grown = Some((size + 1, judge(cloud, "extend", client.extend_volume(id, size + 1).await)));
            }
            Order::Snapshot { .. } => {
                let made = client.create_snapshot(id, &SnapshotCreate { name: name.clone() }).await;
                taken = Thing::created(name, &judge(cloud, "snapshot", made.map(|s| s.id)));
            }
            Order::DeleteSnapshot { .. } => {
                if let Some((id, mut thing)) = snapshot.and_then(|s| Some((s.id?, s))) {
                    thing.deleted(&judge(cloud, "delete snapshot", client.delete_snapshot(id).await));
                    taken = Some(thing);
                }
            }
            _ => gone = Some(judge(cloud, "delete volume", client.delete_volume(id).await)),
        }
        let mut beliefs = self.beliefs();
        let mut old = None;
        if let Some(belief) = &mut beliefs.volumes[slot] {
            belief.thing.busy = false;
            if let Some(gone) = gone {
                belief.thing.deleted(&gone);
            }
            match grown {
                Some((size, Outcome::Acknowledged(_))) => belief.size_gib = Some(size),
                Some((_, Outcome::Unsure)) => belief.size_gib = None,
                _ => {}
            }
            if taken.is_some() {
                old = std::mem::replace(&mut belief.snapshot, taken);
                // The same one, only older news of it.
                old = old.filter(|old| belief.snapshot.as_ref().is_some_and(|new| new.name != old.name));
            }
        }
        beliefs.old_snapshots.extend(old);
    }

    /// Waits a moment until this client's instances are as ordered.
    async fn settle(&self, end: Instant) {
        let end = end.min(Instant::now() + PATIENCE);
        let mine: Vec<_> = {
            let beliefs = self.beliefs();
            let there = beliefs.instances.iter().flatten().filter(|b| b.thing.existence == Existence::There);
            there.filter_map(|b| b.thing.id).collect()
        };
        for id in mine {
            while Instant::now() < end {
                let seen = self.cloud.client.instance(id).await;
                if seen.is_ok_and(|i| matches!(i.state, InstanceState::Running | InstanceState::Stopped)) {
                    break;
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}
