//! The orders that somebody dies under: how each is given, and how one sees that it has come to be.

use super::lab::Lab;
use amphi_api::client::ClientError;
use amphi_api::failover::FailoverPhase;
use amphi_api::host::HostState;
use amphi_api::instance::{
    BodyKind, ExchangeCreate, ExchangePhase, Instance, InstanceCreate, InstanceState, MoveCreate, Power,
};
use amphi_api::network::NetworkCreate;
use amphi_api::volume::{SnapshotCreate, SnapshotState, Volume, VolumeCreate, VolumeState};
use serde_json::json;

/// Names of the one thing of each kind.
const IT: &str = "it";
const NETWORK: &str = "net";

pub type Kind = BodyKind;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// As a set, or a VM when it does not fit; with a volume or without; on this host.
    Create {
        volume: bool,
        host: usize,
    },
    /// Without a volume, on this host, with a twin that is ready on another one.
    Twinned(usize),
    Delete,
    Stop,
    Start,
    Exchange(Kind),
    Move(usize),
    /// The host loses its power, and its instance goes elsewhere.
    Fail(usize),
    /// It is back and let in.
    Return(usize),
    CreateVolume,
    Extend,
    Snapshot,
    DeleteSnapshot,
    DeleteVolume,
    CreateNetwork,
    DeleteNetwork,
}

/// What is done, and under which of it somebody dies.
#[derive(Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub before: &'static [Step],
    pub steps: &'static [Step],
    pub after: &'static [Step],
    /// The records that the controller must have died over, as `kind` or `kind=phase`.
    pub commits: &'static [&'static str],
    /// The calls to engines that an agent must have died at.
    pub calls: &'static [&'static str],
}

const MADE: Step = Step::Create { volume: true, host: 0 };
const BARE: Step = Step::Create { volume: false, host: 0 };

pub const SCENARIOS: [Scenario; 8] = [
    Scenario {
        name: "create",
        before: &[],
        steps: &[MADE],
        after: &[Step::Delete],
        commits: &["instance", "port", "volume"],
        calls: &["ensure volume", "attach", "ensure"],
    },
    Scenario {
        name: "delete",
        before: &[MADE],
        steps: &[Step::Stop, Step::Start, Step::Delete],
        after: &[],
        commits: &["instance", "port", "volume", "tombstone"],
        calls: &["stop", "ensure", "remove", "detach", "bin"],
    },
    Scenario {
        name: "exchange",
        before: &[MADE],
        steps: &[Step::Exchange(BodyKind::Vm), Step::Exchange(BodyKind::Set)],
        after: &[Step::Delete],
        commits: &["exchange=preparing", "exchange=switching", "exchange=done"],
        calls: &["prepare", "stop", "remove", "detach", "attach", "ensure"],
    },
    Scenario {
        name: "move",
        before: &[MADE],
        steps: &[Step::Move(1)],
        after: &[Step::Delete],
        commits: &[
            "exchange=preparing",
            "exchange=stopping",
            "exchange=copying",
            "exchange=leaving",
            "exchange=switching",
            "exchange=done",
        ],
        calls: &["prepare", "stop", "read", "remove", "ensure volume", "ensure"],
    },
    Scenario {
        name: "failover",
        before: &[BARE],
        steps: &[Step::Fail(0), Step::Return(0)],
        after: &[Step::Delete],
        commits: &["failover=barring", "failover=moving", "failover=starting", "failover=done", "host"],
        calls: &["ensure", "remove"],
    },
    Scenario {
        name: "twin",
        before: &[],
        steps: &[Step::Twinned(0), Step::Fail(0), Step::Return(0), Step::Delete],
        after: &[],
        commits: &["twin", "failover=moving", "tombstone"],
        calls: &["lay out", "ensure", "remove"],
    },
    Scenario {
        name: "volume",
        before: &[],
        steps: &[Step::CreateVolume, Step::Extend, Step::Snapshot, Step::DeleteSnapshot, Step::DeleteVolume],
        after: &[],
        commits: &["volume", "snapshot", "tombstone"],
        calls: &["ensure volume", "snapshot", "bin"],
    },
    Scenario {
        name: "network",
        before: &[],
        steps: &[Step::CreateNetwork, Step::DeleteNetwork],
        after: &[],
        commits: &["network", "subnet"],
        calls: &[],
    },
];

