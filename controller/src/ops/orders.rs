//! What is ordered of an instance that exists: start, stop, restart, delete; and its console log.
//!
//! Deletion leaves a tombstone for the host and the record in state `deleting`; record, ports and addresses go in one
//! commit when the host says that nothing is left. While the host is down, the addresses stay taken and the instance
//! stays `deleting` until the host returns or is evacuated: a body that may still run keeps its address from others.

use super::list::find;
use super::move_ends::{settle, where_the_body_is};
use super::moves::migrates;
use super::servers::{Origin, Started, begin, end_task, note};
use super::view::Row;
use super::{AskError, Draft, Ops, OpsError, View, ports};
use crate::model::*;
use amphi_api::host::Claims;
use amphi_api::instance::{ConsoleLog, ExchangePhase, Fault, Instance, Power};
use amphi_api::wire::{Answer, Ask, Tombstone};
use amphi_api::{HostId, InstanceId, ProjectId, VolumeId};
use jiff::Timestamp;

/// Most lines of a console log.
pub const LOG_LINES_MAX: u32 = 10_000;

/// What becomes of an instance's volume when the instance is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VolumeFate {
    #[default]
    Keep,
    /// To the recycle bin.
    Trash,
}

#[derive(Clone, Copy)]
enum Order {
    Start,
    Stop,
    Restart,
}

impl Order {
    fn task(self) -> (Task, &'static str) {
        match self {
            Self::Start => (Task::Start, "start"),
            Self::Stop => (Task::Stop, "stop"),
            Self::Restart => (Task::RebootSoft, "reboot"),
        }
    }
}

impl Ops {
    pub async fn start_instance(&self, scope: ProjectId, id: InstanceId) -> Result<Instance, OpsError> {
        self.order(scope, id, Order::Start).await
    }

    pub async fn stop_instance(&self, scope: ProjectId, id: InstanceId) -> Result<Instance, OpsError> {
        self.order(scope, id, Order::Stop).await
    }

    /// A restart of what is stopped is refused: it would be a start in disguise.
    pub async fn restart_instance(&self, scope: ProjectId, id: InstanceId) -> Result<Instance, OpsError> {
        self.order(scope, id, Order::Restart).await
    }

    async fn order(&self, scope: ProjectId, id: InstanceId, order: Order) -> Result<Instance, OpsError> {
        self.transact(|view| {
            let row = find(&view.instances, scope, id)?;
            let now = Timestamp::now();
            let mut record = ordered(row, order, now)?;
            let mut draft = Draft::default();
            if record != *row.record {
                let (task, action) = order.task();
                let origin = Origin::native(scope);
                let started = Started { view, origin: &origin, before: &row.record, now };
                started.task(&mut draft, &mut record, task, action);
                draft.update(row, &record);
            }
            Ok((draft, ()))
        })
        .await?;
        self.instance(scope, id)
    }

    pub async fn delete_instance(
        &self,
        scope: ProjectId,
        id: InstanceId,
        volume: VolumeFate,
    ) -> Result<(), OpsError> {
        self.delete_server(&Origin::native(scope), id, volume).await
    }

