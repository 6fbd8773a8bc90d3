//! The engines of one host: what they hold, the order in which they do what they are asked, and the faults that they can
//! be put under. As with a real engine, what was asked is done even when whoever asked has gone.

use super::calls::{Bin, Body, Call, Origin, Reply, State, Volume};
use super::registry::Registry;
use amphi_api::InstanceId;
use amphi_api::instance::BodyKind;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use uuid::Uuid;

/// An engine that can be in trouble by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Engine {
    Sets,
    Vms,
    Volumes,
}

impl Engine {
    pub const ALL: [Engine; 3] = [Engine::Sets, Engine::Vms, Engine::Volumes];

    fn of(call: &Call) -> Self {
        match call {
            Call::Bodies { kind }
            | Call::Prepare { kind }
            | Call::LayOut(Body { kind, .. })
            | Call::Ensure(Body { kind, .. })
            | Call::Stop { kind, .. }
            | Call::Remove { kind, .. }
            | Call::Adjust { kind } => match kind {
                BodyKind::Set => Engine::Sets,
                BodyKind::Vm => Engine::Vms,
            },
            _ => Engine::Volumes,
        }
    }
}

/// Ends the agent at one of its calls.
pub struct Trap {
    /// At the call of this count that changes something, from 1.
    pub at: u64,
    /// After it was carried out, before it was answered; else before.
    pub after: bool,
    /// Kills the agent.
    pub spring: Box<dyn Fn() + Send + Sync>,
}

struct Queue {
    turn: tokio::sync::Mutex<()>,
    hung: watch::Sender<bool>,
}

#[derive(Default)]
struct Held {
    bodies: BTreeMap<(BodyKind, InstanceId), Body>,
    volumes: BTreeMap<Uuid, Volume>,
    full: bool,
    trap: Option<Trap>,
    trap_seen: u64,
    /// The call that the trap sprang at.
    sprung: Option<&'static str>,
}

pub struct HostEngines {
    name: String,
    registry: Arc<Registry>,
    queues: BTreeMap<Engine, Queue>,
    held: Mutex<Held>,
    /// How long a call that changes something takes.
    pace: Duration,
    /// Counts the times the power was cut: what was asked before is not done after.
    power: AtomicU64,
    calls: AtomicU64,
}