/// How far a step has come.
#[derive(Debug)]
pub enum Sight {
    /// As if it had never been ordered.
    Unordered,
    UnderWay(String),
    /// It was ordered, failed in a way that the records tell, and left all as it was.
    Failed(String),
    Done,
}

fn absent<T>(found: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn told(instance: &Instance) -> Sight {
    Sight::UnderWay(format!(
        "{} as {} on {:?} at epoch {}, {:?}",
        instance.state, instance.body, instance.host_name, instance.epoch, instance.fault
    ))
}

fn sized(volume: &Volume, gib: u64) -> bool {
    volume.state == VolumeState::Available && volume.size_bytes == Some(gib << 30)
}

impl Step {
    /// Whether the records say that it has come to be.
    pub async fn look(self, lab: &Lab) -> Result<Sight, ClientError> {
        let client = &lab.client;
        let done = |done: bool, sight: Sight| if done { Sight::Done } else { sight };
        Ok(match self {
            Step::Create { .. } => match absent(client.find_instance(IT).await)? {
                None => Sight::Unordered,
                Some(it) => done(it.state == InstanceState::Running, told(&it)),
            },
            Step::Twinned(_) => match absent(client.find_instance(IT).await)? {
                None => Sight::Unordered,
                Some(it) => {
                    let waits = it.twin.as_ref().is_some_and(|twin| twin.ready);
                    let sight = Sight::UnderWay(format!("{}, its twin {:?}", it.state, it.twin));
                    done(waits && it.state == InstanceState::Running, sight)
                }
            },
            Step::Delete => match absent(client.find_instance(IT).await)? {
                None => {
                    done(client.volumes().await?.is_empty(), Sight::UnderWay("its volume is there".into()))
                }
                Some(it) if it.state == InstanceState::Deleting => told(&it),
                Some(_) => Sight::Unordered,
            },
            Step::Stop | Step::Start => {
                let it = client.find_instance(IT).await?;
                let (power, state) = match self {
                    Step::Stop => (Power::Off, InstanceState::Stopped),
                    _ => (Power::On, InstanceState::Running),
                };
                let ordered = it.power == power;
                done(ordered && it.state == state, if ordered { told(&it) } else { Sight::Unordered })
            }
            Step::Exchange(_) | Step::Move(_) => {
                let it = client.find_instance(IT).await?;
                let exchanges = client.exchanges(it.id).await?;
                let open = exchanges.iter().any(|e| e.ended_at.is_none());
                let newest = exchanges.iter().max_by_key(|e| e.started_at);
                let failed = newest.filter(|e| e.phase == ExchangePhase::Failed);
                let there = match self {
                    Step::Exchange(kind) => it.body == kind,
                    Step::Move(to) => it.host_name.as_ref() == Some(&lab.names[to]),
                    _ => false,
                };
                match (open, there) {
                    (false, true) => done(it.state == InstanceState::Running, told(&it)),
                    (true, _) => told(&it),
                    (false, false) => match failed {
                        Some(failed) => Sight::Failed(format!("{:?}", failed.fault)),
                        None => Sight::Unordered,
                    },
                }
            }
            Step::Fail(at) => {
                let it = client.find_instance(IT).await?;
                let failovers = client.failovers().await?;
                let over = failovers.iter().find(|f| f.returned_at.is_none());
                let moved = it.host_name.as_ref() != Some(&lab.names[at]);
                let over = over.is_some_and(|f| f.phase == FailoverPhase::Done);
                done(moved && over && it.state == InstanceState::Running, told(&it))
            }
            Step::Return(at) => {
                let host = client.find_host(&lab.names[at]).await?;
                let open = client.failovers().await?.iter().any(|f| f.returned_at.is_none());
                let back = host.state == HostState::Up && host.barred_since.is_none() && !open;
                done(back, Sight::UnderWay(format!("{:?}, barred {:?}", host.state, host.barred_since)))
            }
            Step::CreateVolume | Step::Extend => match absent(client.find_volume(IT).await)? {
                None => Sight::Unordered,
                Some(volume) => {
                    let gib = if self == Step::Extend { 2 } else { 1 };
                    let ordered = volume.size_gib == gib;
                    let sight =
                        if ordered { Sight::UnderWay(format!("{volume:?}")) } else { Sight::Unordered };
                    done(ordered && sized(&volume, gib), sight)
                }
            },
            Step::DeleteVolume => match absent(client.find_volume(IT).await)? {
                None => {
                    let bin = client.recycle_bin().await?;
                    done(bin.is_empty(), Sight::UnderWay(format!("{bin:?}")))
                }
                Some(volume) if volume.state == VolumeState::Available => Sight::Unordered,
                Some(volume) => Sight::UnderWay(format!("{volume:?}")),
            },
            Step::Snapshot => match absent(client.find_snapshot(IT).await)? {
                None => Sight::Unordered,
                Some(snapshot) => {
                    let there = snapshot.state == SnapshotState::Available;
                    done(there, Sight::UnderWay(format!("{snapshot:?}")))
                }
            },
            Step::DeleteSnapshot => match absent(client.find_snapshot(IT).await)? {
                None => Sight::Done,
                Some(snapshot) if snapshot.state == SnapshotState::Available => Sight::Unordered,
                Some(snapshot) => Sight::UnderWay(format!("{snapshot:?}")),
            },
            Step::CreateNetwork => {
                done(absent(client.find_network(NETWORK).await)?.is_some(), Sight::Unordered)
            }
            Step::DeleteNetwork => {
                done(absent(client.find_network(NETWORK).await)?.is_none(), Sight::Unordered)
            }
        })
    }

    /// Gives the order. What befalls a host is no order: the lab sees to it.
    pub async fn order(self, lab: &Lab) -> Result<(), ClientError> {
        let client = &lab.client;
        let said = |text: serde_json::Error| ClientError::Setup { what: text.to_string() };
        match self {
            Step::Create { volume, host } => {
                let mut request = it(lab, host);
                if volume {
                    request["volume"] = json!({ "size_gib": 1 });
                }
                let request: InstanceCreate = serde_json::from_value(request).map_err(said)?;
                client.create_instance(&request).await.map(drop)
            }
            Step::Twinned(host) => {
                let mut request = it(lab, host);
                request["failover"] = json!("twin");
                let request: InstanceCreate = serde_json::from_value(request).map_err(said)?;
                client.create_instance(&request).await.map(drop)
            }
            Step::Delete => client.delete_instance(client.find_instance(IT).await?.id, true).await,
            Step::Stop => client.stop_instance(client.find_instance(IT).await?.id).await.map(drop),
            Step::Start => client.start_instance(client.find_instance(IT).await?.id).await.map(drop),
            Step::Exchange(to) => {
                let id = client.find_instance(IT).await?.id;
                client.create_exchange(id, &ExchangeCreate { to, body: None }).await.map(drop)
            }
            Step::Move(to) => {
                let id = client.find_instance(IT).await?.id;
                let to = Some(lab.names[to].clone());
                let request = MoveCreate {
                    to,
                    kind: None,
                    live: None,
                    reason: "a test".to_owned(),
                    ..MoveCreate::default()
                };
                client.create_move(id, &request).await.map(drop)
            }
            Step::Fail(_) | Step::Return(_) => Ok(()),
            Step::CreateVolume => {
                let request = VolumeCreate {
                    name: IT.to_owned(),
                    size_gib: Some(1),
                    snapshot: None,
                    host: Some(lab.names[0].clone()),
                    group: None,
                };
                client.create_volume(&request).await.map(drop)
            }
            Step::Extend => client.extend_volume(client.find_volume(IT).await?.id, 2).await.map(drop),
            Step::Snapshot => {
                let id = client.find_volume(IT).await?.id;
                client.create_snapshot(id, &SnapshotCreate { name: IT.to_owned() }).await.map(drop)
            }
            Step::DeleteSnapshot => client.delete_snapshot(client.find_snapshot(IT).await?.id).await,
            Step::DeleteVolume => client.delete_volume(client.find_volume(IT).await?.id).await,
            Step::CreateNetwork => {
                let network = json!({ "name": NETWORK, "subnet": { "cidr": "10.77.0.0/24" } });
                let request: NetworkCreate = serde_json::from_value(network).map_err(said)?;
                client.create_network(&request).await.map(drop)
            }
            Step::DeleteNetwork => client.delete_network(client.find_network(NETWORK).await?.id).await,
        }
    }
}

/// A set, or a VM when that does not fit, on this host.
fn it(lab: &Lab, host: usize) -> serde_json::Value {
    json!({
        "name": IT, "vcpus": 1, "memory_mib": 64, "host": lab.names[host],
        "bodies": [
            { "set": { "members": [{ "index": 1, "image": crate::alone::furnish::ARCHIVE }] } },
            { "vm": { "image": crate::alone::furnish::DISK } },
        ],
        "networks": [{ "network": super::lab::NETWORK }],
    })
}