    /// Deletes what is there at once, and what may still run when its host says that it does not.
    pub async fn delete_server(
        &self,
        origin: &Origin,
        id: InstanceId,
        volume: VolumeFate,
    ) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = find(&view.instances, origin.project, id)?;
            if row.server.locked.is_some() && !origin.admin {
                return Err(OpsError::conflict(format!("Instance {id} is locked")));
            }
            let mut draft = Draft::default();
            delete(view, &mut draft, origin, row, volume, Timestamp::now());
            Ok((draft, ()))
        })
        .await
    }

    /// What a terminal at the instance would have shown: a VM's serial line; of a set what it is made of, then the first
    /// member's output. At most about `lines` lines.
    pub async fn console(&self, scope: ProjectId, id: InstanceId, lines: u32) -> Result<String, OpsError> {
        let log = self.console_log(scope, id, None, lines).await?;
        let view = self.world().read();
        let row = find(&view.instances, scope, id)?;
        Ok(super::boot_log::boot_log(&super::instances::instance_view(&view, row)) + &log.text)
    }

    pub async fn console_log(
        &self,
        scope: ProjectId,
        id: InstanceId,
        member: Option<String>,
        lines: u32,
    ) -> Result<ConsoleLog, OpsError> {
        if lines == 0 || lines > LOG_LINES_MAX {
            return Err(OpsError::field("lines", format!("must be 1 to {LOG_LINES_MAX}")));
        }
        let host = {
            let view = self.world().read();
            let row = find(&view.instances, scope, id)?;
            if let Some(name) = &member {
                refuse_no_member(row, name)?;
            }
            row.host.ok_or_else(|| OpsError::conflict("no host has room for the instance: it has no body"))?
        };
        match self.links.ask(host, Ask::ConsoleLog { instance: id, member, lines }).await {
            Ok(Answer::ConsoleLog { text }) => Ok(ConsoleLog { text }),
            Ok(Answer::Figures { .. } | Answer::Usage { .. }) => {
                Err(OpsError::Internal("the host answered another question".into()))
            }
            Err(AskError::Fault(fault)) => Err(OpsError::conflict(fault.message)),
            Err(error @ (AskError::NoLink | AskError::Timeout)) => {
                Err(OpsError::Unavailable(error.to_string()))
            }
        }
    }
}

/// All of a deletion: the record goes where no host has anything of it, else the order to destroy it is given.
pub(super) fn delete(
    view: &View,
    draft: &mut Draft,
    origin: &Origin,
    row: &Row<InstanceRecord>,
    volume: VolumeFate,
    now: Timestamp,
) {
    let Some(host) = row.host else {
        // No host has anything of it that would have to go first.
        note(draft, origin, row, "delete", "compute_terminate_instance", now);
        bury(view, draft, row, now);
        return;
    };
    if row.intent == Intent::Deleting {
        return;
    }
    end_task(view, draft, row, Some("the instance was deleted"), now);
    // In the middle of a move: where the body may still be.
    let host = where_the_body_is(view, row).unwrap_or(host);
    let action = begin(draft, origin, row, "delete", "compute_terminate_instance", now);
    let from = server_state(row, true, now).vm;
    // What the deletion's end is told to; the task itself is the intent.
    let task = Some(Pending { task: Task::Stop, action, since: now, from });
    draft.update(
        row,
        &InstanceRecord {
            intent: Intent::Deleting,
            trash_volume: volume == VolumeFate::Trash,
            exchange: None,
            host: Some(host),
            task,
            updated_at: now,
            ..(*row.record).clone()
        },
    );
    let order = Tombstone::Instance { id: row.id, epoch: row.epoch };
    if let Some(resize) = row.resize.as_ref().filter(|r| r.old_host != host) {
        entomb(view, draft, resize.old_host, order, now);
    }
    entomb(view, draft, host, order, now);
    end_exchange(view, draft, row, Some(host), ("deleted", "the instance was deleted"), now);
}

pub(super) fn refuse_no_member(row: &InstanceRecord, name: &str) -> Result<(), OpsError> {
    let set = row.body_of(row.body).and_then(|b| b.spec.set());
    let (set, _) = set.ok_or_else(|| OpsError::field("member", "a vm has no members"))?;
    let known: Vec<&str> = set.members.iter().map(|m| m.name.as_str()).collect();
    if known.contains(&name) {
        return Ok(());
    }
    Err(OpsError::field("member", format!("no member '{name}'; there are {}", known.join(", "))))
}

fn ordered(row: &InstanceRecord, order: Order, now: Timestamp) -> Result<InstanceRecord, OpsError> {
    if row.intent == Intent::Deleting {
        return Err(OpsError::conflict("the instance is being deleted"));
    }
    if let Some(exchange) = row.exchange {
        return Err(OpsError::conflict(format!("exchange {exchange} is in progress; wait for its end")));
    }
    if let Some(rolling) = &row.rolling {
        return Err(super::updates::under_way(rolling));
    }
    if row.shelved.is_some() {
        return Err(OpsError::conflict("the instance is shelved; unshelve it"));
    }
    if row.host.is_none() {
        return Err(OpsError::conflict("no host has room for the instance"));
    }
    let mut record = row.clone();
    match order {
        Order::Start => record.power = Power::On,
        Order::Stop => record.power = Power::Off,
        Order::Restart if row.power == Power::Off => {
            return Err(OpsError::conflict("the instance is stopped; start it"));
        }
        Order::Restart => record.restarts += 1,
    }
    if record != *row {
        record.updated_at = now;
    }
    Ok(record)
}