impl HostEngines {
    pub fn new(name: &str, registry: Arc<Registry>, pace: Duration) -> Arc<Self> {
        let queue = || Queue { turn: tokio::sync::Mutex::default(), hung: watch::Sender::new(false) };
        Arc::new(Self {
            name: name.to_owned(),
            registry,
            queues: Engine::ALL.map(|engine| (engine, queue())).into(),
            held: Mutex::default(),
            pace,
            power: AtomicU64::new(0),
            calls: AtomicU64::new(0),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// While hung an engine answers nobody; then it does all that it was asked meanwhile, in order.
    pub fn hang(&self, engine: Engine, hung: bool) {
        self.queues[&engine].hung.send_replace(hung);
    }

    /// No room is left for anything new.
    pub fn fill(&self, full: bool) {
        self.held().full = full;
    }

    pub fn set_trap(&self, trap: Trap) {
        let mut held = self.held();
        (held.trap, held.trap_seen) = (Some(trap), 0);
    }

    pub fn unset_trap(&self) {
        self.held().trap = None;
    }

    /// The call that the trap has sprung at; told once.
    pub fn sprung(&self) -> Option<&'static str> {
        self.held().sprung.take()
    }

    /// All that runs has ended; what is on disks stays.
    pub fn cut_power(&self) {
        self.power.fetch_add(1, Ordering::AcqRel);
        let mut held = self.held();
        for body in held.bodies.values_mut() {
            if body.state != State::Suspended {
                body.state = State::Stopped;
            }
        }
        for volume in held.volumes.values_mut() {
            (volume.attached, volume.mounted) = (false, false);
        }
        self.registry.dark(&self.name);
        drop(held);
        Engine::ALL.into_iter().for_each(|engine| self.hang(engine, false));
    }

    /// A member of every set here has ended and was started again: news, and nothing to do.
    pub fn stir(&self) {
        for body in self.held().bodies.values_mut() {
            if let Some(member) = body.members.first_mut() {
                member.restarts += 1;
            }
        }
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// What is left, in words: nothing, when all that was here is gone.
    pub fn leftovers(&self) -> Vec<String> {
        let held = self.held();
        let bodies = held.bodies.values().map(|b| {
            format!("{}: {} of {} at epoch {}, {:?}", self.name, b.kind, b.instance, b.epoch, b.state)
        });
        let volumes = held.volumes.values().map(|v| {
            format!("{}: volume {} attached {} trashed {:?}", self.name, v.id, v.attached, v.trashed_at)
        });
        bodies.chain(volumes).collect()
    }

    // A panic while this is held leaves plain data behind.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what it is asked, in its turn.
    pub async fn call(self: &Arc<Self>, call: Call) -> Reply {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let power = self.power.load(Ordering::Acquire);
        let queue = &self.queues[&Engine::of(&call)];
        let turn = queue.turn.lock().await;
        let mut hung = queue.hung.subscribe();
        // The sender lives as long as this does.
        let _ = hung.wait_for(|hung| !hung).await;
        if call.changes() && !self.pace.is_zero() {
            tokio::time::sleep(self.pace).await;
        }
        let mut held = self.held();
        if self.power.load(Ordering::Acquire) != power {
            return Reply::Gone;
        }
        if call.changes() {
            held.trap_seen += 1;
            let seen = held.trap_seen;
            if let Some(trap) = held.trap.take_if(|trap| trap.at == seen) {
                held.sprung = Some(call.name());
                if !trap.after {
                    (trap.spring)();
                    return Reply::Gone;
                }
                self.carry_out(&mut held, call);
                (trap.spring)();
                return Reply::Gone;
            }
        }
        let reply = self.carry_out(&mut held, call);
        drop(held);
        drop(turn);
        reply
    }

    fn carry_out(&self, held: &mut Held, call: Call) -> Reply {
        match call {
            Call::Bodies { kind } => {
                Reply::Bodies(held.bodies.values().filter(|b| b.kind == kind).cloned().collect())
            }
            Call::Prepare { .. } | Call::Adjust { .. } => Reply::Done,
            Call::LayOut(body) => lay_out(held, body),
            Call::Ensure(body) => self.ensure(held, body),
            Call::Stop { kind, instance } => {
                if let Some(body) = held.bodies.get_mut(&(kind, instance)) {
                    body.state = State::Stopped;
                    self.registry.ends(&self.name, kind, instance);
                }
                Reply::Done
            }
            Call::Remove { kind, instance, epoch } => {
                if held.bodies.get(&(kind, instance)).is_some_and(|b| b.epoch <= epoch) {
                    held.bodies.remove(&(kind, instance));
                    self.registry.ends(&self.name, kind, instance);
                }
                Reply::Done
            }
            Call::Volumes => Reply::Volumes(held.volumes.values().cloned().collect()),
            Call::EnsureVolume { id, size_bytes, from } => ensure_volume(held, id, size_bytes, from),
            Call::IsMounted { id } => Reply::Mounted(held.volumes.get(&id).is_some_and(|v| v.mounted)),
            Call::Snapshot { of, id } => {
                let Some(origin) = held.volumes.get(&of).cloned() else { return Reply::Unknown };
                if held.full && !held.volumes.contains_key(&id) {
                    return Reply::Full;
                }
                let copy = Volume { id, snapshot_of: Some(of), attached: false, mounted: false, ..origin };
                held.volumes.entry(id).or_insert(copy);
                Reply::Done
            }
            Call::Attach { id, .. } | Call::Detach { id } | Call::Read { id } | Call::Bin { id, .. } => {
                let writer = held
                    .bodies
                    .values()
                    .find(|b| b.state != State::Stopped && b.writes.iter().any(|v| v.0 == id));
                let writer = writer.map(|b| b.instance);
                let Some(volume) = held.volumes.get_mut(&id) else {
                    let gone = matches!(call, Call::Detach { .. } | Call::Bin { order: Bin::Purge, .. });
                    return if gone { Reply::Done } else { Reply::Unknown };
                };
                match (call, writer) {
                    (Call::Attach { .. }, _) if volume.trashed_at.is_some() => Reply::Trashed,
                    (Call::Attach { mounted: false, .. }, _) if volume.mounted => {
                        Reply::Busy("the mount".to_owned())
                    }
                    (Call::Attach { mounted, .. }, _) => {
                        (volume.attached, volume.mounted) = (true, mounted);
                        Reply::Done
                    }
                    (Call::Read { .. }, _) => Reply::Bytes(volume.bytes),
                    (Call::Detach { .. } | Call::Bin { .. }, Some(writer)) => Reply::Busy(writer.to_string()),
                    (Call::Bin { order: Bin::Restore, .. }, _) => {
                        volume.trashed_at = None;
                        Reply::Done
                    }
                    (Call::Bin { order: Bin::Trash { at }, .. }, _) => {
                        volume.trashed_at.get_or_insert(at);
                        (volume.attached, volume.mounted) = (false, false);
                        Reply::Done
                    }
                    (Call::Bin { order: Bin::Purge, .. }, _) => {
                        held.volumes.remove(&id);
                        Reply::Done
                    }
                    _ => {
                        (volume.attached, volume.mounted) = (false, false);
                        Reply::Done
                    }
                }
            }
        }
    }

    fn ensure(&self, held: &mut Held, body: Body) -> Reply {
        let key = (body.kind, body.instance);
        match held.bodies.get(&key) {
            Some(other) if other.epoch != body.epoch => {
                return Reply::Refused(format!("a body of epoch {} is here", other.epoch));
            }
            None if held.full => return Reply::Refused("no space left on device".to_owned()),
            _ => {}
        }
        if let Some(volume) = body.writes.iter().find(|v| !held.volumes.get(&v.0).is_some_and(|v| v.attached))
        {
            return Reply::Refused(format!("volume {volume} is not attached"));
        }
        if body.state == State::Suspended {
            self.registry.ends(&self.name, body.kind, body.instance);
        } else {
            let count = self.registry.lives(&self.name, &body, |id| held.volumes.get(&id).map(|v| v.bytes));
            for volume in &body.writes {
                if let Some(volume) = held.volumes.get_mut(&volume.0) {
                    volume.bytes = count;
                }
            }
        }
        held.bodies.insert(key, body);
        Reply::Done
    }
}

fn lay_out(held: &mut Held, body: Body) -> Reply {
    let key = (body.kind, body.instance);
    match held.bodies.get(&key) {
        Some(other) if other.epoch != body.epoch || other.state != State::Stopped => {
            return Reply::Refused(format!("a body of epoch {} is here", other.epoch));
        }
        None if held.full => return Reply::Refused("no space left on device".to_owned()),
        _ => {}
    }
    held.bodies.insert(key, body);
    Reply::Done
}

fn ensure_volume(held: &mut Held, id: Uuid, size_bytes: u64, from: Option<Origin>) -> Reply {
    if let Some(volume) = held.volumes.get_mut(&id) {
        volume.size_bytes = volume.size_bytes.max(size_bytes);
        return Reply::Done;
    }
    if held.full {
        return Reply::Full;
    }
    let bytes = match from {
        None => 0,
        Some(Origin::Bytes(bytes)) => bytes,
        Some(Origin::Copy(of)) => match held.volumes.get(&of) {
            Some(origin) => origin.bytes,
            None => return Reply::Unknown,
        },
    };
    let volume = Volume {
        id,
        snapshot_of: None,
        size_bytes,
        trashed_at: None,
        attached: false,
        mounted: false,
        bytes,
    };
    held.volumes.insert(id, volume);
    Reply::Done
}
