//! What a client of a storm may count on: what was acknowledged. An order whose answer was lost may have been taken or not,
//! and is believed neither way.

use amphi_api::instance::Power;
use amphi_api::{InstanceId, NetworkId, SnapshotId, VolumeId};
use std::net::IpAddr;

/// What came of an order.
#[derive(Clone, Debug)]
pub enum Outcome<T> {
    Acknowledged(T),
    /// By the controller, with a reason: nothing has changed.
    Refused,
    Unsure,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existence {
    There,
    Gone,
    Unsure,
}

#[derive(Clone, Debug)]
pub struct Thing<Id> {
    pub name: String,
    /// None: its creation was never answered.
    pub id: Option<Id>,
    pub existence: Existence,
    /// An order about it is under way: nobody else judges it.
    pub busy: bool,
}

impl<Id: Copy> Thing<Id> {
    pub fn created(name: String, outcome: &Outcome<Id>) -> Option<Self> {
        let (id, existence) = match outcome {
            Outcome::Acknowledged(id) => (Some(*id), Existence::There),
            Outcome::Unsure => (None, Existence::Unsure),
            Outcome::Refused => return None,
        };
        Some(Self { name, id, existence, busy: false })
    }

    /// A deletion was ordered.
    pub fn deleted<T>(&mut self, outcome: &Outcome<T>) {
        match outcome {
            Outcome::Acknowledged(_) => self.existence = Existence::Gone,
            Outcome::Unsure => self.existence = Existence::Unsure,
            Outcome::Refused => {}
        }
    }
}

#[derive(Clone, Debug)]
pub struct InstanceBelief {
    pub thing: Thing<InstanceId>,
    /// None: unsure.
    pub power: Option<Power>,
    /// It never changes.
    pub address: Option<IpAddr>,
}

#[derive(Clone, Debug)]
pub struct VolumeBelief {
    pub thing: Thing<VolumeId>,
    /// None: unsure.
    pub size_gib: Option<u64>,
    pub snapshot: Option<Thing<SnapshotId>>,
}

/// Of one client: what it works with, and what it has left behind.
#[derive(Clone, Debug, Default)]
pub struct Beliefs {
    pub instances: Vec<Option<InstanceBelief>>,
    pub volumes: Vec<Option<VolumeBelief>>,
    pub network: Option<Thing<NetworkId>>,
    pub old_instances: Vec<InstanceBelief>,
    pub old_volumes: Vec<VolumeBelief>,
    pub old_snapshots: Vec<Thing<SnapshotId>>,
    pub old_networks: Vec<Thing<NetworkId>>,
}

impl Beliefs {
    pub fn every_instance(&self) -> impl Iterator<Item = &InstanceBelief> {
        self.instances.iter().flatten().chain(&self.old_instances)
    }

    pub fn every_volume(&self) -> impl Iterator<Item = &VolumeBelief> {
        self.volumes.iter().flatten().chain(&self.old_volumes)
    }

    pub fn every_snapshot(&self) -> impl Iterator<Item = &Thing<SnapshotId>> {
        self.volumes.iter().flatten().filter_map(|v| v.snapshot.as_ref()).chain(&self.old_snapshots)
    }

    pub fn every_network(&self) -> impl Iterator<Item = &Thing<NetworkId>> {
        self.network.iter().chain(&self.old_networks)
    }
}