/// Orders the host to destroy something. An order for a higher epoch replaces the one before.
pub(super) fn entomb(view: &View, draft: &mut Draft, host: HostId, order: Tombstone, now: Timestamp) {
    let record = TombstoneRecord { host, order, since: now };
    draft.put_record(view.tombstones.get(record.id()), &record);
}

/// Ends the exchange in progress, if there is one, as failed. `at`: where the instance's own room is from now on; what was
/// kept on a move's other host goes free.
pub(super) fn end_exchange(
    view: &View,
    draft: &mut Draft,
    row: &Row<InstanceRecord>,
    at: Option<HostId>,
    (code, message): (&str, &str),
    now: Timestamp,
) {
    let Some(exchange) = row.exchange.and_then(|id| view.exchanges.get(id)) else { return };
    let fault = Fault { code: code.into(), message: message.into(), since: now };
    let record = ExchangeRecord { fault: Some(fault), ..exchange.entering(ExchangePhase::Failed, now) };
    draft.update(exchange, &record);
    migrates(view, draft, exchange, "error", now);
    settle(view, draft, exchange, &InstanceRecord { host: at, ..(*row.record).clone() }, now);
}

/// The record of a deleted instance vanishes with all that it held; its volume goes free or to the recycle bin.
pub(super) fn bury(view: &View, draft: &mut Draft, row: &Row<InstanceRecord>, now: Timestamp) {
    end_task(view, draft, row, None, now);
    let leaving = row.leaving.iter().filter_map(|l| match l {
        Leaving::Port(id) => Some(*id),
        Leaving::Volume(_) => None,
    });
    for port in row.ports.iter().copied().chain(leaving).filter_map(|id| view.ports.get(id)) {
        ports::release(view, draft, port);
    }
    for volume in row.volumes().filter_map(|id| view.volumes.get(id)) {
        let trashed_at = ends_with(row, volume.id).then_some(now).or(volume.trashed_at);
        draft.update(volume, &VolumeRecord { instance: None, trashed_at, ..(*volume.record).clone() });
    }
    if let Some(group) = row.server.group {
        super::server_groups::leave(view, draft, group, row.id);
    }
    for (host, claims) in held(row) {
        draft.unclaim(host, claims);
    }
    if let Some(resize) = &row.resize
        && let Some(migration) = view.migrations.get(resize.migration)
    {
        draft.update(migration, &migration.now_is("done", now));
    }
    super::usage::remember(view, draft, row, now);
    draft.delete(row);
}

/// Whether the volume goes to the recycle bin with the instance.
fn ends_with(row: &InstanceRecord, volume: VolumeId) -> bool {
    if row.volume == Some(volume) {
        return row.trash_volume;
    }
    if row.root_volume == Some(volume) {
        return row.server.root_ends_with_it;
    }
    row.attachments.iter().any(|a| a.volume == volume && a.delete_on_termination)
}

/// All that is claimed for an instance, host by host: both sizes of one that is being resized, nothing of one whose
/// room was given to others.
pub(super) fn held(record: &InstanceRecord) -> impl Iterator<Item = (HostId, Claims)> {
    let offloaded = record.shelved.as_ref().is_some_and(|s| s.offloaded);
    let own = record.host.filter(|_| !offloaded).map(|host| (host, instance_claims(record)));
    let other = record.resize.as_ref().map(|r| (r.old_host, resize_claims(r)));
    own.into_iter().chain(other)
}

/// What an instance takes of its host, its volume apart.
pub(super) fn instance_claims(record: &InstanceRecord) -> Claims {
    let memory_mib = record.memory_mib.max(record.memory_kept_mib.unwrap_or(0));
    Claims::of_instance(record.vcpus, memory_mib, record.server.qos)
}

/// What the other size of a resize takes.
pub(super) fn resize_claims(resize: &Resize) -> Claims {
    Claims::of_instance(resize.old_vcpus, resize.old_memory_mib, resize.old_qos)
}
